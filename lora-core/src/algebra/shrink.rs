//! An adapter of lower rank that does nearly the same.

use super::low_rank::{Decomposed, LowRank, updates};
use super::spectrum::{energy, rank_for_energy};
use super::{plain, result};
use crate::error::{Error, Result};
use crate::peft::PeftAdapter;

/// How much of an update is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    /// The nearest matrix of this rank.
    Rank(usize),
    /// The smallest rank, layer by layer, that holds this share of ‖ΔW‖².
    Energy(f64),
}

/// An adapter of lower rank, and what was lost.
#[derive(Debug, Clone, PartialEq)]
pub struct Shrunk {
    /// The new adapter.
    pub adapter: PeftAdapter,
    /// Layer by layer, in the order of its pairs.
    pub layers: Vec<Cut>,
}

/// What was kept of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    /// Path of the layer.
    pub path: String,
    /// Rank before.
    pub from: usize,
    /// Rank after.
    pub to: usize,
    /// ‖ΔW‖ before.
    pub norm: f64,
    /// Share of ‖ΔW‖² that was kept; 1 for an update of zeros.
    pub kept: f64,
}

impl Keep {
    /// Whether this can be asked for.
    ///
    /// # Errors
    /// A rank of zero, a share out of range.
    pub fn check(&self) -> Result<()> {
        match *self {
            Self::Rank(0) => Err(Error::invalid("rank must be at least 1")),
            Self::Energy(share) if !(share > 0.0 && share <= 1.0) => {
                Err(Error::invalid(format!("energy must be above 0 and at most 1, not {share}"))
                    .with_hint("0.95 keeps the directions that hold 95 % of ‖ΔW‖²"))
            }
            _ => Ok(()),
        }
    }
}

/// The adapter with each ΔW cut to a lower rank: the nearest one there is, by the singular value
/// decomposition. No layer's rank grows.
///
/// # Errors
/// A rank or share out of range; an adapter with more than low-rank pairs and whole modules.
pub fn shrink(adapter: &PeftAdapter, keep: Keep) -> Result<Shrunk> {
    keep.check()?;
    plain::check("the adapter", adapter)?;
    let (mut pairs, mut layers) = (Vec::new(), Vec::new());
    for (factor, update) in adapter.factors.iter().zip(updates(adapter)) {
        let (pair, kept) = cut(&update.decompose(), keep);
        layers.push(Cut {
            path: factor.path.clone(),
            from: factor.rank,
            to: pair.rank,
            norm: update.norm(),
            kept,
        });
        pairs.push((factor.path.clone(), pair));
    }
    let mut config = adapter.config.clone();
    config.warnings = Vec::new();
    Ok(Shrunk { adapter: result::adapter(config, pairs, adapter.saved.clone()), layers })
}

/// The part to keep of an update, and its share of the energy.
fn cut(whole: &Decomposed, keep: Keep) -> (LowRank, f64) {
    let values = &whole.values;
    let rank = match keep {
        Keep::Rank(rank) => rank.min(values.len()),
        Keep::Energy(share) => rank_for_energy(values, share),
    };
    let rank = rank.max(1);
    let all = energy(values);
    let kept = energy(&values[..rank.min(values.len())]);
    (whole.truncated(rank), if all > 0.0 { kept / all } else { 1.0 })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::low_rank::update_of;
    use super::*;
    use crate::config::{LoraConfig, TargetModules};
    use crate::peft::{Factor, PeftConfig};

    /// Two layers, one of which has one strong and two weak directions.
    fn adapter() -> PeftAdapter {
        let mut lora = LoraConfig::new(3, 6.0);
        lora.target = TargetModules::Suffixes(vec!["q_proj".into(), "v_proj".into()]);
        let pair = |path: &str, sizes: [f32; 3]| {
            let identity = |i: usize| f32::from(u8::from(i.is_multiple_of(4)));
            let a = (0..12).map(|i| if i < 9 { identity(i) } else { 0.0 }).collect();
            let b = (0..9).map(|i| identity(i) * sizes[i / 3]).collect();
            Factor { path: path.into(), d_in: 4, d_out: 3, rank: 3, a, b }
        };
        let factors = vec![
            pair("layers.0.q_proj", [1.0, 2.0, 3.0]),
            pair("layers.0.v_proj", [0.1, 9.0, 0.1]),
        ];
        PeftAdapter::new(PeftConfig::new(lora, None), factors)
    }

    #[test]
    fn the_strong_directions_stay_and_the_rest_is_said() {
        let shrunk = shrink(&adapter(), Keep::Rank(2)).unwrap();
        assert_eq!(shrunk.adapter.config.lora.rank, 2);
        assert!((shrunk.layers[0].kept - 13.0 / 14.0).abs() < 1e-6, "{:?}", shrunk.layers);
        let update = update_of(&shrunk.adapter.config.lora, &shrunk.adapter.factors[0]).dense();
        // The scale, α/r = 2, is in the numbers now.
        let expected = [0.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0];
        assert!(update.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-6), "{update:?}");
    }

    #[test]
    fn each_layer_has_the_rank_that_its_energy_asks_for_and_can_be_saved() {
        let shrunk = shrink(&adapter(), Keep::Energy(0.9)).unwrap();
        let ranks: Vec<usize> = shrunk.adapter.factors.iter().map(|factor| factor.rank).collect();
        assert_eq!(ranks, [2, 1]);
        let lora = &shrunk.adapter.config.lora;
        assert_eq!((lora.rank_for("layers.0.q_proj"), lora.rank_for("layers.0.v_proj")), (2, 1));
        assert!(
            lora.scaling_for("layers.0.q_proj") == 1.0
                && lora.scaling_for("layers.0.v_proj") == 1.0
        );
        let folder = tempfile::tempdir().unwrap();
        shrunk.adapter.save(folder.path()).unwrap();
        assert_eq!(PeftAdapter::load(folder.path()).unwrap().factors, shrunk.adapter.factors);
    }

    #[test]
    fn an_adapter_that_does_nothing_shrinks_to_rank_one() {
        let mut adapter = adapter();
        adapter.factors.iter_mut().for_each(|factor| factor.b.fill(0.0));
        let shrunk = shrink(&adapter, Keep::Energy(0.5)).unwrap();
        assert!(shrunk.layers.iter().all(|layer| layer.to == 1 && layer.kept == 1.0));
        assert!(shrink(&adapter, Keep::Rank(0)).is_err());
        assert!(shrink(&adapter, Keep::Energy(1.5)).is_err());
    }
}
