//! From logits to the next token: repetition penalty, temperature, top-k, top-p and min-p, in the
//! order and with the meaning they have in Hugging Face's `generate`, so that settings carry over.
//!
//! The choice depends on the logits, the history and the seed alone. When text ends is not decided
//! here but in the generation loop.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result};

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingConfig {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Keeps the k most probable tokens and those equal to the last of them; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of most probable tokens that together reach this probability; 1 keeps
    /// all.
    pub top_p: f32,
    /// Keeps the tokens that are at least this fraction as probable as the most probable one; 0
    /// keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred before; 1 changes
    /// nothing.
    pub repetition_penalty: f32,
    /// Equal seeds choose equal tokens.
    pub seed: u64,
}

impl Default for SamplingConfig {
    /// The model's own distribution, unchanged.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplingConfig {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// Names the first setting that is out of its range, and the range.
    pub fn validate(&self) -> Result<()> {
        let check = |valid: bool, name: &str, value: f32, range: &str| {
            if valid {
                return Ok(());
            }
            Err(Error::invalid(format!("`{name}` is {value}, but has to be {range}")))
        };
        let temperature = self.temperature;
        check(
            temperature.is_finite() && temperature >= 0.0,
            "temperature",
            temperature,
            "0 (always the most probable token) or more",
        )?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", self.min_p, "from 0 to 1")?;
        check(
            self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0,
            "repetition_penalty",
            self.repetition_penalty,
            "above 0 (1 changes nothing)",
        )
    }
}

/// Chooses tokens; holds the random numbers, so one sampler serves one text.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplingConfig,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    pub fn new(config: SamplingConfig) -> Self {
        let random = ChaCha8Rng::seed_from_u64(config.seed);
        Self { config, random }
    }

    /// The next token after `history` (prompt and what was generated). The repetition penalty is
    /// applied to `logits` in place. Logits that are not a number are never chosen.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> u32 {
        assert!(!logits.is_empty(), "no logits to choose from");
        penalize_repetition(logits, history, self.config.repetition_penalty);
        let best = most_probable(logits);
        let maximum = logits[best];
        // With an infinite maximum there is no distribution to draw from.
        if self.config.temperature == 0.0 || !maximum.is_finite() {
            return best as u32;
        }
        let kept = self.kept(logits, maximum);
        let total: f64 = kept.iter().map(|candidate| candidate.weight).sum();
        let mut left = self.random.random::<f64>() * total;
        for candidate in &kept {
            left -= candidate.weight;
            if left < 0.0 {
                return candidate.token;
            }
        }
        // Rounding alone leads here.
        kept.last().map_or(best as u32, |candidate| candidate.token)
    }

    /// The tokens that all filters keep, most probable first, ties by token.
    fn kept(&self, logits: &[f32], maximum: f32) -> Vec<Candidate> {
        let SamplingConfig { temperature, top_k, top_p, min_p, .. } = self.config;
        // Weights are probabilities relative to the most probable token. Sums are in f64.
        let mut candidates: Vec<Candidate> = logits
            .iter()
            .enumerate()
            .map(|(token, &logit)| {
                let weight = (f64::from(logit - maximum) / f64::from(temperature)).exp();
                Candidate {
                    token: token as u32,
                    weight: if weight.is_nan() { 0.0 } else { weight },
                }
            })
            .filter(|candidate| candidate.weight > 0.0)
            .collect();
        if top_k > 0 && top_k < candidates.len() {
            let (_, last, _) = candidates.select_nth_unstable_by(top_k - 1, Candidate::order);
            let least = last.weight;
            candidates.retain(|candidate| candidate.weight >= least);
        }
        // The most probable token has weight 1, before and after top-p, so min-p may come first: what
        // it removes is less probable than all it keeps, but it counts in the total of top-p.
        let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
        candidates.retain(|candidate| candidate.weight >= f64::from(min_p));
        if top_p < 1.0 {
            keep_nucleus(&mut candidates, f64::from(top_p) * total);
        } else {
            candidates.sort_unstable_by(Candidate::order);
        }
        candidates
    }
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    weight: f64,
}

impl Candidate {
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        other.weight.total_cmp(&self.weight).then(self.token.cmp(&other.token))
    }
}

