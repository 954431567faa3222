//! The loss of a linear head by the kernels, frozen or trained.

use burn::backend::Flex;
use burn::tensor::{DType, Int, Tensor, TensorData};
use half::bf16;
use lora_kernels::cross_entropy::{cross_entropy as losses_of, gradient};
use lora_kernels::elementwise::add_scaled;
use lora_kernels::filled;
use lora_kernels::matmul::{Left, Patch, Product, Right};
use lora_kernels::number::Number;

use super::{Flat, Format, Parents, by_format, dense, flat, numbers, tensor};
use crate::ops::{FrozenLoss, TrainedLoss};
use crate::profile::timed;

/// Tokens of the vocabulary whose gradients are packed at once.
const TOKENS_AT_ONCE: usize = 6144;

/// As [`crate::ops::linear_cross_entropy`], for a head in one part, `[v, d]`.
pub(in crate::ops) fn cross_entropy(
    hidden: &Tensor<2>,
    head: &Tensor<2>,
    targets: &[i32],
    want_gradient: bool,
) -> Option<FrozenLoss> {
    match head.dtype() {
        DType::F32 => by_format!(hidden.dtype(), of_f32, hidden, head, targets, want_gradient),
        DType::BF16 => by_format!(hidden.dtype(), of_bf16, hidden, head, targets, want_gradient),
        _ => None,
    }
}

fn of_f32<T: Format>(h: &Tensor<2>, w: &Tensor<2>, y: &[i32], want: bool) -> Option<FrozenLoss> {
    of::<T, f32>(h, w, y, want)
}

fn of_bf16<T: Format>(h: &Tensor<2>, w: &Tensor<2>, y: &[i32], want: bool) -> Option<FrozenLoss> {
    of::<T, bf16>(h, w, y, want)
}

fn of<T: Format, W: Format>(
    hidden: &Tensor<2>,
    head: &Tensor<2>,
    targets: &[i32],
    want_gradient: bool,
) -> Option<FrozenLoss> {
    let ([n, d], [v, _]) = (hidden.dims(), head.dims());
    let (input, head) = (dense::<T>(flat(hidden)?), dense::<W>(flat(head)?));
    let rows = numbers::<W>(&head);
    let mut logits: Vec<f32> =
        filled(n * v, |out| write_logits(numbers::<T>(&input), rows, [n, v, d], out));
    let (mut losses, mut best) = (vec![0.0; n], vec![0; n]);
    let mut at_targets = want_gradient.then(|| vec![0.0; n]);
    timed("loss, softmax", || {
        losses_of::<T>(&mut logits, v, targets, &mut losses, &mut best, at_targets.as_deref_mut());
    });
    let hidden_gradient = at_targets.map(|at_targets| {
        let of_targets = OfTargets { targets, gradients: &at_targets };
        let gradient = timed("loss, gradient", || {
            gradient_of_hidden::<T, W>(&logits, of_targets, rows, [n, v, d])
        });
        let gradient: Vec<T> = filled(n * d, |out| T::narrow(&gradient, out));
        Tensor::from_primitive::<Flex>(tensor(gradient, &[n, d]))
    });
    let device = hidden.device().inner();
    Some(FrozenLoss {
        losses: Tensor::from_primitive::<Flex>(tensor(losses, &[n, 1])),
        best: Tensor::<2, Int>::from_data(TensorData::new(best, [n, 1]), &device),
        hidden_gradient,
    })
}

/// As [`crate::ops::trained_cross_entropy`].
pub(in crate::ops) fn trained_cross_entropy(
    hidden: &Tensor<2>,
    head: &Tensor<2>,
    targets: &[i32],
    chunk: usize,
) -> Option<TrainedLoss> {
    by_format!(hidden.dtype(), trained_of, hidden, head, targets, chunk)
}

