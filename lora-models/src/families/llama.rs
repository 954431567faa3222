//! Llama 2, Llama 3 and everything that copies them (SmolLM2, TinyLlama, Vicuna).

use super::Keys;
use crate::decoder_config::DecoderConfig;
use crate::error::Result;

pub(super) fn config(keys: &Keys) -> Result<DecoderConfig> {
    let mut config = keys.common()?;
    config.qkv_bias = keys.flag("attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    config.mlp_bias = keys.flag("mlp_bias")?.unwrap_or(false);
    Ok(config)
}
