//! Gemma 2: soft caps on scores and logits, a window on every other block, norms on the outputs of both
//! parts of a block too.

use super::{Family, Keys, gemma};
use crate::decoder_config::DecoderConfig;
use crate::error::Result;
use crate::modules::Modules;

pub(super) const MODULES: Modules = Modules {
    attention_output_norm: Some("post_attention_layernorm"),
    mlp_norm: "pre_feedforward_layernorm",
    mlp_output_norm: Some("post_feedforward_layernorm"),
    ..gemma::MODULES
};

pub(super) const FAMILY: Family = Family {
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    gguf: Some("gemma2"),
    modules: &MODULES,
    config,
    ..gemma::FAMILY
};

fn config(keys: &Keys) -> Result<DecoderConfig> {
    let mut config = with_caps(keys)?;
    config.windows = keys.layer_windows(config.num_hidden_layers, 4096, 2)?;
    // What transformers takes where the key is absent; null is no cap.
    let cap = |key: &str, absent: f64| if keys.has(key) { None } else { Some(absent) };
    config.score_cap = config.score_cap.or(cap("attn_logit_softcapping", 50.0));
    config.logit_cap = config.logit_cap.or(cap("final_logit_softcapping", 30.0));
    Ok(config)
}

/// Gemma with a factor of the queries and caps, where the keys are there.
pub(super) fn with_caps(keys: &Keys) -> Result<DecoderConfig> {
    let mut config = gemma::config(keys)?;
    let scalar = keys.positive_or_none("query_pre_attn_scalar")?.unwrap_or(256.0);
    config.query_scale = Some(1.0 / scalar.sqrt());
    config.score_cap = keys.positive_or_none("attn_logit_softcapping")?;
    config.logit_cap = keys.positive_or_none("final_logit_softcapping")?;
    Ok(config)
}
