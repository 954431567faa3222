//! Norm, rotation and gated activation by the kernels.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Tensor};
use half::bf16;
use lora_kernels::activation::{Activation as Kind, gated as gate, gated_backward};
use lora_kernels::filled;
use lora_kernels::norm::{rms_norm as normalise, rms_norm_backward, rms_norm_weight_gradient};
use lora_kernels::rotary::rotary as rotate;

use super::residual::{Waiting, add_to_waiting};
use super::{Format, Parents, by_format, dense, flat, numbers, tensor};
use crate::ops::Activation;

/// As [`crate::ops::rms_norm`].
pub(in crate::ops) fn rms_norm<const D: usize>(
    x: &Tensor<D>,
    weight: &Tensor<1>,
    epsilon: f64,
) -> Option<Tensor<D>> {
    norm(x, weight, epsilon, None)
}

/// The same, whose gradient is added to one that waits.
pub(super) fn norm<const D: usize>(
    x: &Tensor<D>,
    weight: &Tensor<1>,
    epsilon: f64,
    waiting: Option<Waiting>,
) -> Option<Tensor<D>> {
    fn of<T: Format, const D: usize>(
        x: &Tensor<D>,
        weight: &Tensor<1>,
        epsilon: f64,
        waiting: Option<Waiting>,
    ) -> Option<Tensor<D>> {
        let mut parents = Parents::default();
        let wanted = [parents.add(x), parents.add(weight)];
        let (input, shape, width) = (dense::<T>(flat(x)?), x.dims(), weight.dims()[0]);
        let (format, weight) = (weight.dtype(), dense::<f32>(flat(weight)?));
        let count = input.shape().num_elements();
        let mut scale = vec![0.0; count / width];
        let y: Vec<T> = filled(count, |y| {
            normalise(numbers::<T>(&input), numbers(&weight), epsilon as f32, y, &mut scale);
        });
        Some(parents.node("rms norm, backward", tensor(y, &shape), move |upper| {
            let upper = dense::<T>(upper);
            let (x, dy) = (numbers::<T>(&input), numbers::<T>(&upper));
            let mut gradients = Vec::new();
            if wanted[0] {
                let backward = |dx: &mut [T], add| {
                    rms_norm_backward(x, numbers(&weight), &scale, dy, dx, add);
                };
                gradients.push(add_to_waiting(waiting.as_ref(), backward, &shape));
            }
            if wanted[1] {
                let mut dw = vec![0.0; width];
                rms_norm_weight_gradient(x, &scale, dy, &mut dw);
                let dw = tensor(dw, &[width]);
                gradients.push(if format == DType::BF16 { super::cast::<bf16>(dw) } else { dw });
            }
            gradients
        }))
    }
    match x.dtype() {
        DType::F32 => of::<f32, D>(x, weight, epsilon, waiting),
        DType::BF16 => of::<bf16, D>(x, weight, epsilon, waiting),
        _ => None,
    }
}

/// As [`crate::ops::rotary`].
pub(in crate::ops) fn rotary(
    x: &Tensor<2>,
    heads: usize,
    cosine: &Tensor<2>,
    sine: &Tensor<2>,
) -> Option<Tensor<2>> {
    fn of<T: Format>(
        x: &Tensor<2>,
        heads: usize,
        cosine: &Tensor<2>,
        sine: &Tensor<2>,
    ) -> Option<Tensor<2>> {
        let mut parents = Parents::default();
        parents.add(x);
        let ([n, row], [_, half]) = (x.dims(), cosine.dims());
        let input = dense::<T>(flat(x)?);
        let (cosine, sine) = (dense::<f32>(flat(cosine)?), dense::<f32>(flat(sine)?));
        let turned = move |x: &[T], inverse: bool| {
            let y: Vec<T> = filled(n * row, |y| {
                rotate(x, row, heads, 2 * half, numbers(&cosine), numbers(&sine), y, inverse);
            });
            tensor(y, &[n, row])
        };
        let output = turned(numbers::<T>(&input), false);
        drop(input);
        Some(parents.node("rotary, backward", output, move |upper| {
            vec![turned(numbers::<T>(&dense::<T>(upper)), true)]
        }))
    }
    by_format!(x.dtype(), of, x, heads, cosine, sine)
}

/// As [`crate::ops::gated`].
pub(in crate::ops) fn gated(activation: Activation, gate_up: &Tensor<2>) -> Option<Tensor<2>> {
    fn of<T: Format>(kind: Kind, gate_up: &Tensor<2>) -> Option<Tensor<2>> {
        let mut parents = Parents::default();
        parents.add(gate_up);
        let [n, both] = gate_up.dims();
        let width = both / 2;
        let input = dense::<T>(flat(gate_up)?);
        let y: Vec<T> = filled(n * width, |y| gate(kind, numbers::<T>(&input), width, y));
        Some(parents.node("gated activation, backward", tensor(y, &[n, width]), move |upper| {
            let upper = dense::<T>(upper);
            let gradient: Vec<T> = filled(n * both, |gradient| {
                let dy = numbers::<T>(&upper);
                gated_backward(kind, numbers::<T>(&input), width, dy, gradient);
            });
            vec![tensor(gradient, &[n, both])]
        }))
    }
    let kind = match activation {
        Activation::Silu => Kind::Silu,
        Activation::GeluTanh => Kind::GeluTanh,
        // No decoder that we read has it as a gate.
        Activation::Gelu => return None,
    };
    by_format!(gate_up.dtype(), of, kind, gate_up)
}
