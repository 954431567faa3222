//! Medians and ratios. A ratio is taken inside one round, where both programs met the same machine; the
//! median over the rounds is what counts, and its extremes say how far to trust it.

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

/// `ours / other` of every round that has both.
pub(crate) fn ratios(ours: &[Option<f64>], other: &[Option<f64>]) -> Vec<f64> {
    let pairs = ours.iter().zip(other);
    pairs.filter_map(|(ours, other)| Some((*ours)? / (*other)?)).collect()
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
    fn ratios_stay_inside_their_round() {
        // The machine is twice as slow in the second round: the ratio does not notice.
        let ours = [Some(500.0), Some(250.0), None, Some(300.0)];
        let other = [Some(200.0), Some(100.0), Some(200.0), None];
        assert_eq!(ratios(&ours, &other), [2.5, 2.5]);
        assert_eq!(ratios(&ours, &[]), [0.0; 0]);
    }

    #[test]
    fn the_best_is_chosen_round_by_round() {
        let programs = [vec![Some(1.0), Some(4.0), None], vec![Some(2.0), Some(3.0), None]];
        assert_eq!(best(&programs, true), [Some(2.0), Some(4.0), None]);
        assert_eq!(best(&programs, false), [Some(1.0), Some(3.0), None]);
        assert_eq!(best(&[], true), [None; 0]);
    }
}
