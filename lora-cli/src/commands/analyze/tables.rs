//! The tables of an analysis: a row for all layers of a name, or for each layer.

use lora_core::algebra::spectrum::{effective_rank, energy, stable_rank};
use lora_core::algebra::subspace::{Amplification, similarity_by_chance};

use super::super::linear_weights::kind;
use super::{Analysis, Base, Layer, Update};
use crate::style::{self, number};

/// Every table that there are numbers for, each with a line above that says what it is.
pub(super) fn tables(analysis: &Analysis, each: bool) -> String {
    let groups = groups(&analysis.layers, each);
    let mut text = String::new();
    let means = groups.iter().any(|(_, layers)| layers.len() > 1);
    let mut add = |title: &str, rows: Vec<Vec<String>>| {
        if rows.len() < 2 {
            return;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        let means = if means { ", means over the layers of a name" } else { "" };
        text.push_str(&style::paint(style::HEADING, &format!("{title}{means}")));
        text.push('\n');
        text.push_str(&style::table(&rows));
    };
    if let Some(model) = &analysis.model {
        add(&format!("Base weights W of {model}"), base(&groups));
    }
    for (at, name) in analysis.adapters.iter().enumerate() {
        add(&format!("Updates ΔW of {name}"), updates(&groups, at));
        let amplified = amplifications(&groups, at);
        add(&format!("What W has in the directions U, V of ΔW of {name} (section 7.3)"), amplified);
    }
    if let [first, second] = analysis.adapters.as_slice() {
        add(
            &format!("Subspace similarity φ(i, j) of {first} and {second} (section 7.2)"),
            similarities(&groups),
        );
    }
    text
}

/// Layers that share a row.
type Group<'a> = (&'a str, Vec<&'a Layer>);

fn groups(layers: &[Layer], each: bool) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for layer in layers {
        let name = if each { layer.path.as_str() } else { kind(&layer.path) };
        match groups.iter_mut().find(|group| group.0 == name) {
            Some(group) => group.1.push(layer),
            None => groups.push((name, vec![layer])),
        }
    }
    groups
}

fn base(groups: &[Group<'_>]) -> Vec<Vec<String>> {
    let mut rows =
        head(&["module", "layers", "in × out", "‖W‖", "σ₁", "effective rank", "stable rank"]);
    for (name, layers) in groups {
        let bases: Vec<&Base> = layers.iter().filter_map(|layer| layer.base.as_ref()).collect();
        let Some(first) = layers.first().filter(|_| !bases.is_empty()) else { continue };
        let of = |of: fn(&[f64]) -> f64| {
            mean(bases.iter().filter_map(|it| it.values.as_deref()).map(of))
        };
        rows.push(vec![
            (*name).to_string(),
            layers.len().to_string(),
            format!("{} × {}", first.d_in, first.d_out),
            shown(mean(bases.iter().map(|base| base.norm))),
            shown(of(|values| values[0])),
            shown(of(effective_rank)),
            shown(of(stable_rank)),
        ]);
    }
    rows
}

fn updates(groups: &[Group<'_>], at: usize) -> Vec<Vec<String>> {
    let mut rows = head(&[
        "module",
        "layers",
        "rank",
        "‖ΔW‖",
        "σ₁",
        "effective rank",
        "stable rank",
        "of ‖W‖",
    ]);
    for (name, layers) in groups {
        let updates: Vec<&Update> =
            layers.iter().filter_map(|layer| layer.updates[at].as_ref()).collect();
        if updates.is_empty() {
            continue;
        }
        let of = |of: fn(&[f64]) -> f64| shown(mean(updates.iter().map(|it| of(&it.values))));
        let relative = updates.iter().filter_map(|it| it.amplification.as_ref());
        let relative = mean(relative.map(|it| it.update / it.base));
        let ranks = || updates.iter().map(|update| update.rank);
        let rank = match (ranks().min(), ranks().max()) {
            (Some(least), Some(most)) if least != most => format!("{least}–{most}"),
            (least, _) => least.unwrap_or(0).to_string(),
        };
        rows.push(vec![
            (*name).to_string(),
            updates.len().to_string(),
            rank,
            of(|values| energy(values).sqrt()),
            of(|values| values.first().copied().unwrap_or(0.0)),
            of(effective_rank),
            of(stable_rank),
            relative.map_or("–".to_string(), |share| format!("{:.2} %", 100.0 * share)),
        ]);
    }
    rows
}

fn amplifications(groups: &[Group<'_>], at: usize) -> Vec<Vec<String>> {
    let mut rows =
        head(&["module", "‖ΔW‖", "‖UᵀWV‖ of ΔW", "of W itself", "of random U, V", "amplification"]);
    for (name, layers) in groups {
        let found: Vec<&Amplification> = layers
            .iter()
            .filter_map(|layer| layer.updates[at].as_ref()?.amplification.as_ref())
            .filter(|it| it.rank > 0)
            .collect();
        if found.is_empty() {
            continue;
        }
        let of = |of: fn(&Amplification) -> f64| shown(mean(found.iter().map(|it| of(it))));
        rows.push(vec![
            (*name).to_string(),
            of(|it| it.update),
            of(|it| it.base_in_update),
            shown(mean(found.iter().filter_map(|it| it.base_in_base))),
            of(|it| it.base_in_random),
            of(Amplification::factor),
        ]);
    }
    rows
}

fn similarities(groups: &[Group<'_>]) -> Vec<Vec<String>> {
    let mut rows = head(&[
        "module",
        "layers",
        "A: φ(1, 1)",
        "φ(r₁, r₂)",
        "chance",
        "B: φ(1, 1)",
        "φ(r₁, r₂)",
        "chance",
    ]);
    for (name, layers) in groups {
        let found: Vec<_> =
            layers.iter().filter_map(|layer| Some((layer, layer.similarity.as_ref()?))).collect();
        if found.is_empty() {
            continue;
        }
        let fixed =
            |value: Option<f64>| value.map_or("–".to_string(), |value| format!("{value:.3}"));
        let chance = |inputs: bool| {
            mean(found.iter().map(|(layer, it)| {
                let d = if inputs { layer.d_in } else { layer.d_out };
                similarity_by_chance(it.ranks[0], it.ranks[1], d)
            }))
        };
        rows.push(vec![
            (*name).to_string(),
            found.len().to_string(),
            fixed(mean(found.iter().map(|(_, it)| it.inputs[0]))),
            fixed(mean(found.iter().filter_map(|(_, it)| it.inputs.last().copied()))),
            fixed(chance(true)),
            fixed(mean(found.iter().map(|(_, it)| it.outputs[0]))),
            fixed(mean(found.iter().filter_map(|(_, it)| it.outputs.last().copied()))),
            fixed(chance(false)),
        ]);
    }
    rows
}

fn head(names: &[&str]) -> Vec<Vec<String>> {
    vec![names.iter().map(|name| (*name).to_string()).collect()]
}

fn shown(value: Option<f64>) -> String {
    value.map_or("–".to_string(), number)
}

/// `None` of nothing.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}
