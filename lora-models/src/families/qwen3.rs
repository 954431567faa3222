//! Qwen 3: norms on the queries and keys of each head, a head width of its own, no biases.

use super::Keys;
use crate::decoder_config::DecoderConfig;
use crate::error::Result;

/// Head width of a configuration that leaves the key out, as in transformers.
const DEFAULT_HEAD_DIM: usize = 128;

pub(super) fn config(keys: &Keys) -> Result<DecoderConfig> {
    let mut config = keys.common()?;
    config.head_dim = keys.size_or_none("head_dim")?.unwrap_or(DEFAULT_HEAD_DIM);
    config.qkv_bias = keys.flag("attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    config.query_key_norm = true;
    config.windows = keys.optional_windows(config.num_hidden_layers)?;
    Ok(config)
}
