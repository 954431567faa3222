//! Root-mean-square normalisation.

use burn::tensor::{DType, Tensor};

use super::cast;
#[cfg(feature = "cpu")]
use crate::profile::timed;

/// `x / √(mean(x²) + ε) · w` over the last dimension (Zhang and Sennrich 2019,
/// <https://arxiv.org/abs/1910.07467>, equation 4). The mean and what follows it are f32.
///
/// # Shapes
/// - x, output: `[.., d]`
/// - weight: `[d]`
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    #[cfg(feature = "cpu")]
    if let Some(y) = timed("rms norm", || super::processor::rms_norm(&x, &weight, epsilon)) {
        return y;
    }
    let dtype = x.dtype();
    let x = cast(x, DType::F32);
    let mean = x.clone().square().mean_dim(D - 1);
    let scale = (mean + epsilon).sqrt().recip();
    cast(x * scale * cast(weight, DType::F32).unsqueeze(), dtype)
}
