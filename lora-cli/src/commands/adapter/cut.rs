//! `lora adapter scale`, `shrink` and `extract`: one adapter out of one, or out of two models.

use std::collections::{BTreeMap, BTreeSet};

use lora_core::algebra::shrink::Cut;
use lora_core::algebra::{self, Keep};
use lora_core::target::LinearInfo;
use lora_models::checkpoint::Checkpoint;
use lora_models::formats::StoredType;
use lora_models::linear_infos;

use super::super::{linear_weights, open};
use super::{check_output, warn, write};
use crate::args::adapter::{ExtractArguments, KeepArguments, ScaleArguments, ShrinkArguments};
use crate::progress::Waiting;
use crate::style::{self, Problem};

/// Multiplies an update by a number.
pub(super) fn scale(arguments: &ScaleArguments) -> anyhow::Result<()> {
    check_output(&arguments.output)?;
    let quiet = arguments.output.quiet.quiet;
    let adapter =
        algebra::scale(open::read_adapter(&arguments.adapter, None, quiet)?, arguments.by)?;
    if !quiet && !adapter.saved.is_empty() {
        warn("weights that were trained whole (modules_to_save) stay as they are");
    }
    write(&adapter, &arguments.output)
}

/// Brings an adapter to a lower rank, and says what that costs.
pub(super) fn shrink(arguments: &ShrinkArguments) -> anyhow::Result<()> {
    check_output(&arguments.output)?;
    let quiet = arguments.output.quiet.quiet;
    let adapter = open::read_adapter(&arguments.adapter, None, quiet)?;
    let waiting = Waiting::start("shrinking", quiet);
    let shrunk = algebra::shrink(&adapter, keep(&arguments.keep))?;
    drop(waiting);
    if !quiet {
        style::say(table(&shrunk.layers).trim_end());
    }
    write(&shrunk.adapter, &arguments.output)
}

/// Takes the difference of two models as an adapter.
pub(super) fn extract(arguments: &ExtractArguments) -> anyhow::Result<()> {
    check_output(&arguments.output)?;
    let quiet = arguments.output.quiet.quiet;
    let offline = arguments.hub.offline;
    let base = open::open_checkpoint(&arguments.base, offline, quiet)?;
    let tuned = open::open_checkpoint(&arguments.tuned, offline, quiet)?;
    let linears = linear_weights::chosen(linear_infos(&base.config), &arguments.targets)?;
    check_shapes(&base, &tuned)?;
    let waiting = Waiting::start("extracting", quiet);
    let difference = |linear: &LinearInfo| {
        let before = linear_weights::read(&base, linear)?;
        let after = linear_weights::read(&tuned, linear)?;
        let pairs = after.into_iter().zip(before);
        Ok::<_, anyhow::Error>(pairs.map(|(after, before)| after - before).collect())
    };
    let mut found = algebra::extract(&linears, keep(&arguments.keep), &base.source, difference)?;
    found.adapter.config.fan_in_fan_out = base.config.modules.fan_in_fan_out;
    let beside = changed_beside(&base, &tuned, &linears)?;
    drop(waiting);
    if !quiet {
        style::say(table(&found.layers).trim_end());
        if !found.unchanged.is_empty() {
            let count = style::counted(found.unchanged.len() as u64, "layer is", "layers are");
            style::say(&format!("{count} the same in both models and not in the adapter"));
        }
    }
    let alone = of_one_alone(&base, &tuned);
    if !alone.is_empty() {
        let names = alone.join(", ");
        warn(&format!(
            "only one of the models has these, and they are not in the adapter: {names}"
        ));
    }
    if !beside.is_empty() {
        let rows: Vec<Vec<String>> = beside
            .iter()
            .map(|(name, share)| vec![format!("  {name}"), format!("{:.2} %", 100.0 * share)])
            .collect();
        warn(&format!(
            "these differ too and are not in the adapter, by so much of their norm:\n{}",
            style::table(&rows).trim_end()
        ));
    }
    write(&found.adapter, &arguments.output)
}

fn keep(arguments: &KeepArguments) -> Keep {
    match (arguments.rank, arguments.energy) {
        (Some(rank), _) => Keep::Rank(rank),
        // The parser lets exactly one of them through.
        (None, energy) => Keep::Energy(energy.unwrap_or(1.0)),
    }
}

