//! NF4 with double quantisation (Dettmers et al. 2023, <https://arxiv.org/abs/2305.14314>, section 3), in the
//! codebooks and the layout of bitsandbytes.
//!
//! Each 64 numbers have a scale a = max|w|, and each number the nearest of sixteen levels times a. The scales
//! are stored as bytes themselves: `a = level₈·a₂ + mean`, with a₂ for each 256 of them.

use std::sync::LazyLock;

use rayon::prelude::*;

/// The sixteen levels: quantiles of a normal distribution, zero among them, scaled to -1..1.
pub const NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Numbers with one scale.
pub(super) const BLOCK: usize = 64;
/// Scales with one scale of their own.
const SCALES: usize = 256;

#[derive(Clone)]
pub(super) struct Nf4 {
    /// Two numbers in a byte, the first in its high half.
    codes: Vec<u8>,
    /// The scale of each block as the number of a level.
    scales: Vec<u8>,
    /// What the levels of 256 scales are multiplied by.
    scales_of_scales: Vec<f32>,
    /// The mean of the scales.
    mean: f32,
    /// The levels of scales, the same for every matrix.
    levels: &'static [f32],
}

impl Nf4 {
    pub(super) fn of(numbers: &[f32]) -> Self {
        let maxima: Vec<f32> = numbers.par_chunks(BLOCK).map(largest).collect();
        let mut codes = vec![0; numbers.len().div_ceil(2)];
        let blocks = codes.par_chunks_mut(BLOCK / 2).zip(numbers.par_chunks(BLOCK)).zip(&maxima);
        blocks.for_each(|((codes, numbers), largest)| {
            // A whole block is multiplied, the rest divided: so it is done there.
            let inverse = 1.0 / largest.max(1e-38);
            let whole = numbers.len() == BLOCK;
            let code = |number: f32| {
                let scaled = if whole { number * inverse } else { number / largest.max(1e-38) };
                nearest_level(scaled.clamp(-1.0, 1.0))
            };
            for (byte, pair) in codes.iter_mut().zip(numbers.chunks(2)) {
                *byte = code(pair[0]) << 4 | pair.get(1).map_or(nearest_level(0.0), |it| code(*it));
            }
        });
        let sum: f64 = maxima.iter().map(|it| f64::from(*it)).sum();
        let mean = (sum / maxima.len().max(1) as f64) as f32;
        let levels: &'static [f32] = &LEVELS;
        let (mut scales, mut scales_of_scales) = (Vec::with_capacity(maxima.len()), Vec::new());
        for maxima in maxima.chunks(SCALES) {
            let rest: Vec<f32> = maxima.iter().map(|it| it - mean).collect();
            let scale = largest(&rest);
            scales_of_scales.push(scale);
            let inverse = 1.0 / scale.max(f32::MIN_POSITIVE);
            scales.extend(rest.iter().map(|it| nearest(levels, it * inverse)));
        }
        Self { codes, scales, scales_of_scales, mean, levels }
    }

    pub(super) fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len() + 4 * (self.scales_of_scales.len() + 1)
    }

    /// The scale of a block.
    #[inline(always)]
    pub(super) fn scale(&self, block: usize) -> f32 {
        let level = self.levels[usize::from(self.scales[block])];
        level * self.scales_of_scales[block / SCALES] + self.mean
    }

    /// The code of a number.
    pub(super) fn code(&self, at: usize) -> u8 {
        let byte = self.codes[at / 2];
        if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
    }

    /// Numbers from `start` on.
    #[inline(always)]
    pub(super) fn unpack(&self, start: usize, out: &mut [f32]) {
        if !start.is_multiple_of(BLOCK) {
            for (at, out) in out.iter_mut().enumerate() {
                let at = start + at;
                *out = NF4_LEVELS[usize::from(self.code(at))] * self.scale(at / BLOCK);
            }
            return;
        }
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let scale = self.scale(start / BLOCK + block);
            let codes = &self.codes[start / 2 + block * (BLOCK / 2)..];
            let pairs_of_block = out.len() / 2;
            for (pair, code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *pair = PAIRS[usize::from(*code)];
            }
            if let [last] = out.as_chunks_mut::<2>().1 {
                *last = NF4_LEVELS[usize::from(codes[pairs_of_block] >> 4)];
            }
            out.iter_mut().for_each(|out| *out *= scale);
        }
    }

    #[cfg(test)]
    pub(super) fn parts(&self) -> (&[u8], &[u8], &[f32], f32, &[f32]) {
        (&self.codes, &self.scales, &self.scales_of_scales, self.mean, self.levels)
    }
}

static LEVELS: LazyLock<Vec<f32>> = LazyLock::new(dynamic_levels);

/// The levels of both halves of every byte.
static PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [NF4_LEVELS[byte >> 4], NF4_LEVELS[byte & 15]];
        byte += 1;
    }
    pairs
};

fn largest(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0.0, |largest, number| number.abs().max(largest))
}

/// The number of the nearest level; on a tie the lower.
fn nearest_level(scaled: f32) -> u8 {
    nearest(&NF4_LEVELS, scaled)
}

/// The number of the nearest of ascending levels; on a tie the lower.
fn nearest(levels: &[f32], number: f32) -> u8 {
    let above = levels.partition_point(|level| *level < number).min(levels.len() - 1);
    if above == 0 {
        return 0;
    }
    let middle = (levels[above - 1] + levels[above]) / 2.0;
    if number > middle { above as u8 } else { above as u8 - 1 }
}

/// The 256 levels of a scale: seven decades with more steps the larger they are, both signs, 0 and 1
/// (Dettmers 2015, <https://arxiv.org/abs/1511.04561>, as bitsandbytes' `create_dynamic_map`).
fn dynamic_levels() -> Vec<f32> {
    let mut levels = vec![0.0, 1.0];
    for decade in 0..7 {
        let steps = 1 << decade;
        let bound = |at: usize| bound_of(at, steps);
        let factor = 10f64.powi(decade - 6) as f32;
        for step in 0..steps {
            let middle = (bound(step) + bound(step + 1)) / 2.0;
            let level = factor * middle;
            levels.extend([level, -level]);
        }
    }
    levels.sort_by(f32::total_cmp);
    levels
}

/// Bound `at` of `steps` equal steps from 0.1 to 1, in f32 from the nearer end.
fn bound_of(at: usize, steps: usize) -> f32 {
    let step = (1.0 - 0.1f32) / steps as f32;
    match at < steps.div_ceil(2) {
        true => 0.1 + step * at as f32,
        false => 1.0 - step * (steps - at) as f32,
    }
}
