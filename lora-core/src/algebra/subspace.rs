//! Subspaces beside each other: how alike those of two adapters are, and how much of the base weight an
//! update amplifies (sections 7.2 and 7.3 of Hu et al. 2021, <https://arxiv.org/abs/2106.09685>).

use super::low_rank::Decomposed;
use super::spectrum::energy;
use crate::decompose::{product, transposed};

/// Grassmann similarity of the first i directions of one set with the first j of another, equation 4 of the
/// paper: φ(i, j) = ‖Uᵢᵀ·Vⱼ‖² / min(i, j), between 0 (orthogonal) and 1 (one within the other).
///
/// Row-major: φ(i, j) stands at `(i − 1)·columns + (j − 1)`.
///
/// # Shapes
/// `left` `[d, rows]` and `right` `[d, columns]`, both with orthonormal columns.
///
/// # Panics
/// For directions of spaces of different width.
pub fn similarity(left: &[f64], right: &[f64], d: usize) -> Vec<f64> {
    let (rows, columns) = (left.len() / d, right.len() / d);
    assert_eq!((left.len(), right.len()), (d * rows, d * columns), "directions in {d} dimensions");
    let mut sums = product(&transposed(left, d, rows), right, rows, d, columns);
    for cosine in &mut sums {
        *cosine *= *cosine;
    }
    for i in 0..rows {
        for j in 0..columns {
            let at = |i: usize, j: usize| i * columns + j;
            let above = if i > 0 { sums[at(i - 1, j)] } else { 0.0 };
            let before = if j > 0 { sums[at(i, j - 1)] } else { 0.0 };
            let both = if i > 0 && j > 0 { sums[at(i - 1, j - 1)] } else { 0.0 };
            sums[at(i, j)] += above + before - both;
        }
    }
    for (at, sum) in sums.iter_mut().enumerate() {
        let (i, j) = (at / columns + 1, at % columns + 1);
        *sum = (*sum / i.min(j) as f64).clamp(0.0, 1.0);
    }
    sums
}

/// φ(i, j) of two random subspaces of d dimensions, on average: max(i, j) / d.
pub fn similarity_by_chance(i: usize, j: usize, d: usize) -> f64 {
    (i.max(j) as f64 / d as f64).min(1.0)
}

/// How an update ΔW of rank r stands to the base weight W, as in table 7 of the paper.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Amplification {
    /// Directions of ΔW that were compared: its numerical rank.
    pub rank: usize,
    /// ‖ΔW‖.
    pub update: f64,
    /// ‖W‖.
    pub base: f64,
    /// ‖UᵀWV‖ with the directions U and V of ΔW: what W has where ΔW acts.
    pub base_in_update: f64,
    /// The same with the first r directions of W itself, the most there can be; `None` where W was not decomposed.
    pub base_in_base: Option<f64>,
    /// The same with r random directions on either side, root mean square: r·‖W‖ / √(d_in·d_out).
    pub base_in_random: f64,
}

impl Amplification {
    /// ‖ΔW‖ / ‖UᵀWV‖: how many times larger the update makes what it amplifies.
    pub fn factor(&self) -> f64 {
        self.update / self.base_in_update
    }
}

/// Amplification of a base weight by an update. `base_values` are the singular values of the weight, where they
/// are known.
///
/// # Shapes
/// `base` `[d_in, d_out]` row-major, of the update's layer.
///
/// # Panics
/// For a weight of another shape.
pub fn amplification(
    update: &Decomposed,
    base: &[f64],
    base_values: Option<&[f64]>,
) -> Amplification {
    let &Decomposed { d_in, d_out, ref values, ref inputs, ref outputs } = update;
    assert_eq!(base.len(), d_in * d_out, "a weight of {d_in} × {d_out}");
    let count = values.len();
    let rank = numerical_rank(values);
    let left = transposed(inputs, d_in, count);
    let right = transposed(&outputs[..rank * d_out], rank, d_out);
    let rows = product(&left[..rank * d_in], base, rank, d_in, d_out);
    let within = product(&rows, &right, rank, d_out, rank);
    let whole = energy(base).sqrt();
    Amplification {
        rank,
        update: energy(values).sqrt(),
        base: whole,
        base_in_update: energy(&within).sqrt(),
        base_in_base: base_values.map(|values| energy(&values[..rank.min(values.len())]).sqrt()),
        base_in_random: rank as f64 * whole / ((d_in * d_out) as f64).sqrt(),
    }
}

/// Values that are more than rounding of float32 factors.
pub fn numerical_rank(values: &[f64]) -> usize {
    let largest = values.first().copied().unwrap_or(0.0);
    values.iter().take_while(|&&value| value > largest * f64::from(f32::EPSILON)).count()
}

#[cfg(test)]
mod tests {
    use super::super::LowRank;
    use super::*;

    #[test]
    fn a_subspace_is_like_itself_and_unlike_its_complement() {
        // Columns e₁ e₂ and e₂ e₃ of three dimensions.
        let (left, right) = ([1.0, 0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
        assert_eq!(similarity(&left, &left, 3), [1.0, 1.0, 1.0, 1.0]);
        assert_eq!(similarity(&left, &right, 3), [0.0, 0.0, 1.0, 0.5]);
        assert_eq!(similarity_by_chance(2, 4, 16), 0.25);
    }

    #[test]
    fn an_update_along_the_base_amplifies_what_is_there() {
        // W = diag(3, 2, 1), ΔW = 5·e₂·e₂ᵀ: UᵀWV = 2.
        let base = [3.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0];
        let update =
            LowRank { d_in: 3, d_out: 3, rank: 1, a: vec![0.0, 1.0, 0.0], b: vec![0.0, 5.0, 0.0] };
        let found = amplification(&update.decompose(), &base, Some(&[3.0, 2.0, 1.0]));
        assert!((found.factor() - 2.5).abs() < 1e-12, "{found:?}");
        assert!((found.base_in_update - 2.0).abs() < 1e-12);
        assert_eq!((found.rank, found.base_in_base), (1, Some(3.0)));
        assert!((found.base_in_random - 14.0_f64.sqrt() / 3.0).abs() < 1e-12);
    }
}
