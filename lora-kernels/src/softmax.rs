//! Softmax of one row of f32, inlined so that it runs as wide as the dispatch it is called in.

use crate::exp::exp;
use crate::number::{LANES, total};

/// `scores = e^scores / sum(e^scores)` in place; returns `ln sum(e^scores)` of the scores given.
///
/// -infinity becomes 0. A row of nothing else becomes NaN.
#[inline(always)]
pub(crate) fn softmax_row(scores: &mut [f32]) -> f32 {
    let maximum = maximum(scores);
    let sum = exponentials::<true>(scores, maximum);
    scale(scores, (1.0 / sum) as f32);
    (f64::from(maximum) + sum.ln()) as f32
}

/// The largest of `row`, passing over NaN; -infinity if there is none.
#[inline(always)]
pub(crate) fn maximum(row: &[f32]) -> f32 {
    let (blocks, tail) = row.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for lane in 0..LANES {
            most[lane] = if block[lane] > most[lane] { block[lane] } else { most[lane] };
        }
    }
    for (most, x) in most.iter_mut().zip(tail) {
        *most = if *x > *most { *x } else { *most };
    }
    most.iter().fold(f32::NEG_INFINITY, |most, x| if *x > most { *x } else { most })
}

/// `sum of e^(x - maximum)`, the terms left in `row` if KEEP.
#[inline(always)]
pub(crate) fn exponentials<const KEEP: bool>(row: &mut [f32], maximum: f32) -> f64 {
    let mut sum = 0.0;
    for part in row.chunks_mut(PART) {
        let (blocks, tail) = part.as_chunks_mut::<LANES>();
        let mut sums = [0.0; LANES];
        for block in blocks {
            for lane in 0..LANES {
                let term = exp(block[lane] - maximum);
                sums[lane] += term;
                if KEEP {
                    block[lane] = term;
                }
            }
        }
        for (sum, x) in sums.iter_mut().zip(tail) {
            let term = exp(*x - maximum);
            *sum += term;
            if KEEP {
                *x = term;
            }
        }
        sum += f64::from(total(sums));
    }
    sum
}

/// `row = row * factor`.
#[inline(always)]
pub(crate) fn scale(row: &mut [f32], factor: f32) {
    for x in row {
        *x *= factor;
    }
}

/// Elements summed in f32 before their sum is added in f64, which keeps long rows exact.
const PART: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ULP, WIDTHS, assert_close, wave, wide};

    #[test]
    fn rows_are_normalised_exponentials() {
        for width in WIDTHS.into_iter().chain([1024, 1025, 5000]) {
            for shift in [0.0, 300.0, -300.0] {
                let mut scores = wave::<f32>(width, 0.1);
                scores.iter_mut().for_each(|x| *x = *x * 4.0 + shift);
                let x = wide(&scores);
                let most = x.iter().fold(f64::MIN, |most, x| most.max(*x));
                let sum: f64 = x.iter().map(|x| (x - most).exp()).sum();
                let right: Vec<f64> = x.iter().map(|x| (x - most).exp() / sum).collect();
                let log_sum = softmax_row(&mut scores);
                // The difference is under 16 and so rounded by at most 16 units of 1 (half of
                // that, but for sums of shifted scores); exp's unit; a sum of 64 in a lane
                // and a tree of 4, all terms positive; the reciprocal and the product.
                let error = (16.0 + 1.0 + 68.0 / 2.0 + 2.0) * ULP;
                assert_close("softmax", &scores, &right, |i| error * right[i]);
                let log_right = most + sum.ln();
                assert_close("log sum", &[log_sum], &[log_right], |_| error);
            }
        }
    }

    #[test]
    fn masked_scores_get_nothing() {
        let mut scores = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 1.0];
        let log_sum = softmax_row(&mut scores);
        assert_eq!(scores, [0.0, 0.5, 0.0, 0.5]);
        assert_eq!(log_sum, 1.0 + std::f32::consts::LN_2);
        let mut masked = [f32::NEG_INFINITY; 3];
        assert!(softmax_row(&mut masked).is_nan());
    }

    #[test]
    fn the_maximum_is_found_at_every_place() {
        for width in [1, 15, 16, 17, 100] {
            for place in 0..width {
                let mut row = vec![-5.0; width];
                row[place] = -4.0;
                assert_eq!(maximum(&row), -4.0);
            }
        }
    }
}
