//! The stream of residual connections: the norm before a part of a block, and the sum after it.

use burn::tensor::Tensor;

#[cfg(feature = "cpu")]
use super::processor;
use super::rms_norm;
#[cfg(feature = "cpu")]
use crate::profile::timed;

/// A stream that waits for what a part of a block adds to it.
pub struct Stream {
    x: Tensor<2>,
    /// Where the gradient of the sum waits for that of the norm.
    #[cfg(feature = "cpu")]
    waiting: Option<processor::Waiting>,
}

/// The normed stream, `[n, d]`, and the stream itself, to which is added what a part of a block makes of the normed
/// one: `x + f(norm(x))`.
///
/// The gradient of x is the sum of two, that of the norm and that of the sum; on the processor both are
/// one pass, so f must depend on what is given here.
pub fn norm_stream(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> (Tensor<2>, Stream) {
    #[cfg(feature = "cpu")]
    if x.is_tracked()
        && let Some((normed, waiting)) =
            timed("rms norm", || processor::norm_stream(&x, &weight, epsilon))
    {
        return (normed, Stream { x, waiting: Some(waiting) });
    }
    (rms_norm(x.clone(), weight, epsilon), Stream::new(x))
}

impl Stream {
    /// A stream, `[n, d]`, that is normed by another operation: its two gradients are added as they come.
    pub fn new(x: Tensor<2>) -> Self {
        Self {
            x,
            #[cfg(feature = "cpu")]
            waiting: None,
        }
    }

    /// x + y, `[n, d]`.
    pub fn sum(self, y: Tensor<2>) -> Tensor<2> {
        #[cfg(feature = "cpu")]
        if let Some(sum) = timed("residual", || processor::add(&self.x, &y, self.waiting)) {
            return sum;
        }
        self.x + y
    }
}
