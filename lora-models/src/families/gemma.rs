//! Gemma: embeddings times √d, norms that multiply by 1 + w, a GELU gate, the head always tied.

use super::{Family, Keys, llama};
use crate::decoder_config::DecoderConfig;
use crate::error::Result;
use crate::modules::{LLAMA, Modules, NormKind};

pub(super) const MODULES: Modules = Modules { norm: NormKind::RmsPlusOne, ..LLAMA };

pub(super) const FAMILY: Family = Family {
    model_type: "gemma",
    class: "GemmaForCausalLM",
    gguf: Some("gemma"),
    modules: &MODULES,
    hidden_act: "gelu_pytorch_tanh",
    // The first files say `gelu` in `hidden_act` and mean the approximation that `hidden_activation` names.
    aliases: &[("hidden_act", "hidden_activation")],
    config,
    ..llama::FAMILY
};

/// Also what the later Gemmas have of it.
pub(super) fn config(keys: &Keys) -> Result<DecoderConfig> {
    keys.refuse("use_bidirectional_attention", "attention to later tokens")?;
    let mut config = keys.common()?;
    config.head_dim = keys.size_or_none("head_dim")?.unwrap_or(256);
    config.embedding_scale = (config.hidden_size as f64).sqrt();
    config.tie_word_embeddings = keys.flag("tie_word_embeddings")?.unwrap_or(true);
    config.qkv_bias = keys.flag("attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    Ok(config)
}
