//! Gemma 3, its text models: norms on queries and keys in place of the caps, a window on five of six blocks,
//! which rotate by a base of their own.

use super::{Family, Keys, gemma2};
use crate::decoder_config::DecoderConfig;
use crate::error::Result;
use crate::modules::Modules;

const MODULES: Modules =
    Modules { query_key_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..gemma2::MODULES };

pub(super) const FAMILY: Family = Family {
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    gguf: Some("gemma3"),
    modules: &MODULES,
    config,
    ..gemma2::FAMILY
};

fn config(keys: &Keys) -> Result<DecoderConfig> {
    let mut config = gemma2::with_caps(keys)?;
    let pattern = keys.size_or_none("sliding_window_pattern")?;
    let pattern = pattern.or(keys.size_or_none("_sliding_window_pattern")?).unwrap_or(6);
    config.windows = keys.layer_windows(config.num_hidden_layers, 4096, pattern)?;
    config.rope = keys.rope_of("full_attention", 1e6)?;
    config.local_rope = Some(keys.local_rope("rope_local_base_freq", 1e4)?);
    Ok(config)
}
