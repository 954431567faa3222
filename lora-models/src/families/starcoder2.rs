//! StarCoder 2: Llama with norms by mean and variance, biases everywhere, and no gate.

use super::{Family, Keys};
use crate::decoder_config::DecoderConfig;
use crate::error::Result;
use crate::modules::{LLAMA, Modules, NormKind};

const MODULES: Modules = Modules {
    norm: NormKind::Layer,
    mlp_inputs: &["mlp.c_fc"],
    mlp_gated: false,
    mlp_output: "mlp.c_proj",
    ..LLAMA
};

pub(super) const FAMILY: Family = Family {
    model_type: "starcoder2",
    class: "Starcoder2ForCausalLM",
    gguf: Some("starcoder2"),
    modules: &MODULES,
    hidden_act: "gelu_pytorch_tanh",
    aliases: &[("rms_norm_eps", "norm_epsilon")],
    peft_targets: &[],
    config,
};

fn config(keys: &Keys) -> Result<DecoderConfig> {
    let mut config = keys.common()?;
    let bias = keys.flag("use_bias")?.unwrap_or(true);
    (config.qkv_bias, config.output_bias, config.mlp_bias) = (bias, bias, bias);
    config.norm_epsilon = keys.positive_or_none("rms_norm_eps")?.unwrap_or(1e-5);
    config.tie_word_embeddings = keys.flag("tie_word_embeddings")?.unwrap_or(true);
    config.windows = vec![keys.size_or_none("sliding_window")?; config.num_hidden_layers];
    Ok(config)
}
