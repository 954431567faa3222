//! Gradients of one window of micro-batches, weighted by tokens.
//!
//! The loss of a step is (sum of token losses) / (number of learned tokens) over the whole window, so
//! that k micro-batches give what one batch of k times the size gives.

use burn::tensor::{DType, Gradients, Tensor, TensorData};
use lora_core::ops::cast;
use lora_core::parameter::read_f32;
use lora_core::profile::timed;
use lora_models::{Decoder, Input, Trainable};

use crate::data::Batch;
use crate::loss::{Answers, head_loss};

/// How gradients are computed.
#[derive(Debug, Clone)]
pub struct StepSettings {
    /// Activations of a block are computed again in the backward pass instead of kept.
    pub recompute: bool,
    /// Tokens whose logits are held at once.
    pub loss_chunk_tokens: usize,
    /// Seed of this step's dropout masks.
    pub dropout_seed: u64,
}

/// Gradients of the mean token loss of a window.
pub struct WindowGradients {
    /// Mean loss over the window's learned tokens.
    pub loss: f64,
    /// Learned tokens of the window.
    pub learned_tokens: usize,
    /// All tokens of the window, without padding.
    pub tokens: usize,
    /// One flat gradient for each trainable tensor, in the decoder's order; `None` = zero.
    pub gradients: Vec<Option<Vec<f32>>>,
}

/// Runs forward and backward over a window. What `trainable` names must be tracked
/// ([`Decoder::set_trainable`]).
pub fn window_gradients(
    decoder: &mut Decoder,
    trainable: &Trainable,
    window: &[Batch],
    settings: &StepSettings,
) -> WindowGradients {
    let learned_tokens: usize = window.iter().map(|batch| batch.learned_tokens).sum();
    let mut sum = GradientSum { decoder, trainable, parts: Vec::new() };
    let mut loss = 0.0;
    for (index, batch) in window.iter().enumerate() {
        if batch.learned_tokens > 0 {
            let seed = mix(settings.dropout_seed, index as u64);
            loss += accumulate(&mut sum, batch, settings, seed, learned_tokens);
        }
    }
    let gradients =
        timed("gradients read", || sum.parts.into_iter().map(|part| part.map(read_f32)).collect());
    let tokens =
        window.iter().flat_map(|batch| &batch.documents).filter(|document| **document >= 0).count();
    let loss = loss / learned_tokens.max(1) as f64;
    WindowGradients { loss, learned_tokens, tokens, gradients }
}

/// The decoder's input of a batch.
pub(crate) fn input_of(batch: &Batch) -> Input {
    Input {
        rows: batch.rows,
        columns: batch.columns,
        tokens: batch.tokens.clone(),
        positions: batch.positions.clone(),
        documents: batch.documents.clone(),
        segments: batch.segments.clone(),
    }
}

/// Rows of the flattened batch that predict a learned token, and those tokens.
pub(crate) fn learned_rows(batch: &Batch) -> (Vec<i32>, Vec<i32>) {
    let learned = batch.targets.iter().enumerate().filter(|(_, target)| **target >= 0);
    learned.map(|(row, target)| (row as i32, *target)).unzip()
}

/// Selects rows of `[n, d]`.
pub(crate) fn select_rows(hidden: Tensor<2>, rows: &[i32]) -> Tensor<2> {
    let rows = TensorData::new(rows.to_vec(), [rows.len()]);
    let rows = Tensor::from_data(rows, &hidden.device().inner());
    hidden.select(0, rows)
}

struct GradientSum<'a> {
    decoder: &'a mut Decoder,
    trainable: &'a Trainable,
    parts: Vec<Option<Tensor<1>>>,
}

impl GradientSum<'_> {
    /// Takes every trainable tensor's gradient out of `gradients`, scaled.
    fn add(&mut self, mut gradients: Gradients, scale: f64) {
        let parameters = self.decoder.trainable_mut(self.trainable);
        self.parts.resize(parameters.len(), None);
        for (part, (_, parameter)) in self.parts.iter_mut().zip(parameters) {
            let Some(gradient) = parameter.take_gradient(&mut gradients) else { continue };
            let gradient = if scale == 1.0 { gradient } else { gradient * scale };
            *part = Some(match part.take() {
                Some(sum) => sum + gradient,
                None => gradient,
            });
        }
    }
}

