//! Several adapters into one, as PEFT's `add_weighted_adapter` defines it (`peft/tuners/lora/model.py`), layer
//! by layer. A layer that only some of the adapters have is made from those.

use std::collections::BTreeMap;

use super::low_rank::{Decomposed, LowRank, update_of};
use super::merge::Merge;
use super::{plain, result};
use crate::config::LoraConfig;
use crate::error::{Error, Result};
use crate::peft::{Factor, PeftAdapter};

/// An adapter with its share in a combination.
#[derive(Debug, Clone, Copy)]
pub struct Weighted<'a> {
    /// What messages call it.
    pub name: &'a str,
    /// The adapter.
    pub adapter: &'a PeftAdapter,
    /// Its weight, which may be negative.
    pub weight: f64,
}

/// How the pairs of several adapters become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Combination {
    /// The factors beside each other (PEFT's `cat`): exactly Σ wᵢ·ΔWᵢ, with the sum of the ranks.
    Beside,
    /// A and B merged by themselves, each with weight √|wᵢ·sᵢ|, the sign on A: PEFT's `linear`, `ties`,
    /// `dare_linear`, `dare_ties` and `magnitude_prune`. Fast and rough: (A₁ + A₂)·(B₁ + B₂) has the products
    /// A₁·B₂ and A₂·B₁ of unrelated factors in it.
    OnFactors(Merge),
    /// The updates ΔWᵢ merged whole and cut to the nearest matrix of a rank: PEFT's `svd`, `ties_svd`,
    /// `dare_linear_svd`, `dare_ties_svd` and `magnitude_prune_svd`.
    OnUpdates {
        /// How the updates become one.
        merge: Merge,
        /// Rank of the result; without it, the largest of the adapters'.
        rank: Option<usize>,
        /// Values beyond this quantile of those of A and B are cut to it.
        clamp: Option<f64>,
    },
}

/// A combination, and what a person should know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Combined {
    /// The new adapter: one rank for all layers, α = r, so that its scale is 1.
    pub adapter: PeftAdapter,
    /// Choices that were made.
    pub notes: Vec<String>,
}

/// One adapter out of several.
///
/// As in PEFT the settings are those of the first with α = r and no patterns; other than in PEFT the scale of the
/// result is 1 for rsLoRA adapters too (PEFT keeps their √r, which makes the result larger than the sum), and
/// layers of smaller rank are filled up with zeros (PEFT writes files that it can't read).
///
/// # Errors
/// Adapters that can't be combined: none, one with more than low-rank pairs and whole modules, a weight that
/// is no number, layers of different shapes, ranks that differ where they must not, one module trained whole by two of
/// them; a density, quantile or rank out of range; numbers that leave f32.
pub fn combine(adapters: &[Weighted<'_>], combination: &Combination) -> Result<Combined> {
    check_settings(adapters, combination)?;
    let layers = layers(adapters)?;
    let rank = rank_of(adapters, combination)?;
    check_rank(&layers, combination)?;
    let mut pairs = Vec::with_capacity(layers.len());
    for (path, parts) in &layers {
        let pair = match combination {
            Combination::Beside => beside(parts),
            Combination::OnFactors(merge) => on_factors(parts, merge, rank, path),
            Combination::OnUpdates { merge, clamp, .. } => {
                on_updates(parts, merge, *clamp, rank, path)
            }
        };
        pairs.push(((*path).to_owned(), pair.padded(rank)));
    }
    let mut notes = Vec::new();
    let adapter = assemble(adapters, pairs, &mut notes)?;
    let finite = |it: &&Factor| it.a.iter().chain(&it.b).all(|value| value.is_finite());
    if let Some(bad) = adapter.factors.iter().find(|it| !finite(it)) {
        return Err(Error::invalid(format!(
            "the numbers of `{}` become too large for f32",
            bad.path
        ))
        .with_hint("use smaller weights"));
    }
    Ok(Combined { adapter, notes })
}

/// Cuts the numbers of both factors to ±q, where q is this quantile of all of them (PEFT's `svd_clamp`).
pub fn clamp(pair: &mut LowRank, quantile: f64) {
    let mut all: Vec<f64> = pair.a.iter().chain(&pair.b).copied().collect();
    if all.is_empty() {
        return;
    }
    all.sort_unstable_by(f64::total_cmp);
    let place = quantile * (all.len() - 1) as f64;
    let (below, above) = (all[place.floor() as usize], all[place.ceil() as usize]);
    let limit = below + (above - below) * place.fract();
    for value in pair.a.iter_mut().chain(&mut pair.b) {
        // As torch: the upper limit wins where the quantile is negative.
        *value = value.max(-limit).min(limit);
    }
}

/// A layer of one of the adapters.
struct Part<'a> {
    factor: &'a Factor,
    settings: &'a LoraConfig,
    weight: f64,
}

