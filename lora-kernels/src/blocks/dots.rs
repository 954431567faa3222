//! One row against a row of bytes, without a piece in between.

use pulp::Simd;

use super::gguf::half_at;
use super::{Blocks, GgufFormat, Stored};
use crate::matmul::tile::lanes;
use crate::number::Number;

/// Bytes with one scale in a Q8_0 block.
const GROUP: usize = 32;
/// Bytes of a Q8_0 block: the scale, then the numbers.
const BLOCK_BYTES: usize = 2 + GROUP;

impl Blocks {
    /// Σₖ left[k]·w[row, k], where the matrix is in bytes.
    #[inline(always)]
    pub(crate) fn dot_bytes<S: Simd>(&self, simd: S, row: usize, left: &[f32]) -> Option<f32> {
        let width = lanes::<S>();
        if !GROUP.is_multiple_of(width) {
            return None;
        }
        match &self.stored {
            Stored::Gguf(GgufFormat::Q8_0, bytes) => {
                let row_bytes = self.columns / GROUP * BLOCK_BYTES;
                let blocks = bytes[row * row_bytes..][..row_bytes].as_chunks::<BLOCK_BYTES>().0;
                let mut sums = [simd.splat_f32s(0.0); 2];
                for (number, (block, left)) in
                    blocks.iter().zip(left.as_chunks::<GROUP>().0).enumerate()
                {
                    let mut sum = simd.splat_f32s(0.0);
                    for k in (0..GROUP).step_by(width) {
                        // SAFETY: a vector at k lies within both.
                        unsafe {
                            let factor = f32::load(simd, left.as_ptr().add(k));
                            let weight = load_bytes(simd, block.as_ptr().add(2 + k).cast());
                            sum = simd.mul_add_e_f32s(factor, weight, sum);
                        }
                    }
                    let scale = simd.splat_f32s(half_at(block, 0));
                    let into = &mut sums[number % 2];
                    *into = simd.mul_add_e_f32s(scale, sum, *into);
                }
                Some(simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1])))
            }
            Stored::Int8(int8) => {
                let codes = &int8.codes()[row * self.columns..][..self.columns];
                let whole = self.columns / (4 * width) * (4 * width);
                let mut sums = [simd.splat_f32s(0.0); 4];
                for start in (0..whole).step_by(4 * width) {
                    for (at, sum) in sums.iter_mut().enumerate() {
                        let k = start + at * width;
                        // SAFETY: a vector at k lies within both.
                        unsafe {
                            let factor = f32::load(simd, left.as_ptr().add(k));
                            let weight = load_bytes(simd, codes.as_ptr().add(k));
                            *sum = simd.mul_add_e_f32s(factor, weight, *sum);
                        }
                    }
                }
                let rest = left[whole..].iter().zip(&codes[whole..]);
                let rest: f32 = rest.map(|(left, code)| left * f32::from(*code)).sum();
                let [a, b, c, d] = sums;
                let sum = simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d));
                Some((simd.reduce_sum_f32s(sum) + rest) * int8.scale(row))
            }
            _ => None,
        }
    }
}

/// As many bytes as a vector has lanes, as f32.
///
/// # Safety
/// They are readable at `at`.
#[inline(always)]
unsafe fn load_bytes<S: Simd>(simd: S, at: *const i8) -> S::f32s {
    let mut wide = simd.splat_f32s(0.0);
    let into = (&raw mut wide).cast::<f32>();
    for lane in 0..lanes::<S>() {
        // SAFETY: the caller's promise, and `wide` has as many lanes.
        unsafe { *into.add(lane) = f32::from(*at.add(lane)) };
    }
    wide
}
