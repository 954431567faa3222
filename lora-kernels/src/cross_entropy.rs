//! Softmax cross-entropy of f32 logits [n, v], in place.

use crate::parallel::for_each_row;
use crate::softmax::{exponentials, maximum, scale};
use rayon::slice::ParallelSliceMut;

/// `loss = ln sum(e^logits) - logits[target]` for each row; `best` is the first largest logit.
///
/// logits `[n, v]`; targets, losses, best `[n]`. If `want_gradient`, the logits become the gradient of
/// the loss, `softmax(logits) - onehot(target)`; otherwise they stay. A row whose target is
/// negative isn't trained on: loss and gradient are 0. Panics if a target isn't under v.
pub fn cross_entropy(
    logits: &mut [f32],
    v: usize,
    targets: &[i32],
    losses: &mut [f32],
    best: &mut [i32],
    want_gradient: bool,
) {
    let rows = targets.len();
    assert_eq!([logits.len(), losses.len(), best.len()], [rows * v, rows, rows]);
    for_each_row(
        v,
        (logits.par_chunks_mut(v), targets, losses, best),
        #[inline(always)]
        |(logits, target, loss, best)| {
            let (most, place) = first_maximum(logits);
            *best = place as i32;
            let Ok(target) = usize::try_from(*target) else {
                *loss = 0.0;
                if want_gradient {
                    logits.fill(0.0);
                }
                return;
            };
            let distance = f64::from(most) - f64::from(logits[target]);
            let sum = if want_gradient {
                let sum = exponentials::<true>(logits, most);
                scale(logits, (1.0 / sum) as f32);
                logits[target] -= 1.0;
                sum
            } else {
                exponentials::<false>(logits, most)
            };
            *loss = (distance + sum.ln()) as f32;
        },
    );
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

    fn reference(logits: &[f64], target: usize) -> f64 {
        let most = logits.iter().fold(f64::MIN, |most, x| most.max(*x));
        most - logits[target] + logits.iter().map(|x| (x - most).exp()).sum::<f64>().ln()
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
            cross_entropy(&mut logits, v, &targets, &mut losses, &mut best, false);
            assert_eq!(logits, before);
            let mut again = (vec![9.0; rows], vec![-9; rows]);
            cross_entropy(&mut logits, v, &targets, &mut again.0, &mut again.1, true);
            assert_eq!(again, (losses.clone(), best.clone()));

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
    fn the_first_of_equal_logits_is_best() {
        let mut logits = vec![0.0; 5000];
        for place in [4000, 2100, 2050, 17] {
            logits[place] = 3.0;
            let (mut loss, mut best) = ([0.0], [0]);
            cross_entropy(&mut logits, 5000, &[1], &mut loss, &mut best, false);
            assert_eq!(best, [place as i32]);
        }
    }

    #[test]
    fn negative_targets_are_left_out() {
        let mut logits = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0];
        let (mut losses, mut best) = ([9.0; 2], [9; 2]);
        cross_entropy(&mut logits, 3, &[-100, 0], &mut losses, &mut best, true);
        assert_eq!(best, [2, 2]);
        assert_eq!(losses[0], 0.0);
        assert_eq!(logits[..3], [0.0; 3]);
        assert!(losses[1] > 2.0 && logits[3] < -0.9);
    }

    #[test]
    fn far_logits_stay_finite() {
        let mut logits = [1e30, -1e30, 0.0];
        let (mut loss, mut best) = ([9.0], [9]);
        cross_entropy(&mut logits, 3, &[1], &mut loss, &mut best, true);
        assert_eq!((loss, best, logits), ([2e30], [0], [1.0, -1.0, 0.0]));
    }
}
