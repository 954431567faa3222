//! What a fine-tuned checkpoint has learned, as an adapter on the one it started from.

use super::low_rank::{Decomposed, LowRank};
use super::result;
use super::shrink::{Cut, Keep};
use super::spectrum::{energy, rank_within};
use crate::config::{LoraConfig, TargetModules};
use crate::error::Error;
use crate::peft::{PeftAdapter, PeftConfig};
use crate::target::LinearInfo;

/// An adapter extracted from two checkpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct Extraction {
    /// The adapter, for the first of them.
    pub adapter: PeftAdapter,
    /// Layer by layer; `from` is the full rank of the difference.
    pub layers: Vec<Cut>,
    /// Layers whose weights are the same in both.
    pub unchanged: Vec<String>,
}

/// The nearest update of low rank to the difference of two checkpoints, layer by layer: the first singular
/// directions of W′ − W. Layers without a difference get no pair.
///
/// `difference` gives W′ − W of a layer, `[d_in, d_out]` row-major.
///
/// # Errors
/// Those of `difference`; a rank or share out of range; checkpoints that do not differ in any of the layers,
/// or not by finite numbers.
pub fn extract<E: From<Error>>(
    linears: &[LinearInfo],
    keep: Keep,
    base_model: &str,
    mut difference: impl FnMut(&LinearInfo) -> std::result::Result<Vec<f64>, E>,
) -> std::result::Result<Extraction, E> {
    keep.check()?;
    let (mut pairs, mut layers, mut unchanged) = (Vec::new(), Vec::new(), Vec::new());
    for linear in linears {
        let dense = difference(linear)?;
        if let Some(bad) = dense.iter().find(|value| !value.is_finite()) {
            let reason = format!("the weights of `{}` differ by {bad}", linear.path);
            return Err(Error::invalid(reason)
                .with_hint("one of the checkpoints holds numbers that are not finite")
                .into());
        }
        if dense.iter().all(|&value| value == 0.0) {
            unchanged.push(linear.path.clone());
            continue;
        }
        let (pair, layer) = of_dense(&dense, linear, keep);
        layers.push(layer);
        pairs.push((linear.path.clone(), pair));
    }
    if pairs.is_empty() {
        return Err(Error::invalid("the checkpoints have the same weights in all of these layers")
            .with_hint("there is nothing to extract")
            .into());
    }
    let mut lora = LoraConfig::new(1, 1.0);
    lora.target = TargetModules::Suffixes(targets(linears, &pairs));
    let config = PeftConfig::new(lora, Some(base_model.to_owned()));
    Ok(Extraction { adapter: result::adapter(config, pairs, Vec::new()), layers, unchanged })
}

fn of_dense(dense: &[f64], linear: &LinearInfo, keep: Keep) -> (LowRank, Cut) {
    let &LinearInfo { d_in, d_out, .. } = linear;
    let all = energy(dense);
    let (whole, rank) = match keep {
        Keep::Rank(rank) => {
            let whole = Decomposed::leading(dense, d_in, d_out, rank);
            let rank = rank.min(whole.values.len());
            (whole, rank)
        }
        Keep::Energy(share) => enough(dense, linear, share, all),
    };
    let kept = energy(&whole.values[..rank]) / all;
    let path = linear.path.clone();
    let layer = Cut { path, from: d_in.min(d_out), to: rank, norm: all.sqrt(), kept };
    (whole.truncated(rank), layer)
}

/// As many directions as hold the share, looked for in ever larger numbers.
fn enough(dense: &[f64], linear: &LinearInfo, share: f64, all: f64) -> (Decomposed, usize) {
    let &LinearInfo { d_in, d_out, .. } = linear;
    let side = d_in.min(d_out);
    let mut tried = 32;
    loop {
        let whole = Decomposed::leading(dense, d_in, d_out, tried.min(side));
        let rank = rank_within(&whole.values, share, all);
        match rank {
            Some(rank) => return (whole, rank.max(1)),
            None if whole.values.len() == side => return (whole, side),
            None => tried *= 2,
        }
    }
}

