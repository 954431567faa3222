//! The learning rate of each optimizer step: constant, linear or cosine decay after a linear
//! warm-up.
//!
//! With a minimum of zero these are `get_constant_schedule_with_warmup`,
//! `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup` of transformers, so
//! that a run can be compared with one of theirs step by step.

use std::f64::consts::PI;
use std::fmt;

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schedule {
    /// Stays at the peak.
    #[default]
    Constant,
    /// Falls in a straight line to the minimum.
    Linear,
    /// Falls along half a cosine to the minimum.
    Cosine,
}

impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        })
    }
}

/// The learning rate of optimizer step `step`, counted from 0.
///
/// With w warm-up steps, T steps in all and p = (step − w) / (T − w):
///
/// - warm-up: `peak · step / w`, so the first step of a warm-up has rate 0;
/// - constant: `peak`;
/// - linear: `minimum + (peak − minimum) · (1 − p)`;
/// - cosine: `minimum + (peak − minimum) · (1 + cos(π·p)) / 2`.
///
/// Steps from `total_steps` on have the rate at the end of the schedule.
pub fn learning_rate(
    step: usize,
    total_steps: usize,
    warmup_steps: usize,
    peak: f64,
    minimum: f64,
    schedule: Schedule,
) -> f64 {
    if step < warmup_steps {
        return peak * (step as f64 / warmup_steps as f64);
    }
    let decay_steps = total_steps.saturating_sub(warmup_steps).max(1) as f64;
    let factor = match schedule {
        Schedule::Constant => return peak,
        Schedule::Linear => total_steps.saturating_sub(step) as f64 / decay_steps,
        Schedule::Cosine => {
            let progress = ((step - warmup_steps) as f64 / decay_steps).min(1.0);
            (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
        }
    };
    minimum + (peak - minimum) * factor
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `trajectory_lr` of the parity case `sched_clip_accum`: transformers' cosine schedule with
    /// 3 warm-up steps of 10 and peak 1e-3; its first entry precedes the first step.
    const TRANSFORMERS_COSINE: [f64; 10] = [
        0.0,
        0.0003333333333333333,
        0.0006666666666666666,
        0.001,
        0.0009504844339512095,
        0.0008117449009293668,
        0.0006112604669781572,
        0.00038873953302184284,
        0.00018825509907063325,
        4.9515566048790485e-05,
    ];

    fn close(ours: f64, theirs: f64) -> bool {
        (ours - theirs).abs() <= 1e-15
    }

    #[test]
    fn cosine_equals_transformers() {
        for (step, &expected) in TRANSFORMERS_COSINE.iter().enumerate() {
            let ours = learning_rate(step, 10, 3, 1e-3, 0.0, Schedule::Cosine);
            assert!(close(ours, expected), "step {step}: {ours} is not {expected}");
        }
    }

    #[test]
    fn linear_falls_to_zero_after_the_last_step() {
        let rate = |step| learning_rate(step, 10, 2, 1.0, 0.0, Schedule::Linear);
        assert!(close(rate(0), 0.0));
        assert!(close(rate(1), 0.5));
        assert!(close(rate(2), 1.0));
        assert!(close(rate(6), 0.5));
        assert!(close(rate(9), 0.125));
        assert!(close(rate(10), 0.0));
        assert!(close(rate(99), 0.0));
    }

    #[test]
    fn constant_stays_and_needs_no_warm_up() {
        assert!(close(learning_rate(0, 10, 0, 2e-4, 0.0, Schedule::Constant), 2e-4));
        assert!(close(learning_rate(9, 10, 5, 2e-4, 0.0, Schedule::Constant), 2e-4));
        assert!(close(learning_rate(4, 10, 5, 2e-4, 0.0, Schedule::Constant), 1.6e-4));
    }

    #[test]
    fn decay_ends_at_the_minimum_and_stays_there() {
        for schedule in [Schedule::Linear, Schedule::Cosine] {
            assert!(close(learning_rate(4, 12, 4, 1.0, 0.1, schedule), 1.0));
            assert!(close(learning_rate(8, 12, 4, 1.0, 0.1, schedule), 0.55));
            assert!(close(learning_rate(12, 12, 4, 1.0, 0.1, schedule), 0.1));
            assert!(close(learning_rate(50, 12, 4, 1.0, 0.1, schedule), 0.1));
        }
    }

    #[test]
    fn a_warm_up_as_long_as_the_run_does_not_divide_by_zero() {
        let rate = learning_rate(5, 5, 5, 1.0, 0.0, Schedule::Cosine);
        assert!(rate.is_finite());
    }
}
