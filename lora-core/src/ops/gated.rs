//! Activations of the feed-forward part, gated and plain.

use burn::tensor::activation::{gelu_approximate, silu};
use burn::tensor::{DType, Tensor};

use super::cast;
#[cfg(feature = "cpu")]
use crate::profile::timed;

/// What the gate, or the one projection, goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x·σ(x)`.
    Silu,
    /// `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))` (Hendrycks and Gimpel 2016,
    /// <https://arxiv.org/abs/1606.08415>, section 2).
    GeluTanh,
    /// `x·Φ(x) = x/2·(1 + erf(x/√2))`, of which [`Self::GeluTanh`] is the approximation.
    Gelu,
}

/// `activation(gate) · up` (Shazeer 2020, <https://arxiv.org/abs/2002.05202>, equations 5 and 6); the
/// activation is f32.
///
/// # Shapes
/// - gate_up: `[n, 2·wide]`, the gate first
/// - output: `[n, wide]`
pub fn gated(activation: Activation, gate_up: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if let Some(y) = timed("gated activation", || super::processor::gated(activation, &gate_up)) {
        return y;
    }
    let wide = gate_up.dims()[1] / 2;
    let gate = gate_up.clone().narrow(1, 0, wide);
    activate(activation, gate) * gate_up.narrow(1, wide, wide)
}

/// `activation(x)`, in f32 whatever the format.
///
/// # Shapes
/// - x, output: `[n, wide]`
pub fn activate(activation: Activation, x: Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    let x = cast(x, DType::F32);
    let y = match activation {
        Activation::Silu => silu(x),
        Activation::GeluTanh => gelu_approximate(x),
        // Not Burn's `gelu`, whose backward pass is the approximation's.
        Activation::Gelu => {
            let share = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0;
            x * share * 0.5
        }
    };
    cast(y, dtype)
}