fn trained_of<T: Format>(
    hidden: &Tensor<2>,
    head: &Tensor<2>,
    targets: &[i32],
    chunk: usize,
) -> Option<TrainedLoss> {
    if head.dtype() != DType::F32 {
        return None; // what is trained rests in f32
    }
    let ([n, d], [v, _]) = (hidden.dims(), head.dims());
    let mut parents = Parents::default();
    let (input, head_numbers) = (dense::<T>(flat(hidden)?), dense::<f32>(flat(head)?));
    let wanted = [parents.add(hidden), parents.add(head)];
    let (x, rows) = (numbers::<T>(&input), numbers::<f32>(&head_numbers));
    let mut losses = vec![0.0; n];
    let mut best = vec![0; n];
    let mut of_hidden = Vec::with_capacity(if wanted[0] { n * d } else { 0 });
    let mut of_head = vec![0.0; if wanted[1] { v * d } else { 0 }];
    let mut logits = Vec::new();
    for start in (0..n).step_by(chunk) {
        let chunk = start..(start + chunk).min(n);
        let x = &x[chunk.start * d..chunk.end * d];
        logits.resize(chunk.len() * v, 0.0);
        write_logits(x, rows, [chunk.len(), v, d], &mut logits);
        let (targets, losses) = (&targets[chunk.clone()], &mut losses[chunk.clone()]);
        let mut at_targets = vec![0.0; chunk.len()];
        timed("loss, softmax", || {
            let (best, wanted) = (&mut best[chunk.clone()], Some(&mut at_targets[..]));
            losses_of::<T>(&mut logits, v, targets, losses, best, wanted);
        });
        let of_targets = OfTargets { targets, gradients: &at_targets };
        if wanted[0] {
            let gradient = timed("loss, gradient", || {
                gradient_of_hidden::<T, f32>(&logits, of_targets, rows, [chunk.len(), v, d])
            });
            of_hidden.extend(gradient.into_iter().map(<T as Number>::from_f32));
        }
        if wanted[1] {
            timed("loss, gradient of the head", || {
                add_gradient_of_head(&logits, of_targets, x, [chunk.len(), v, d], &mut of_head);
            });
        }
    }
    drop(logits);
    let sum = tensor(vec![losses.iter().sum::<f32>()], &[1]);
    let mut gradients = Vec::new();
    if wanted[0] {
        gradients.push(tensor(of_hidden, &[n, d]));
    }
    if wanted[1] {
        gradients.push(tensor(of_head, &[v, d]));
    }
    // They are here already; what flows back is a factor.
    let sum = parents.node("loss, backward", sum, move |upper| {
        let factor = numbers::<f32>(&dense::<f32>(upper))[0];
        gradients.iter().map(|gradient| times(gradient.clone(), factor)).collect()
    });
    let device = hidden.device().inner();
    Some(TrainedLoss {
        sum,
        losses: Tensor::from_primitive::<Flex>(tensor(losses, &[n, 1])),
        best: Tensor::<2, Int>::from_data(TensorData::new(best, [n, 1]), &device),
    })
}

fn times(gradient: Flat, factor: f32) -> Flat {
    use burn::backend::ops::FloatTensorOps;
    if factor == 1.0 { gradient } else { Flex::float_mul_scalar(gradient, factor.into()) }
}

/// `H·Eᵀ`, `[n, v]`.
fn write_logits<T: Format, W: Format>(
    hidden: &[T],
    rows: &[W],
    [n, v, d]: [usize; 3],
    out: &mut [f32],
) {
    timed("loss, logits", || {
        let left = Left::pack(hidden, [n, d], d);
        let right = Right::new([d, v], vec![Patch::transposed(rows, [v, d], [0, 0])]);
        Product::new(&left, &right).write(out);
    });
}

/// The elements of a gradient that the kernel keeps apart.
#[derive(Clone, Copy)]
struct OfTargets<'a> {
    /// Negative where there is none.
    targets: &'a [i32],
    gradients: &'a [f32],
}

impl<'a> OfTargets<'a> {
    /// Row, target and gradient of each.
    fn each(self) -> impl Iterator<Item = (usize, usize, f32)> + 'a {
        let all = self.targets.iter().zip(self.gradients).enumerate();
        all.filter_map(|(row, (target, number))| {
            Some((row, usize::try_from(*target).ok()?, *number))
        })
    }
}

/// `out += (softmax − onehot)ᵀ·H`, `[v, d]`, by slices of the vocabulary.
fn add_gradient_of_head<T: Format>(
    logits: &[f32],
    of_targets: OfTargets<'_>,
    hidden: &[T],
    [n, v, d]: [usize; 3],
    out: &mut [f32],
) {
    let right = Right::new([n, d], vec![Patch::straight(hidden, [n, d], [0, 0])]);
    let (gradient, stride) = gradient::<T>(logits, v);
    for (index, out) in out.chunks_mut(TOKENS_AT_ONCE * d).enumerate() {
        let count = out.len() / d;
        let left = Left::turned(&gradient[index * TOKENS_AT_ONCE..], [n, count], stride);
        Product { add: true, ..Product::new(&left, &right) }.write(out);
    }
    for (row, target, gradient) in of_targets.each() {
        add_scaled(&mut out[target * d..][..d], gradient, &hidden[row * d..][..d]);
    }
}

/// `(softmax − onehot)·E`, by slices of the vocabulary, so that no copy of the whole gradient is made where a left side
/// is packed. What is multiplied has the format of the hidden states.
fn gradient_of_hidden<T: Format, W: Format>(
    logits: &[f32],
    of_targets: OfTargets<'_>,
    rows: &[W],
    [n, v, d]: [usize; 3],
) -> Vec<f32> {
    let (gradient, stride) = gradient::<T>(logits, v);
    let mut out = vec![0.0; n * d];
    for start in (0..v).step_by(TOKENS_AT_ONCE) {
        let count = TOKENS_AT_ONCE.min(v - start);
        let part = &rows[start * d..(start + count) * d];
        let right = Right::new([count, d], vec![Patch::straight(part, [count, d], [0, 0])]);
        let left = Left::pack(&gradient[start..], [n, count], stride);
        Product { add: true, ..Product::new(&left, &right) }.write(&mut out);
    }
    for (row, target, gradient) in of_targets.each() {
        add_scaled(&mut out[row * d..][..d], gradient, &rows[target * d..][..d]);
    }
    out
}
