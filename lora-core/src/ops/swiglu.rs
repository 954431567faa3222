//! The gated activation of the feed-forward part.

use burn::tensor::activation::silu;
use burn::tensor::{DType, Tensor};

use super::cast;
#[cfg(feature = "cpu")]
use crate::profile::timed;

/// `silu(gate) · up` (Shazeer 2020, <https://arxiv.org/abs/2002.05202>, equation 6); the sigmoid is f32.
///
/// # Shapes
/// - gate_up: `[n, 2·wide]`, the gate first
/// - output: `[n, wide]`
pub fn swiglu(gate_up: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if let Some(y) = timed("swiglu", || super::processor::swiglu(&gate_up)) {
        return y;
    }
    let dtype = gate_up.dtype();
    let wide = gate_up.dims()[1] / 2;
    let gate = gate_up.clone().narrow(1, 0, wide);
    cast(silu(cast(gate, DType::F32)), dtype) * gate_up.narrow(1, wide, wide)
}
