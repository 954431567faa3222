//! Normalisation by mean and variance.

use burn::tensor::{DType, Tensor};

use super::cast;

/// `(x − mean(x)) / √(var(x) + ε) · w + b` over the last dimension (Ba et al. 2016,
/// <https://arxiv.org/abs/1607.06450>, equation 4), with the variance of all d numbers. It is f32.
///
/// # Shapes
/// - x, output: `[.., d]`
/// - weight, bias: `[d]`
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    epsilon: f64,
) -> Tensor<D> {
    let dtype = x.dtype();
    let x = cast(x, DType::F32);
    let centred = x.clone() - x.mean_dim(D - 1);
    let variance = centred.clone().square().mean_dim(D - 1);
    let normed = centred * (variance + epsilon).sqrt().recip();
    let scaled = normed * cast(weight, DType::F32).unsqueeze();
    let y = match bias {
        Some(bias) => scaled + cast(bias, DType::F32).unsqueeze(),
        None => scaled,
    };
    cast(y, dtype)
}
