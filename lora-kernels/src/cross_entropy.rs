//! Softmax cross-entropy of f32 logits [n, v], in place.

use crate::number::Number;
use crate::parallel::for_each_row;
use crate::softmax::{exponentials, maximum};
use bytemuck::{cast_slice, cast_slice_mut};
use rayon::slice::ParallelSliceMut;

/// `loss = ln sum(e^logits) - logits[target]` for each row; `best` is the first largest logit.
///
/// logits `[n, v]`; targets, losses, best, at_targets `[n]`. Where `at_targets` are given, the gradient of the loss,
/// `softmax(logits) - onehot(target)`, is found: [`gradient`] has it in place of the logits, rounded to `T`, but for the
/// targets' elements, where that has 0 and `at_targets` the number: it is as large as a row's others together, and
/// would round them in sums, and be rounded itself. Otherwise the logits stay. A row whose target is negative isn't
/// trained on: loss and gradient are 0. Panics if a target isn't under v.
pub fn cross_entropy<T: Number>(
    logits: &mut [f32],
    v: usize,
    targets: &[i32],
    losses: &mut [f32],
    best: &mut [i32],
    at_targets: Option<&mut [f32]>,
) {
    let rows = targets.len();
    let want_gradient = at_targets.is_some();
    let mut unread = vec![0.0; if want_gradient { 0 } else { rows }];
    let at_targets = at_targets.unwrap_or(&mut unread);
    assert_eq!([losses.len(), best.len(), at_targets.len()], [rows; 3]);
    assert_eq!(logits.len(), rows * v);
    for_each_row(
        v,
        (logits.par_chunks_mut(v), targets, losses, best, at_targets),
        #[inline(always)]
        |(logits, target, loss, best, at_target)| {
            let (most, place) = first_maximum(logits);
            *best = place as i32;
            let Ok(target) = usize::try_from(*target) else {
                (*loss, *at_target) = (0.0, 0.0);
                if want_gradient {
                    logits.fill(0.0);
                }
                return;
            };
            let distance = f64::from(most) - f64::from(logits[target]);
            let sum = if want_gradient {
                let sum = exponentials::<true>(logits, most);
                let of_target = std::mem::take(&mut logits[target]);
                *at_target = (f64::from(of_target) / sum - 1.0) as f32;
                into_probabilities::<T>(logits, (1.0 / sum) as f32);
                sum
            } else {
                exponentials::<false>(logits, most)
            };
            *loss = (distance + sum.ln()) as f32;
        },
    );
}

/// The gradient that [`cross_entropy`] left in the memory of the logits `[n, v]`, 0 at the targets, and how far its
/// rows are apart: each lies at the front of its row of logits.
pub fn gradient<T: Number>(logits: &[f32], v: usize) -> (&[T], usize) {
    (cast_slice(logits), v * size_of::<f32>() / size_of::<T>())
}

/// Scales a row of exponentials; a part is read before the front of the row, where it goes, is written.
#[inline(always)]
fn into_probabilities<T: Number>(row: &mut [f32], factor: f32) {
    for start in (0..row.len()).step_by(PART) {
        let place = start..(start + PART).min(row.len());
        let mut part = [0.0; PART];
        let part = &mut part[..place.len()];
        for (part, number) in part.iter_mut().zip(&row[place.clone()]) {
            *part = number * factor;
        }
        T::narrow(part, &mut cast_slice_mut::<f32, T>(row)[place]);
    }
}

/// The largest of `row` and where it is first, looked for only in the part that has it.
#[inline(always)]
fn first_maximum(row: &[f32]) -> (f32, usize) {
    let mut most = f32::NEG_INFINITY;
    let mut part_of_most = 0;
    for (part, values) in row.chunks(PART).enumerate() {
        let here = maximum(values);
        if here > most {
            (most, part_of_most) = (here, part);
        }
    }
    let start = part_of_most * PART;
    let place = row[start..].iter().position(|x| *x == most).unwrap_or(0);
    (most, start + place)
}

