//! Phi-3: Llama with queries, keys and values in one projection, and gate and up in another.

use super::{Family, Keys, llama};
use crate::decoder_config::DecoderConfig;
use crate::error::Result;
use crate::modules::{LLAMA, Modules};

const MODULES: Modules = Modules {
    attention_inputs: &["self_attn.qkv_proj"],
    mlp_inputs: &["mlp.gate_up_proj"],
    ..LLAMA
};

pub(super) const FAMILY: Family = Family {
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    gguf: Some("phi3"),
    modules: &MODULES,
    peft_targets: &[],
    config,
    ..llama::FAMILY
};

fn config(keys: &Keys) -> Result<DecoderConfig> {
    let mut config = keys.common()?;
    config.windows = vec![keys.size_or_none("sliding_window")?; config.num_hidden_layers];
    Ok(config)
}
