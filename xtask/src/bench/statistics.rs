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

/// How far the median of these ratios may be off, as a part of it: about its standard error, from those that stand
/// √n / 2 places to either side of the middle, so that one step that was disturbed says nothing. `None` of fewer than
/// two.
pub(crate) fn error_of_median(ratios: &[f64]) -> Option<f64> {
    let mut sorted = ratios.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (count, last) = (sorted.len() as f64, sorted.len().checked_sub(1)?);
    let below = ((count - count.sqrt() - 1.0) / 2.0).max(0.0) as usize;
    (last > 0)
        .then(|| (sorted[last - below] - sorted[below]) / 2.0 / median(&sorted).unwrap_or(1.0))
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
        assert_eq!([error_of_median(&[]), error_of_median(&[2.0])], [None; 2]);
        assert_eq!(error_of_median(&[2.0; 5]), Some(0.0));
        assert_eq!(error_of_median(&[3.0, 2.0, 1.0]), Some(0.5));
        // Of seven the five in the middle; one disturbed step is not among them.
        assert_eq!(error_of_median(&[99.0, 0.75, 1.0, 1.25, 0.5, 1.5, 0.1]), Some(0.5));
        // Of many spread evenly over 1 ± ½: the density there is 1, so 1 / (2·√n).
        let many: Vec<f64> = (0..10_000).map(|at| 0.5 + f64::from(at) / 9_999.0).collect();
        let found = error_of_median(&many).unwrap();
        assert!((found - 0.005).abs() < 2e-4, "{found}");
    }

    #[test]
    fn the_best_is_chosen_round_by_round() {
        let programs = [vec![Some(1.0), Some(4.0), None], vec![Some(2.0), Some(3.0), None]];
        assert_eq!(best(&programs, true), [Some(2.0), Some(4.0), None]);
        assert_eq!(best(&programs, false), [Some(1.0), Some(3.0), None]);
        assert_eq!(best(&[], true), [None; 0]);
    }
}
