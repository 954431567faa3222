//! The stream of residual connections: the gradient of a sum waits for that of the norm before it, and both
//! become one.

use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Tensor};
use half::bf16;
use lora_kernels::elementwise::add as add_all;
use lora_kernels::filled;

use super::elementwise::norm;
use super::{Flat, Format, Parents, by_format, dense, flat, numbers, tensor};

/// The gradient of a sum, once it is known.
pub(in crate::ops) type Waiting = Arc<Mutex<Option<Flat>>>;

/// As [`crate::ops::norm_stream`], for a tracked x.
pub(in crate::ops) fn norm_stream(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    epsilon: f64,
) -> Option<(Tensor<2>, Waiting)> {
    let waiting = Waiting::default();
    let normed = norm(x, weight, epsilon, Some(waiting.clone()))?;
    Some((normed, waiting))
}

/// x + y; the gradient is left in `waiting`, or goes to y alone where x has none.
pub(in crate::ops) fn add(
    x: &Tensor<2>,
    y: &Tensor<2>,
    waiting: Option<Waiting>,
) -> Option<Tensor<2>> {
    // A stream with a gradient that waits nowhere, or whose sum would never be asked for one.
    if x.is_tracked() != waiting.is_some() || x.is_tracked() && !y.is_tracked() {
        return None;
    }
    if x.dtype() != y.dtype() {
        return None;
    }
    by_format!(x.dtype(), sum, x, y, waiting)
}

fn sum<T: Format>(x: &Tensor<2>, y: &Tensor<2>, waiting: Option<Waiting>) -> Option<Tensor<2>> {
    let mut parents = Parents::default();
    parents.add(y);
    let shape = x.dims();
    let (x, y) = (dense::<T>(flat(x)?), dense::<T>(flat(y)?));
    let out: Vec<T> = filled(x.shape().num_elements(), |out| {
        add_all(numbers::<T>(&x), numbers::<T>(&y), out);
    });
    Some(parents.node("residual, backward", tensor(out, &shape), move |upper| {
        if let Some(waiting) = &waiting {
            *waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(upper.clone());
        }
        vec![upper]
    }))
}

/// The gradient that waits, with that of the norm added to it.
pub(super) fn add_to_waiting<T: Format>(
    waiting: Option<&Waiting>,
    backward: impl FnOnce(&mut [T], bool),
    shape: &[usize],
) -> Flat {
    let waiting =
        waiting.and_then(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).take());
    let count = shape.iter().product();
    match waiting {
        Some(waiting) => {
            let mut gradient = dense::<T>(waiting);
            let start = gradient.layout().start_offset();
            backward(&mut gradient.storage_mut::<T>()[start..start + count], true);
            gradient
        }
        None => tensor(filled(count, |dx: &mut [T]| backward(dx, false)), shape),
    }
}