/// Keeps the most probable candidates up to and with the one that reaches `enough`, sorted. Sorts
/// only as many as that takes: of a vocabulary of 150,000 usually a few hundred.
fn keep_nucleus(candidates: &mut Vec<Candidate>, enough: f64) {
    let mut sorted = 0;
    let mut reached = 0.0;
    let mut block = 256;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let count = block.min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count - 1, Candidate::order);
        }
        rest[..count].sort_unstable_by(Candidate::order);
        for (index, candidate) in rest[..count].iter().enumerate() {
            reached += candidate.weight;
            if reached >= enough {
                candidates.truncate(sorted + index + 1);
                return;
            }
        }
        sorted += count;
        block *= 8;
    }
}

fn penalize_repetition(logits: &mut [f32], history: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = history.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// The first of the largest logits; 0 where none is a number.
fn most_probable(logits: &[f32]) -> usize {
    let mut best = 0;
    let mut maximum = f32::NEG_INFINITY;
    for (index, &logit) in logits.iter().enumerate() {
        if logit > maximum {
            best = index;
            maximum = logit;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.5, 0.25, 0.15, 0.07, 0.03, in a shuffled order.
    const PROBABILITIES: [f32; 5] = [0.15, 0.03, 0.5, 0.07, 0.25];

    fn logits() -> Vec<f32> {
        PROBABILITIES.iter().map(|probability| probability.ln() + 3.0).collect()
    }

    fn kept(config: SamplingConfig) -> Vec<(u32, f64)> {
        let logits = logits();
        let kept = Sampler::new(config).kept(&logits, logits[most_probable(&logits)]);
        let total: f64 = kept.iter().map(|candidate| candidate.weight).sum();
        kept.iter().map(|candidate| (candidate.token, candidate.weight / total)).collect()
    }

    fn assert_kept(config: SamplingConfig, expected: &[(u32, f64)]) {
        let kept = kept(config);
        assert_eq!(kept.len(), expected.len(), "{kept:?}");
        for (have, want) in kept.iter().zip(expected) {
            assert!(have.0 == want.0 && (have.1 - want.1).abs() < 1e-6, "{kept:?}");
        }
    }

    #[test]
    fn everything_is_kept_by_default() {
        let expected = [(2, 0.5), (4, 0.25), (0, 0.15), (3, 0.07), (1, 0.03)];
        assert_kept(SamplingConfig::default(), &expected);
    }

    #[test]
    fn top_k_keeps_the_most_probable() {
        let config = SamplingConfig { top_k: 2, ..SamplingConfig::default() };
        assert_kept(config, &[(2, 2.0 / 3.0), (4, 1.0 / 3.0)]);
    }

    #[test]
    fn top_k_keeps_ties_of_the_last() {
        let sampler = Sampler::new(SamplingConfig { top_k: 2, ..SamplingConfig::default() });
        let kept = sampler.kept(&[1.0, 0.0, 1.0, 2.0], 2.0);
        assert_eq!(kept.iter().map(|candidate| candidate.token).collect::<Vec<_>>(), [3, 0, 2]);
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses_the_border() {
        // 0.5 + 0.25 < 0.8 <= 0.5 + 0.25 + 0.15
        let config = SamplingConfig { top_p: 0.8, ..SamplingConfig::default() };
        assert_kept(config, &[(2, 0.5 / 0.9), (4, 0.25 / 0.9), (0, 0.15 / 0.9)]);
        // At least one token stays.
        let config = SamplingConfig { top_p: 1e-6, ..SamplingConfig::default() };
        assert_kept(config, &[(2, 1.0)]);
    }

    #[test]
    fn top_p_counts_after_top_k() {
        // Of 0.5, 0.25 and 0.15 the first two have 0.833 of the probability.
        let config = SamplingConfig { top_k: 3, top_p: 0.83, ..SamplingConfig::default() };
        assert_kept(config, &[(2, 2.0 / 3.0), (4, 1.0 / 3.0)]);
    }

    #[test]
    fn min_p_is_relative_to_the_most_probable() {
        // 0.28 * 0.5 = 0.14
        let config = SamplingConfig { min_p: 0.28, ..SamplingConfig::default() };
        assert_kept(config, &[(2, 0.5 / 0.9), (4, 0.25 / 0.9), (0, 0.15 / 0.9)]);
    }

    #[test]
    fn min_p_does_not_change_what_top_p_counts() {
        // top-p alone keeps three of the five; were it to count after min-p (0.5 and 0.25 are left,
        // of 0.75 together), it would keep only the first.
        let config = SamplingConfig { min_p: 0.4, top_p: 0.6, ..SamplingConfig::default() };
        assert_kept(config, &[(2, 2.0 / 3.0), (4, 1.0 / 3.0)]);
    }

    #[test]
    fn temperature_comes_before_the_filters() {
        // At temperature 0.5 the probabilities are squared: 0.25, 0.0625, 0.0225, 0.0049, 0.0009
        // of 0.3408.
        let config = SamplingConfig { temperature: 0.5, top_p: 0.9, ..SamplingConfig::default() };
        assert_kept(config, &[(2, 0.8), (4, 0.2)]);
    }

    #[test]
    fn repetition_penalty_lowers_both_signs_once() {
        let mut logits = [2.0, -2.0, 1.0, 0.0];
        penalize_repetition(&mut logits, &[0, 1, 0, 3, 99], 2.0);
        assert_eq!(logits, [1.0, -4.0, 1.0, 0.0]);
    }

    #[test]
    fn greedy_takes_the_first_maximum() {
        let mut sampler = Sampler::new(SamplingConfig::greedy());
        assert_eq!(sampler.sample(&mut [0.0, f32::NAN, 3.0, 3.0], &[]), 2);
        let penalized = SamplingConfig { repetition_penalty: 2.0, ..SamplingConfig::greedy() };
        assert_eq!(Sampler::new(penalized).sample(&mut [2.0, 1.5], &[0]), 1);
    }

    #[test]
    fn a_seed_repeats_and_frequencies_match() {
        let draw = |seed| {
            let config = SamplingConfig { seed, ..SamplingConfig::default() };
            let mut sampler = Sampler::new(config);
            (0..20_000).map(|_| sampler.sample(&mut logits(), &[])).collect::<Vec<_>>()
        };
        let tokens = draw(7);
        assert_eq!(tokens, draw(7));
        assert_ne!(tokens, draw(8));
        for (token, &probability) in PROBABILITIES.iter().enumerate() {
            let count = tokens.iter().filter(|&&drawn| drawn as usize == token).count();
            let frequency = count as f32 / tokens.len() as f32;
            // Four standard deviations.
            let allowed = 4.0 * (probability * (1.0 - probability) / 20_000.0).sqrt();
            assert!((frequency - probability).abs() < allowed, "{token}: {frequency}");
        }
    }

    #[test]
    fn a_long_tail_needs_several_blocks() {
        let config = SamplingConfig { top_p: 0.5, ..SamplingConfig::default() };
        let flat = vec![0.0; 10_000];
        let kept = Sampler::new(config).kept(&flat, 0.0);
        assert_eq!(kept.len(), 5_000);
        assert!(kept.iter().enumerate().all(|(index, kept)| kept.token == index as u32));
    }

    #[test]
    fn logits_that_are_no_numbers_are_not_chosen() {
        let mut sampler = Sampler::new(SamplingConfig::default());
        for _ in 0..50 {
            assert_eq!(sampler.sample(&mut [f32::NAN, 1.0, f32::NEG_INFINITY], &[]), 1);
        }
        assert_eq!(sampler.sample(&mut [0.0, f32::INFINITY], &[]), 1);
        assert_eq!(sampler.sample(&mut [f32::NAN, f32::NAN], &[]), 0);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        assert!(SamplingConfig::default().validate().is_ok());
        assert!(SamplingConfig::greedy().validate().is_ok());
        for (config, name) in [
            (SamplingConfig { temperature: -0.1, ..SamplingConfig::default() }, "temperature"),
            (SamplingConfig { top_p: 0.0, ..SamplingConfig::default() }, "top_p"),
            (SamplingConfig { min_p: f32::NAN, ..SamplingConfig::default() }, "min_p"),
            (
                SamplingConfig { repetition_penalty: 0.0, ..SamplingConfig::default() },
                "repetition_penalty",
            ),
        ] {
            let message = config.validate().map_err(|error| error.to_string());
            assert!(message.as_ref().is_err_and(|text| text.contains(name)), "{message:?}");
        }
    }
}
