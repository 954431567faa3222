//! One row against a packed row, without a piece in between.
//!
//! A group of numbers `d·q + m` meets its part of the row as `d·Σ x·q + m·Σ x`: the codes are multiplied as they
//! are, and the sums of x are the same for every row.

use pulp::Simd;

use super::gguf::{half_at, packed_scales};
use super::{Blocks, GgufFormat, Stored};
use crate::matmul::tile::{lanes, prefetch};
use crate::number::Number;

/// Bytes that are asked for before they are read.
const AHEAD: usize = 2048;
/// Numbers with one scale, in the formats that are served here.
const GROUP: usize = 32;

/// Σ x of each group.
pub(crate) fn group_sums(left: &[f32]) -> Vec<f32> {
    left.chunks(GROUP).map(|group| group.iter().sum()).collect()
}

impl Blocks {
    /// Σₖ left[k]·w[row, k], for some of the formats; `sums` are [`group_sums`] of the left side.
    #[inline(always)]
    pub(crate) fn dot<S: Simd>(
        &self,
        simd: S,
        row: usize,
        left: &[f32],
        sums: &[f32],
    ) -> Option<f32> {
        if !(GROUP / 2).is_multiple_of(lanes::<S>()) {
            return None;
        }
        match &self.stored {
            Stored::Gguf(format, bytes) => {
                let row = |block_bytes: usize| {
                    let row_bytes = self.columns / format.block().0 * block_bytes;
                    &bytes[row * row_bytes..][..row_bytes]
                };
                match format {
                    GgufFormat::Q8_0 => Some(of_bytes(simd, row(34).as_chunks::<34>().0, left)),
                    GgufFormat::Q4_0 => {
                        Some(of_halves(simd, row(18).as_chunks::<18>().0, left, sums, 2))
                    }
                    GgufFormat::Q4_1 => {
                        Some(of_halves(simd, row(20).as_chunks::<20>().0, left, sums, 4))
                    }
                    GgufFormat::Q4K => Some(q4_k(simd, row(144).as_chunks::<144>().0, left, sums)),
                    _ => None,
                }
            }
            Stored::Int8(int8) => {
                let codes = &int8.codes()[row * self.columns..][..self.columns];
                Some(of_row(simd, codes, left) * int8.scale(row))
            }
            Stored::Nf4(_) => None,
        }
    }
}

#[inline(always)]
fn of_bytes<S: Simd>(simd: S, blocks: &[[u8; 34]], left: &[f32]) -> f32 {
    // Two sums in turn, so that one step need not wait for the one before.
    let (mut even, mut odd) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
    for (block, left) in blocks.iter().zip(left.as_chunks::<GROUP>().0) {
        (even, odd) = (odd, of_block(simd, block, left, even));
    }
    simd.reduce_sum_f32s(simd.add_f32s(even, odd))
}

#[inline(always)]
fn of_block<S: Simd>(simd: S, block: &[u8; 34], left: &[f32; GROUP], all: S::f32s) -> S::f32s {
    prefetch(block.as_ptr().wrapping_add(AHEAD));
    let mut sum = simd.splat_f32s(0.0);
    for k in (0..GROUP).step_by(lanes::<S>()) {
        // SAFETY: a vector at k lies within both.
        unsafe {
            let factor = f32::load(simd, left.as_ptr().add(k));
            let weight =
                load(simd, block.as_ptr().add(2 + k), |byte| f32::from(byte.cast_signed()));
            sum = simd.mul_add_e_f32s(factor, weight, sum);
        }
    }
    simd.mul_add_e_f32s(simd.splat_f32s(half_at(block, 0)), sum, all)
}

/// Blocks whose low halves are the first sixteen numbers; with a minimum of their own where the codes begin at
/// byte 4, less 8 where not.
#[inline(always)]
fn of_halves<S: Simd, const BYTES: usize>(
    simd: S,
    blocks: &[[u8; BYTES]],
    left: &[f32],
    sums: &[f32],
    start: usize,
) -> f32 {
    let width = lanes::<S>();
    let (mut even, mut odd) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
    let mut rest = 0.0;
    for (number, (block, left)) in blocks.iter().zip(left.as_chunks::<GROUP>().0).enumerate() {
        prefetch(block.as_ptr().wrapping_add(AHEAD));
        let scale = half_at(block, 0);
        let minimum = if start == 4 { half_at(block, 2) } else { -8.0 * scale };
        rest += minimum * sums[number];
        let mut sum = simd.splat_f32s(0.0);
        for k in (0..GROUP / 2).step_by(width) {
            // SAFETY: vectors at k lie within the codes and within both halves of the row.
            unsafe {
                let codes = block.as_ptr().add(start + k);
                let low = load(simd, codes, |byte| f32::from(byte & 15));
                let high = load(simd, codes, |byte| f32::from(byte >> 4));
                sum = simd.mul_add_e_f32s(f32::load(simd, left.as_ptr().add(k)), low, sum);
                let factor = f32::load(simd, left.as_ptr().add(GROUP / 2 + k));
                sum = simd.mul_add_e_f32s(factor, high, sum);
            }
        }
        (even, odd) = (odd, simd.mul_add_e_f32s(simd.splat_f32s(scale), sum, even));
    }
    simd.reduce_sum_f32s(simd.add_f32s(even, odd)) + rest
}

