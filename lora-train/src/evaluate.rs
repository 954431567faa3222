//! Loss, perplexity and token accuracy over a data set, with the forward pass of training.

use lora_models::Decoder;

use crate::data::Batch;
use crate::loss::head_loss;
use crate::step::{input_of, learned_rows, select_rows};

/// What a data set says about a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Mean loss over the learned tokens, in nats.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Part of the learned tokens that the model finds most likely.
    pub accuracy: f64,
    /// Learned tokens.
    pub tokens: usize,
}

/// Evaluates `decoder`, as it stands, on `batches`.
pub fn evaluate(decoder: &Decoder, batches: &[Batch], loss_chunk_tokens: usize) -> Evaluation {
    let (mut sum, mut correct, mut tokens) = (0.0, 0, 0);
    for batch in batches.iter().filter(|batch| batch.learned_tokens > 0) {
        let hidden = decoder.forward(&input_of(batch), None).inner();
        let (rows, targets) = learned_rows(batch);
        let selected = select_rows(hidden, &rows);
        let loss = head_loss(decoder, &selected, &targets, loss_chunk_tokens, None);
        sum += loss.sum;
        correct += loss.correct;
        tokens += targets.len();
    }
    let count = tokens.max(1) as f64;
    let loss = sum / count;
    Evaluation { loss, perplexity: loss.exp(), accuracy: correct as f64 / count, tokens }
}
