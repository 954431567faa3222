//! New adapters from pairs: settings with the ranks that the pairs have, and scale 1.

use std::collections::BTreeMap;

use super::low_rank::LowRank;
use crate::config::{Init, LoraConfig, TargetModules};
use crate::peft::{NamedTensor, PeftAdapter, PeftConfig};

/// An adapter of these pairs. The rank that most of them have is the adapter's, others are in its patterns; α
/// is the rank everywhere, so that the scale is 1.
pub(super) fn adapter(
    mut config: PeftConfig,
    pairs: Vec<(String, LowRank)>,
    saved: Vec<NamedTensor>,
) -> PeftAdapter {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for (_, pair) in &pairs {
        *counts.entry(pair.rank).or_default() += 1;
    }
    let usual =
        counts.iter().max_by_key(|&(rank, count)| (count, rank)).map_or(1, |(rank, _)| *rank);
    let others = || pairs.iter().filter(|(_, pair)| pair.rank != usual);
    let lora = &mut config.lora;
    lora.rank = usual;
    lora.alpha = usual as f64;
    lora.use_rslora = false;
    lora.rank_pattern = others().map(|(path, pair)| (path.clone(), pair.rank)).collect();
    lora.alpha_pattern = others().map(|(path, pair)| (path.clone(), pair.rank as f64)).collect();
    lora.init = Init::Kaiming;
    let factors = pairs.into_iter().map(|(path, pair)| pair.into_factor(&path)).collect();
    let mut adapter = PeftAdapter::new(config, factors);
    adapter.saved = saved;
    adapter
}

/// Settings whose targets are the layers of all: their own where they are equal, the names of all where each is
/// a list of names, and else the whole paths.
pub(super) fn settings_of_several(all: &[&LoraConfig], pairs: &[(String, LowRank)]) -> LoraConfig {
    let mut settings = all[0].clone();
    for lora in &all[1..] {
        for module in &lora.modules_to_save {
            if !settings.modules_to_save.contains(module) {
                settings.modules_to_save.push(module.clone());
            }
        }
    }
    let chosen = |lora: &LoraConfig| {
        (lora.exclude.clone(), lora.layers.clone(), lora.layers_pattern.clone())
    };
    let alike = all.iter().all(|lora| chosen(lora) == chosen(all[0]));
    if alike && all.iter().all(|lora| lora.target == all[0].target) {
        return settings;
    }
    let names: Option<Vec<&Vec<String>>> = all
        .iter()
        .map(|lora| match &lora.target {
            TargetModules::Suffixes(names) if alike => Some(names),
            _ => None,
        })
        .collect();
    let mut together: Vec<String> = match names {
        Some(lists) => lists.into_iter().flatten().cloned().collect(),
        None => {
            settings.exclude = Vec::new();
            settings.layers = None;
            settings.layers_pattern = Vec::new();
            pairs.iter().map(|(path, _)| path.clone()).collect()
        }
    };
    together.sort_unstable();
    together.dedup();
    settings.target = TargetModules::Suffixes(together);
    settings
}

/// `` `lm_head.weight` `` and so on, for messages.
pub(super) fn names_of(saved: &[NamedTensor]) -> String {
    let names: Vec<String> = saved.iter().map(|tensor| format!("`{}`", tensor.name)).collect();
    names.join(", ")
}