/// Both models must have the same tensors in the same shapes.
fn check_shapes(base: &Checkpoint, tuned: &Checkpoint) -> anyhow::Result<()> {
    for name in base.weights.names() {
        let (before, after) = (base.weights.shape(&name), tuned.weights.shape(&name));
        if after.is_some() && before != after {
            let reason = format!(
                "the models are not of one kind: `{name}` is {:?} in `{}` and {:?} in `{}`",
                before.unwrap_or_default(),
                base.source,
                after.unwrap_or_default(),
                tuned.source
            );
            let hint = "extract compares a model with one that was fine-tuned from it";
            return Err(Problem::new(reason).with_hint(hint).into());
        }
    }
    Ok(())
}

/// Tensors outside the chosen layers that differ, each with ‖W′ − W‖ / ‖W‖.
fn changed_beside(
    base: &Checkpoint,
    tuned: &Checkpoint,
    linears: &[LinearInfo],
) -> anyhow::Result<Vec<(String, f64)>> {
    let chosen: BTreeSet<String> =
        linears.iter().map(|linear| linear_weights::key(base, linear)).collect();
    let mut changed = Vec::new();
    for (name, stored) in base.tensor_names() {
        let other = tuned.stored_name(&name);
        let is_number = base.weights.stored_type(&stored) != Some(StoredType::I64);
        if chosen.contains(&stored) || tuned.weights.shape(&other).is_none() || !is_number {
            continue;
        }
        let (before, after) = (base.weights.read_f32(&stored)?, tuned.weights.read_f32(&other)?);
        let square = |value: f32| f64::from(value) * f64::from(value);
        let apart: f64 = before.iter().zip(&after).map(|(x, y)| square(y - x)).sum();
        if apart > 0.0 {
            let whole: f64 = before.iter().map(|&value| square(value)).sum();
            changed.push((name, if whole > 0.0 { (apart / whole).sqrt() } else { 1.0 }));
        }
    }
    Ok(changed)
}

/// Tensors that only one of the models has: a head of its own, say, where the other's is the embedding.
fn of_one_alone(base: &Checkpoint, tuned: &Checkpoint) -> Vec<String> {
    let names = |of: &Checkpoint| -> BTreeSet<String> {
        of.tensor_names().into_iter().map(|(name, _)| name).collect()
    };
    names(base).symmetric_difference(&names(tuned)).cloned().collect()
}

/// What was kept, a row for each name of layers.
fn table(layers: &[Cut]) -> String {
    let mut kinds: BTreeMap<&str, Vec<&Cut>> = BTreeMap::new();
    for layer in layers {
        kinds.entry(linear_weights::kind(&layer.path)).or_default().push(layer);
    }
    let head = ["module", "layers", "rank before", "after", "‖ΔW‖² kept", "least"];
    let mut rows = vec![head.map(str::to_string).to_vec()];
    rows.extend(kinds.iter().map(|(kind, layers)| row(kind, layers)));
    if kinds.len() > 1 {
        rows.push(row("all", &layers.iter().collect::<Vec<_>>()));
    }
    style::table(&rows)
}

fn row(name: &str, layers: &[&Cut]) -> Vec<String> {
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let energy = |layer: &Cut| layer.norm * layer.norm;
    let whole: f64 = layers.iter().map(|layer| energy(layer)).sum();
    let kept: f64 = layers.iter().map(|layer| energy(layer) * layer.kept).sum();
    let least = layers.iter().map(|layer| layer.kept).fold(1.0, f64::min);
    vec![
        name.to_string(),
        layers.len().to_string(),
        range(layers.iter().map(|layer| layer.from)),
        range(layers.iter().map(|layer| layer.to)),
        percent(if whole > 0.0 { kept / whole } else { 1.0 }),
        percent(least),
    ]
}

/// `8`, or `4–16`.
fn range(ranks: impl Iterator<Item = usize> + Clone) -> String {
    match (ranks.clone().min(), ranks.max()) {
        (Some(least), Some(most)) if least != most => format!("{least}–{most}"),
        (least, _) => least.unwrap_or(0).to_string(),
    }
}
