//! Mistral: Llama with a sliding window on every block, where `sliding_window` is not null.

use super::{Family, Keys, llama};
use crate::decoder_config::DecoderConfig;
use crate::error::Result;

/// The window of a configuration that leaves the key out, as in transformers.
const DEFAULT_WINDOW: usize = 4096;

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    class: "MistralForCausalLM",
    // Its files call themselves llama.
    gguf: None,
    config,
    ..llama::FAMILY
};

fn config(keys: &Keys) -> Result<DecoderConfig> {
    let mut config = keys.common()?;
    let window = match keys.size_or_none("sliding_window")? {
        Some(window) => Some(window),
        None if keys.has("sliding_window") => None,
        None => Some(DEFAULT_WINDOW),
    };
    config.windows = vec![window; config.num_hidden_layers];
    Ok(config)
}
