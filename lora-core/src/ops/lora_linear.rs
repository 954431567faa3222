//! Linear layers with low-rank updates, in activation space.

use burn::tensor::{DType, Distribution, Tensor};

use super::cast;
use crate::packed::Packed;
#[cfg(feature = "cpu")]
use crate::profile::timed;

/// A linear layer as an operation sees it.
pub struct Layer {
    /// W, `[d_in, d_out]`.
    pub weight: Weight,
    /// b, `[d_out]`.
    pub bias: Option<Tensor<1>>,
    /// The updates that are added.
    pub low_rank: Vec<LowRank>,
}

/// A weight `[d_in, d_out]` as it is at rest.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "it lives for one operation")]
pub enum Weight {
    /// Number by number.
    Dense(Tensor<2>),
    /// In few bits, the weights of one output in one row. It is unpacked for each pass, forward and backward.
    Packed(Packed),
}

impl Weight {
    /// d_in and d_out.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Packed(packed) => {
                let [rows, columns] = packed.shape();
                [columns, rows]
            }
        }
    }

    /// Number by number; a packed one is unpacked by every call.
    pub fn dense(&self) -> Tensor<2> {
        match self {
            Self::Dense(weight) => weight.clone(),
            Self::Packed(packed) => packed.unpack().transpose(),
        }
    }

    /// The same without automatic differentiation.
    #[must_use]
    pub fn inner(&self) -> Self {
        match self {
            Self::Dense(weight) => Self::Dense(weight.clone().inner()),
            Self::Packed(packed) => Self::Packed(packed.clone()),
        }
    }
}

/// An update `s·(dropout(x)·A)·B`.
pub struct LowRank {
    /// A, `[d_in, rank]`, f32.
    pub a: Tensor<2>,
    /// B, `[rank, d_out]`, f32.
    pub b: Tensor<2>,
    /// s.
    pub scale: f64,
    /// Share of the inputs of this branch that is dropped now; the rest is scaled up.
    pub dropout: f64,
}

/// The outputs of several layers on one input, side by side: `yᵢ = x·Wᵢ + bᵢ + Σ s·(x·A)·B` (Hu et al.
/// 2021, <https://arxiv.org/abs/2106.09685>, equation 3). Nothing of W's shape is formed for the update.
///
/// Dropout draws from the device's generator: seed the device to repeat it.
///
/// # Shapes
/// - x: `[n, d_in]`, in the compute format
/// - output: `[n, d_out of all layers]`, in the same
pub fn lora_linear(x: Tensor<2>, layers: &[Layer]) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if let Some(y) = timed("linear", || super::processor::lora_linear(&x, layers)) {
        return y;
    }
    let mut outputs: Vec<Tensor<2>> = layers.iter().map(|layer| layer.forward(x.clone())).collect();
    match outputs.len() {
        1 => outputs.remove(0),
        _ => Tensor::cat(outputs, 1),
    }
}

impl Layer {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let dtype = x.dtype();
        let mut y = x.clone().matmul(cast(self.weight.dense(), dtype));
        if let Some(bias) = &self.bias {
            y = y + cast(bias.clone(), dtype).unsqueeze();
        }
        for update in &self.low_rank {
            y = y + update.forward(x.clone());
        }
        y
    }
}

impl LowRank {
    /// `[n, d_out]`, computed in the factors' f32. The scale goes onto the narrow `[n, rank]` tensor.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let dtype = x.dtype();
        let x = dropped(cast(x, DType::F32), self.dropout);
        let narrow = x.matmul(self.a.clone()) * self.scale; // [n, rank]
        cast(narrow.matmul(self.b.clone()), dtype)
    }
}

/// The f32 numbers `[n, d]`, of which this share becomes zero and the rest is scaled up.
pub(crate) fn dropped(x: Tensor<2>, dropout: f64) -> Tensor<2> {
    if dropout == 0.0 {
        return x;
    }
    let keep = 1.0 - dropout;
    // One and the same mask whichever way a layer is computed.
    #[cfg(feature = "cpu")]
    if let Some(mask) = super::processor::dropout_mask(&x, keep) {
        return x * (mask / keep);
    }
    let mask = Tensor::random(x.dims(), Distribution::Bernoulli(keep), &x.device());
    x * (mask.inner() / keep)
}
