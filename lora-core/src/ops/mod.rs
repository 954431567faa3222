//! The operations that a decoder is made of, each in a file of its own: what it computes, in which
//! number format, and how it keeps within a device's largest buffer.
//!
//! Activations come in the compute format (f32, bf16 or f16) and leave in it. Every reduction (mean,
//! softmax, logarithm of a sum) is f32, on every backend.
//!
//! Each stands here twice where a kernel pays: by Burn's operations, which run anywhere, and, on the
//! processor, by `lora-kernels` with a backward pass of its own. The conformance suite holds both
//! against float64.

mod attention;
mod gated;
mod layer_norm;
mod linear_cross_entropy;
mod lora_linear;
#[cfg(feature = "cpu")]
mod processor;
mod residual;
mod rms_norm;
mod rotary;
mod soft_cap;

use burn::tensor::{DType, Device, FloatDType, Tensor};

pub use attention::{AttentionMask, HeadLayout, Scores, attention, attention_over};
pub use gated::{Activation, activate, gated};
pub use layer_norm::layer_norm;
pub use linear_cross_entropy::{
    FrozenLoss, TrainedLoss, linear_cross_entropy, trained_cross_entropy,
};
pub(crate) use lora_linear::dropped;
pub use lora_linear::{Layer, LowRank, Weight, lora_linear};
pub use residual::{Stream, norm_stream};
pub use rms_norm::rms_norm;
pub use rotary::rotary;
pub use soft_cap::soft_cap;

/// Floating-point operations per second of which this processor is capable in a product of numbers in this
/// format; `None` where its kernels are not there, or not for this format.
pub fn product_limit(dtype: DType) -> Option<f64> {
    #[cfg(feature = "cpu")]
    match dtype {
        DType::F32 => return Some(lora_kernels::limit::product_limit::<f32>()),
        DType::BF16 => return Some(lora_kernels::limit::product_limit::<half::bf16>()),
        _ => {}
    }
    let _ = dtype;
    None
}

/// The same of f32 numbers, each taken as three of bf16, with weights that rest in this format, if products are
/// computed so here.
pub fn product_limit_in_thirds(weights: DType) -> Option<f64> {
    #[cfg(feature = "cpu")]
    match weights {
        DType::F32 => return lora_kernels::limit::product_limit_in_thirds::<f32>(),
        DType::BF16 => return lora_kernels::limit::product_limit_in_thirds::<half::bf16>(),
        _ => {}
    }
    let _ = weights;
    None
}

/// The tensor in another number format; itself where it has that already.
pub fn cast<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(FloatDType::from(dtype)) }
}

/// Makes the calling thread, a program's first, one of those that share the processor's work.
pub fn join_pool() {
    #[cfg(feature = "cpu")]
    lora_kernels::awake::join_pool();
}

/// Runs `work`, operations on this device that follow one another closely: the processor's threads stay awake in
/// between.
///
/// # Panics
/// As `work` does.
pub fn awake<R>(device: &Device, work: impl FnOnce() -> R) -> R {
    #[cfg(feature = "cpu")]
    if processor::is_here(device) {
        return lora_kernels::awake::awake(work);
    }
    let _ = device;
    work()
}

/// Whether `lora-kernels` computes on this device.
pub(crate) fn has_kernels(device: &Device) -> bool {
    #[cfg(feature = "cpu")]
    return processor::is_here(device);
    #[cfg(not(feature = "cpu"))]
    {
        let _ = device;
        false
    }
}
