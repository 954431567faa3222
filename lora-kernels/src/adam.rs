//! AdamW (Loshchilov & Hutter 2019) in one pass over flat slices, and the norm of a gradient.

use crate::number::LANES;
use crate::parallel::{for_each_row, rows_per_task};
use pulp::Arch;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

/// The settings of one step. `step` counts from 1; gradients are multiplied by `gradient_scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    pub step: u32,
    pub gradient_scale: f64,
}

/// One step of AdamW, with the decay and epsilon where PyTorch has them. All slices [n].
///
/// With g the scaled gradient, m the first and v the second moment, t the step:
/// `p -= lr * decay * p`, `m = beta1 * m + (1 - beta1) * g`, `v = beta2 * v + (1 - beta2) * g^2`,
/// `p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)`.
pub fn adamw(
    parameters: &mut [f32],
    gradients: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    settings: &AdamW,
) {
    let length = parameters.len();
    assert_eq!([gradients.len(), first.len(), second.len()], [length; 3]);
    let AdamW { learning_rate, beta1, beta2, .. } = *settings;
    let power = |beta: f64| beta.powf(f64::from(settings.step));
    let keep = (1.0 - learning_rate * settings.weight_decay) as f32;
    let rate = (learning_rate / (1.0 - power(beta1))) as f32;
    let root_scale = (1.0 / (1.0 - power(beta2)).sqrt()) as f32;
    let (first_keep, first_add) = (beta1 as f32, (1.0 - beta1) as f32);
    let (second_keep, second_add) = (beta2 as f32, (1.0 - beta2) as f32);
    let (epsilon, gradient_scale) = (settings.epsilon as f32, settings.gradient_scale as f32);

    let moments = (first.par_chunks_mut(PART), second.par_chunks_mut(PART));
    for_each_row(
        PART,
        (parameters.par_chunks_mut(PART), gradients.par_chunks(PART), moments.0, moments.1),
        #[inline(always)]
        |(p, g, m, v)| {
            for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                let g = g * gradient_scale;
                *m = first_keep * *m + first_add * g;
                *v = second_keep * *v + second_add * g * g;
                *p = keep * *p - rate * *m / (v.sqrt() * root_scale + epsilon);
            }
        },
    );
}

/// `sum of x^2`, in f64. The same for any number of threads.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let parts = x.par_chunks(PART);
    let least = rows_per_task(parts.len(), PART);
    let sums: Vec<f64> = parts
        .with_min_len(least)
        .map(|part| {
            Arch::new().dispatch(
                #[inline(always)]
                || part_of_squares(part),
            )
        })
        .collect();
    sums.iter().sum()
}

#[inline(always)]
fn part_of_squares(x: &[f32]) -> f64 {
    let (blocks, tail) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for block in blocks {
        for lane in 0..LANES {
            sums[lane] += f64::from(block[lane]) * f64::from(block[lane]);
        }
    }
    for (sum, x) in sums.iter_mut().zip(tail) {
        *sum += f64::from(*x) * f64::from(*x);
    }
    sums.iter().sum()
}

/// Elements a thread takes at a time.
const PART: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ULP, WIDTHS, assert_close, wave, wide};

    fn reference(p: &mut [f64], g: &[f64], m: &mut [f64], v: &mut [f64], s: &AdamW) {
        let t = s.step as i32;
        for i in 0..p.len() {
            let g = g[i] * s.gradient_scale;
            p[i] -= s.learning_rate * s.weight_decay * p[i];
            m[i] = s.beta1 * m[i] + (1.0 - s.beta1) * g;
            v[i] = s.beta2 * v[i] + (1.0 - s.beta2) * g * g;
            let root = v[i].sqrt() / (1.0 - s.beta2.powi(t)).sqrt() + s.epsilon;
            p[i] -= s.learning_rate / (1.0 - s.beta1.powi(t)) * m[i] / root;
        }
    }

    #[test]
    fn steps_match_the_reference() {
        for length in WIDTHS.into_iter().chain([4096, 4097, 40_000]) {
            let mut settings = AdamW {
                learning_rate: 0.01,
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                weight_decay: 0.1,
                step: 1,
                gradient_scale: 0.5,
            };
            let mut p = wave::<f32>(length, 0.1);
            let (mut m, mut v) = (vec![0.0; length], vec![0.0; length]);
            let (mut right_p, mut right_m, mut right_v) = (wide(&p), wide(&m), wide(&v));
            for step in 1..=5 {
                settings.step = step;
                let g = wave::<f32>(length, f64::from(step));
                adamw(&mut p, &g, &mut m, &mut v, &settings);
                reference(&mut right_p, &wide(&g), &mut right_m, &mut right_v, &settings);
            }
            // Each step rounds p, under 2, three times; its update, under 0.1 in all, has an error
            // of m's relative to g, under 1, over a root that is at least |g| / 10.
            assert_close("p", &p, &right_p, |_| 5.0 * (3.0 * 2.0 + 1.0) * ULP);
            // Four roundings a step of terms under 1.
            assert_close("m", &m, &right_m, |_| 5.0 * 4.0 * 0.1 * ULP);
            assert_close("v", &v, &right_v, |i| 5.0 * 4.0 * ULP * right_v[i]);
        }
    }

    #[test]
    fn the_sum_of_squares_is_exact_to_float64() {
        for length in WIDTHS.into_iter().chain([0, 4096, 4097, 100_000]) {
            let x = wave::<f32>(length, 0.1);
            let right: f64 = wide(&x).iter().map(|x| x * x).sum();
            assert!((sum_of_squares(&x) - right).abs() <= 1e-12 * right, "{length}");
        }
        assert_eq!(sum_of_squares(&[1e30; 4]), 4.0 * f64::from(1e30_f32).powi(2));
    }
}
