//! Adapters that begin as what the inputs of their layers vary most along (EVA, Paischer et al. 2024,
//! <https://arxiv.org/abs/2410.07170>).

use lora_core::LoraConfig;
use lora_core::linear::InputDirections;
use lora_core::target::{Adapted, resolve_targets};

use crate::decoder::Decoder;
use crate::encoder::with_classifier;
use crate::error::{Error, Result};
use crate::modules::HEAD;

impl Decoder {
    /// Attaches an adapter whose A spans what its layers' inputs vary most along, found in `pass`, which
    /// runs this decoder over data. The ranks go where they explain most: each layer gets up to `spread` times
    /// the configured one, all together as many as before, and the scale of each stays as it was; a layer that
    /// gets none is left out.
    ///
    /// # Errors
    /// Those of [`Self::attach`]; a pass that gave the layers no input.
    pub fn attach_explained(
        &mut self,
        name: &str,
        config: &LoraConfig,
        seed: u64,
        spread: f64,
        pass: &mut dyn FnMut(&Self),
    ) -> Result<()> {
        let config: &LoraConfig = &with_classifier(&self.config, config);
        let targets = resolve_targets(config, &self.linear_infos())?;
        if targets.iter().any(|target| target.path == HEAD) {
            return Err(Error::invalid(format!(
                "init `eva` looks at the inputs of the blocks, and `{HEAD}` is behind them"
            ))
            .with_hint(format!("leave `{HEAD}` out of the targets, or start with `kaiming`")));
        }
        let watch = |decoder: &mut Self, on: bool| {
            for linear in decoder.linears_mut() {
                let wanted = targets.iter().any(|target| target.path == linear.path());
                linear.watch_inputs(on && wanted);
            }
        };
        watch(self, true);
        pass(self);
        let most = |rank: usize| ((rank as f64 * spread).round() as usize).max(1);
        let largest = targets.iter().map(|target| most(target.rank)).max().unwrap_or(1);
        // Layers with one input in common share the directions of the first of them.
        let mut found: Vec<InputDirections> = Vec::new();
        let mut sharing: Vec<(String, usize)> = Vec::new();
        for linear in self.linears().into_iter().filter(|linear| linear.is_watched()) {
            found.extend(linear.input_directions(largest));
            sharing.push((linear.path().to_owned(), found.len()));
        }
        watch(self, false);
        if sharing.iter().any(|(_, number)| *number == 0) || sharing.is_empty() {
            return Err(Error::invalid("init `eva` found no inputs to look at")
                .with_hint("give it data, or start with `kaiming`"));
        }
        let ranks = explained_ranks(&targets, &sharing, &found, most);
        let mut config =
            LoraConfig { rank_pattern: Vec::new(), alpha_pattern: Vec::new(), ..config.clone() };
        for (target, rank) in targets.iter().zip(&ranks) {
            let scale = if config.use_rslora {
                (*rank as f64 / target.rank as f64).sqrt()
            } else {
                *rank as f64 / target.rank as f64
            };
            let path = target.path.clone();
            if *rank == 0 {
                config.exclude.push(path);
            } else if *rank != config.rank || target.alpha * scale != config.alpha {
                config.rank_pattern.push((path.clone(), *rank));
                config.alpha_pattern.push((path, target.alpha * scale));
            }
        }
        self.attach_fresh(name, &config, seed)?;
        let device = self.device().clone();
        for (path, number) in sharing {
            if let Some(linear) = self.linear_mut(&path) {
                linear.set_a(name, &found[number - 1].directions, &device);
            }
        }
        Ok(())
    }
}

/// How many directions each target gets: those that explain most of their inputs' variance, as many in all as
/// the targets had ranks. Of layers with one input the first has most.
fn explained_ranks(
    targets: &[Adapted],
    sharing: &[(String, usize)],
    found: &[InputDirections],
    most: impl Fn(usize) -> usize,
) -> Vec<usize> {
    let number = |target: &Adapted| {
        sharing.iter().find(|(path, _)| *path == target.path).map_or(0, |(_, number)| number - 1)
    };
    let limit = |target: &Adapted| most(target.rank).min(target.d_in).min(target.d_out);
    let mut shares: Vec<(f64, usize)> = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        let explained = found[number(target)].explained.iter().take(limit(target));
        shares.extend(explained.map(|share| (*share, index)));
    }
    // A stable sort, so that among equals the order is the model's.
    shares.sort_by(|a, b| b.0.total_cmp(&a.0));
    let budget: usize = targets.iter().map(|target| target.rank).sum();
    let mut ranks = vec![0; targets.len()];
    shares.iter().take(budget).for_each(|(_, index)| ranks[*index] += 1);
    for index in 0..targets.len() {
        let first = (0..index).find(|other| number(&targets[*other]) == number(&targets[index]));
        if let Some(first) = first
            .filter(|first| ranks[*first] < ranks[index] && ranks[index] <= limit(&targets[*first]))
        {
            ranks.swap(first, index);
        }
    }
    ranks
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use burn::tensor::Device;
    use lora_core::config::{Init, TargetModules};
    use lora_core::placement::Placement;

    use super::*;
    use crate::{Checkpoint, OpenOptions};

    #[test]
    fn no_layer_gets_more_directions_than_it_has_outputs() {
        let target = |path: &str, d_out: usize| Adapted {
            path: path.into(),
            d_in: 8,
            d_out,
            rank: 3,
            alpha: 3.0,
            scaling: 1.0,
        };
        let targets = [target("wide", 8), target("narrow", 4)];
        let sharing = [("wide".to_owned(), 1), ("narrow".to_owned(), 2)];
        let found = [0.1, 0.9]
            .map(|share| InputDirections { directions: Vec::new(), explained: vec![share; 8] });
        assert_eq!(explained_ranks(&targets, &sharing, &found, |rank| 2 * rank), [2, 4]);
    }

    #[test]
    fn the_head_has_no_inputs_to_look_at() {
        let target = TargetModules::Suffixes(vec!["q_proj".to_owned(), "lm_head".to_owned()]);
        let config = LoraConfig { target, init: Init::Eva, ..LoraConfig::new(2, 4.0) };
        let checkpoint = Checkpoint::open("builtin:", &OpenOptions::default()).unwrap();
        let mut decoder = checkpoint.load(&Placement::f32(Device::flex())).unwrap();
        let found = decoder.attach_explained("a", &config, 0, 2.0, &mut |_| {});
        assert!(found.unwrap_err().to_string().contains("`lm_head` is behind them"));
    }
}
