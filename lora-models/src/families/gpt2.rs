//! GPT-2: learned positions, norms with mean and bias, biases everywhere, one projection to queries, keys
//! and values, no gate, and weights stored `[d_in, d_out]`.

use super::{Family, Keys};
use crate::decoder_config::DecoderConfig;
use crate::error::Result;
use crate::modules::{Modules, NormKind};

const MODULES: Modules = Modules {
    embedding: "transformer.wte",
    positions: Some("transformer.wpe"),
    blocks: "transformer.h",
    last_norm: "transformer.ln_f",
    norm: NormKind::Layer,
    attention_norm: "ln_1",
    attention_inputs: &["attn.c_attn"],
    query_key_norms: None,
    attention_output: "attn.c_proj",
    attention_output_norm: None,
    mlp_norm: "ln_2",
    mlp_inputs: &["mlp.c_fc"],
    mlp_gated: false,
    mlp_output: "mlp.c_proj",
    mlp_output_norm: None,
    fan_in_fan_out: true,
    harmless: &[".attn.bias", ".attn.masked_bias"],
    encoder: None,
};

pub(super) const FAMILY: Family = Family {
    model_type: "gpt2",
    class: "GPT2LMHeadModel",
    gguf: Some("gpt2"),
    modules: &MODULES,
    hidden_act: "gelu_new",
    aliases: &[
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("intermediate_size", "n_inner"),
        ("hidden_act", "activation_function"),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ],
    peft_targets: &["c_attn"],
    config,
};

fn config(keys: &Keys) -> Result<DecoderConfig> {
    keys.refuse("add_cross_attention", "attention to an encoder")?;
    keys.refuse("scale_attn_by_inverse_layer_idx", "scores divided by the number of the block")?;
    let wide = match keys.size_or_none("intermediate_size")? {
        Some(wide) => wide,
        None => keys.size("hidden_size")?.saturating_mul(4),
    };
    let mut config = keys.with_intermediate(wide)?;
    config.norm_epsilon = keys.positive_or_none("rms_norm_eps")?.unwrap_or(1e-5);
    config.query_scale = match keys.flag("scale_attn_weights")? {
        Some(false) => Some(1.0),
        _ => None,
    };
    config.tie_word_embeddings = keys.flag("tie_word_embeddings")?.unwrap_or(true);
    (config.qkv_bias, config.output_bias, config.mlp_bias) = (true, true, true);
    Ok(config)
}
