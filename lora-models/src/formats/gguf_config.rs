//! GGUF metadata as a Hugging Face `config.json`, in the spelling of transformers 4.

use std::f64::consts::TAU;

use serde_json::{Value as Json, json};

use super::gguf::GgufFile;
use super::gguf_model::ROPE_FREQUENCIES;
use super::gguf_value::Value;
use crate::families::{self, Family};
use crate::modules::NormKind;
use crate::{Error, Result};

/// Factors that other architectures multiply with; where one is set we would compute something else.
const UNKNOWN_SCALES: [&str; 4] =
    ["attention.scale", "embedding_scale", "logit_scale", "residual_scale"];

/// The configuration. Architecture `llama` is `mistral` where it has a sliding window.
pub(crate) fn config_json(file: &GgufFile) -> Result<Json> {
    let keys = Keys::new(file)?;
    let hidden_size = keys.size("embedding_length")?;
    let heads = keys.size("attention.head_count")?;
    let layers = keys.size("block_count")?;
    let head_width = keys.head_width(hidden_size, heads)?;
    let rope_theta = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
    let epsilon_key = match keys.family.modules.norm {
        NormKind::Layer => "attention.layer_norm_epsilon",
        NormKind::Rms | NormKind::RmsPlusOne => "attention.layer_norm_rms_epsilon",
    };
    let epsilon = keys.float(epsilon_key)?.ok_or_else(|| keys.missing(epsilon_key))?;
    let window = keys.size_or_none("attention.sliding_window")?.filter(|&window| window > 0);
    let Family { mut model_type, mut class, .. } = *keys.family;
    if let ("llama", Some(_)) = (model_type, window) {
        (model_type, class) = ("mistral", "MistralForCausalLM");
    }
    keys.refuse_what_we_do_not_compute()?;

    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_size": hidden_size,
        "intermediate_size": keys.size("feed_forward_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size_or_none("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_width,
        "vocab_size": vocab_size(file)?,
        "max_position_embeddings": keys.size("context_length")?,
        "rms_norm_eps": shortest(epsilon),
        "rope_theta": shortest(rope_theta),
        "rope_scaling": keys.rope_scaling()?,
        "hidden_act": keys.family.hidden_act,
        "attention_bias": file.find("blk.0.attn_q.bias").is_some(),
        "mlp_bias": file.find("blk.0.ffn_up.bias").is_some(),
        "tie_word_embeddings": file.find("output.weight").is_none(),
        "sliding_window": window,
        "use_sliding_window": window.is_some(),
        "bos_token_id": file.get_u32("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": eos_tokens(file)?,
        "pad_token_id": file.get_u32("tokenizer.ggml.padding_token_id")?,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    });
    if model_type.starts_with("qwen") {
        // Where a Qwen file has a window, every block has it.
        config["max_window_layers"] = json!(if window.is_some() { 0 } else { layers });
    }
    if model_type.starts_with("gemma") {
        keys.add_gemma(&mut config, layers, head_width)?;
    }
    if let Some(factors) = rope_factors(file, head_width)? {
        if let Some(scaling) = llama3_scaling(&factors, f64::from(rope_theta)) {
            config["rope_scaling"] = scaling;
        } else {
            config["rope_freqs"] = factors.into_iter().map(shortest).collect();
        }
    }
    if let Some(object) = config.as_object_mut() {
        for (key, alias) in keys.family.aliases {
            if let Some(value) = object.shift_remove(*key) {
                object.insert((*alias).to_owned(), value);
            }
        }
    }
    Ok(config)
}

/// The metadata keys of the file's architecture.
struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'static str,
    family: &'static Family,
}

