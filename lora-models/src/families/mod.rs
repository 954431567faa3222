//! Model families: `config.json` to [`DecoderConfig`]. One file per `model_type`, no mathematics.
//!
//! Both spellings are read: transformers 5 (`rope_parameters`) and 4 (`rope_theta`, `rope_scaling`).

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use std::path::Path;

use serde_json::Value;

use crate::decoder_config::{DecoderConfig, RopeConfig, RopeScaling};
use crate::error::{Error, Result};

/// The families that are known, by `model_type`.
pub const MODEL_TYPES: &[&str] = &["llama", "mistral", "qwen2", "qwen3"];

/// Reads a decoder's configuration.
///
/// # Errors
/// An unknown `model_type`, a missing or mistyped key, sizes that contradict each other.
pub fn decoder_config(json: &Value, path: &Path) -> Result<DecoderConfig> {
    let keys = Keys { json, path };
    let model_type = keys.text("model_type")?;
    let config = match model_type.as_str() {
        "llama" => llama::config(&keys),
        "mistral" => mistral::config(&keys),
        "qwen2" => qwen2::config(&keys),
        "qwen3" => qwen3::config(&keys),
        other => Err(Error::malformed(path, format!("model_type `{other}` is not supported"))
            .with_hint(format!("supported families: {}", MODEL_TYPES.join(", ")))),
    }?;
    check(&config, path)?;
    Ok(config)
}

/// Sizes that can't be, found before a weight is read.
fn check(config: &DecoderConfig, path: &Path) -> Result<()> {
    let sizes = [
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_attention_heads", config.num_attention_heads),
        ("num_key_value_heads", config.num_key_value_heads),
        ("head_dim", config.head_dim),
    ];
    for (key, size) in sizes {
        if size == 0 || size > 1 << 24 {
            return Err(Error::malformed(path, format!("`{key}` is {size}")));
        }
    }
    let (heads, groups) = (config.num_attention_heads, config.num_key_value_heads);
    if !heads.is_multiple_of(groups) {
        return Err(Error::malformed(
            path,
            format!(
                "`num_attention_heads` ({heads}) is no multiple of `num_key_value_heads` ({groups})"
            ),
        ));
    }
    if !config.head_dim.is_multiple_of(2) {
        let odd = format!("`head_dim` is {}, rotary positions need an even one", config.head_dim);
        return Err(Error::malformed(path, odd));
    }
    if let RopeScaling::Factors(factors) = &config.rope.scaling
        && factors.len() != config.head_dim / 2
    {
        return Err(Error::malformed(
            path,
            format!("{} rope factors for {} frequencies", factors.len(), config.head_dim / 2),
        ));
    }
    Ok(())
}

/// A `config.json`, read key by key with errors that name the key.
pub(crate) struct Keys<'a> {
    json: &'a Value,
    path: &'a Path,
}

