//! Soft caps on scores and logits.

use burn::tensor::{DType, Tensor};

use super::cast;

/// `c·tanh(x / c)`, which stays between −c and c (Gemma Team 2024, <https://arxiv.org/abs/2408.00118>,
/// section 2), in f32 whatever the format.
///
/// # Shapes
/// - x, output: any
pub fn soft_cap<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    let dtype = x.dtype();
    cast((cast(x, DType::F32) / cap).tanh() * cap, dtype)
}