impl Part<'_> {
    fn scaling(&self) -> f64 {
        self.settings.scaling_for(&self.factor.path)
    }
}

fn check_settings(adapters: &[Weighted<'_>], combination: &Combination) -> Result<()> {
    if adapters.is_empty() {
        return Err(Error::invalid("there is no adapter to combine"));
    }
    if let Some(bad) = adapters.iter().find(|adapter| !adapter.weight.is_finite()) {
        return Err(Error::invalid(format!("the weight of `{}` is {}", bad.name, bad.weight)));
    }
    for Weighted { name, adapter, .. } in adapters {
        plain::check(&format!("`{name}`"), adapter)?;
    }
    match combination {
        Combination::Beside => Ok(()),
        Combination::OnFactors(merge) => merge.check(),
        Combination::OnUpdates { merge, rank, clamp } => {
            if *rank == Some(0) {
                return Err(Error::invalid("rank must be at least 1"));
            }
            if let Some(quantile) = clamp.filter(|quantile| !(*quantile > 0.5 && *quantile <= 1.0))
            {
                return Err(Error::invalid(format!(
                    "the quantile to clamp to must be above 0.5 and at most 1, not {quantile}"
                ))
                .with_hint("0.99 cuts the largest hundredth of the numbers; 1 cuts nothing"));
            }
            merge.check()
        }
    }
}

/// The layers of all adapters by their paths, each with the adapters that have it.
fn layers<'a>(adapters: &[Weighted<'a>]) -> Result<BTreeMap<&'a str, Vec<Part<'a>>>> {
    let mut layers: BTreeMap<&str, Vec<Part<'_>>> = BTreeMap::new();
    for Weighted { name, adapter, weight } in adapters {
        for factor in &adapter.factors {
            let parts = layers.entry(&factor.path).or_default();
            if let Some(first) = parts.first()
                && (first.factor.d_in, first.factor.d_out) != (factor.d_in, factor.d_out)
            {
                return Err(Error::invalid(format!(
                    "the adapters are for different models: `{}` is {} × {} in `{name}` and {} × {} in \
                     another",
                    factor.path, factor.d_in, factor.d_out, first.factor.d_in, first.factor.d_out
                ))
                .with_hint("only adapters of one base model can be combined"));
            }
            parts.push(Part { factor, settings: &adapter.config.lora, weight: *weight });
        }
    }
    Ok(layers)
}

/// A rank that was asked for by number must be one that a layer can have.
fn check_rank(layers: &BTreeMap<&str, Vec<Part<'_>>>, combination: &Combination) -> Result<()> {
    let Combination::OnUpdates { rank: Some(rank), .. } = combination else { return Ok(()) };
    let sides = layers.values().map(|parts| parts[0].factor.d_in.min(parts[0].factor.d_out));
    match sides.max() {
        Some(most) if *rank > most => Err(Error::invalid(format!(
            "rank {rank} is more than any of the layers can have: at most {most}"
        ))
        .with_hint("name a smaller rank")),
        _ => Ok(()),
    }
}

