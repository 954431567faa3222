//! Adapters as pairs with a factor before each, which is what other formats hold: from that to PEFT's
//! settings and back, and whether two adapters compute the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Factor, NamedTensor, PeftAdapter, PeftConfig};
use crate::config::{LoraConfig, TargetModules};
use crate::error::{Error, Result};
use crate::target::{Matcher, is_embedding};

impl PeftAdapter {
    /// What the adapter holds beside low-rank pairs on linear layers, for messages of formats that have room
    /// for nothing else.
    pub fn beside_pairs(&self) -> Option<String> {
        let whole = self.saved.iter().chain(&self.extra);
        let whole = whole.map(|tensor| &tensor.name);
        let embedding = self.factors.iter().map(|factor| &factor.path);
        let named = whole.chain(embedding.filter(|path| is_embedding(path))).next();
        let init = self.config.lora.init;
        let started = || {
            init.takes_from_base().then(|| format!("a start that is a part of the base ({init})"))
        };
        named.map(|name| format!("`{name}`")).or_else(started)
    }

    /// The factor s before B·A of each pair, in the order of the pairs: α/r or α/√r with the module's own
    /// rank and α.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub fn scales(&self) -> Result<Vec<f64>> {
        let lora = &self.config.lora;
        let matcher = Matcher::new(lora)?;
        let scale = |factor: &Factor| lora.scaling(factor.rank, matcher.alpha(&factor.path));
        Ok(self.factors.iter().map(scale).collect())
    }

    /// An adapter of these pairs, each with the factor s before its B·A. The settings say the same in
    /// PEFT's words: the rank and the α = s·r that most pairs have, patterns for the others, and the
    /// modules by name and layer.
    ///
    /// A factor that no α says, because it is not above zero, goes into B.
    pub fn from_scaled(pairs: Vec<(Factor, f64)>, base_model: Option<String>) -> Self {
        let mut factors = Vec::with_capacity(pairs.len());
        let mut alphas = Vec::with_capacity(pairs.len());
        let mut sorted = pairs;
        sorted.sort_by(|(left, _), (right, _)| left.path.cmp(&right.path));
        for (mut factor, scale) in sorted {
            let alpha = scale * factor.rank as f64;
            if alpha.is_finite() && alpha > 0.0 {
                alphas.push(alpha);
            } else {
                factor.scale_b(scale);
                alphas.push(factor.rank as f64);
            }
            factors.push(factor);
        }
        let ranks: Vec<usize> = factors.iter().map(|factor| factor.rank).collect();
        let rank = most_common(&ranks, |rank| *rank as u64).unwrap_or(1);
        let alpha = most_common(&alphas, |alpha| alpha.to_bits()).unwrap_or(1.0);
        let mut lora = LoraConfig::new(rank, alpha);
        for (factor, &own) in factors.iter().zip(&alphas) {
            if factor.rank != rank {
                lora.rank_pattern.push((factor.path.clone(), factor.rank));
            }
            if own != alpha {
                lora.alpha_pattern.push((factor.path.clone(), own));
            }
        }
        let paths: Vec<&str> = factors.iter().map(|factor| factor.path.as_str()).collect();
        match by_name_and_layer(&paths) {
            Some((names, layers)) => {
                lora.target = TargetModules::Suffixes(names);
                lora.layers = Some(layers);
            }
            None => {
                let paths = paths.into_iter().map(str::to_owned).collect();
                lora.target = TargetModules::Suffixes(paths);
            }
        }
        Self::new(PeftConfig::new(lora, base_model), factors)
    }

    /// How far the updates of two adapters are apart: for each module y = s·(x·A)·B with the same x, the
    /// largest difference over the largest |y|; of these the largest. Ranks may differ.
    ///
    /// # Errors
    /// A module that only one of them has, or has in another size; whole weights that are not the same.
    pub fn largest_difference(&self, other: &Self) -> Result<f64> {
        if by_name(&self.saved) != by_name(&other.saved)
            || by_name(&self.extra) != by_name(&other.extra)
        {
            return Err(Error::invalid("the adapters do not hold the same whole weights"));
        }
        let ours = by_path(self)?;
        let theirs = by_path(other)?;
        let mut largest = 0.0f64;
        for path in ours.keys().chain(theirs.keys()) {
            let (Some((one, scale)), Some((two, other_scale))) = (ours.get(path), theirs.get(path))
            else {
                return Err(Error::invalid(format!("only one of the adapters has `{path}`")));
            };
            if (one.d_in, one.d_out) != (two.d_in, two.d_out) {
                return Err(Error::invalid(format!(
                    "`{path}` is {} × {} in one adapter, {} × {} in the other",
                    one.d_in, one.d_out, two.d_in, two.d_out
                )));
            }
            let (one, two) = (update(one, *scale), update(two, *other_scale));
            let size = one.iter().chain(&two).fold(0.0f64, |size, y| size.max(y.abs()));
            let apart = one.iter().zip(&two).fold(0.0f64, |far, (a, b)| far.max((a - b).abs()));
            if apart > 0.0 {
                largest = largest.max(apart / size);
            }
        }
        Ok(largest)
    }
}

