//! Two adapters beside each other: what each does to a layer, and how far that is apart.

use std::collections::BTreeMap;

use super::low_rank::{LowRank, update_of};
use crate::error::{Error, Result};
use crate::peft::{Factor, PeftAdapter};

/// One layer of two adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Path of the layer.
    pub path: String,
    /// ‖ΔW‖ of the first; `None` where it does not adapt the layer.
    pub first: Option<f64>,
    /// ‖ΔW‖ of the second.
    pub second: Option<f64>,
    /// ‖ΔW₁ − ΔW₂‖; an adapter without the layer adds zero to it.
    pub distance: f64,
    /// Cosine of the angle between the two as vectors; `None` where one of them is zero.
    pub cosine: Option<f64>,
}

/// Two adapters layer by layer, in the order of the paths.
///
/// The distance is that of ΔW, not of A and B, which say the same in many ways.
///
/// # Errors
/// A layer that has another shape in the other adapter.
pub fn difference(first: &PeftAdapter, second: &PeftAdapter) -> Result<Vec<Difference>> {
    let mut layers: BTreeMap<&str, [Option<&Factor>; 2]> = BTreeMap::new();
    for (at, adapter) in [first, second].into_iter().enumerate() {
        for factor in &adapter.factors {
            layers.entry(&factor.path).or_default()[at] = Some(factor);
        }
    }
    let settings = [&first.config.lora, &second.config.lora];
    let row = |(path, factors): (&str, [Option<&Factor>; 2])| {
        if let [Some(one), Some(other)] = factors
            && (one.d_in, one.d_out) != (other.d_in, other.d_out)
        {
            return Err(Error::invalid(format!(
                "the adapters are for different models: `{path}` is {} × {} in the first and {} × {} in the \
                 second",
                one.d_in, one.d_out, other.d_in, other.d_out
            )));
        }
        let update = |at: usize| factors[at].map(|factor| update_of(settings[at], factor));
        Ok(compared(path, update(0), update(1)))
    };
    layers.into_iter().map(row).collect()
}

fn compared(path: &str, first: Option<LowRank>, second: Option<LowRank>) -> Difference {
    let norms = [&first, &second].map(|update| update.as_ref().map(LowRank::norm));
    let path = path.to_owned();
    let (distance, cosine) = match (first, second) {
        (Some(one), Some(other)) => {
            let lengths = norms[0].unwrap_or(0.0) * norms[1].unwrap_or(0.0);
            let cosine = (lengths > 0.0).then(|| (one.inner(&other) / lengths).clamp(-1.0, 1.0));
            // By the singular values: of near equals, ‖a‖² + ‖b‖² − 2⟨a, b⟩ would leave only rounding.
            let apart = LowRank::sum(&[one, other.times(-1.0)]).decompose();
            let distance = super::spectrum::energy(&apart.values).sqrt();
            let rounding = 1e-13 * (norms[0].unwrap_or(0.0) + norms[1].unwrap_or(0.0));
            (if distance > rounding { distance } else { 0.0 }, cosine)
        }
        _ => (norms[0].or(norms[1]).unwrap_or(0.0), None),
    };
    Difference { path, first: norms[0], second: norms[1], distance, cosine }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::config::LoraConfig;
    use crate::peft::PeftConfig;

    fn adapter(alpha: f64, pairs: &[(&str, [f32; 2], [f32; 2])]) -> PeftAdapter {
        let pair = |(path, a, b): &(&str, [f32; 2], [f32; 2])| Factor {
            path: (*path).to_owned(),
            d_in: 2,
            d_out: 2,
            rank: 1,
            a: a.to_vec(),
            b: b.to_vec(),
        };
        let config = PeftConfig::new(LoraConfig::new(1, alpha), None);
        PeftAdapter::new(config, pairs.iter().map(pair).collect())
    }

    #[test]
    fn factors_that_say_the_same_are_no_distance_apart() {
        let first = adapter(1.0, &[("q", [2.0, 4.0], [1.0, 0.5]), ("v", [1.0, 0.0], [3.0, 4.0])]);
        let same = adapter(2.0, &[("q", [1.0, 2.0], [1.0, 0.5]), ("v", [0.5, 0.0], [3.0, 4.0])]);
        let rows = difference(&first, &same).unwrap();
        assert!(rows.iter().all(|row| row.distance == 0.0 && row.cosine == Some(1.0)), "{rows:?}");
        let opposite =
            adapter(1.0, &[("q", [0.0, 0.0], [1.0, 0.5]), ("v", [-1.0, 0.0], [3.0, 4.0])]);
        let rows = difference(&first, &opposite).unwrap();
        assert_eq!((rows[0].second, rows[0].cosine), (Some(0.0), None));
        assert!((rows[1].distance - 10.0).abs() < 1e-12 && rows[1].cosine == Some(-1.0));
    }

    #[test]
    fn a_layer_of_one_alone_is_all_difference() {
        let first = adapter(1.0, &[("q", [1.0, 0.0], [3.0, 4.0])]);
        let second = adapter(1.0, &[("v", [1.0, 0.0], [6.0, 8.0])]);
        let rows = difference(&first, &second).unwrap();
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.path.as_str(), row.first, row.second, row.distance))
            .collect();
        assert_eq!(seen, [("q", Some(5.0), None, 5.0), ("v", None, Some(10.0), 10.0)]);
    }

    #[test]
    fn layers_of_other_shapes_are_named() {
        let first = adapter(1.0, &[("q", [1.0, 0.0], [3.0, 4.0])]);
        let mut second = first.clone();
        second.factors[0].d_in = 3;
        second.factors[0].a.push(1.0);
        let error = difference(&first, &second).unwrap_err().to_string();
        assert!(error.contains("`q` is 2 × 2 in the first and 3 × 2 in the second"), "{error}");
    }
}