/// The one rank of the result.
fn rank_of(adapters: &[Weighted<'_>], combination: &Combination) -> Result<usize> {
    let ranks = adapters.iter().map(|it| {
        it.adapter
            .factors
            .iter()
            .map(|factor| factor.rank)
            .max()
            .unwrap_or(it.adapter.config.lora.rank)
    });
    let largest = ranks.clone().max().unwrap_or(1);
    match combination {
        Combination::Beside => Ok(ranks.sum()),
        Combination::OnUpdates { rank, .. } => Ok(rank.unwrap_or(largest)),
        Combination::OnFactors(_) => {
            if ranks.clone().all(|rank| rank == largest) {
                return Ok(largest);
            }
            let said: Vec<String> = adapters
                .iter()
                .zip(ranks)
                .map(|(adapter, rank)| format!("`{}` has {rank}", adapter.name))
                .collect();
            Err(Error::invalid(format!(
                "factors can only be merged element by element where all ranks are equal: {}",
                said.join(", ")
            ))
            .with_hint("combine them as `cat` or `svd`, or bring them to one rank with `shrink`"))
        }
    }
}

fn beside(parts: &[Part<'_>]) -> LowRank {
    let updates: Vec<LowRank> = parts
        .iter()
        .map(|part| {
            // The weight goes into A, as in PEFT; B is what it was.
            let mut update = LowRank::of(part.factor, 1.0);
            let scale = part.weight * part.scaling();
            update.a.iter_mut().for_each(|value| *value *= scale);
            update
        })
        .collect();
    LowRank::sum(&updates)
}

fn on_factors(parts: &[Part<'_>], merge: &Merge, rank: usize, path: &str) -> LowRank {
    let roots: Vec<f64> = parts.iter().map(|part| part.weight * part.scaling()).collect();
    // The sign on one side only: on both it would be lost.
    let weights_a: Vec<f32> = roots.iter().map(|w| (w.abs().sqrt() * w.signum()) as f32).collect();
    let weights_b: Vec<f32> = roots.iter().map(|w| w.abs().sqrt() as f32).collect();
    let (d_in, d_out) = (parts[0].factor.d_in, parts[0].factor.d_out);
    // The share that pruning keeps is a share of the layer's own numbers, before they are filled up.
    let common = parts.iter().map(|part| part.factor.rank).max().unwrap_or(rank);
    let filled: Vec<Factor> = parts
        .iter()
        .map(|part| LowRank::of(part.factor, 1.0).padded(common).into_factor(path))
        .collect();
    let all_a: Vec<&[f32]> = filled.iter().map(|factor| factor.a.as_slice()).collect();
    let all_b: Vec<&[f32]> = filled.iter().map(|factor| factor.b.as_slice()).collect();
    let a = merge.apply(&all_a, &weights_a, &format!("{path} A"));
    let b = merge.apply(&all_b, &weights_b, &format!("{path} B"));
    LowRank::of(&Factor { path: path.to_owned(), d_in, d_out, rank: common, a, b }, 1.0)
}

fn on_updates(
    parts: &[Part<'_>],
    merge: &Merge,
    quantile: Option<f64>,
    rank: usize,
    path: &str,
) -> LowRank {
    let updates: Vec<LowRank> =
        parts.iter().map(|part| update_of(part.settings, part.factor)).collect();
    let decomposed = if *merge == Merge::Sum {
        let weighted = updates.into_iter().zip(parts).map(|(it, part)| it.times(part.weight));
        LowRank::sum(&weighted.collect::<Vec<_>>()).decompose()
    } else {
        // These rules are about the elements of ΔW.
        let dense = |update: &LowRank| update.dense().into_iter().map(|it| it as f32).collect();
        let whole: Vec<Vec<f32>> = updates.iter().map(dense).collect();
        let weights: Vec<f32> = parts.iter().map(|part| part.weight as f32).collect();
        let tensors: Vec<&[f32]> = whole.iter().map(Vec::as_slice).collect();
        let merged: Vec<f64> =
            merge.apply(&tensors, &weights, path).into_iter().map(f64::from).collect();
        let (d_in, d_out) = (parts[0].factor.d_in, parts[0].factor.d_out);
        Decomposed::leading(&merged, d_in, d_out, rank)
    };
    let mut pair = decomposed.truncated(rank);
    if let Some(quantile) = quantile {
        clamp(&mut pair, quantile);
    }
    pair
}

fn assemble(
    adapters: &[Weighted<'_>],
    pairs: Vec<(String, LowRank)>,
    notes: &mut Vec<String>,
) -> Result<PeftAdapter> {
    let first = adapters[0].adapter;
    let saving: Vec<&Weighted<'_>> =
        adapters.iter().filter(|it| !it.adapter.saved.is_empty()).collect();
    for (at, one) in saving.iter().enumerate() {
        for tensor in &one.adapter.saved {
            let same =
                |it: &&&Weighted<'_>| it.adapter.saved.iter().any(|its| its.name == tensor.name);
            if let Some(other) = saving[at + 1..].iter().find(same) {
                return Err(Error::invalid(format!(
                    "both `{}` and `{}` hold `{}` whole (modules_to_save), and whole weights are not combined",
                    one.name, other.name, tensor.name
                ))
                .with_hint("merge one of them into the base, or train without modules_to_save"));
            }
        }
        notes.push(format!(
            "{} taken from `{}` as it is, whatever its weight",
            result::names_of(&one.adapter.saved),
            one.name
        ));
    }
    let bases: Vec<Option<&str>> =
        adapters.iter().map(|it| it.adapter.config.base_model.as_deref()).collect();
    if let Some(other) = bases.iter().find(|base| **base != bases[0]) {
        let said =
            |base: Option<&str>| base.map_or("an unnamed model".to_owned(), |it| format!("`{it}`"));
        notes.push(format!(
            "the adapters name different base models: {} and {}",
            said(bases[0]),
            said(*other)
        ));
    }
    let all: Vec<&LoraConfig> = adapters.iter().map(|it| &it.adapter.config.lora).collect();
    let mut config = first.config.clone();
    config.warnings = Vec::new();
    config.lora = result::settings_of_several(&all, &pairs);
    let saved = saving.iter().flat_map(|it| it.adapter.saved.iter().cloned()).collect();
    Ok(result::adapter(config, pairs, saved))
}
