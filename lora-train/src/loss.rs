//! Cross-entropy of the next token, by chunks: the logits `[tokens, v]` are never held whole.
//!
//! For hidden states h and the head's matrix W: `L = Σ log Σⱼ exp(h·wⱼ) − h·w_y`, and its gradient
//! `∂L/∂h = (softmax(h·W) − onehot(y))·Wᵀ`. The gradient of each chunk is taken while its logits are
//! there; what goes back into the blocks is `[tokens, d]`.

use burn::tensor::{Gradients, Int, Tensor, TensorData};
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

/// Sums the losses of `hidden` `[n, d]` against `targets` `[n]`.
///
/// With `gradients_of_head` the gradients are taken too; the callback receives those of the head's own
/// trainable tensors, chunk by chunk.
pub(crate) fn head_loss(
    decoder: &Decoder,
    hidden: &Tensor<2>,
    targets: &[i32],
    chunk_tokens: usize,
    mut gradients_of_head: Option<&mut dyn FnMut(Gradients)>,
) -> HeadLoss {
    let frozen = decoder.frozen_head();
    let mut loss = HeadLoss { sum: 0.0, correct: 0, hidden_gradient: None };
    let mut parts = Vec::new();
    for (index, targets) in targets.chunks(chunk_tokens.max(1)).enumerate() {
        let start = index * chunk_tokens.max(1);
        let chunk = hidden.clone().narrow(0, start, targets.len());
        let labels = TensorData::new(targets.to_vec(), [targets.len(), 1]);
        let labels = Tensor::<2, Int>::from_data(labels, &chunk.device());
        match (&frozen, &mut gradients_of_head) {
            (Some(head), want) => {
                let part = frozen_chunk(chunk, head.clone(), &labels, targets, want.is_some());
                loss.sum += part.sum;
                loss.correct += part.correct;
                parts.extend(part.hidden_gradient);
            }
            (None, None) => {
                let logits = decoder.logits(chunk).inner();
                let (losses, correct) = token_losses(&logits, labels, targets);
                loss.sum += sum_f64(losses);
                loss.correct += correct;
            }
            (None, Some(collect)) => {
                let leaf = chunk.autodiff().require_grad();
                let logits = decoder.logits(leaf.clone());
                let correct = count_correct(&logits.clone().inner(), targets);
                let losses = tracked_losses(logits, labels);
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

/// One chunk on a head that nothing is learned in: the gradient in closed form.
fn frozen_chunk(
    hidden: Tensor<2>,
    head: Tensor<2>,
    labels: &Tensor<2, Int>,
    targets: &[i32],
    want_gradient: bool,
) -> HeadLoss {
    let logits = hidden.matmul(head.clone()); // [c, v]
    let correct = count_correct(&logits, targets);
    let of_label = logits.clone().gather(1, labels.clone());
    let highest = logits.clone().max_dim(1);
    let exponentials = (logits - highest.clone()).exp();
    let total = exponentials.clone().sum_dim(1); // a reduction, in f32
    let losses = total.clone().log() + highest - of_label;
    let hidden_gradient = want_gradient.then(|| {
        let probabilities = exponentials / total;
        let rows_of_labels = head.clone().transpose().select(0, labels.clone().squeeze_dim(1));
        probabilities.matmul(head.transpose()) - rows_of_labels
    });
    HeadLoss { sum: sum_f64(losses), correct, hidden_gradient }
}

fn token_losses(logits: &Tensor<2>, labels: Tensor<2, Int>, targets: &[i32]) -> (Tensor<2>, usize) {
    (tracked_losses(logits.clone(), labels), count_correct(logits, targets))
}

/// `[c, v]` and `[c, 1]` to `[c, 1]`.
fn tracked_losses(logits: Tensor<2>, labels: Tensor<2, Int>) -> Tensor<2> {
    burn::tensor::activation::log_softmax(logits, 1).gather(1, labels).neg()
}

fn count_correct(logits: &Tensor<2>, targets: &[i32]) -> usize {
    let best = logits.clone().argmax(1).into_data().convert::<i32>();
    let best = best.try_into_vec::<i32>().unwrap_or_default();
    best.iter().zip(targets).filter(|(best, target)| best == target).count()
}

fn sum_f64(losses: Tensor<2>) -> f64 {
    read_f32(losses).into_iter().map(f64::from).sum()
}
