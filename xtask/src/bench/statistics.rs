//! Medians and ratios. A ratio is taken inside one turn, or inside one round where no turns are taken, where both
//! programs met the same machine; the median over the rounds is what counts, and its extremes say how far to trust it.

use serde::Serialize;

/// The middle of some numbers, and their extremes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` of no number, and of one that is not finite.
    pub(crate) fn of(numbers: &[f64]) -> Option<Self> {
        let mut sorted = numbers.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        numbers.iter().all(|number| number.is_finite()).then_some(Self { median, min, max })
    }
}

/// The middle of some numbers.
pub(crate) fn median(numbers: &[f64]) -> Option<f64> {
    Spread::of(numbers).map(|spread| spread.median)
}

/// `ours / other` of steps that took turns, those of one turn each: what slows the machine for some of them slows both.
pub(crate) fn ratios_of_turns(ours: &[f64], other: &[f64]) -> Vec<f64> {
    ours.iter().zip(other).map(|(ours, other)| ours / other).collect()
}

/// How far the median of these ratios may be off, as a part of it: its standard error, from the spread of their
/// logarithms. `None` of fewer than two.
pub(crate) fn error_of_median(ratios: &[f64]) -> Option<f64> {
    /// Of the median of normal numbers, against that of their mean.
    const MEDIAN_TO_MEAN: f64 = 1.2533;
    let count = ratios.len() as f64;
    let mean = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / count;
    let squares: f64 = ratios.iter().map(|ratio| (ratio.ln() - mean).powi(2)).sum();
    (ratios.len() > 1).then(|| MEDIAN_TO_MEAN * (squares / (count - 1.0) / count).sqrt())
}

/// The best of several programs in each round.
pub(crate) fn best(programs: &[Vec<Option<f64>>], more_is_better: bool) -> Vec<Option<f64>> {
    let rounds = programs.iter().map(Vec::len).max().unwrap_or(0);
    let of_round = |round: usize| {
        let found = programs.iter().filter_map(|numbers| numbers.get(round).copied().flatten());
        if more_is_better { found.reduce(f64::max) } else { found.reduce(f64::min) }
    };
    (0..rounds).map(of_round).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_stands_in_the_middle() {
        let spread = |median, min, max| Some(Spread { median, min, max });
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), spread(2.0, 1.0, 3.0));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), spread(2.5, 1.0, 4.0));
        assert_eq!(Spread::of(&[5.0]), spread(5.0, 5.0, 5.0));
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
        assert_eq!(Spread::of(&[1.0, f64::INFINITY]), None);
    }

    #[test]
    fn ratios_are_of_one_turn() {
        // The machine is twice as slow for some turns: the ratio does not notice.
        let ours = [500.0, 250.0, 240.0, 500.0, 260.0];
        let other = [200.0, 100.0, 96.0, 200.0, 104.0];
        assert_eq!(ratios_of_turns(&ours, &other), [2.5; 5]);
        assert_eq!(ratios_of_turns(&ours, &other[..2]), [2.5; 2]);
    }

    #[test]
    fn a_median_may_be_off() {
        assert_eq!(error_of_median(&[2.0]), None);
        assert_eq!(error_of_median(&[2.0; 5]), Some(0.0));
        // Logarithms of ±0.1: a deviation of 0.1·√(n / (n − 1)), over √n.
        let found = error_of_median(&[0.1_f64.exp(), (-0.1_f64).exp()].repeat(8)).unwrap();
        assert!((found - 1.2533 * 0.1 / 15.0_f64.sqrt()).abs() < 1e-12, "{found}");
    }

    #[test]
    fn the_best_is_chosen_round_by_round() {
        let programs = [vec![Some(1.0), Some(4.0), None], vec![Some(2.0), Some(3.0), None]];
        assert_eq!(best(&programs, true), [Some(2.0), Some(4.0), None]);
        assert_eq!(best(&programs, false), [Some(1.0), Some(3.0), None]);
        assert_eq!(best(&[], true), [None; 0]);
    }
}