const PART: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ULP, WIDTHS, assert_close, slope, wave, wide};
    use half::bf16;

    fn reference(logits: &[f64], target: usize) -> f64 {
        let most = logits.iter().fold(f64::MIN, |most, x| most.max(*x));
        most - logits[target] + logits.iter().map(|x| (x - most).exp()).sum::<f64>().ln()
    }

    /// The targets' elements where the gradient has 0 instead.
    fn put_back(gradient: &mut [f32], v: usize, targets: &[i32], at_targets: &[f32]) {
        for (row, (target, at_target)) in targets.iter().zip(at_targets).enumerate() {
            let place = &mut gradient[row * v + *target as usize];
            assert_eq!(std::mem::replace(place, *at_target), 0.0);
        }
    }

    #[test]
    fn losses_and_gradients_match_the_reference() {
        let large = [(3, 5000), (40, 1030)];
        for (rows, v) in WIDTHS.into_iter().map(|v| (3, v)).chain(large) {
            let what = format!("{rows} x {v}");
            let mut logits = wave::<f32>(rows * v, 0.1);
            logits.iter_mut().for_each(|x| *x *= 4.0);
            let targets: Vec<i32> = (0..rows).map(|row| ((row * 7 + 2) % v) as i32).collect();
            let (mut losses, mut best) = (vec![9.0; rows], vec![-9; rows]);
            let before = logits.clone();
            cross_entropy::<f32>(&mut logits, v, &targets, &mut losses, &mut best, None);
            assert_eq!(logits, before);
            let mut again = (vec![9.0; rows], vec![-9; rows]);
            let mut at_targets = vec![9.0; rows];
            let wanted = Some(&mut at_targets[..]);
            cross_entropy::<f32>(&mut logits, v, &targets, &mut again.0, &mut again.1, wanted);
            assert_eq!(again, (losses.clone(), best.clone()));
            put_back(&mut logits, v, &targets, &at_targets);

            let x = wide(&before);
            let rows_of_x = || x.chunks(v).zip(targets.iter().map(|target| *target as usize));
            let right: Vec<f64> = rows_of_x().map(|(x, target)| reference(x, target)).collect();
            // As for the softmax: a difference under 16, exp, and the sum in lanes, all of it
            // relative to the sum and so absolute in its logarithm.
            let error = (16.0 + 2.0 + 34.0 + 2.0) * ULP;
            assert_close(&what, &losses, &right, |_| error);
            for (row, best) in before.chunks(v).zip(&best) {
                let most = row.iter().fold(f32::MIN, |most, x| most.max(*x));
                assert_eq!(row.iter().position(|x| *x == most), Some(*best as usize));
            }

            if v < 1000 {
                let right: Vec<f64> = rows_of_x()
                    .flat_map(|(x, target)| slope(x, |x| reference(x, target)))
                    .collect();
                // The probabilities' relative error, and the differences' 1e-9.
                assert_close(&what, &logits, &right, |i| {
                    let hot = i % v == targets[i / v] as usize;
                    error * (right[i] + f64::from(hot)) + 1e-9
                });
            }
        }
    }

    #[test]
    fn a_gradient_in_bf16_is_the_other_rounded() {
        for v in [1, 7, 1024, 1025, 5000] {
            let mut whole = wave::<f32>(3 * v, 0.1);
            whole.iter_mut().for_each(|x| *x *= 4.0);
            let mut rounded = whole.clone();
            let targets = [v as i32 - 1, -100, v as i32 / 2];
            let mut found = ([9.0; 3], [9; 3], [9.0; 3]);
            let (losses, best, at_targets) = (&mut found.0, &mut found.1, &mut found.2[..]);
            cross_entropy::<f32>(&mut whole, v, &targets, losses, best, Some(at_targets));
            let mut again = ([9.0; 3], [9; 3], [9.0; 3]);
            let (losses, best, at_targets) = (&mut again.0, &mut again.1, &mut again.2[..]);
            cross_entropy::<bf16>(&mut rounded, v, &targets, losses, best, Some(at_targets));
            assert_eq!(again, found);
            let (whole, stride) = gradient::<f32>(&whole, v);
            let (rounded, wider) = gradient::<bf16>(&rounded, v);
            assert_eq!((stride, wider), (v, 2 * v));
            for row in 0..3 {
                let expected = whole[row * v..][..v].iter().map(|x| <bf16 as Number>::from_f32(*x));
                assert!(expected.eq(rounded[row * wider..][..v].iter().copied()), "{v}, row {row}");
            }
        }
    }

    #[test]
    fn the_first_of_equal_logits_is_best() {
        let mut logits = vec![0.0; 5000];
        for place in [4000, 2100, 2050, 17] {
            logits[place] = 3.0;
            let (mut loss, mut best) = ([0.0], [0]);
            cross_entropy::<f32>(&mut logits, 5000, &[1], &mut loss, &mut best, None);
            assert_eq!(best, [place as i32]);
        }
    }

    #[test]
    fn negative_targets_are_left_out() {
        let mut logits = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0];
        let (mut losses, mut best) = ([9.0; 2], [9; 2]);
        let mut at_targets = [9.0; 2];
        let wanted = Some(&mut at_targets[..]);
        cross_entropy::<f32>(&mut logits, 3, &[-100, 0], &mut losses, &mut best, wanted);
        assert_eq!(best, [2, 2]);
        assert_eq!((losses[0], at_targets[0]), (0.0, 0.0));
        assert_eq!(logits[..3], [0.0; 3]);
        assert!(losses[1] > 2.0 && at_targets[1] < -0.9);
    }

    #[test]
    fn a_target_that_is_nearly_certain_has_a_gradient_that_bf16_does_not_round() {
        let mut logits = vec![-10.0; 300];
        logits[70] = 0.0;
        let (mut loss, mut best, mut at_target) = ([9.0], [9], [9.0]);
        let wanted = Some(&mut at_target[..]);
        cross_entropy::<bf16>(&mut logits, 300, &[70], &mut loss, &mut best, wanted);
        let others = 299.0 * f64::exp(-10.0);
        let right = -others / (1.0 + others);
        assert!((f64::from(at_target[0]) / right - 1.0).abs() < 5e-5, "{at_target:?}, {right}");
    }

    #[test]
    fn far_logits_stay_finite() {
        let mut logits = [1e30, -1e30, 0.0];
        let (mut loss, mut best) = ([9.0], [9]);
        let mut at_target = [9.0];
        let wanted = Some(&mut at_target[..]);
        cross_entropy::<f32>(&mut logits, 3, &[1], &mut loss, &mut best, wanted);
        assert_eq!((loss, best), ([2e30], [0]));
        assert_eq!((logits, at_target), ([1.0, 0.0, 0.0], [-1.0]));
    }
}
