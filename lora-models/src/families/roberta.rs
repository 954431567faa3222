//! RoBERTa with a sequence-classification head (Liu et al. 2019): BERT whose positions begin after the padding
//! token's number, with one segment, and a head of two layers.

use super::{Family, bert};
use crate::modules::{EncoderModules, Modules};

const ENCODER: EncoderModules = EncoderModules {
    segments: "roberta.embeddings.token_type_embeddings",
    pooler: "classifier.dense",
    classifier: "classifier.out_proj",
    counts_from_padding: true,
    other_heads: &["lm_head.", "roberta.pooler."],
};

const MODULES: Modules = Modules {
    embedding: "roberta.embeddings.word_embeddings",
    positions: Some("roberta.embeddings.position_embeddings"),
    blocks: "roberta.encoder.layer",
    last_norm: "roberta.embeddings.LayerNorm",
    encoder: Some(ENCODER),
    ..bert::MODULES
};

pub(super) const FAMILY: Family = Family {
    model_type: "roberta",
    class: "RobertaForSequenceClassification",
    modules: &MODULES,
    ..bert::FAMILY
};
