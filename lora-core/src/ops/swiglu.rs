//! The gated activation of the feed-forward part.

use burn::tensor::activation::silu;
use burn::tensor::{DType, Tensor};

use super::cast;

/// `silu(gate) · up` (Shazeer 2020, <https://arxiv.org/abs/2002.05202>, equation 6); the sigmoid is f32.
///
/// # Shapes
/// - gate, up, output: the same
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    let dtype = gate.dtype();
    cast(silu(cast(gate, DType::F32)), dtype) * up
}
