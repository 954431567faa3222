//! When programs that take turns have taken enough of them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::signals::CAN_STOP;
use super::statistics::{error_of_median, ratios_of_turns};

/// Fewer say nothing of how far a ratio may be off.
const LEAST: usize = 7;
/// How far the ratio of one round may be off: two calls of the bench then agree within 5 %.
const SETTLED: f64 = 0.01;
/// After that a ratio counts as it is.
const LONGEST: Duration = Duration::from_secs(180);

/// The shortest slice of a step: what a machine does to one of them it does to its neighbours, and to let a program go on
/// takes a hundredth of it at most.
const SLICE: Duration = Duration::from_millis(150);

/// How long each turn of each program took.
pub(super) struct Turns {
    /// Turns at the beginning that are not timed; `None` where programs take all that there are.
    untimed: Option<usize>,
    seconds: Vec<Vec<f64>>,
}

impl Turns {
    pub(super) fn new(untimed: Option<usize>, programs: usize) -> Self {
        Self { untimed, seconds: vec![Vec::new(); programs] }
    }

    pub(super) fn untimed(&self) -> Option<usize> {
        self.untimed
    }

    /// How long a slice of each program's next step is, if steps are cut: so long that all have as many and end
    /// together. Whole steps are taken where steps are short, where nothing is known of them yet, and in works that
    /// time parts of their turns.
    pub(super) fn slices(&self, programs: &[usize]) -> BTreeMap<usize, Duration> {
        let last: Option<Vec<f64>> =
            programs.iter().map(|program| self.seconds[*program].last().copied()).collect();
        let (Some(last), Some(_), true) = (last, self.untimed, CAN_STOP) else {
            return BTreeMap::new();
        };
        let shortest = last.iter().copied().fold(f64::INFINITY, f64::min);
        let parts = (shortest / SLICE.as_secs_f64()).floor();
        if programs.len() < 2 || parts < 2.0 {
            return BTreeMap::new();
        }
        let slices = last.iter().map(|seconds| Duration::from_secs_f64(seconds / parts));
        programs.iter().copied().zip(slices).collect()
    }

    pub(super) fn took(&mut self, program: usize, time: Duration) {
        self.seconds[program].push(time.as_secs_f64());
    }

    /// Whether the ratios of the first program to each of the others stand still, if there are others.
    pub(super) fn are_enough(&self, since_start: Duration) -> bool {
        let Some(untimed) = self.untimed else { return false };
        let most = self.seconds.iter().map(Vec::len).max().unwrap_or(0);
        // Who has ended before the others takes no turns.
        let mut going = self.seconds.iter().filter(|turns| turns.len() == most);
        let (Some(first), true) = (going.next(), most >= untimed + LEAST) else { return false };
        let mut errors = going
            .map(|other| error_of_median(&ratios_of_turns(&first[untimed..], &other[untimed..])));
        since_start >= LONGEST || errors.all(|error| error.is_some_and(|off| off <= SETTLED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two programs, the second of which takes twice as long; so many turns, the first of them untimed and slow.
    fn turns(noise: &[f64]) -> Turns {
        let mut turns = Turns::new(Some(1), 2);
        for part in std::iter::once(&9.0).chain(noise) {
            turns.took(0, Duration::from_secs_f64(1.0));
            turns.took(1, Duration::from_secs_f64(2.0 * part));
        }
        turns
    }

    #[test]
    fn a_ratio_that_stands_still_is_enough() {
        let start = Duration::ZERO;
        assert!(!turns(&[1.0; LEAST - 1]).are_enough(start));
        assert!(turns(&[1.0; LEAST]).are_enough(start));
        // Evenly spread, so that twelve are off by 1.5 % and forty by 0.8.
        let noise = |count: usize| -> Vec<f64> {
            (0..count).map(|at| 1.0 + 0.1 * at as f64 / count as f64).collect()
        };
        assert!(!turns(&noise(12)).are_enough(start));
        assert!(turns(&noise(40)).are_enough(start));
        assert!(turns(&noise(12)).are_enough(LONGEST));
        assert!(!turns(&[1.0; LEAST - 1]).are_enough(LONGEST));
    }

    #[test]
    fn both_may_be_slow_together() {
        let mut turns = Turns::new(Some(0), 2);
        for slow in [1.0, 3.0, 1.0, 2.0, 1.0, 4.0, 1.0, 2.0] {
            turns.took(0, Duration::from_secs_f64(slow));
            turns.took(1, Duration::from_secs_f64(slow * 1.5));
        }
        assert!(turns.are_enough(Duration::ZERO));
        // Alone it has no ratio.
        turns.seconds.pop();
        assert!(turns.are_enough(Duration::ZERO));
        turns.seconds[0].truncate(LEAST - 1);
        assert!(!turns.are_enough(Duration::ZERO));
    }

    #[test]
    fn who_has_ended_is_not_waited_for() {
        let mut turns = turns(&[1.0; LEAST]);
        turns.seconds.push(vec![1.0]);
        assert!(turns.are_enough(Duration::ZERO));
        turns.untimed = None;
        assert!(!turns.are_enough(LONGEST));
    }

    #[cfg(unix)]
    #[test]
    fn long_steps_are_cut() {
        let slices = |seconds: &[f64], untimed| {
            let mut turns = Turns::new(untimed, seconds.len());
            for (program, time) in seconds.iter().enumerate() {
                turns.took(program, Duration::from_secs_f64(*time));
            }
            let all: Vec<usize> = (0..seconds.len()).collect();
            turns.slices(&all).into_values().map(|slice| slice.as_millis()).collect::<Vec<_>>()
        };
        // Six slices each: the shorter step's are as short as they may be.
        assert_eq!(slices(&[0.9, 1.8], Some(1)), [150, 300]);
        assert_eq!(slices(&[0.29, 1.8], Some(1)), []);
        assert_eq!(slices(&[0.9], Some(1)), []);
        assert_eq!(slices(&[0.9, 1.8], None), []);
        assert!(Turns::new(Some(1), 2).slices(&[0, 1]).is_empty());
    }
}
