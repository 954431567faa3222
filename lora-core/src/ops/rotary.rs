//! Rotary positions.

use burn::tensor::{DType, Tensor};

use super::cast;

/// Rotates each pair (i, i + width/2) of a head by its position's angle (Su et al. 2021,
/// <https://arxiv.org/abs/2104.09864>, equation 34, with the halves side by side as Llama has them):
/// `(x₁·cos − x₂·sin, x₂·cos + x₁·sin)`, in f32.
///
/// # Shapes
/// - x, output: `[b, t, heads, width]`
/// - cosine, sine: `[b, t, 1, width / 2]`, f32
pub fn rotary(x: Tensor<4>, cosine: &Tensor<4>, sine: &Tensor<4>) -> Tensor<4> {
    let dtype = x.dtype();
    let [_, _, _, width] = x.dims();
    let half = width / 2;
    let x = cast(x, DType::F32);
    let first = x.clone().narrow(3, 0, half);
    let second = x.narrow(3, half, half);
    let rotated = Tensor::cat(
        vec![
            first.clone() * cosine.clone() - second.clone() * sine.clone(),
            second * cosine.clone() + first * sine.clone(),
        ],
        3,
    );
    cast(rotated, dtype)
}