impl Keys<'_> {
    /// The part that all llama-like decoders share.
    pub(crate) fn common(&self) -> Result<DecoderConfig> {
        let hidden_size = self.size("hidden_size")?;
        let heads = self.size("num_attention_heads")?;
        let layers = self.size("num_hidden_layers")?;
        let head_dim = match self.size_or_none("head_dim")? {
            Some(size) => size,
            None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => return Err(self.wrong("hidden_size", "a multiple of `num_attention_heads`")),
        };
        if layers > 10_000 {
            return Err(self.wrong("num_hidden_layers", "at most 10000"));
        }
        self.check_activation()?;
        Ok(DecoderConfig {
            model_type: self.text("model_type")?,
            vocab_size: self.size("vocab_size")?,
            hidden_size,
            intermediate_size: self.size("intermediate_size")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: self.size_or_none("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            max_position_embeddings: self.size_or_none("max_position_embeddings")?.unwrap_or(2048),
            rms_norm_eps: self.number_or_none("rms_norm_eps")?.unwrap_or(1e-6),
            rope: self.rope()?,
            tie_word_embeddings: self.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            query_key_norm: false,
            windows: vec![None; layers],
        })
    }

    /// Windows of models that say per block whether attention slides (`layer_types`) or from which
    /// block on it does (`max_window_layers`), where `use_sliding_window` is set.
    pub(crate) fn optional_windows(&self, layers: usize) -> Result<Vec<Option<usize>>> {
        let window = self.size_or_none("sliding_window")?;
        let used = self.flag("use_sliding_window")?.unwrap_or(false);
        let (true, Some(window)) = (used, window) else { return Ok(vec![None; layers]) };
        if let Some(Value::Array(types)) = self.json.get("layer_types") {
            if types.len() != layers {
                return Err(self.wrong("layer_types", "one entry for each block"));
            }
            let sliding = |kind: &Value| kind.as_str() == Some("sliding_attention");
            return Ok(types.iter().map(|kind| sliding(kind).then_some(window)).collect());
        }
        let first = self.size_or_none("max_window_layers")?.unwrap_or(28);
        Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
    }

    fn rope(&self) -> Result<RopeConfig> {
        if let Some(Value::Array(factors)) = self.json.get("rope_freqs") {
            let factors: Option<Vec<f64>> = factors.iter().map(Value::as_f64).collect();
            let factors = factors.ok_or_else(|| self.wrong("rope_freqs", "a list of numbers"))?;
            let theta = self.number_or_none("rope_theta")?.unwrap_or(10_000.0);
            return Ok(RopeConfig { theta, scaling: RopeScaling::Factors(factors) });
        }
        let (object, name) = match (self.json.get("rope_parameters"), self.json.get("rope_scaling"))
        {
            (Some(Value::Object(object)), _) => (Some(object), "rope_parameters"),
            (_, Some(Value::Object(object))) => (Some(object), "rope_scaling"),
            _ => (None, "rope_scaling"),
        };
        let inside = |key: &str| object.and_then(|object| object.get(key));
        let number = |key: &str| {
            let found = inside(key).and_then(Value::as_f64);
            found.ok_or_else(|| self.wrong(&format!("{name}.{key}"), "a number"))
        };
        let theta = match inside("rope_theta") {
            Some(_) => number("rope_theta")?,
            None => self.number_or_none("rope_theta")?.unwrap_or(10_000.0),
        };
        let kind = inside("rope_type").or_else(|| inside("type"));
        let scaling = match kind.and_then(Value::as_str).unwrap_or("default") {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: number("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_position_embeddings: number("original_max_position_embeddings")?,
            },
            other => {
                let reason = format!("`{name}.rope_type` is `{other}`, which is not supported");
                return Err(Error::malformed(self.path, reason)
                    .with_hint("supported: default, linear, llama3"));
            }
        };
        if !(theta.is_finite() && theta > 0.0) {
            return Err(self.wrong("rope_theta", "a positive number"));
        }
        Ok(RopeConfig { theta, scaling })
    }

    fn check_activation(&self) -> Result<()> {
        match self.json.get("hidden_act").map(Value::as_str) {
            None | Some(Some("silu" | "swish")) => Ok(()),
            _ => Err(self.wrong("hidden_act", "`silu`")),
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, `null` included.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.json.get(key).is_some()
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize> {
        self.size_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn size_or_none(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| self.wrong(key, "a whole number"))
    }

    fn number_or_none(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, "a number"))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false"))
    }

    fn text(&self, key: &str) -> Result<String> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        value.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, "a string"))
    }

    fn missing(&self, key: &str) -> Error {
        Error::malformed(self.path, format!("key `{key}` is missing"))
            .with_hint("this must be the config.json of a language model that transformers wrote")
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.json.get(key).map_or(String::new(), |value| format!(", not {value}"));
        Error::malformed(self.path, format!("key `{key}` must be {expected}{found}"))
    }
}