/// Last names where every layer of a name has a pair, else whole paths.
fn targets(linears: &[LinearInfo], pairs: &[(String, LowRank)]) -> Vec<String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let has_pair = |path: &str| pairs.iter().any(|(its, _)| its == path);
    let is_whole = |name: &str| {
        linears.iter().filter(|it| last(&it.path) == name).all(|it| has_pair(&it.path))
    };
    let target = |(path, _): &(String, LowRank)| {
        let name = last(path);
        if is_whole(&name) { name } else { path.clone() }
    };
    let mut names: Vec<String> = pairs.iter().map(target).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::low_rank::update_of;
    use super::*;

    fn linears() -> Vec<LinearInfo> {
        let layer = |path: &str, d_in, d_out| LinearInfo {
            path: path.to_owned(),
            d_in,
            d_out,
            is_output_head: false,
        };
        vec![
            layer("layers.0.q_proj", 5, 4),
            layer("layers.1.q_proj", 5, 4),
            layer("layers.0.v_proj", 5, 3),
            layer("layers.1.v_proj", 5, 3),
        ]
    }

    fn numbers(count: usize, seed: usize) -> Vec<f64> {
        (0..count).map(|i| ((i * i * 13 + i * 7 + seed * 37) as f64 * 0.9).sin()).collect()
    }

    /// Differences of rank 2, and none in the last layer.
    fn difference(linear: &LinearInfo) -> Vec<f64> {
        if linear.path == "layers.1.v_proj" {
            return vec![0.0; linear.d_in * linear.d_out];
        }
        let seed = linear.path.len() + linear.d_out;
        let &LinearInfo { d_in, d_out, .. } = linear;
        LowRank {
            d_in,
            d_out,
            rank: 2,
            a: numbers(d_in * 2, seed),
            b: numbers(2 * d_out, seed + 1),
        }
        .dense()
    }

    fn extracted(keep: Keep) -> Extraction {
        extract(&linears(), keep, "base", |linear| Ok::<_, Error>(difference(linear))).unwrap()
    }

    #[test]
    fn what_is_of_low_rank_comes_back_whole() {
        for found in
            [extracted(Keep::Rank(2)), extracted(Keep::Energy(1.0)), extracted(Keep::Rank(9))]
        {
            for factor in &found.adapter.factors {
                let linear = linears().into_iter().find(|it| it.path == factor.path).unwrap();
                let update = update_of(&found.adapter.config.lora, factor).dense();
                let expected = difference(&linear);
                assert!(update.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-6));
            }
            assert!(found.layers.iter().all(|layer| layer.kept > 1.0 - 1e-9), "{:?}", found.layers);
            assert_eq!(found.unchanged, ["layers.1.v_proj"]);
        }
        assert!(extracted(Keep::Energy(1.0)).layers.iter().all(|layer| layer.to == 2));
    }

    #[test]
    fn targets_are_names_where_every_layer_of_the_name_has_a_pair() {
        let target = extracted(Keep::Rank(1)).adapter.config.lora.target;
        let names = vec!["layers.0.v_proj".to_owned(), "q_proj".to_owned()];
        assert_eq!(target, TargetModules::Suffixes(names));
    }

    #[test]
    fn equal_and_broken_checkpoints_are_refused() {
        let zero = |linear: &LinearInfo| Ok::<_, Error>(vec![0.0; linear.d_in * linear.d_out]);
        assert!(extract(&linears(), Keep::Rank(1), "base", zero).is_err());
        let broken =
            |linear: &LinearInfo| Ok::<_, Error>(vec![f64::NAN; linear.d_in * linear.d_out]);
        let error = extract(&linears(), Keep::Rank(1), "base", broken).unwrap_err();
        assert_eq!(error.to_string(), "the weights of `layers.0.q_proj` differ by NaN");
    }

    #[test]
    fn a_large_difference_is_looked_at_by_a_sketch_that_knows_what_it_lost() {
        let linear = LinearInfo { path: "q".into(), d_in: 300, d_out: 280, is_output_head: false };
        let low = LowRank {
            d_in: 300,
            d_out: 280,
            rank: 40,
            a: numbers(300 * 40, 1),
            b: numbers(40 * 280, 2),
        };
        let dense = low.dense();
        let (pair, layer) = of_dense(&dense, &linear, Keep::Energy(0.999_999));
        assert!(layer.to <= 40 && layer.kept >= 0.999_999, "{layer:?}");
        let rest = LowRank::sum(&[low, pair.times(-1.0)]).norm();
        assert!((rest / layer.norm).powi(2) < 1.1e-6, "{rest} of {}", layer.norm);
    }
}
