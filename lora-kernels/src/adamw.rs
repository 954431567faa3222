//! One update of AdamW (Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>, algorithm 2), in one pass over
//! a tensor, and the norm that gradients are clipped by. Both give the same bits on any number of threads and with
//! vectors of any length.

use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::number::LANES;
use crate::parallel::for_each_row;

/// What an update is made of.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// `1 − ηλ`: what decoupled weight decay leaves of a number.
    pub keep: f32,
    /// What gradients are multiplied by, to clip their norm.
    pub clip: f32,
    /// β₁ and β₂.
    pub betas: [f32; 2],
    /// `1 − β₁` and `1 − β₂`, rounded once.
    pub one_minus_betas: [f32; 2],
    /// `η / (1 − β₁ᵗ)`.
    pub step_size: f32,
    /// `√(1 − β₂ᵗ)`.
    pub bias_correction2_sqrt: f32,
    /// ε.
    pub epsilon: f32,
}

/// Elements of a task.
const BLOCK: usize = 1 << 13;

impl Update {
    /// With `g = clip·gradient`: `m = β₁m + (1 − β₁)g`, `v = β₂v + (1 − β₂)g²`,
    /// `w = keep·w − step_size·m / (√v/bias_correction2_sqrt + ε)`.
    ///
    /// # Panics
    /// Where the lengths differ.
    pub fn apply(&self, numbers: &mut [f32], moments: [&mut [f32]; 2], gradient: &[f32]) {
        let [first, second] = moments;
        assert_eq!([first.len(), second.len(), gradient.len()], [numbers.len(); 3]);
        let Self { keep, clip, betas, one_minus_betas, step_size, bias_correction2_sqrt, epsilon } =
            *self;
        for_each_row(
            BLOCK,
            (
                numbers.par_chunks_mut(BLOCK),
                first.par_chunks_mut(BLOCK),
                second.par_chunks_mut(BLOCK),
                gradient.par_chunks(BLOCK),
            ),
            #[inline(always)]
            |(numbers, first, second, gradient)| {
                let moments = first.iter_mut().zip(second);
                for ((number, (first, second)), gradient) in
                    numbers.iter_mut().zip(moments).zip(gradient)
                {
                    let gradient = gradient * clip;
                    *first = betas[0] * *first + one_minus_betas[0] * gradient;
                    *second = betas[1] * *second + one_minus_betas[1] * gradient * gradient;
                    let denominator = second.sqrt() / bias_correction2_sqrt + epsilon;
                    *number = *number * keep - step_size * *first / denominator;
                }
            },
        );
    }
}

/// `Σ x²`, in f64, in an order that does not depend on the number of threads.
pub fn sum_of_squares(numbers: &[f32]) -> f64 {
    let mut sums = vec![0.0; numbers.len().div_ceil(BLOCK)];
    for_each_row(
        BLOCK,
        (numbers.par_chunks(BLOCK), &mut sums[..]),
        #[inline(always)]
        |(numbers, sum)| {
            let mut lanes = [0.0_f64; LANES];
            let (whole, rest) = numbers.as_chunks::<LANES>();
            for numbers in whole {
                for (lane, number) in lanes.iter_mut().zip(numbers) {
                    *lane += f64::from(*number) * f64::from(*number);
                }
            }
            let rest = rest.iter().map(|number| f64::from(*number) * f64::from(*number));
            *sum = lanes.iter().sum::<f64>() + rest.sum::<f64>();
        },
    );
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ULP, assert_close, wave, wide};

    #[test]
    fn numbers_and_moments_are_those_of_the_paper() {
        // Algorithm 2 at step t, in f64: eta = 0.01, lambda = 0.1, beta = 0.9 and 0.99, epsilon = 1e-6.
        for length in [0, 1, 15, 17, 100, BLOCK + 3] {
            let (mut w, g) = (wave::<f32>(length, 0.3), wave::<f32>(length, 1.3));
            let (mut m, mut v) = (vec![0.0; length], vec![0.0; length]);
            let mut right = [wide(&w), vec![0.0; length], vec![0.0; length]];
            for t in 1..=3 {
                let corrections = [1.0 - 0.9_f64.powi(t), 1.0 - 0.99_f64.powi(t)];
                let update = Update {
                    keep: 1.0 - 0.001,
                    clip: 0.5,
                    betas: [0.9, 0.99],
                    one_minus_betas: [0.1, 0.01],
                    step_size: (0.01 / corrections[0]) as f32,
                    bias_correction2_sqrt: corrections[1].sqrt() as f32,
                    epsilon: 1e-6,
                };
                update.apply(&mut w, [&mut m, &mut v], &g);
                for (at, g) in wide(&g).into_iter().enumerate() {
                    let g = 0.5 * g;
                    let [w, m, v] = &mut right;
                    m[at] = 0.9 * m[at] + 0.1 * g;
                    v[at] = 0.99 * v[at] + 0.01 * g * g;
                    let (m, v) = (m[at] / corrections[0], v[at] / corrections[1]);
                    w[at] -= 0.01 * m / (v.sqrt() + 1e-6) + 0.001 * w[at];
                }
                for (what, found, right) in
                    [("w", &w, &right[0]), ("m", &m, &right[1]), ("v", &v, &right[2])]
                {
                    assert_close(what, found, right, |at| 8.0 * ULP * (right[at].abs() + 0.01));
                }
            }
        }
    }

    #[test]
    fn every_square_is_summed_once() {
        for length in [0, 1, 15, 16, 17, BLOCK, 3 * BLOCK + 21] {
            let numbers = wave::<f32>(length, 0.2);
            let right: f64 = wide(&numbers).iter().map(|number| number * number).sum();
            let found = sum_of_squares(&numbers);
            assert!((found - right).abs() <= 1e-12 * right, "{length}: {found}, not {right}");
        }
    }
}
