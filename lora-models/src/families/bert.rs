//! BERT with a sequence-classification head (Devlin et al. 2018): an encoder with learned positions, two segments,
//! and norms after the parts of a block.

use lora_core::ops::Activation;

use super::{Family, Keys};
use crate::decoder_config::DecoderConfig;
use crate::encoder::{EncoderConfig, numbered_labels};
use crate::error::Result;
use crate::modules::{EncoderModules, Modules, NormKind};

const ENCODER: EncoderModules = EncoderModules {
    segments: "bert.embeddings.token_type_embeddings",
    pooler: "bert.pooler.dense",
    classifier: "classifier",
    counts_from_padding: false,
    other_heads: &["cls."],
};

pub(super) const MODULES: Modules = Modules {
    embedding: "bert.embeddings.word_embeddings",
    positions: Some("bert.embeddings.position_embeddings"),
    blocks: "bert.encoder.layer",
    last_norm: "bert.embeddings.LayerNorm",
    norm: NormKind::Layer,
    attention_norm: "attention.output.LayerNorm",
    attention_inputs: &["attention.self.query", "attention.self.key", "attention.self.value"],
    query_key_norms: None,
    attention_output: "attention.output.dense",
    attention_output_norm: None,
    mlp_norm: "output.LayerNorm",
    mlp_inputs: &["intermediate.dense"],
    mlp_gated: false,
    mlp_output: "output.dense",
    mlp_output_norm: None,
    fan_in_fan_out: false,
    harmless: &["embeddings.position_ids", "embeddings.token_type_ids"],
    encoder: Some(ENCODER),
};

pub(super) const FAMILY: Family = Family {
    model_type: "bert",
    class: "BertForSequenceClassification",
    gguf: None,
    modules: &MODULES,
    hidden_act: "gelu",
    aliases: &[("rms_norm_eps", "layer_norm_eps")],
    peft_targets: &["query", "value"],
    config,
};

/// An encoder's configuration; RoBERTa has the same keys.
pub(super) fn config(keys: &Keys) -> Result<DecoderConfig> {
    keys.refuse("is_decoder", "an encoder that looks back only")?;
    keys.refuse("add_cross_attention", "attention to another encoder")?;
    keys.must_be("position_embedding_type", "absolute", "other positions are not supported")?;
    let mut config = keys.common()?;
    config.norm_epsilon = keys.positive_or_none("rms_norm_eps")?.unwrap_or(1e-12);
    config.max_position_embeddings = keys.size("max_position_embeddings")?;
    config.tie_word_embeddings = false;
    (config.qkv_bias, config.output_bias, config.mlp_bias) = (true, true, true);
    if config.activation == Activation::Silu {
        return Err(keys.wrong("hidden_act", "`gelu` or `gelu_new` in an encoder"));
    }
    let padding = keys.size_or_none("pad_token_id")?.unwrap_or(1);
    let counts = config.modules.encoder.is_some_and(|more| more.counts_from_padding);
    let (labels, regression) = labels(keys)?;
    config.encoder = Some(EncoderConfig {
        segments: keys.size_or_none("type_vocab_size")?.unwrap_or(2).max(1),
        first_position: if counts { padding + 1 } else { 0 },
        padding: counts.then_some(padding as i32),
        labels,
        regression,
    });
    Ok(config)
}

/// Names of the labels, two where nothing is said, and whether they are one number.
fn labels(keys: &Keys) -> Result<(Vec<String>, bool)> {
    let names = match keys.names("id2label")? {
        Some(names) => names,
        None => numbered_labels(keys.size_or_none("num_labels")?.unwrap_or(2)),
    };
    if names.is_empty() || names.len() > 1 << 20 {
        return Err(keys.wrong("id2label", "a name for each label"));
    }
    let one = names.len() == 1;
    match keys.text_or_none("problem_type")?.as_deref() {
        None => Ok((names, one)),
        Some("single_label_classification") if !one => Ok((names, false)),
        Some("regression") if one => Ok((names, true)),
        Some(_) => Err(keys.wrong(
            "problem_type",
            "\"single_label_classification\", or \"regression\" with one label",
        )),
    }
}
