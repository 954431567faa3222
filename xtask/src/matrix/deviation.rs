//! How far apart two backends compute: the tensors that their suites left, compared name by name.
//!
//! A number that is not finite is never equal to anything: it makes the deviation infinite, and that
//! is a failure. How large a finite deviation may be, the suites judge; here it is only measured.

use anyhow::{Context, Result, bail};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// What one suite computed: `<kind>/<case>` to numbers.
pub(crate) type Values = BTreeMap<String, Vec<f32>>;

/// The kinds that come first, in this order.
const KINDS: [&str; 3] = ["logits", "gradients", "trajectory"];

/// One kind of tensor, compared between two backends.
#[derive(Debug, Serialize)]
pub(crate) struct Deviation {
    /// The part of the tensors' names before the first `/`.
    pub(crate) kind: String,
    pub(crate) left: String,
    pub(crate) right: String,
    /// The largest deviation over all tensors compared; JSON has `null` for one that is not finite.
    pub(crate) largest: Option<f64>,
    /// The tensor that deviates the most.
    pub(crate) tensor: Option<String>,
    pub(crate) compared: usize,
    /// What could not be compared, and what is not finite.
    pub(crate) failures: Vec<TensorFailure>,
}

/// A tensor that two backends do not agree on at all.
#[derive(Debug, Serialize)]
pub(crate) struct TensorFailure {
    pub(crate) tensor: String,
    pub(crate) reason: String,
}

/// Reads `values.safetensors`.
pub(crate) fn read(path: &Path) -> Result<Values> {
    let bytes = fs::read(path).with_context(|| format!("reading `{}`", path.display()))?;
    parse(&bytes).with_context(|| format!("reading `{}`", path.display()))
}

fn parse(bytes: &[u8]) -> Result<Values> {
    let mut values = Values::new();
    for (name, tensor) in SafeTensors::deserialize(bytes)?.tensors() {
        if tensor.dtype() != Dtype::F32 {
            bail!("tensor `{name}` is {:?}; the suites write F32", tensor.dtype());
        }
        let (numbers, _) = tensor.data().as_chunks::<4>();
        values.insert(name, numbers.iter().map(|number| f32::from_le_bytes(*number)).collect());
    }
    Ok(values)
}

/// Compares everything that two backends computed, one entry for each kind.
pub(crate) fn between(left: (&str, &Values), right: (&str, &Values)) -> Vec<Deviation> {
    let names: BTreeSet<&String> = left.1.keys().chain(right.1.keys()).collect();
    let mut kinds: Vec<&str> = names.iter().map(|name| split(name).0).collect();
    let rank = |kind: &str| KINDS.iter().position(|known| *known == kind).unwrap_or(KINDS.len());
    kinds.sort_by_key(|kind| (rank(kind), *kind));
    kinds.dedup();
    kinds
        .into_iter()
        .map(|kind| {
            let of_kind = names.iter().copied().filter(|name| split(name).0 == kind);
            compare(kind, of_kind, left, right)
        })
        .collect()
}

fn compare<'a>(
    kind: &str,
    names: impl Iterator<Item = &'a String>,
    left: (&str, &Values),
    right: (&str, &Values),
) -> Deviation {
    let mut deviation = Deviation {
        kind: kind.to_owned(),
        left: left.0.to_owned(),
        right: right.0.to_owned(),
        largest: None,
        tensor: None,
        compared: 0,
        failures: Vec::new(),
    };
    for name in names {
        let reason = match (left.1.get(name), right.1.get(name)) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                let value = distance(kind, a, b);
                deviation.compared += 1;
                if deviation.largest.is_none_or(|largest| value > largest) {
                    deviation.largest = Some(value);
                    deviation.tensor = Some(split(name).1.to_owned());
                }
                if value.is_finite() {
                    continue;
                }
                "the deviation is not finite".to_owned()
            }
            (Some(a), Some(b)) => {
                format!("{} has {} numbers, {} has {}", left.0, a.len(), right.0, b.len())
            }
            (Some(_), None) => format!("only {} has this tensor", left.0),
            _ => format!("only {} has this tensor", right.0),
        };
        deviation.failures.push(TensorFailure { tensor: name.clone(), reason });
    }
    deviation
}

/// Kind and case of a tensor's name.
fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or((name, name))
}

/// Logits: the largest difference, relative to the largest value where that exceeds one. Gradients: the
/// L2 distance, relative to the longer of the two. Anything else: the largest difference.
fn distance(kind: &str, a: &[f32], b: &[f32]) -> f64 {
    let difference = || a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b));
    let value = match kind {
        "logits" => {
            let scale = largest(numbers(a).chain(numbers(b)));
            largest(difference()) / scale.max(1.0)
        }
        "gradients" => {
            let scale = norm(numbers(a)).max(norm(numbers(b)));
            let distance = norm(difference());
            if distance == 0.0 { 0.0 } else { distance / scale }
        }
        _ => largest(difference()),
    };
    if value.is_finite() { value } else { f64::INFINITY }
}

