//! A `config.json`, read key by key with errors that name the key.
//!
//! Both spellings are read: transformers 5 (`rope_parameters`) and 4 (`rope_theta`, `rope_scaling`).

use std::path::Path;

use lora_core::ops::Activation;
use serde_json::{Map, Value};

use super::Family;
use crate::decoder_config::{DecoderConfig, RopeConfig, RopeScaling};
use crate::error::{Error, Result};

/// The keys of a family's `config.json`, under the names that Llama has for them.
pub(crate) struct Keys<'a> {
    json: &'a Value,
    path: &'a Path,
    family: &'static Family,
}

impl<'a> Keys<'a> {
    pub(super) fn new(json: &'a Value, path: &'a Path, family: &'static Family) -> Self {
        Self { json, path, family }
    }

    /// The part that all decoders share.
    pub(super) fn common(&self) -> Result<DecoderConfig> {
        self.with_intermediate(self.size("intermediate_size")?)
    }

    /// The same, for families that do not have to say how wide the feed-forward part is.
    pub(super) fn with_intermediate(&self, intermediate_size: usize) -> Result<DecoderConfig> {
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
        Ok(DecoderConfig {
            model_type: self.family.model_type.to_owned(),
            modules: self.family.modules,
            vocab_size: self.size("vocab_size")?,
            hidden_size,
            intermediate_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: self.size_or_none("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            max_position_embeddings: self.size_or_none("max_position_embeddings")?.unwrap_or(2048),
            norm_epsilon: self.number_or_none("rms_norm_eps")?.unwrap_or(1e-6),
            rope: self.rope_of("full_attention", 10_000.0)?,
            local_rope: None,
            activation: self.activation()?,
            embedding_scale: 1.0,
            query_scale: None,
            score_cap: None,
            logit_cap: None,
            tie_word_embeddings: self.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            windows: vec![None; layers],
            encoder: None,
        })
    }

    /// Windows of models that say per block whether attention slides (`layer_types`) or from which
    /// block on it does (`max_window_layers`), where `use_sliding_window` is set.
    pub(super) fn optional_windows(&self, layers: usize) -> Result<Vec<Option<usize>>> {
        let window = self.size_or_none("sliding_window")?;
        let used = self.flag("use_sliding_window")?.unwrap_or(false);
        let (true, Some(window)) = (used, window) else { return Ok(vec![None; layers]) };
        if let Some(sliding) = self.sliding_layers(layers)? {
            return Ok(sliding.into_iter().map(|sliding| sliding.then_some(window)).collect());
        }
        let first = self.size_or_none("max_window_layers")?.unwrap_or(28);
        Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
    }

    /// Windows of models in which they are always on: on the blocks that `layer_types` names or, without that
    /// key, on all but each block whose number, from 1, `pattern` divides. `window` is that of a configuration
    /// without the key.
    pub(super) fn layer_windows(
        &self,
        layers: usize,
        window: usize,
        pattern: usize,
    ) -> Result<Vec<Option<usize>>> {
        let window = match self.size_or_none("sliding_window")? {
            None if self.has("sliding_window") => return Ok(vec![None; layers]),
            found => found.unwrap_or(window),
        };
        let sliding = match self.sliding_layers(layers)? {
            Some(sliding) => sliding,
            None => (1..=layers).map(|layer| !layer.is_multiple_of(pattern)).collect(),
        };
        Ok(sliding.into_iter().map(|sliding| sliding.then_some(window)).collect())
    }

    /// Which blocks have a window, as `layer_types` says it.
    fn sliding_layers(&self, layers: usize) -> Result<Option<Vec<bool>>> {
        let Some(Value::Array(types)) = self.json.get("layer_types") else { return Ok(None) };
        if types.len() != layers {
            return Err(self.wrong("layer_types", "one entry for each block"));
        }
        Ok(Some(types.iter().map(|kind| kind.as_str() == Some("sliding_attention")).collect()))
    }

    /// The rotation of the blocks of this type, where there are several; else that of all. `theta` is that of a
    /// configuration that has none.
    pub(super) fn rope_of(&self, layer_type: &str, theta: f64) -> Result<RopeConfig> {
        if let Some(Value::Array(factors)) = self.json.get("rope_freqs") {
            let factors: Option<Vec<f64>> = factors.iter().map(Value::as_f64).collect();
            let factors = factors.ok_or_else(|| self.wrong("rope_freqs", "a list of numbers"))?;
            let theta = self.number_or_none("rope_theta")?.unwrap_or(theta);
            return Ok(RopeConfig { theta, scaling: RopeScaling::Factors(factors) });
        }
        if let Some(object) = self.rope_parameters(layer_type) {
            return self.rope(Some(object), &format!("rope_parameters.{layer_type}"), theta);
        }
        let object = |key: &str| self.json.get(key).and_then(Value::as_object);
        match object("rope_parameters") {
            Some(found) => self.rope(Some(found), "rope_parameters", theta),
            None => self.rope(object("rope_scaling"), "rope_scaling", theta),
        }
    }

    /// The rotation of the blocks with a window, in models where it is another one; in the older spelling `key`
    /// is its base.
    pub(super) fn local_rope(&self, key: &str, theta: f64) -> Result<RopeConfig> {
        if let Some(object) = self.rope_parameters("sliding_attention") {
            return self.rope(Some(object), "rope_parameters.sliding_attention", theta);
        }
        let theta = self.positive_or_none(key)?.unwrap_or(theta);
        Ok(RopeConfig { theta, scaling: RopeScaling::Default })
    }

    /// The parameters of one type of blocks, where `rope_parameters` says them by type.
    fn rope_parameters(&self, layer_type: &str) -> Option<&Map<String, Value>> {
        self.json.get("rope_parameters")?.get(layer_type)?.as_object()
    }

    fn rope(
        &self,
        object: Option<&Map<String, Value>>,
        name: &str,
        default_theta: f64,
    ) -> Result<RopeConfig> {
        let inside = |key: &str| object.and_then(|object| object.get(key));
        let number = |key: &str| {
            let found = inside(key).and_then(Value::as_f64);
            found.ok_or_else(|| self.wrong(&format!("{name}.{key}"), "a number"))
        };
        let theta = match inside("rope_theta") {
            Some(_) => number("rope_theta")?,
            None => self.number_or_none("rope_theta")?.unwrap_or(default_theta),
        };
        let partial = inside("partial_rotary_factor").or(self.json.get("partial_rotary_factor"));
        if partial.and_then(Value::as_f64).is_some_and(|factor| factor != 1.0) {
            let reason =
                "`partial_rotary_factor` is not 1: heads rotated in part are not supported";
            return Err(Error::malformed(self.path, reason));
        }
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

    fn activation(&self) -> Result<Activation> {
        let named = self.get("hidden_act").map_or(Some(self.family.hidden_act), Value::as_str);
        match named {
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("gelu") => Ok(Activation::Gelu),
            _ => Err(self.wrong("hidden_act", "`silu`, `gelu` or `gelu_pytorch_tanh`")),
        }
    }

    /// An error where a switch is on that changes the model into one that we do not compute.
    pub(super) fn refuse(&self, key: &str, what: &str) -> Result<()> {
        match self.flag(key)? {
            Some(true) => {
                let reason = format!("`{key}` is true: {what} is not supported");
                Err(Error::malformed(self.path, reason))
            }
            _ => Ok(()),
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(self.spelled(key)).filter(|value| !value.is_null())
    }

    /// The family's name of the key.
    fn spelled<'k>(&self, key: &'k str) -> &'k str {
        let alias = self.family.aliases.iter().find(|(ours, _)| *ours == key);
        alias.map_or(key, |(_, theirs)| theirs)
    }

    /// Whether the key is there, `null` included.
    pub(super) fn has(&self, key: &str) -> bool {
        self.json.get(self.spelled(key)).is_some()
    }

    pub(super) fn size(&self, key: &str) -> Result<usize> {
        self.size_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn size_or_none(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| self.wrong(key, "a whole number"))
    }

    /// A number above zero.
    pub(super) fn positive_or_none(&self, key: &str) -> Result<Option<f64>> {
        match self.number_or_none(key)? {
            Some(number) if !(number.is_finite() && number > 0.0) => {
                Err(self.wrong(key, "a positive number"))
            }
            number => Ok(number),
        }
    }

    pub(super) fn number_or_none(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, "a number"))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false"))
    }

    pub(super) fn text(&self, key: &str) -> Result<String> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        value.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, "a string"))
    }

    pub(super) fn text_or_none(&self, key: &str) -> Result<Option<String>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(|text| Some(text.to_owned())).ok_or_else(|| self.wrong(key, "a string"))
    }

    /// An error where a key is there and does not say this.
    pub(super) fn must_be(&self, key: &str, expected: &str, why: &str) -> Result<()> {
        match self.text_or_none(key)? {
            Some(found) if found != expected => {
                let reason = format!("`{key}` is `{found}`: {why}");
                Err(Error::malformed(self.path, reason))
            }
            _ => Ok(()),
        }
    }

    /// Names by number, from 0 on: `{"0": "no", "1": "yes"}`.
    pub(super) fn names(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let named = |index: usize| value.get(index.to_string())?.as_str().map(str::to_owned);
        let count = value.as_object().map_or(0, Map::len);
        let names: Option<Vec<String>> = (0..count).map(named).collect();
        names.map(Some).ok_or_else(|| self.wrong(key, "a name for each number from 0 on"))
    }

    fn missing(&self, key: &str) -> Error {
        Error::malformed(self.path, format!("key `{}` is missing", self.spelled(key)))
            .with_hint("this must be the config.json of a language model that transformers wrote")
    }

    pub(super) fn wrong(&self, key: &str, expected: &str) -> Error {
        let key = self.spelled(key);
        let found = self.json.get(key).map_or(String::new(), |value| format!(", not {value}"));
        Error::malformed(self.path, format!("key `{key}` must be {expected}{found}"))
    }
}