impl Factor {
    /// Multiplies B, rounding once.
    pub fn scale_b(&mut self, factor: f64) {
        for value in &mut self.b {
            *value = (f64::from(*value) * factor) as f32;
        }
    }
}

/// The value that most have; the first of several.
pub fn most_common<T: Copy>(values: &[T], key: impl Fn(&T) -> u64) -> Option<T> {
    let mut counts: HashMap<u64, usize> = HashMap::new();
    for value in values {
        *counts.entry(key(value)).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    values.iter().copied().find(|value| counts[&key(value)] == most)
}

/// Names and layer numbers, where the modules are all names in all those layers.
fn by_name_and_layer(paths: &[&str]) -> Option<(Vec<String>, Vec<usize>)> {
    let mut beginning = None;
    let (mut ends, mut layers) = (BTreeSet::new(), BTreeSet::new());
    for path in paths {
        let parts: Vec<&str> = path.split('.').collect();
        let at = parts.iter().position(|part| part.parse::<usize>().is_ok())?;
        if *beginning.get_or_insert_with(|| parts[..at].to_vec()) != parts[..at] {
            return None;
        }
        layers.insert(parts[at].parse().ok()?);
        ends.insert(parts[at + 1..].join("."));
    }
    if ends.len() * layers.len() != paths.len() || ends.contains("") {
        return None;
    }
    // Not their last parts alone: `c_proj` would also name modules that have no pair.
    Some((ends.into_iter().collect(), layers.into_iter().collect()))
}

fn by_path(adapter: &PeftAdapter) -> Result<BTreeMap<&str, (&Factor, f64)>> {
    let scales = adapter.scales()?;
    let factors = adapter.factors.iter().zip(scales);
    Ok(factors.map(|(factor, scale)| (factor.path.as_str(), (factor, scale))).collect())
}

fn by_name(tensors: &[NamedTensor]) -> BTreeMap<&str, &NamedTensor> {
    tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect()
}

/// y = s·(x·A)·B for an x that no pattern of the weights is orthogonal to.
fn update(factor: &Factor, scale: f64) -> Vec<f64> {
    let Factor { d_out, rank, a, b, .. } = factor;
    let mut low = vec![0.0f64; *rank];
    for (index, row) in a.chunks_exact(*rank).enumerate() {
        let x = (index as f64 * 1.618 + 0.5).sin();
        for (low, &a) in low.iter_mut().zip(row) {
            *low += x * f64::from(a);
        }
    }
    let mut y = vec![0.0f64; *d_out];
    for (low, row) in low.iter().zip(b.chunks_exact(*d_out)) {
        for (y, &b) in y.iter_mut().zip(row) {
            *y += scale * low * f64::from(b);
        }
    }
    y
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn factor(path: &str, rank: usize) -> Factor {
        let number = |i: usize| (i as f32 * 0.37 + path.len() as f32).sin();
        Factor {
            path: path.to_owned(),
            d_in: 3,
            d_out: 2,
            rank,
            a: (0..3 * rank).map(number).collect(),
            b: (0..rank * 2).map(|i| number(i + 50)).collect(),
        }
    }

    #[test]
    fn what_most_pairs_have_is_the_rule_and_the_rest_are_patterns() {
        let pairs = vec![
            (factor("model.layers.1.mlp.up_proj", 2), 4.0),
            (factor("model.layers.0.mlp.up_proj", 4), 2.0),
            (factor("model.layers.0.self_attn.q_proj", 4), 2.0),
            (factor("model.layers.1.self_attn.q_proj", 4), 0.5),
        ];
        let adapter = PeftAdapter::from_scaled(pairs, None);
        let lora = &adapter.config.lora;
        assert_eq!((lora.rank, lora.alpha), (4, 8.0));
        assert_eq!(lora.rank_pattern, [("model.layers.1.mlp.up_proj".to_owned(), 2)]);
        assert_eq!(lora.alpha_pattern, [("model.layers.1.self_attn.q_proj".to_owned(), 2.0)]);
        let names = vec!["mlp.up_proj".to_owned(), "self_attn.q_proj".to_owned()];
        assert_eq!(lora.target, TargetModules::Suffixes(names));
        assert_eq!(lora.layers, Some(vec![0, 1]));
        assert_eq!(adapter.scales().unwrap(), [2.0, 2.0, 4.0, 0.5]);
        let folder = tempfile::tempdir().unwrap();
        adapter.save(folder.path()).unwrap();
        let again = PeftAdapter::load(folder.path()).unwrap();
        assert_eq!(again.largest_difference(&adapter).unwrap(), 0.0);
    }

    #[test]
    fn modules_that_are_no_grid_are_named_in_full() {
        let pairs = vec![
            (factor("model.layers.1.mlp.up_proj", 2), 1.0),
            (factor("model.layers.0.self_attn.q_proj", 2), 1.0),
            (factor("lm_head", 2), 1.0),
        ];
        let lora = PeftAdapter::from_scaled(pairs, None).config.lora;
        let TargetModules::Suffixes(names) = lora.target else { panic!("no list of names") };
        assert_eq!(names.len(), 3);
        assert_eq!(lora.layers, None);
    }

    #[test]
    fn factors_that_no_alpha_says_go_into_b() {
        let before = factor("model.layers.0.mlp.up_proj", 2);
        let adapter = PeftAdapter::from_scaled(vec![(before.clone(), -2.0)], None);
        assert_eq!(adapter.scales().unwrap(), [1.0]);
        assert_eq!(adapter.factors[0].b[0], -2.0 * before.b[0]);
    }

    #[test]
    fn updates_are_compared_whatever_the_rank() {
        let one = factor("model.layers.0.mlp.up_proj", 2);
        let mut wide = one.clone();
        wide.rank = 3;
        wide.a = one.a.chunks(2).flat_map(|row| [row[0], row[1], 7.0]).collect();
        wide.b.extend([0.0, 0.0]);
        let adapter = |factor: Factor, scale| PeftAdapter::from_scaled(vec![(factor, scale)], None);
        let base = adapter(one.clone(), 2.0);
        assert!(base.largest_difference(&adapter(wide, 2.0)).unwrap() < 1e-12);
        assert!(base.largest_difference(&adapter(one.clone(), 2.2)).unwrap() > 0.05);
        let mut turned = one;
        turned.b.swap(0, 1);
        assert!(base.largest_difference(&adapter(turned, 2.0)).unwrap() > 0.05);
        let other = adapter(factor("model.layers.1.mlp.up_proj", 2), 2.0);
        assert!(base.largest_difference(&other).is_err());
    }
}
