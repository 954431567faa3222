//! Rules that make one tensor out of several of one shape: weighted sums, pruning by size or at random, and
//! the election of signs. They are PEFT's (`peft/utils/merge_utils.py`), in float32 and in its order of
//! operations, so that an element on the edge of a choice falls on the same side.

use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::init::{stream, uniform};

/// How several tensors become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Merge {
    /// Σ wᵢ·Tᵢ.
    Sum,
    /// Σ wᵢ·prune(Tᵢ): only the largest elements of each tensor.
    PrunedSum {
        /// Share of the elements that stays.
        density: f64,
    },
    /// Prunes each tensor to its largest elements, elects a sign for each element, and takes the mean of
    /// the weighted elements that have it (TIES, Yadav et al. 2023, <https://arxiv.org/abs/2306.01708>).
    Ties {
        /// Share of the elements that stays.
        density: f64,
        /// How the sign is chosen.
        election: Election,
    },
    /// Σ wᵢ·drop(Tᵢ): elements are dropped at random and the others divided by the density (DARE, Yu et al.
    /// 2023, <https://arxiv.org/abs/2311.03099>).
    DareSum {
        /// Probability of an element to stay.
        density: f64,
        /// Seed of the draws.
        seed: u64,
    },
    /// Drops at random as [`Self::DareSum`], then elects signs as [`Self::Ties`].
    DareTies {
        /// Probability of an element to stay.
        density: f64,
        /// How the sign is chosen.
        election: Election,
        /// Seed of the draws.
        seed: u64,
    },
}

/// How the sign of an element is chosen among those of several tensors. A tie is positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Election {
    /// The sign of the sum of the elements.
    #[default]
    Total,
    /// The sign that more of them have.
    Frequency,
}

impl Merge {
    /// Whether the rule can be followed.
    ///
    /// # Errors
    /// A density that leaves nothing, or more than there is.
    pub fn check(&self) -> Result<()> {
        match self.density() {
            Some(density) if !(density > 0.0 && density <= 1.0) => {
                Err(Error::invalid(format!("density must be above 0 and at most 1, not {density}"))
                    .with_hint("it is the share of the numbers that stays; 1 prunes nothing"))
            }
            _ => Ok(()),
        }
    }

    /// One tensor out of several. `purpose` keeps the random draws of one tensor apart from those of
    /// another, whatever the order in which they are made.
    ///
    /// # Panics
    /// For no tensor at all, tensors of different lengths, or another number of weights.
    pub fn apply(&self, tensors: &[&[f32]], weights: &[f32], purpose: &str) -> Vec<f32> {
        assert_eq!(tensors.len(), weights.len(), "a weight for each tensor");
        let length = tensors[0].len();
        assert!(tensors.iter().all(|tensor| tensor.len() == length), "tensors of one length");
        let thinned: Vec<Vec<f32>> = tensors
            .iter()
            .enumerate()
            .map(|(at, tensor)| match *self {
                Self::Sum => tensor.to_vec(),
                Self::PrunedSum { density } | Self::Ties { density, .. } => {
                    largest(tensor, density)
                }
                Self::DareSum { density, seed } | Self::DareTies { density, seed, .. } => {
                    dropped(tensor, density, &mut stream(seed, &format!("{purpose} {at}")))
                }
            })
            .collect();
        match *self {
            Self::Sum | Self::PrunedSum { .. } | Self::DareSum { .. } => sum(&thinned, weights),
            Self::Ties { election, .. } | Self::DareTies { election, .. } => {
                elected_mean(&thinned, weights, election)
            }
        }
    }

    fn density(&self) -> Option<f64> {
        match *self {
            Self::Sum => None,
            Self::PrunedSum { density }
            | Self::Ties { density, .. }
            | Self::DareSum { density, .. }
            | Self::DareTies { density, .. } => Some(density),
        }
    }
}

/// The elements of largest magnitude, ⌊density·n⌋ of them, and zeros. Of equal ones the first stay.
fn largest(tensor: &[f32], density: f64) -> Vec<f32> {
    let count = (density * tensor.len() as f64) as usize;
    if density >= 1.0 || count >= tensor.len() {
        return tensor.to_vec();
    }
    let mut order: Vec<usize> = (0..tensor.len()).collect();
    let by_size = |one: &usize, other: &usize| {
        tensor[*other].abs().total_cmp(&tensor[*one].abs()).then(one.cmp(other))
    };
    order.select_nth_unstable_by(count, by_size);
    let mut kept = vec![0.0; tensor.len()];
    for &at in &order[..count] {
        kept[at] = tensor[at];
    }
    kept
}

/// Each element over the density with that probability, else zero.
fn dropped(tensor: &[f32], density: f64, random: &mut ChaCha8Rng) -> Vec<f32> {
    if density >= 1.0 {
        return tensor.to_vec();
    }
    let keep = |&value: &f32| if uniform(random) < density { value / density as f32 } else { 0.0 };
    tensor.iter().map(keep).collect()
}

