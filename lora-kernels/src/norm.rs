//! Root-mean-square norm (Zhang & Sennrich 2019, equation 4) over the rows of x [n, d].

use crate::number::{LANES, Number, total};
use crate::parallel::for_each_row;
use rayon::iter::IndexedParallelIterator;
use rayon::slice::{ParallelSlice, ParallelSliceMut};

/// `y = x * scale * weight` with `scale = 1 / sqrt(mean(x^2) + epsilon)` for each row.
///
/// x, y `[n, d]`; weight `[d]`; scale `[n]` is kept for the backward pass.
pub fn rms_norm<T: Number>(x: &[T], weight: &[f32], epsilon: f32, y: &mut [T], scale: &mut [f32]) {
    let width = weight.len();
    check(scale.len(), width, [x.len(), y.len()]);
    for_each_row(
        width,
        (x.par_chunks(width), y.par_chunks_mut(width), scale),
        #[inline(always)]
        |(x, y, scale)| {
            *scale = row_scale(x, epsilon);
            normalise(x, weight, *scale, y);
        },
    );
}

/// `dx = scale * (weight * dy - x * scale^2 * mean(weight * dy * x))`, added to dx if `add`.
///
/// x, dy, dx `[n, d]`; scale `[n]` from the forward pass.
pub fn rms_norm_backward<T: Number>(
    x: &[T],
    weight: &[f32],
    scale: &[f32],
    dy: &[T],
    dx: &mut [T],
    add: bool,
) {
    if add {
        backward::<T, true>(x, weight, scale, dy, dx);
    } else {
        backward::<T, false>(x, weight, scale, dy, dx);
    }
}

/// `dweight[j] = sum over rows of dy * x * scale`; dweight `[d]` is overwritten.
pub fn rms_norm_weight_gradient<T: Number>(x: &[T], scale: &[f32], dy: &[T], dweight: &mut [f32]) {
    let width = dweight.len();
    check(scale.len(), width, [x.len(), dy.len()]);
    for_each_row(
        COLUMNS * scale.len(),
        dweight.par_chunks_mut(COLUMNS).enumerate(),
        #[inline(always)]
        |(block, dweight)| {
            let columns = block * COLUMNS..block * COLUMNS + dweight.len();
            dweight.fill(0.0);
            let groups = x.chunks(ROWS * width).zip(dy.chunks(ROWS * width));
            for ((x, dy), scale) in groups.zip(scale.chunks(ROWS)) {
                let mut sums = [0.0; COLUMNS];
                let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
                for ((x, dy), scale) in rows.zip(scale) {
                    let (x, dy) = (&x[columns.clone()], &dy[columns.clone()]);
                    for ((sum, x), dy) in sums.iter_mut().zip(x).zip(dy) {
                        *sum += dy.to_f32() * x.to_f32() * scale;
                    }
                }
                for (dweight, sum) in dweight.iter_mut().zip(sums) {
                    *dweight += sum;
                }
            }
        },
    );
}

/// Columns of one task of the weight's gradient.
const COLUMNS: usize = 64;

/// Rows summed before their sum is added to the whole, which keeps the rounding error small.
const ROWS: usize = 64;

fn backward<T: Number, const ADD: bool>(
    x: &[T],
    weight: &[f32],
    scale: &[f32],
    dy: &[T],
    dx: &mut [T],
) {
    let width = weight.len();
    check(scale.len(), width, [x.len(), dy.len(), dx.len()]);
    for_each_row(
        width,
        (x.par_chunks(width), dy.par_chunks(width), dx.par_chunks_mut(width), scale),
        #[inline(always)]
        |(x, dy, dx, scale)| {
            let mean = weighted_product(x, weight, dy) / width as f32;
            let along = scale * scale * mean;
            for (((dx, x), weight), dy) in dx.iter_mut().zip(x).zip(weight).zip(dy) {
                let gradient = scale * (weight * dy.to_f32() - x.to_f32() * along);
                *dx = T::from_f32(if ADD { dx.to_f32() + gradient } else { gradient });
            }
        },
    );
}

#[inline(always)]
fn row_scale<T: Number>(x: &[T], epsilon: f32) -> f32 {
    let (blocks, tail) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for block in blocks {
        for (sum, x) in sums.iter_mut().zip(block) {
            *sum += x.to_f32() * x.to_f32();
        }
    }
    for (sum, x) in sums.iter_mut().zip(tail) {
        *sum += x.to_f32() * x.to_f32();
    }
    1.0 / (total(sums) / x.len() as f32 + epsilon).sqrt()
}

#[inline(always)]
fn normalise<T: Number>(x: &[T], weight: &[f32], scale: f32, y: &mut [T]) {
    for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
        *y = T::from_f32(x.to_f32() * scale * weight);
    }
}

/// `sum of weight * dy * x`.
#[inline(always)]
fn weighted_product<T: Number>(x: &[T], weight: &[f32], dy: &[T]) -> f32 {
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (weight, weight_tail) = weight.as_chunks::<LANES>();
    let (dy, dy_tail) = dy.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for ((x, weight), dy) in x.iter().zip(weight).zip(dy) {
        for lane in 0..LANES {
            sums[lane] += weight[lane] * dy[lane].to_f32() * x[lane].to_f32();
        }
    }
    for (((sum, x), weight), dy) in sums.iter_mut().zip(x_tail).zip(weight_tail).zip(dy_tail) {
        *sum += weight * dy.to_f32() * x.to_f32();
    }
    total(sums)
}

