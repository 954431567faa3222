//! What a case of the suite is, what it finds, and how it is judged.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use lora_core::device::OpenDevice;
use lora_core::placement::{DType, Placement};
use serde::{Deserialize, Serialize};

/// Where cases run, and what they leave for the comparison of backends.
pub(crate) struct Lab {
    pub(crate) open: OpenDevice,
    /// Numbers by name, `logits/llama/lora`: compared between every two backends afterwards.
    pub(crate) values: BTreeMap<String, Vec<f32>>,
}

impl Lab {
    /// The device with everything in f32.
    pub(crate) fn f32(&self) -> Placement {
        Placement::f32(self.open.device.clone())
    }

    /// The device with weights and activations in `dtype`; a reason where it can't.
    pub(crate) fn placed(&self, dtype: DType) -> Result<Placement, Stop> {
        if !self.open.supports(dtype) {
            return Err(Stop::Skipped(format!("{} has no {dtype:?}", self.open.name)));
        }
        Ok(Placement { weights: dtype, compute: dtype, ..self.f32() })
    }

    pub(crate) fn keep(&mut self, name: String, numbers: Vec<f32>) {
        self.values.insert(name, numbers);
    }
}

/// Why a case has no deviation.
pub(crate) enum Stop {
    Skipped(String),
    Failed(String),
}

/// The largest deviation of a case from its reference.
pub(crate) type Found = Result<f64, Stop>;

/// One row of the matrix.
pub(crate) struct Case {
    /// `ops/rms_norm/backward`.
    pub(crate) name: String,
    /// What it is held against.
    pub(crate) reference: &'static str,
    /// The largest deviation that passes.
    pub(crate) tolerance: f64,
    pub(crate) run: Box<dyn Fn(&mut Lab) -> Found>,
}

impl Case {
    pub(crate) fn new(
        name: impl Into<String>,
        reference: &'static str,
        tolerance: f64,
        run: impl Fn(&mut Lab) -> Found + 'static,
    ) -> Self {
        Self { name: name.into(), reference, tolerance, run: Box::new(run) }
    }

    /// Runs the case; a panic is a failure like any other.
    pub(crate) fn cell(&self, lab: &mut Lab) -> Cell {
        let started = Instant::now();
        let found = catch_unwind(AssertUnwindSafe(|| (self.run)(lab)));
        let found = found.unwrap_or_else(|panic| Err(Stop::Failed(said(&*panic))));
        let mut cell = Cell {
            case: self.name.clone(),
            outcome: Outcome::Pass,
            reason: None,
            deviation: None,
            tolerance: Some(self.tolerance),
            reference: self.reference.to_owned(),
            seconds: started.elapsed().as_secs_f64(),
        };
        match found {
            // A NaN is above every tolerance.
            Ok(deviation) if deviation <= self.tolerance => cell.deviation = Some(deviation),
            Ok(deviation) => {
                cell.outcome = Outcome::Fail;
                cell.reason =
                    Some(format!("off by {deviation:.2e}, allowed {:.1e}", self.tolerance));
                cell.deviation = deviation.is_finite().then_some(deviation);
            }
            Err(Stop::Skipped(reason)) => {
                cell.outcome = Outcome::Skipped;
                cell.reason = Some(reason);
            }
            Err(Stop::Failed(reason)) => {
                cell.outcome = Outcome::Fail;
                cell.reason = Some(reason);
            }
        }
        cell
    }
}

/// First lines of a panic.
pub(crate) fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("panicked without a word");
    text.lines().take(3).collect::<Vec<_>>().join(" ")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Pass,
    Fail,
    Skipped,
}

/// One cell of the matrix, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) case: String,
    pub(crate) outcome: Outcome,
    pub(crate) reason: Option<String>,
    pub(crate) deviation: Option<f64>,
    pub(crate) tolerance: Option<f64>,
    pub(crate) reference: String,
    pub(crate) seconds: f64,
}

/// Everything that one backend found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Column {
    pub(crate) backend: String,
    pub(crate) device: String,
    pub(crate) driver: String,
    /// `ran` or `absent`.
    pub(crate) status: String,
    pub(crate) reason: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) cells: Vec<Cell>,
}

/// Largest absolute difference relative to the largest number of the reference, or to 1 if that is
/// larger. NaN if there is a NaN.
pub(crate) fn deviation(found: &[f32], expected: &[f32]) -> f64 {
    let largest = expected.iter().fold(1.0f32, |most, number| most.max(number.abs()));
    largest_difference(found, expected) / f64::from(largest)
}

/// Largest absolute difference; NaN if there is a NaN.
pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "different numbers of elements");
    let differences = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    differences.fold(0.0, worst)
}

/// |a − b|₂ / |b|₂, for gradients and what was trained: where a gradient is nearly zero, Adam's division
/// makes single elements meaningless.
pub(crate) fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "different numbers of elements");
    let square = |x: f64| x * x;
    let pairs = a.iter().zip(b);
    let distance: f64 = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let size: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (distance / size.max(1e-40)).sqrt()
}

/// The larger of two deviations, NaN if one is NaN.
pub(crate) fn worst(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}
