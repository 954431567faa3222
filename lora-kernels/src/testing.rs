//! What the tests share: data from a formula, comparison with float64, finite differences.

use crate::number::Number;

/// Widths under, at and over the lanes, and two real ones.
pub(crate) const WIDTHS: [usize; 10] = [1, 3, 7, 8, 15, 16, 17, 64, 100, 576];

/// The rounding unit of f32 arithmetic.
pub(crate) const ULP: f64 = f32::EPSILON as f64;

/// `length` values in -2..2 that don't repeat, other ones for each `seed`.
pub(crate) fn wave<T: Number>(length: usize, seed: f64) -> Vec<T> {
    (0..length).map(|i| T::from_f32((2.0 * (i as f64 * 0.7 + seed).sin()) as f32)).collect()
}

pub(crate) fn wide<T: Number>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| f64::from(value.to_f32())).collect()
}

/// The most by which storing a value as T changes it, relative to the value.
pub(crate) fn rounding<T: Number>() -> f64 {
    if size_of::<T>() == 2 { 1.0 / 256.0 } else { ULP / 2.0 }
}

/// Fails unless each value is within `error(i)`, the error of the arithmetic, of the right one,
/// once rounded to T.
pub(crate) fn assert_close<T: Number>(
    what: &str,
    values: &[T],
    right: &[f64],
    error: impl Fn(usize) -> f64,
) {
    assert_eq!(values.len(), right.len(), "{what}");
    for (i, (value, right)) in wide(values).iter().zip(right).enumerate() {
        let bound = error(i) + rounding::<T>() * (right.abs() + error(i));
        let off = (value - right).abs();
        assert!(off <= bound, "{what}: [{i}] is {value}, not {right}: off {off:e} > {bound:e}");
    }
}

/// The gradient of `function` at `x` by central differences, to about 1e-9.
pub(crate) fn slope(x: &[f64], function: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let here = x[i];
            x[i] = here + step;
            let above = function(&x);
            x[i] = here - step;
            let below = function(&x);
            x[i] = here;
            (above - below) / (2.0 * step)
        })
        .collect()
}
