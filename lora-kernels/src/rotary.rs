//! Rotary positions (Su et al. 2021), the halves of a head side by side as in Llama.

use crate::number::{LANES, Number};
use crate::parallel::for_each_row;
use rayon::slice::{ParallelSlice, ParallelSliceMut};

/// `y1 = x1 * cosine - x2 * sine`, `y2 = x2 * cosine + x1 * sine` for the halves x1, x2 of each of
/// the first `heads` heads of every row; the rest of the row is copied.
///
/// x, y `[n, row_width]`, the heads `head_width` wide at the front of a row; cosine, sine
/// `[n, head_width / 2]`. `inverse` turns the other way, which is the backward pass.
#[allow(clippy::too_many_arguments)]
pub fn rotary<T: Number>(
    x: &[T],
    row_width: usize,
    heads: usize,
    head_width: usize,
    cosine: &[f32],
    sine: &[f32],
    y: &mut [T],
    inverse: bool,
) {
    let half = head_width / 2;
    let rotated = heads * head_width;
    assert!(half > 0 && head_width == 2 * half, "a head of {head_width} has no halves");
    assert!(rotated <= row_width, "{heads} heads of {head_width} in a row of {row_width}");
    let rows = x.len() / row_width;
    assert_eq!([x.len(), y.len()], [rows * row_width; 2]);
    assert_eq!([cosine.len(), sine.len()], [rows * half; 2]);
    let sign = if inverse { -1.0 } else { 1.0 };
    let angles = (cosine.par_chunks(half), sine.par_chunks(half));
    for_each_row(
        row_width,
        (x.par_chunks(row_width), y.par_chunks_mut(row_width), angles.0, angles.1),
        #[inline(always)]
        |(x, y, cosine, sine)| {
            let (x_heads, x_rest) = x.split_at(rotated);
            let (y_heads, y_rest) = y.split_at_mut(rotated);
            let heads = x_heads.chunks_exact(head_width).zip(y_heads.chunks_exact_mut(head_width));
            for (x, y) in heads {
                rotate(x.split_at(half), cosine, sine, sign, y.split_at_mut(half));
            }
            y_rest.copy_from_slice(x_rest);
        },
    );
}

/// One head, in blocks that are read whole before they are written, which spares the compiler
/// a look at whether the six slices overlap.
#[inline(always)]
fn rotate<T: Number>(
    (x1, x2): (&[T], &[T]),
    cosine: &[f32],
    sine: &[f32],
    sign: f32,
    (y1, y2): (&mut [T], &mut [T]),
) {
    let (x1, x1_tail) = x1.as_chunks::<LANES>();
    let (x2, x2_tail) = x2.as_chunks::<LANES>();
    let (cosine, cosine_tail) = cosine.as_chunks::<LANES>();
    let (sine, sine_tail) = sine.as_chunks::<LANES>();
    let (y1, y1_tail) = y1.as_chunks_mut::<LANES>();
    let (y2, y2_tail) = y2.as_chunks_mut::<LANES>();

    let blocks = x1.iter().zip(x2).zip(cosine.iter().zip(sine)).zip(y1.iter_mut().zip(y2));
    for (((x1, x2), (cosine, sine)), (y1, y2)) in blocks {
        (*y1, *y2) = turn(*x1, *x2, *cosine, *sine, sign);
    }

    let inputs = x1_tail.iter().zip(x2_tail).zip(cosine_tail.iter().zip(sine_tail));
    let outputs = y1_tail.iter_mut().zip(y2_tail);
    for (((x1, x2), (cosine, sine)), (y1, y2)) in inputs.zip(outputs) {
        ([*y1], [*y2]) = turn([*x1], [*x2], [*cosine], [*sine], sign);
    }
}

#[inline(always)]
fn turn<T: Number, const COUNT: usize>(
    x1: [T; COUNT],
    x2: [T; COUNT],
    cosine: [f32; COUNT],
    sine: [f32; COUNT],
    sign: f32,
) -> ([T; COUNT], [T; COUNT]) {
    let (mut y1, mut y2) = (x1, x2);
    for i in 0..COUNT {
        let (x1, x2, sine) = (x1[i].to_f32(), x2[i].to_f32(), sign * sine[i]);
        y1[i] = T::from_f32(x1 * cosine[i] - x2 * sine);
        y2[i] = T::from_f32(x2 * cosine[i] + x1 * sine);
    }
    (y1, y2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ULP, assert_close, slope, wave, wide};
    use half::bf16;

    struct Case {
        rows: usize,
        row_width: usize,
        heads: usize,
        head_width: usize,
    }

    impl Case {
        fn reference(&self, x: &[f64], cosine: &[f64], sine: &[f64]) -> Vec<f64> {
            let half = self.head_width / 2;
            let mut y = x.to_vec();
            for row in 0..self.rows {
                for head in 0..self.heads {
                    for i in 0..half {
                        let first = row * self.row_width + head * self.head_width + i;
                        let (c, s) = (cosine[row * half + i], sine[row * half + i]);
                        y[first] = x[first] * c - x[first + half] * s;
                        y[first + half] = x[first + half] * c + x[first] * s;
                    }
                }
            }
            y
        }

        fn check<T: Number>(&self) {
            let Case { rows, row_width, heads, head_width } = *self;
            let what = format!("{heads} of {head_width} of {}", std::any::type_name::<T>());
            let half = head_width / 2;
            let x = wave::<T>(rows * row_width, 0.1);
            let angles = wide(&wave::<f32>(rows * half, 0.4));
            let cosine: Vec<f32> = angles.iter().map(|angle| angle.cos() as f32).collect();
            let sine: Vec<f32> = angles.iter().map(|angle| angle.sin() as f32).collect();
            let mut y = wave::<T>(rows * row_width, 9.0);
            rotary(&x, row_width, heads, head_width, &cosine, &sine, &mut y, false);

            let (wide_cosine, wide_sine) = (wide(&cosine), wide(&sine));
            let right = self.reference(&wide(&x), &wide_cosine, &wide_sine);
            // Two products under 2, rounded, and their difference, rounded.
            assert_close(&what, &y, &right, |_| 4.0 * ULP);
            for (y, x) in y.chunks(row_width).zip(x.chunks(row_width)) {
                assert_eq!(wide(&y[heads * head_width..]), wide(&x[heads * head_width..]));
            }

            if rows * row_width < 4000 {
                // The inverse is the gradient: of sum(dy * y) by x at dy.
                let dy = wave::<T>(rows * row_width, 0.8);
                let mut dx = wave::<T>(rows * row_width, 9.0);
                rotary(&dy, row_width, heads, head_width, &cosine, &sine, &mut dx, true);
                let dy = wide(&dy);
                let right = slope(&wide(&x), |x| {
                    let y = self.reference(x, &wide_cosine, &wide_sine);
                    y.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
                });
                // The differences are of sums of up to 4000 terms under 4, hence 1e-7.
                assert_close(&what, &dx, &right, |_| 4.0 * ULP + 1e-7);
            }
        }
    }

    #[test]
    fn heads_turn_and_the_inverse_is_the_gradient() {
        for head_width in [2, 6, 14, 16, 30, 32, 34, 64, 100] {
            let row_width = 3 * head_width + 5;
            let case = Case { rows: 3, row_width, heads: 2, head_width };
            case.check::<f32>();
            case.check::<bf16>();
        }
        let large = Case { rows: 40, row_width: 960, heads: 12, head_width: 64 };
        large.check::<f32>();
        large.check::<bf16>();
    }
}
