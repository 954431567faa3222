//! The loss of a frozen head by the kernels.

use burn::backend::Flex;
use burn::tensor::{DType, Int, Tensor, TensorData};
use half::bf16;
use lora_kernels::cross_entropy::cross_entropy as losses_of;
use lora_kernels::filled;
use lora_kernels::matmul::{Left, Patch, Product, Right};

use super::{Format, by_format, dense, flat, numbers, tensor};
use crate::ops::FrozenLoss;
use crate::profile::timed;

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
    let left = Left::pack(numbers::<T>(&input), [n, d], d);
    let right = Right::new([d, v], vec![Patch::transposed(rows, [v, d], [0, 0])]);
    let mut logits: Vec<f32> = timed("loss, logits", || {
        filled(n * v, |out| {
            Product { left: &left, right: &right, low_rank: None, bias: None }.write(out);
        })
    });
    drop(left);
    let (mut losses, mut best) = (vec![0.0; n], vec![0; n]);
    timed("loss, softmax", || {
        losses_of(&mut logits, v, targets, &mut losses, &mut best, want_gradient);
    });
    let hidden_gradient = want_gradient.then(|| {
        let left = Left::pack(&logits, [n, v], v);
        drop(logits);
        let right = Right::new([v, d], vec![Patch::straight(rows, [v, d], [0, 0])]);
        let gradient: Vec<T> = timed("loss, gradient", || {
            filled(n * d, |out| {
                Product { left: &left, right: &right, low_rank: None, bias: None }.write(out);
            })
        });
        Tensor::from_primitive::<Flex>(tensor(gradient, &[n, d]))
    });
    let device = hidden.device().inner();
    Some(FrozenLoss {
        losses: Tensor::from_primitive::<Flex>(tensor(losses, &[n, 1])),
        best: Tensor::<2, Int>::from_data(TensorData::new(best, [n, 1]), &device),
        hidden_gradient,
    })
}
