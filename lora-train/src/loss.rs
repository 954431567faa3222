//! Cross-entropy of the next token, by chunks: the logits `[tokens, v]` are never held whole.
//!
//! The gradient of each chunk is taken while its logits are there; what goes back into the blocks is
//! `[tokens, d]`. A chunk is never so long that its logits exceed the device's largest buffer.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Gradients, Int, Tensor, TensorData};
use lora_core::ops::{cast, linear_cross_entropy, trained_cross_entropy};
use lora_core::parameter::read_f32;
use lora_models::Decoder;

/// Loss of some tokens, and what flows back from it.
pub(crate) struct HeadLoss {
    /// Sum of the token losses.
    pub(crate) sum: f64,
    /// Tokens whose most likely successor is the right one.
    pub(crate) correct: usize,
    /// `∂sum/∂hidden`, `[n, d]`, where it was asked for.
    pub(crate) hidden_gradient: Option<Tensor<2>>,
}

/// What is right.
#[derive(Clone, Copy)]
pub(crate) struct Answers<'a> {
    /// The successor of each token, or the label of each text, `[n]`.
    pub(crate) targets: &'a [i32],
    /// What a regression is to find, `[n]`; else empty.
    pub(crate) scores: &'a [f32],
}

/// Sums the losses of `hidden` `[n, d]`: the cross-entropies, or the squared distances of a regression.
///
/// With `gradients_of_head` the gradients are taken too; the callback receives those of the head's own
/// trainable tensors, chunk by chunk.
pub(crate) fn head_loss(
    decoder: &Decoder,
    hidden: &Tensor<2>,
    answers: Answers<'_>,
    chunk_tokens: usize,
    mut gradients_of_head: Option<&mut dyn FnMut(Gradients)>,
) -> HeadLoss {
    let frozen = decoder.frozen_head();
    let cap = decoder.config().logit_cap;
    let mut loss = HeadLoss { sum: 0.0, correct: 0, hidden_gradient: None };
    let mut parts = Vec::new();
    let chunk_tokens = chunk_length(decoder, chunk_tokens);
    if let (Some(collect), Some(head), None) =
        (&mut gradients_of_head, decoder.trained_head(), cap.as_ref())
        && answers.scores.is_empty()
    {
        let leaf = hidden.clone().autodiff().require_grad();
        if let Some(found) = trained_cross_entropy(&leaf, &head, answers.targets, chunk_tokens) {
            loss.sum = sum_f64(found.losses);
            loss.correct = count_equal(found.best, answers.targets);
            let mut gradients = found.sum.backward();
            loss.hidden_gradient = leaf.grad_remove(&mut gradients);
            collect(gradients);
            return loss;
        }
    }
    for (index, targets) in answers.targets.chunks(chunk_tokens).enumerate() {
        let start = index * chunk_tokens;
        let scores = answers.scores.get(start..start + targets.len());
        let chunk = hidden.clone().narrow(0, start, targets.len());
        let losses_of = |logits: Tensor<2>| {
            if let Some(scores) = scores {
                let scores = TensorData::new(scores.to_vec(), [scores.len(), 1]);
                return squared_distances(logits, Tensor::from_data(scores, &hidden.device()));
            }
            let labels = TensorData::new(targets.to_vec(), [targets.len(), 1]);
            token_losses(logits, Tensor::from_data(labels, &hidden.device()))
        };
        match (&frozen, &mut gradients_of_head) {
            (Some(head), want) => {
                let found = linear_cross_entropy(&chunk, head, targets, cap, want.is_some());
                loss.sum += sum_f64(found.losses);
                loss.correct += count_equal(found.best, targets);
                parts.extend(found.hidden_gradient);
            }
            (None, None) => {
                let logits = decoder.logits(chunk).inner();
                loss.correct += count_correct(&logits, targets);
                loss.sum += sum_f64(losses_of(logits));
            }
            (None, Some(collect)) => {
                let leaf = chunk.autodiff().require_grad();
                let logits = decoder.logits(leaf.clone());
                let correct = count_correct(&logits.clone().inner(), targets);
                let losses = losses_of(logits);
                loss.sum += sum_f64(losses.clone().inner());
                loss.correct += correct;
                let mut gradients = losses.sum().backward();
                parts.extend(leaf.grad_remove(&mut gradients));
                collect(gradients);
            }
        }
    }
    if !parts.is_empty() {
        loss.hidden_gradient = Some(Tensor::cat(parts, 0));
    }
    loss
}

/// Tokens at once, as asked for or as many as the device can hold the logits of.
fn chunk_length(decoder: &Decoder, asked: usize) -> usize {
    let row = decoder.config().vocab_size * size_of::<f32>();
    let most = decoder.placement().buffer_limit.map_or(usize::MAX, |limit| limit / row);
    asked.min(most).max(1)
}

/// `[c, 1]` and `[c, 1]` to `[c, 1]`.
fn squared_distances(found: Tensor<2>, scores: Tensor<2>) -> Tensor<2> {
    let distance = cast(found, DType::F32) - scores;
    distance.clone() * distance
}

/// `[c, v]` and `[c, 1]` to `[c, 1]`.
fn token_losses(logits: Tensor<2>, labels: Tensor<2, Int>) -> Tensor<2> {
    log_softmax(cast(logits, DType::F32), 1).gather(1, labels).neg()
}

fn count_correct(logits: &Tensor<2>, targets: &[i32]) -> usize {
    count_equal(logits.clone().argmax(1), targets)
}

fn count_equal(best: Tensor<2, Int>, targets: &[i32]) -> usize {
    let best = best.into_data().convert::<i32>();
    let best = best.try_into_vec::<i32>().unwrap_or_default();
    best.iter().zip(targets).filter(|(best, target)| best == target).count()
}

fn sum_f64(losses: Tensor<2>) -> f64 {
    read_f32(losses).into_iter().map(f64::from).sum()
}