fn sum(tensors: &[Vec<f32>], weights: &[f32]) -> Vec<f32> {
    let element =
        |at: usize| tensors.iter().zip(weights).map(|(tensor, weight)| tensor[at] * weight).sum();
    (0..tensors[0].len()).map(element).collect()
}

/// The mean of the weighted elements whose own sign is the elected one; zero where there is none.
fn elected_mean(tensors: &[Vec<f32>], weights: &[f32], election: Election) -> Vec<f32> {
    let element = |at: usize| {
        let votes = tensors.iter().map(|tensor| match election {
            Election::Total => tensor[at],
            Election::Frequency => sign(tensor[at]),
        });
        let elected = if votes.sum::<f32>() >= 0.0 { 1.0 } else { -1.0 };
        let (mut total, mut count) = (0.0, 0.0_f32);
        for (tensor, weight) in tensors.iter().zip(weights) {
            if sign(tensor[at]) == elected {
                total += tensor[at] * weight;
                count += 1.0;
            }
        }
        total / count.max(1.0)
    };
    (0..tensors[0].len()).map(element).collect()
}

/// −1, 0 or 1.
fn sign(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { value.signum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: [f32; 4] = [4.0, -1.0, 0.5, 2.0];
    const TWO: [f32; 4] = [-1.0, -3.0, 0.0, 2.0];

    fn merged(rule: Merge) -> Vec<f32> {
        rule.apply(&[&ONE, &TWO], &[1.0, 0.5], "test")
    }

    #[test]
    fn sums_are_weighted() {
        assert_eq!(merged(Merge::Sum), [3.5, -2.5, 0.5, 3.0]);
    }

    #[test]
    fn the_largest_elements_stay() {
        assert_eq!(merged(Merge::PrunedSum { density: 0.5 }), [4.0, -1.5, 0.0, 3.0]);
        // Two thirds of four are two, as 2.67 is cut off.
        assert_eq!(largest(&ONE, 0.67), [4.0, 0.0, 0.0, 2.0]);
        assert_eq!(largest(&[1.0, -1.0, 1.0], 0.67), [1.0, -1.0, 0.0], "the first of equal ones");
        assert_eq!(largest(&ONE, 0.1), [0.0; 4]);
    }

    #[test]
    fn signs_are_elected_by_the_total_or_by_number() {
        // Element 0: total 3, so the second is left out; element 1: both negative, mean of −1 and −1.5.
        let total = Merge::Ties { density: 1.0, election: Election::Total };
        assert_eq!(merged(total), [4.0, -1.25, 0.5, 1.5]);
        let three: [&[f32]; 3] = [&[5.0], &[-1.0], &[-2.0]];
        let by = |election| Merge::Ties { density: 1.0, election }.apply(&three, &[1.0; 3], "test");
        assert_eq!(by(Election::Total), [5.0]);
        assert_eq!(by(Election::Frequency), [-1.5]);
        let tie: [&[f32]; 2] = [&[-2.0], &[2.0]];
        let found =
            Merge::Ties { density: 1.0, election: Election::Total }.apply(&tie, &[1.0; 2], "");
        assert_eq!(found, [2.0], "a tie is positive");
    }

    #[test]
    fn dropping_keeps_the_mean_and_is_repeatable() {
        let ones = vec![1.0_f32; 100_000];
        let rule = Merge::DareSum { density: 0.3, seed: 7 };
        let found = rule.apply(&[&ones], &[1.0], "layer");
        let kept = found.iter().filter(|&&value| value != 0.0).count() as f64;
        // Standard deviation of the number kept: √(n·p·(1 − p)) = 145.
        assert!((kept - 30_000.0).abs() < 5.0 * 145.0, "{kept} of 100000 kept");
        assert!(found.iter().all(|&value| value == 0.0 || value == 1.0 / 0.3_f32));
        assert_eq!(found, rule.apply(&[&ones], &[1.0], "layer"));
        assert_ne!(found, rule.apply(&[&ones], &[1.0], "another layer"));
        assert_ne!(
            found,
            Merge::DareSum { density: 0.3, seed: 8 }.apply(&[&ones], &[1.0], "layer")
        );
        // Two tensors are not thinned in the same places.
        let both = rule.apply(&[&ones, &ones], &[1.0, 2.0], "layer");
        assert!(both.contains(&(1.0 / 0.3_f32)) && both.contains(&(2.0 / 0.3_f32)));
    }

    #[test]
    fn nothing_is_dropped_at_density_one() {
        let all = Merge::DareSum { density: 1.0, seed: 1 };
        assert_eq!(merged(all), merged(Merge::Sum));
        let ties = Merge::Ties { density: 1.0, election: Election::Total };
        let dare = Merge::DareTies { density: 1.0, election: Election::Total, seed: 1 };
        assert_eq!(merged(dare), merged(ties));
    }

    #[test]
    fn densities_have_limits() {
        for density in [0.0, -0.1, 1.1, f64::NAN] {
            assert!(Merge::PrunedSum { density }.check().is_err(), "{density}");
        }
        assert!(Merge::PrunedSum { density: 1.0 }.check().is_ok());
        assert!(Merge::Sum.check().is_ok());
    }
}
