//! The operations on the processor, by the kernels of `lora-kernels`: fused, on every core, each with a
//! backward pass of its own.
//!
//! A function here gives `None` where it does not serve (another backend, f16): the caller then
//! computes by Burn's own operations, which is also what the results are held against.

mod attention;
mod elementwise;
mod linear;
mod loss;
mod node;
mod residual;

use burn::backend::{DispatchDevice, Flex, TensorMetadata};
use burn::tensor::{Device, Element, Tensor, TensorData};
use half::bf16;
use lora_kernels::number::Number;

pub(super) use attention::{attention, attention_over};
pub(super) use elementwise::{gated, rms_norm, rotary};
pub(super) use linear::{dropout_mask, lora_linear};
pub(super) use loss::{cross_entropy, trained_cross_entropy};
use node::{Flat, Parents};
pub(super) use residual::{Waiting, add, norm_stream};

/// A number format that the kernels compute in.
trait Format: Number + Element {}
impl Format for f32 {}
impl Format for bf16 {}

/// Calls a function with the format as its type, or gives `None`.
macro_rules! by_format {
    ($dtype:expr, $function:ident, $($argument:expr),*) => {
        match $dtype {
            DType::F32 => $function::<f32>($($argument),*),
            DType::BF16 => $function::<bf16>($($argument),*),
            _ => None,
        }
    };
}
use by_format;

/// The tensor's numbers where they are the processor's, without its graph.
fn flat<const D: usize>(x: &Tensor<D>) -> Option<Flat> {
    x.clone().inner().try_into_primitive::<Flex>().ok()
}

/// The same, one after another, in the format `T`.
fn dense<T: Format>(x: Flat) -> Flat {
    let x = if x.dtype() == T::dtype() { x } else { cast::<T>(x) };
    x.to_contiguous()
}

fn cast<T: Format>(x: Flat) -> Flat {
    use burn::backend::ops::FloatTensorOps;
    Flex::float_cast(x, T::dtype().into())
}

/// The numbers of a tensor that [`dense`] gave.
fn numbers<T: Format>(x: &Flat) -> &[T] {
    // A prefix of a larger buffer is dense too.
    let all: &[T] = x.storage();
    let start = x.layout().start_offset();
    &all[start..start + x.shape().num_elements()]
}

/// Whether tensors of this device are the processor's.
pub(super) fn is_here(device: &Device) -> bool {
    matches!(device.clone().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// A tensor of what a kernel wrote.
fn tensor<T: Format>(numbers: Vec<T>, shape: &[usize]) -> Flat {
    Flat::from_data(TensorData::new(numbers, shape.to_vec()))
}
