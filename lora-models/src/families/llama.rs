//! Llama 2, Llama 3 and everything that copies them (SmolLM2, TinyLlama, Vicuna).

use super::{Family, Keys};
use crate::decoder_config::DecoderConfig;
use crate::error::Result;
use crate::modules::LLAMA;

pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    gguf: Some("llama"),
    modules: &LLAMA,
    hidden_act: "silu",
    aliases: &[],
    peft_targets: &["q_proj", "v_proj"],
    config,
};

fn config(keys: &Keys) -> Result<DecoderConfig> {
    let mut config = keys.common()?;
    config.qkv_bias = keys.flag("attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    config.mlp_bias = keys.flag("mlp_bias")?.unwrap_or(false);
    Ok(config)
}
