//! Qwen 3: norms on the queries and keys of each head, a head width of its own, no biases.

use super::{Family, Keys, llama};
use crate::decoder_config::DecoderConfig;
use crate::error::Result;
use crate::modules::{LLAMA, Modules};

/// Head width of a configuration that leaves the key out, as in transformers.
const DEFAULT_HEAD_DIM: usize = 128;

const MODULES: Modules =
    Modules { query_key_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..LLAMA };

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    gguf: Some("qwen3"),
    modules: &MODULES,
    config,
    ..llama::FAMILY
};

fn config(keys: &Keys) -> Result<DecoderConfig> {
    let mut config = keys.common()?;
    config.head_dim = keys.size_or_none("head_dim")?.unwrap_or(DEFAULT_HEAD_DIM);
    config.qkv_bias = keys.flag("attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    config.windows = keys.optional_windows(config.num_hidden_layers)?;
    Ok(config)
}