impl<'a> Keys<'a> {
    fn new(file: &'a GgufFile) -> Result<Self> {
        if let Some(kind) = file.get_str("general.type")?
            && kind != "model"
        {
            let reason = format!("this GGUF file holds `{kind}`, not a model");
            return Err(Error::malformed(file.path(), reason));
        }
        if let Some(count) = file.get_u32("split.count")?
            && count > 1
        {
            let reason = format!("this is one of {count} parts of a model");
            return Err(Error::malformed(file.path(), reason)
                .with_hint("join the parts with llama.cpp's `llama-gguf-split --merge`"));
        }
        let Some(name) = file.get_str("general.architecture")? else {
            return Err(Error::malformed(
                file.path(),
                "metadata `general.architecture` is missing: not a language model?",
            ));
        };
        match families::of_gguf(name).and_then(|family| Some((family, family.gguf?))) {
            Some((family, architecture)) => Ok(Self { file, architecture, family }),
            None => Err(Error::malformed(
                file.path(),
                format!("architecture `{name}` is not supported"),
            )
            .with_hint(format!("those that are: {}", families::gguf_architectures().join(", ")))),
        }
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn missing(&self, key: &str) -> Error {
        let reason = format!("metadata `{}` is missing", self.key(key));
        Error::malformed(self.file.path(), reason)
            .with_hint("convert the model again with llama.cpp's `convert_hf_to_gguf.py`")
    }

    fn size(&self, key: &str) -> Result<u32> {
        match self.size_or_none(key)? {
            Some(0) => {
                let reason = format!("metadata `{}` is 0", self.key(key));
                Err(Error::malformed(self.file.path(), reason))
            }
            Some(size) => Ok(size),
            None => Err(self.missing(key)),
        }
    }

    /// A size; one for each block is good where all are the same.
    fn size_or_none(&self, key: &str) -> Result<Option<u32>> {
        let key = self.key(key);
        let Some(Value::Array(array)) = self.file.metadata(&key) else {
            return self.file.get_u32(&key);
        };
        let sizes = array.as_u64s().unwrap_or_default();
        match sizes.first().and_then(|&first| u32::try_from(first).ok()) {
            Some(first) if sizes.iter().all(|&size| size == u64::from(first)) => Ok(Some(first)),
            _ => Err(Error::malformed(
                self.file.path(),
                format!("metadata `{key}` differs from block to block, which is not supported"),
            )),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f32>> {
        self.file.get_f32(&self.key(key))
    }

    fn head_width(&self, hidden_size: u32, heads: u32) -> Result<u32> {
        let path = self.file.path();
        let width = match self.size_or_none("attention.key_length")? {
            Some(width) => width,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let reason = format!("width {hidden_size} is not a multiple of {heads} heads");
                return Err(Error::malformed(path, reason));
            }
        };
        if width == 0 {
            return Err(Error::malformed(path, "the attention heads have width 0"));
        }
        for (key, what) in [
            ("attention.value_length", "values of another width than the keys"),
            ("rope.dimension_count", "rotary embedding on a part of each head"),
        ] {
            let other = self.size_or_none(key)?.unwrap_or(width);
            if other != width {
                let key = self.key(key);
                let reason =
                    format!("`{key}` is {other}, heads are {width} wide: {what} are not supported");
                return Err(Error::malformed(path, reason));
            }
        }
        Ok(width)
    }

    /// `rope_scaling` from the metadata; Llama 3's is in a tensor instead.
    fn rope_scaling(&self) -> Result<Json> {
        let kind = self.file.get_str(&self.key("rope.scaling.type"))?.unwrap_or("none");
        let factor = match self.float("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            // As files of 2023 spell it.
            None => self.float("rope.scale_linear")?,
        };
        let original = self.size_or_none("rope.scaling.original_context_length")?;
        Ok(match (kind, factor) {
            ("none", _) => Json::Null,
            ("linear", Some(factor)) if factor != 0.0 && factor != 1.0 => {
                json!({"rope_type": "linear", "factor": shortest(factor)})
            }
            ("linear", _) => Json::Null,
            // Which of them run is for the decoder's configuration to say.
            (kind, factor) => json!({
                "rope_type": kind,
                "factor": factor.map(shortest),
                "original_max_position_embeddings": original,
            }),
        })
    }

    /// What Gemma's files say beyond Llama's, and what llama.cpp knows without being told.
    fn add_gemma(&self, config: &mut Json, layers: u32, head_width: u32) -> Result<()> {
        // The largest of each generation, and only it, scales by the width of a head as if heads filled d.
        let whole = config["hidden_size"].as_u64().unwrap_or_default();
        let heads = config["num_attention_heads"].as_u64().unwrap_or(1).max(1);
        let largest = matches!((self.architecture, layers), ("gemma2", 46) | ("gemma3", 62));
        let scalar = if largest { whole / heads } else { u64::from(head_width) };
        let Some(object) = config.as_object_mut() else { return Ok(()) };
        object.shift_remove("use_sliding_window");
        if self.architecture == "gemma" {
            object.shift_remove("sliding_window");
            return Ok(());
        }
        object.insert("query_pre_attn_scalar".into(), scalar.into());
        // Absent and null are not the same there.
        if object.get("sliding_window").is_some_and(Json::is_null) {
            object.shift_remove("sliding_window");
        }
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if let Some(cap) = self.float(key)? {
                object.insert(key.into(), shortest(cap).into());
            }
        }
        if self.architecture == "gemma3" {
            let local = self.float("rope.freq_base_swa")?.unwrap_or(10_000.0);
            object.insert("rope_local_base_freq".into(), shortest(local).into());
            object.insert("sliding_window_pattern".into(), 6.into());
        }
        Ok(())
    }

    fn refuse_what_we_do_not_compute(&self) -> Result<()> {
        let path = self.file.path();
        if let Some(experts) = self.size_or_none("expert_count")?
            && experts > 0
        {
            let reason = format!("a mixture of {experts} experts is not supported");
            return Err(Error::malformed(path, reason));
        }
        for key in UNKNOWN_SCALES {
            if let Some(scale) = self.float(key)?
                && scale != 0.0
                && scale != 1.0
            {
                let reason =
                    format!("metadata `{}` is {scale}, which is not supported", self.key(key));
                return Err(Error::malformed(path, reason));
            }
        }
        Ok(())
    }
}

/// Rows of the embedding; the metadata's number may be that of the tokenizer.
fn vocab_size(file: &GgufFile) -> Result<usize> {
    match file.find("token_embd.weight").map(|info| info.shape) {
        Some(&[rows, _]) => Ok(rows),
        Some(shape) => Err(Error::malformed(
            file.path(),
            format!("tensor `token_embd.weight` has shape {shape:?}, not rows of a vocabulary"),
        )),
        None => Err(Error::malformed(file.path(), "there is no tensor `token_embd.weight`")
            .with_hint("this file may hold a vocabulary only")),
    }
}

/// The end-of-text token; with the end-of-turn token, where that is another.
fn eos_tokens(file: &GgufFile) -> Result<Json> {
    let eos = file.get_u32("tokenizer.ggml.eos_token_id")?;
    let turn = file.get_u32("tokenizer.ggml.eot_token_id")?;
    Ok(match (eos, turn) {
        (Some(eos), Some(turn)) if eos != turn => json!([eos, turn]),
        (eos, turn) => json!(eos.or(turn)),
    })
}

/// The divisors of the rotary frequencies, where the file has some that are not 1.
fn rope_factors(file: &GgufFile, head_width: u32) -> Result<Option<Vec<f32>>> {
    let Some(info) = file.find(ROPE_FREQUENCIES) else {
        return Ok(None);
    };
    let expected = head_width as usize / 2;
    if info.shape != [expected] {
        let reason =
            format!("tensor `{ROPE_FREQUENCIES}` has shape {:?}, not [{expected}]", info.shape);
        return Err(Error::malformed(file.path(), reason));
    }
    let factors = file.read_f32(ROPE_FREQUENCIES)?;
    if let Some(wrong) = factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
        let reason = format!("tensor `{ROPE_FREQUENCIES}` holds {wrong}, not a positive divisor");
        return Err(Error::malformed(file.path(), reason));
    }
    Ok(factors.iter().any(|&factor| factor != 1.0).then_some(factors))
}

