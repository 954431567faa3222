//! What a list of singular values says: how many directions matter.

/// Effective rank: exp(−Σ pᵢ·ln pᵢ) with pᵢ = σᵢ / Σσ (Roy and Vetterli 2007). Between 1 and the number of values;
/// 0 where all are zero.
pub fn effective_rank(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    if sum <= 0.0 {
        return 0.0;
    }
    let shares = values.iter().map(|value| value / sum).filter(|&share| share > 0.0);
    (-shares.map(|share| share * share.ln()).sum::<f64>()).exp()
}

/// Stable rank: Σσ² / σ₁². 0 where all are zero.
pub fn stable_rank(values: &[f64]) -> f64 {
    let largest = values.iter().fold(0.0, |most: f64, &value| most.max(value));
    if largest <= 0.0 { 0.0 } else { energy(values) / (largest * largest) }
}

/// Energy: Σσ², the square of the Frobenius norm.
pub fn energy(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum()
}

/// Smallest rank whose values hold this share of the energy; as many as there are, if they do not. Values go from
/// the largest down. 0 where all are zero.
pub fn rank_for_energy(values: &[f64], share: f64) -> usize {
    rank_within(values, share, energy(values)).unwrap_or(values.len())
}

/// The same where the values are only the first of more, whose energy is known: `None` if they do not hold
/// enough of it.
pub(super) fn rank_within(values: &[f64], share: f64, whole: f64) -> Option<usize> {
    // An adapter's numbers are float32: what lies below their rounding is no direction of its own.
    let rounding = f64::from(f32::EPSILON).powi(2);
    let allowed = whole * (1.0 - share).max(rounding);
    let mut left = whole;
    for (rank, value) in values.iter().enumerate() {
        if left <= allowed {
            return Some(rank);
        }
        left -= value * value;
    }
    (left <= allowed).then_some(values.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_count_whole_and_one_value_counts_one() {
        assert!((effective_rank(&[2.0; 5]) - 5.0).abs() < 1e-12);
        assert!((effective_rank(&[3.0, 0.0, 0.0]) - 1.0).abs() < 1e-12);
        // p = 3/4, 1/4: exp(0.5623).
        assert!((effective_rank(&[3.0, 1.0]) - 1.754_765).abs() < 1e-6);
        assert!((stable_rank(&[3.0, 1.0]) - 10.0 / 9.0).abs() < 1e-12);
        assert_eq!((effective_rank(&[0.0; 3]), stable_rank(&[])), (0.0, 0.0));
    }

    #[test]
    fn a_share_of_the_energy_asks_for_a_rank() {
        // Energies 16, 9, 4, 1 of 30.
        let values = [4.0, 3.0, 2.0, 1.0];
        let ranks = [0.5, 0.54, 0.8, 0.9, 0.97, 1.0].map(|share| rank_for_energy(&values, share));
        assert_eq!(ranks, [1, 2, 2, 3, 4, 4]);
        assert_eq!(rank_for_energy(&[1.0, 1e-9, 0.0], 1.0), 1, "rounding is no direction");
        assert_eq!(rank_for_energy(&[0.0, 0.0], 0.9), 0);
    }
}
