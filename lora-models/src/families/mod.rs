//! Model families: `config.json` to [`DecoderConfig`]. One file per `model_type`, no mathematics.

mod bert;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod keys;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod roberta;
mod starcoder2;

use std::path::Path;

use serde_json::Value;

use crate::decoder_config::{DecoderConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::modules::Modules;
use keys::Keys;

/// A family of decoders.
pub(crate) struct Family {
    /// `model_type` of its `config.json`.
    pub(crate) model_type: &'static str,
    /// The class that transformers has for it.
    pub(crate) class: &'static str,
    /// Its architecture in GGUF files, where these are read.
    pub(crate) gguf: Option<&'static str>,
    /// What its decoders are made of.
    pub(crate) modules: &'static Modules,
    /// The activation of a `config.json` that says none.
    pub(crate) hidden_act: &'static str,
    /// Our name of a key of `config.json`, and the family's, where it has another one.
    pub(crate) aliases: &'static [(&'static str, &'static str)],
    /// What PEFT adapts where nobody says what; empty where it asks.
    pub(crate) peft_targets: &'static [&'static str],
    /// The configuration from the keys.
    pub(crate) config: fn(&Keys) -> Result<DecoderConfig>,
}

/// The families that are known. Adding one that is a variation of the decoder takes its file and its
/// name here.
const FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &gpt2::FAMILY,
    &starcoder2::FAMILY,
    &bert::FAMILY,
    &roberta::FAMILY,
];

/// The `model_type` of each family.
pub fn model_types() -> Vec<&'static str> {
    FAMILIES.iter().map(|family| family.model_type).collect()
}

/// The family of a `model_type`.
pub(crate) fn family(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.model_type == model_type)
}

/// The family of a GGUF architecture.
pub(crate) fn of_gguf(architecture: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.gguf == Some(architecture))
}

/// The GGUF architectures that are read.
pub(crate) fn gguf_architectures() -> Vec<&'static str> {
    FAMILIES.iter().filter_map(|family| family.gguf).collect()
}

/// The modules that PEFT adapts in a model of this type where nobody says which; empty where it then
/// refuses.
pub fn peft_targets(model_type: &str) -> &'static [&'static str] {
    family(model_type).map_or(&[], |family| family.peft_targets)
}

/// Reads a decoder's configuration.
///
/// # Errors
/// An unknown `model_type`, a missing or mistyped key, sizes that contradict each other.
pub fn decoder_config(json: &Value, path: &Path) -> Result<DecoderConfig> {
    let model_type = Keys::new(json, path, &llama::FAMILY).text("model_type")?;
    let Some(family) = family(&model_type) else {
        return Err(Error::malformed(path, format!("model_type `{model_type}` is not supported"))
            .with_hint(format!("supported families: {}", model_types().join(", "))));
    };
    let config = (family.config)(&Keys::new(json, path, family))?;
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
        ("max_position_embeddings", config.max_position_embeddings),
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
    if config.windows.contains(&Some(0)) {
        let reason = "`sliding_window` is 0: a token must see at least itself";
        return Err(Error::malformed(path, reason));
    }
    if config.modules.positions.is_some() {
        return Ok(());
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
