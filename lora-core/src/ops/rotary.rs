//! Rotary positions.

use burn::tensor::{DType, Tensor};

use super::cast;
#[cfg(feature = "cpu")]
use crate::profile::timed;

/// Rotates each pair (i, i + width/2) of a head by its position's angle (Su et al. 2021,
/// <https://arxiv.org/abs/2104.09864>, equation 34, with the halves side by side as Llama has them):
/// `(x₁·cos − x₂·sin, x₂·cos + x₁·sin)`, in f32. What a row has beyond the first `heads` heads, stays.
///
/// # Shapes
/// - x, output: `[n, row]`, a row being heads of one width
/// - cosine, sine: `[n, width / 2]`, f32
pub fn rotary(x: Tensor<2>, heads: usize, cosine: &Tensor<2>, sine: &Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if let Some(y) = timed("rotary", || super::processor::rotary(&x, heads, cosine, sine)) {
        return y;
    }
    let dtype = x.dtype();
    let ([n, row], [_, half]) = (x.dims(), cosine.dims());
    let turned = heads * 2 * half;
    let rest = (turned < row).then(|| x.clone().narrow(1, turned, row - turned));
    let x = cast(x.narrow(1, 0, turned), DType::F32).reshape([n, heads, 2 * half]); // [n, h, w]
    let first = x.clone().narrow(2, 0, half);
    let second = x.narrow(2, half, half);
    let (cosine, sine) = (cosine.clone().unsqueeze_dim::<3>(1), sine.clone().unsqueeze_dim::<3>(1)); // [n, 1, w / 2]
    let rotated = Tensor::cat(
        vec![
            first.clone() * cosine.clone() - second.clone() * sine.clone(),
            second * cosine + first * sine,
        ],
        2,
    );
    let rotated = cast(rotated.reshape([n, turned]), dtype);
    match rest {
        Some(rest) => Tensor::cat(vec![rotated, rest], 1),
        None => rotated,
    }
}
