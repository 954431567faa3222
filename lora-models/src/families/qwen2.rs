//! Qwen 2 and 2.5: biases on q, k and v; sliding windows on the upper blocks, where switched on.

use super::{Family, Keys, llama};
use crate::decoder_config::DecoderConfig;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    gguf: Some("qwen2"),
    config,
    ..llama::FAMILY
};

fn config(keys: &Keys) -> Result<DecoderConfig> {
    let mut config = keys.common()?;
    config.qkv_bias = true;
    config.windows = keys.optional_windows(config.num_hidden_layers)?;
    Ok(config)
}
