//! Sums of two arrays.

use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::number::Number;
use crate::parallel::{self, for_each_row};

/// Elements of a task.
const BLOCK: usize = 4096;

/// `out[i] = x[i] + y[i]`, rounded once.
///
/// # Panics
/// Where the lengths differ.
pub fn add<T: Number>(x: &[T], y: &[T], out: &mut [T]) {
    assert_eq!([x.len(), y.len()], [out.len(); 2]);
    for_each_row(
        BLOCK,
        (x.par_chunks(BLOCK), y.par_chunks(BLOCK), out.par_chunks_mut(BLOCK)),
        #[inline(always)]
        |(x, y, out)| {
            for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
                *out = T::from_f32(x.to_f32() + y.to_f32());
            }
        },
    );
}

/// `sum[i] += factor · x[i]`, by the calling thread.
///
/// # Panics
/// Where the lengths differ.
pub fn add_scaled<T: Number>(sum: &mut [f32], factor: f32, x: &[T]) {
    assert_eq!(sum.len(), x.len());
    parallel::wide(
        #[inline(always)]
        || {
            for (sum, x) in sum.iter_mut().zip(x) {
                *sum += factor * x.to_f32();
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{ULP, assert_close, wave, wide};

    fn all<T: Number>() {
        for length in [0, 1, 17, 4096, 4097, 100_000] {
            let (x, y) = (wave::<T>(length, 0.1), wave::<T>(length, 0.7));
            let mut out = wave::<T>(length, 3.0);
            add(&x, &y, &mut out);
            let right: Vec<f64> = wide(&x).iter().zip(wide(&y)).map(|(x, y)| x + y).collect();
            assert_close("sum", &out, &right, |_| 4.0 * ULP);
        }
    }

    #[test]
    fn every_element_is_added_once() {
        all::<f32>();
        all::<bf16>();
    }

    #[test]
    fn numbers_are_added_scaled() {
        for length in [0, 1, 17, 576] {
            let (mut sum, x) = (wave::<f32>(length, 0.1), wave::<bf16>(length, 0.7));
            let both = wide(&sum).into_iter().zip(wide(&x));
            let right: Vec<f64> = both.map(|(sum, x)| sum - 0.75 * x).collect();
            add_scaled(&mut sum, -0.75, &x);
            assert_close("scaled sum", &sum, &right, |_| 4.0 * ULP);
        }
    }
}