fn numbers(values: &[f32]) -> impl Iterator<Item = f64> {
    values.iter().copied().map(f64::from)
}

/// The largest absolute value; infinite if any is not a number, which `f64::max` would pass over.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values
        .fold(0.0, |most, value| if value.is_nan() { f64::INFINITY } else { most.max(value.abs()) })
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{TensorView, serialize};

    fn values(tensors: &[(&str, &[f32])]) -> Values {
        tensors.iter().map(|(name, numbers)| ((*name).to_owned(), numbers.to_vec())).collect()
    }

    #[test]
    fn each_kind_has_its_measure() {
        assert_eq!(distance("logits", &[0.5, 0.25], &[0.5, 0.5]), 0.25);
        assert_eq!(distance("logits", &[8.0, 0.0], &[8.0, 1.0]), 0.125);
        assert_eq!(distance("gradients", &[3.0, 4.0], &[3.0, 0.0]), 0.8);
        assert_eq!(distance("gradients", &[3.0, 0.0], &[3.0, 4.0]), 0.8);
        assert_eq!(distance("gradients", &[0.0], &[0.0]), 0.0);
        assert_eq!(distance("trajectory", &[8.0, 2.0], &[8.5, 2.0]), 0.5);
        assert_eq!(distance("memory", &[8.0], &[6.0]), 2.0);
        assert_eq!(distance("logits", &[], &[]), 0.0);
    }

    #[test]
    fn what_is_not_finite_is_never_equal() {
        for kind in ["logits", "gradients", "trajectory", "other"] {
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for (a, b) in [(odd, odd), (odd, 1.0), (1.0, odd), (odd, 0.0)] {
                    let found = distance(kind, &[1.0, a, 2.0], &[1.0, b, 2.0]);
                    assert_eq!(found, f64::INFINITY, "{kind}: {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn kinds_are_ordered_and_the_worst_tensor_is_named() {
        let left = values(&[
            ("adapter/a", &[1.0]),
            ("trajectory/a", &[1.0]),
            ("logits/a/b", &[0.5]),
            ("logits/c", &[0.5]),
        ]);
        let right = values(&[
            ("adapter/a", &[1.0]),
            ("trajectory/a", &[1.5]),
            ("logits/a/b", &[0.5]),
            ("logits/c", &[0.75]),
        ]);
        let found = between(("cpu", &left), ("wgpu", &right));
        let kinds: Vec<&str> = found.iter().map(|deviation| deviation.kind.as_str()).collect();
        assert_eq!(kinds, ["logits", "trajectory", "adapter"]);
        assert_eq!(found[0].tensor.as_deref(), Some("c"));
        assert_eq!((found[0].largest, found[0].compared), (Some(0.25), 2));
        assert!(found.iter().all(|deviation| deviation.failures.is_empty()));
    }

    #[test]
    fn what_cannot_be_compared_is_a_failure() {
        let left = values(&[
            ("logits/left", &[0.0]),
            ("logits/length", &[0.0, 1.0]),
            ("logits/nan", &[f32::NAN]),
            ("logits/same", &[1.0]),
        ]);
        let right = values(&[
            ("logits/length", &[0.0]),
            ("logits/nan", &[f32::NAN]),
            ("logits/right", &[0.0]),
            ("logits/same", &[1.0]),
        ]);
        let found = between(("cpu", &left), ("wgpu", &right));
        let [deviation] = found.as_slice() else { panic!("one kind: {found:?}") };
        assert_eq!(deviation.largest, Some(f64::INFINITY));
        assert_eq!(deviation.tensor.as_deref(), Some("nan"));
        assert_eq!(deviation.compared, 2);
        let failures: Vec<String> = deviation
            .failures
            .iter()
            .map(|failure| format!("{}: {}", failure.tensor, failure.reason))
            .collect();
        assert_eq!(
            failures,
            [
                "logits/left: only cpu has this tensor",
                "logits/length: cpu has 2 numbers, wgpu has 1",
                "logits/nan: the deviation is not finite",
                "logits/right: only wgpu has this tensor",
            ]
        );
    }

    #[test]
    fn files_hold_single_precision() {
        let file = |dtype, bytes: &[u8]| {
            let view = TensorView::new(dtype, vec![2], bytes).unwrap();
            serialize([("logits/a", view)], None).unwrap()
        };
        let numbers = [1.5_f32, -2.0].map(f32::to_le_bytes).concat();
        assert_eq!(
            parse(&file(Dtype::F32, &numbers)).unwrap(),
            values(&[("logits/a", &[1.5, -2.0])])
        );
        let error = parse(&file(Dtype::F16, &[0; 4])).unwrap_err();
        assert_eq!(error.to_string(), "tensor `logits/a` is F16; the suites write F32");
    }
}