/// Llama 3's `rope_scaling`, if these divisors come from one with the usual 1 and 4 as borders: 1 for
/// high frequencies, `factor` for low ones, between them 1 / ((1-s)/factor + s) with
/// s = (original/wavelength - 1) / 3.
fn llama3_scaling(divisors: &[f32], theta: f64) -> Option<Json> {
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let wavelength = |index: usize| TAU * theta.powf(index as f64 / divisors.len() as f64);
    let between = divisors.iter().enumerate().find_map(|(index, &divisor)| {
        let divisor = f64::from(divisor);
        let smooth = (1.0 / divisor - 1.0 / factor) / (1.0 - 1.0 / factor);
        (smooth > 1e-3 && smooth < 1.0 - 1e-3).then(|| wavelength(index) * (1.0 + 3.0 * smooth))
    })?;
    let original = between.round();
    let expected = |index: usize| {
        let smooth = ((original / wavelength(index) - 1.0) / 3.0).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    let same = divisors.iter().enumerate().all(|(index, &divisor)| {
        let expected = expected(index);
        (f64::from(divisor) - expected).abs() < 1e-3 * expected
    });
    same.then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original as u64,
        })
    })
}

/// The f64 with the fewest digits that is this f32: 1e-5, not 9.999999747378752e-6.
pub(super) fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}