fn check<const COUNT: usize>(rows: usize, width: usize, lengths: [usize; COUNT]) {
    assert!(lengths == [rows * width; COUNT], "{rows} rows of {width} in {lengths:?} elements");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ULP, WIDTHS, assert_close, slope, wave, wide};
    use half::bf16;

    const EPSILON: f32 = 1e-5;

    fn reference_scale(x: &[f64]) -> f64 {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        1.0 / (mean + f64::from(EPSILON)).sqrt()
    }

    fn reference(x: &[f64], weight: &[f64]) -> Vec<f64> {
        let scale = reference_scale(x);
        x.iter().zip(weight).map(|(x, weight)| x * scale * weight).collect()
    }

    /// Rounding steps behind a sum over a row in 16 lanes.
    fn sum_error(width: usize) -> f64 {
        ULP * (width as f64 / LANES as f64 + 5.0)
    }

    /// Every width with few rows, and one case large enough to be shared out.
    fn sizes() -> impl Iterator<Item = (usize, usize)> {
        WIDTHS.into_iter().map(|width| (3, width)).chain([(67, 576)])
    }

    fn forward<T: Number>() {
        for (rows, width) in sizes() {
            let what = format!("{rows} x {width} of {}", std::any::type_name::<T>());
            let x = wave::<T>(rows * width, 0.1);
            let weight = wave::<f32>(width, 0.5);
            let mut y = wave::<T>(rows * width, 9.0);
            let mut scale = vec![9.0; rows];
            rms_norm(&x, &weight, EPSILON, &mut y, &mut scale);
            let x = wide(&x);
            let right: Vec<f64> =
                x.chunks(width).flat_map(|x| reference(x, &wide(&weight))).collect();
            let scales: Vec<f64> = x.chunks(width).map(reference_scale).collect();
            // The root halves the sum's error; then mean, root, quotient and two products.
            let error = sum_error(width) / 2.0 + 3.0 * ULP;
            assert_close(&what, &y, &right, |i| error * right[i].abs());
            assert_close(&what, &scale, &scales, |i| error * scales[i]);
        }
    }

    #[test]
    fn the_norm_is_the_reference_norm() {
        forward::<f32>();
        forward::<bf16>();
    }

    fn gradients<T: Number>() {
        for (rows, width) in sizes() {
            let what = format!("{rows} x {width} of {}", std::any::type_name::<T>());
            let x = wave::<T>(rows * width, 0.1);
            let dy = wave::<T>(rows * width, 0.2);
            let weight = wave::<f32>(width, 0.5);
            let before = wave::<T>(rows * width, 0.9);
            let scale: Vec<f32> =
                wide(&x).chunks(width).map(|x| reference_scale(x) as f32).collect();
            let mut dx = vec![T::from_f32(f32::NAN); rows * width];
            rms_norm_backward(&x, &weight, &scale, &dy, &mut dx, false);
            let mut sum = before.clone();
            rms_norm_backward(&x, &weight, &scale, &dy, &mut sum, true);
            let mut dweight = vec![f32::NAN; width];
            rms_norm_weight_gradient(&x, &scale, &dy, &mut dweight);

            let (x, dy, weight) = (wide(&x), wide(&dy), wide(&weight));
            let loss = |x: &[f64], weight: &[f64], dy: &[f64]| -> f64 {
                reference(x, weight).iter().zip(dy).map(|(y, dy)| y * dy).sum()
            };
            let right: Vec<f64> = (x.chunks(width).zip(dy.chunks(width)))
                .flat_map(|(x, dy)| slope(x, |x| loss(x, &weight, dy)))
                .collect();
            // Both terms are at most |scale * weight * dy|-like, at most 2 * 2 * scale and, for the
            // second, 2 * mean(4 * |x|) * scale^3 <= 8 * scale * (scale * rms) = 8 * scale. The
            // differences are good to 1e-8 * scale^2 for the narrow rows of small numbers.
            let error = |i: usize| {
                let scale = f64::from(scale[i / width]);
                12.0 * scale * (sum_error(width) + 4.0 * ULP) + 1e-8 * (1.0 + scale.powi(3))
            };
            assert_close(&what, &dx, &right, error);
            let right: Vec<f64> = right.iter().zip(wide(&before)).map(|(dx, b)| dx + b).collect();
            assert_close(&what, &sum, &right, |i| error(i) + ULP * right[i].abs());

            let right = slope(&weight, |weight| {
                let rows = x.chunks(width).zip(dy.chunks(width));
                rows.map(|(x, dy)| loss(x, weight, dy)).sum()
            });
            // Each of the terms is under 4 * scale; sums of 64 rows and then of the groups.
            let most = scale.iter().fold(0.0, |most, scale| f64::max(most, f64::from(*scale)));
            let steps = (rows.min(ROWS) + rows.div_ceil(ROWS) + 3) as f64;
            assert_close(&what, &dweight, &right, |_| {
                4.0 * most * rows as f64 * steps * ULP + 1e-8 * (1.0 + most)
            });
        }
    }

    #[test]
    fn the_gradients_are_the_slopes_of_the_reference() {
        gradients::<f32>();
        gradients::<bf16>();
    }
}