/// Adds the gradients of one micro-batch, divided by the window's tokens; gives its summed loss.
fn accumulate(
    sum: &mut GradientSum<'_>,
    batch: &Batch,
    settings: &StepSettings,
    seed: u64,
    window_tokens: usize,
) -> f64 {
    let input = input_of(batch);
    let context = sum.decoder.context(&input, None);
    let blocks = sum.decoder.block_count();
    let lowest = lowest_trainable(sum.decoder, sum.trainable);

    // Forward. With recomputation only the input of each block is kept; without, one graph of all.
    let mut block_inputs = Vec::new();
    let mut x;
    if settings.recompute {
        // Burn lets go of a graph only in a backward pass, so none may come to be here.
        let untracked = sum.decoder.untracked();
        x = untracked.embed(&input);
        for index in 0..blocks {
            block_inputs.push(x.clone());
            x = run_block(&untracked, index, x, &context, seed);
        }
    } else {
        x = sum.decoder.embed(&input);
        for index in 0..blocks {
            x = run_block(sum.decoder, index, x, &context, seed);
        }
    }
    if settings.recompute {
        // The stream is a leaf wherever something below it, or the last norm, is trained.
        if lowest.is_some_and(|lowest| lowest < blocks) {
            x = x.autodiff().require_grad();
        }
    }
    let top = x.clone();
    let (rows, targets) = learned_rows(batch);
    let selected = select_rows(sum.decoder.last_norm(x), &rows);

    // Loss and its gradient at the selected hidden states.
    let mut of_head = Vec::new();
    let loss = timed("elsewhere in the loss", || {
        head_loss(
            sum.decoder,
            &selected.clone().inner(),
            Answers { targets: &targets, scores: &batch.scores },
            settings.loss_chunk_tokens,
            Some(&mut |gradients| of_head.push(gradients)),
        )
    });
    let scale = 1.0 / window_tokens as f64;
    for gradients in of_head {
        sum.add(gradients, scale);
    }
    let Some(gradient) = loss.hidden_gradient else { return loss.sum };
    if !selected.is_tracked() {
        return loss.sum;
    }

    // Backward. An inner product with the gradient carries it into the graph.
    let surrogate = inner_product(selected, cast(gradient, DType::F32) * scale);
    let mut gradients = timed("elsewhere in the backward pass", || surrogate.backward());
    if !settings.recompute {
        sum.add(gradients, 1.0);
        return loss.sum;
    }
    let mut upper = top.grad_remove(&mut gradients);
    sum.add(gradients, 1.0);
    for index in (0..blocks).rev() {
        let (Some(gradient), Some(block_input)) = (upper.take(), block_inputs.pop()) else { break };
        if lowest.is_none_or(|lowest| lowest > index) {
            break;
        }
        let needs_input = trains_below(sum.decoder, sum.trainable, index);
        let leaf = match needs_input {
            true => block_input.autodiff().require_grad(),
            false => block_input,
        };
        let output = run_block(sum.decoder, index, leaf.clone(), &context, seed);
        let mut gradients = inner_product(output, gradient).backward();
        if needs_input {
            upper = leaf.grad_remove(&mut gradients);
        }
        sum.add(gradients, 1.0);
    }
    if let Some(gradient) = upper {
        let embedded = sum.decoder.embed(&input);
        if embedded.is_tracked() {
            sum.add(inner_product(embedded, gradient).backward(), 1.0);
        }
    }
    loss.sum
}

/// `Σ x·gradient`, in f32: its derivative with respect to x is the gradient.
fn inner_product(x: Tensor<2>, gradient: Tensor<2>) -> Tensor<1> {
    (cast(x, DType::F32) * cast(gradient, DType::F32)).sum()
}

fn run_block(
    decoder: &Decoder,
    index: usize,
    x: Tensor<2>,
    context: &lora_models::Context,
    seed: u64,
) -> Tensor<2> {
    // Seeding per block makes the recomputed dropout masks those of the forward pass.
    decoder.device().seed(mix(seed, index as u64));
    decoder.forward_block(index, x, context, None)
}

/// The lowest block with a trainable tensor; the number of blocks where only norm or head are trained.
/// The embedding counts as block 0.
fn lowest_trainable(decoder: &mut Decoder, trainable: &Trainable) -> Option<usize> {
    let blocks = decoder.block_count();
    let modules = decoder.config().modules;
    let keys = decoder.trainable_mut(trainable);
    keys.iter().map(|(key, _)| modules.depth(key, blocks).saturating_sub(1)).min()
}

/// Whether the gradient must go on below block `index`.
fn trains_below(decoder: &mut Decoder, trainable: &Trainable, index: usize) -> bool {
    let blocks = decoder.block_count();
    let modules = decoder.config().modules;
    decoder.trainable_mut(trainable).iter().any(|(key, _)| modules.depth(key, blocks) <= index)
}

/// Mixes a number into a seed (the finaliser of SplitMix64).
pub(crate) fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