#[inline(always)]
fn q4_k<S: Simd>(simd: S, blocks: &[[u8; 144]], left: &[f32], sums: &[f32]) -> f32 {
    let width = lanes::<S>();
    let mut all = [simd.splat_f32s(0.0); 2];
    let mut rest = 0.0;
    let groups = left.as_chunks::<GROUP>().0.as_chunks::<8>().0.iter().zip(sums.as_chunks::<8>().0);
    for (block, (left, sums)) in blocks.iter().zip(groups) {
        for line in 0..3 {
            prefetch(block.as_ptr().wrapping_add(AHEAD + 64 * line));
        }
        let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
        let scales = packed_scales(&block[4..16]);
        for pair in 0..4 {
            let codes = &block[16 + 32 * pair..][..32];
            let (low_left, high_left) = (&left[2 * pair], &left[2 * pair + 1]);
            let (of_low, of_high) = (scales[2 * pair], scales[2 * pair + 1]);
            rest -= minimum * (of_low.1 * sums[2 * pair] + of_high.1 * sums[2 * pair + 1]);
            let mut both = [simd.splat_f32s(0.0); 2];
            for k in (0..GROUP).step_by(width) {
                // SAFETY: vectors at k lie within the codes and within both groups of the row.
                unsafe {
                    let codes = codes.as_ptr().add(k);
                    let low = load(simd, codes, |byte| f32::from(byte & 15));
                    let high = load(simd, codes, |byte| f32::from(byte >> 4));
                    let factors = (
                        f32::load(simd, low_left.as_ptr().add(k)),
                        f32::load(simd, high_left.as_ptr().add(k)),
                    );
                    both[0] = simd.mul_add_e_f32s(factors.0, low, both[0]);
                    both[1] = simd.mul_add_e_f32s(factors.1, high, both[1]);
                }
            }
            all[0] = simd.mul_add_e_f32s(simd.splat_f32s(scale * of_low.0), both[0], all[0]);
            all[1] = simd.mul_add_e_f32s(simd.splat_f32s(scale * of_high.0), both[1], all[1]);
        }
    }
    simd.reduce_sum_f32s(simd.add_f32s(all[0], all[1])) + rest
}

/// Σₖ left[k]·codes[k].
#[inline(always)]
fn of_row<S: Simd>(simd: S, codes: &[i8], left: &[f32]) -> f32 {
    let width = lanes::<S>();
    let left = &left[..codes.len()];
    let whole = codes.len() / (4 * width) * (4 * width);
    let mut sums = [simd.splat_f32s(0.0); 4];
    for start in (0..whole).step_by(4 * width) {
        prefetch(codes.as_ptr().wrapping_add(start + AHEAD));
        for (at, sum) in sums.iter_mut().enumerate() {
            let k = start + at * width;
            // SAFETY: a vector at k lies within both.
            unsafe {
                let factor = f32::load(simd, left.as_ptr().add(k));
                let codes = codes.as_ptr().add(k).cast::<u8>();
                let weight = load(simd, codes, |byte| f32::from(byte.cast_signed()));
                *sum = simd.mul_add_e_f32s(factor, weight, *sum);
            }
        }
    }
    let rest = left[whole..].iter().zip(&codes[whole..]);
    let rest: f32 = rest.map(|(left, code)| left * f32::from(*code)).sum();
    let [a, b, c, d] = sums;
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d))) + rest
}

/// What as many bytes as a vector has lanes stand for.
///
/// # Safety
/// They are readable at `at`.
#[inline(always)]
unsafe fn load<S: Simd>(simd: S, at: *const u8, meaning: impl Fn(u8) -> f32) -> S::f32s {
    let mut wide = simd.splat_f32s(0.0);
    let into = (&raw mut wide).cast::<f32>();
    for lane in 0..lanes::<S>() {
        // SAFETY: the caller's promise, and `wide` has as many lanes.
        unsafe { *into.add(lane) = meaning(*at.add(lane)) };
    }
    wide
}
