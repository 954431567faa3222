//! An update kept as its factors, A·B, and what can be known of it without forming the product.

use crate::config::LoraConfig;
use crate::decompose::{self, product, transposed};
use crate::peft::{Factor, PeftAdapter};

/// A matrix of low rank, A·B, in float64.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// Rows of the product: inputs of the layer.
    pub d_in: usize,
    /// Columns of the product: outputs of the layer.
    pub d_out: usize,
    /// Columns of A and rows of B.
    pub rank: usize,
    /// A, `[d_in, rank]` row-major.
    pub a: Vec<f64>,
    /// B, `[rank, d_out]` row-major.
    pub b: Vec<f64>,
}

/// A singular value decomposition, P·diag(σ)·Q, with as many values as the smaller side of what was decomposed.
#[derive(Debug, Clone, PartialEq)]
pub struct Decomposed {
    /// Rows of the matrix: inputs of the layer.
    pub d_in: usize,
    /// Columns of the matrix: outputs of the layer.
    pub d_out: usize,
    /// Singular values, the largest first.
    pub values: Vec<f64>,
    /// Directions among the inputs, `[d_in, values]`: orthonormal columns.
    pub inputs: Vec<f64>,
    /// Directions among the outputs, `[values, d_out]`: orthonormal rows.
    pub outputs: Vec<f64>,
}

impl LowRank {
    /// The pair of a layer with its scale in B: s·A·B.
    pub fn of(factor: &Factor, scaling: f64) -> Self {
        let Factor { d_in, d_out, rank, ref a, ref b, .. } = *factor;
        let a = a.iter().map(|&value| f64::from(value)).collect();
        let b = b.iter().map(|&value| f64::from(value) * scaling).collect();
        Self { d_in, d_out, rank, a, b }
    }

    /// The sum of updates of one layer, exactly: their factors beside each other. The rank is the sum of
    /// theirs.
    ///
    /// # Panics
    /// For no update at all, or updates of layers of different shapes.
    pub fn sum(parts: &[Self]) -> Self {
        let (d_in, d_out) = (parts[0].d_in, parts[0].d_out);
        assert!(
            parts.iter().all(|part| (part.d_in, part.d_out) == (d_in, d_out)),
            "updates of layers of different shapes"
        );
        let rank = parts.iter().map(|part| part.rank).sum();
        let mut a = Vec::with_capacity(d_in * rank);
        for row in 0..d_in {
            for part in parts {
                a.extend_from_slice(&part.a[row * part.rank..(row + 1) * part.rank]);
            }
        }
        let b = parts.iter().flat_map(|part| &part.b).copied().collect();
        Self { d_in, d_out, rank, a, b }
    }

    /// The same times a number.
    pub fn times(mut self, factor: f64) -> Self {
        self.b.iter_mut().for_each(|value| *value *= factor);
        self
    }

    /// The product A·B, `[d_in, d_out]` row-major.
    pub fn dense(&self) -> Vec<f64> {
        product(&self.a, &self.b, self.d_in, self.rank, self.d_out)
    }

    /// ‖A·B‖, by Frobenius: √tr((AᵀA)·(B·Bᵀ)).
    pub fn norm(&self) -> f64 {
        self.inner(self).max(0.0).sqrt()
    }

    /// ⟨A·B, A′·B′⟩ = tr((AᵀA′)·(B′·Bᵀ)), the sum of the products of the elements.
    ///
    /// # Panics
    /// For an update of a layer of another shape.
    pub fn inner(&self, other: &Self) -> f64 {
        assert_eq!(
            (self.d_in, self.d_out),
            (other.d_in, other.d_out),
            "layers of different shapes"
        );
        let inputs = product(
            &transposed(&self.a, self.d_in, self.rank),
            &other.a,
            self.rank,
            self.d_in,
            other.rank,
        );
        let outputs = product(
            &self.b,
            &transposed(&other.b, other.rank, self.d_out),
            self.rank,
            self.d_out,
            other.rank,
        );
        inputs.iter().zip(&outputs).map(|(left, right)| left * right).sum()
    }

    /// Its singular value decomposition, by A = Q·R and Bᵀ = Q′·R′ and the small matrix between them:
    /// A·B = Q·(R·R′ᵀ)·Q′ᵀ. A·B is not formed.
    pub fn decompose(&self) -> Decomposed {
        let &Self { d_in, d_out, rank, ref a, ref b } = self;
        let left = decompose::qr(a, d_in, rank);
        let right = decompose::qr(&transposed(b, rank, d_out), d_out, rank);
        let (k, l) = (d_in.min(rank), d_out.min(rank));
        let core = product(&left.r, &transposed(&right.r, l, rank), k, rank, l);
        let small = decompose::svd(&core, k, l);
        let count = small.s.len();
        Decomposed {
            d_in,
            d_out,
            values: small.s,
            inputs: product(&left.q, &small.u, d_in, k, count),
            outputs: product(&small.vt, &transposed(&right.q, d_out, l), count, l, d_out),
        }
    }

    /// The same with columns and rows of zeros up to a rank, or as it is if it has that many.
    pub fn padded(self, rank: usize) -> Self {
        let Self { d_in, d_out, rank: old, a, mut b } = self;
        if rank <= old {
            return Self { d_in, d_out, rank: old, a, b };
        }
        let mut wide = vec![0.0; d_in * rank];
        for (to, from) in wide.chunks_exact_mut(rank).zip(a.chunks_exact(old)) {
            to[..old].copy_from_slice(from);
        }
        b.resize(rank * d_out, 0.0);
        Self { d_in, d_out, rank, a: wide, b }
    }

    /// The pair as an adapter stores it, for scale 1.
    pub fn into_factor(self, path: &str) -> Factor {
        let Self { d_in, d_out, rank, a, b } = self;
        let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        Factor { path: path.to_owned(), d_in, d_out, rank, a: narrow(a), b: narrow(b) }
    }
}

impl Decomposed {
    /// The decomposition of a whole matrix, `[d_in, d_out]` row-major.
    ///
    /// # Panics
    /// If there are not as many values as the shape says.
    pub fn of(dense: &[f64], d_in: usize, d_out: usize) -> Self {
        assert_eq!(dense.len(), d_in * d_out, "a matrix of {d_in} × {d_out}");
        let whole = decompose::svd(dense, d_in, d_out);
        Self { d_in, d_out, values: whole.s, inputs: whole.u, outputs: whole.vt }
    }

    /// The first values and directions of a whole matrix, at least `rank` of them if there are so many: exactly
    /// where the matrix or the part left out is small, and else from a random sketch.
    ///
    /// # Panics
    /// If there are not as many values as the shape says.
    pub fn leading(dense: &[f64], d_in: usize, d_out: usize, rank: usize) -> Self {
        /// All directions of so small a matrix are there in no time.
        const EXACT: usize = 256;
        /// Passes over the matrix, each of which squares the distance between the values.
        const ITERATIONS: usize = 6;
        let side = d_in.min(d_out);
        if side <= EXACT || rank >= side / 3 {
            return Self::of(dense, d_in, d_out);
        }
        assert_eq!(dense.len(), d_in * d_out, "a matrix of {d_in} × {d_out}");
        let found = decompose::svd_sketch(dense, d_in, d_out, rank, ITERATIONS, 0);
        Self { d_in, d_out, values: found.s, inputs: found.u, outputs: found.vt }
    }

    /// The nearest matrix of this rank (Eckart and Young), as PEFT splits it: A has orthonormal columns and B
    /// has the singular values. Beyond the values that there are, A and B are zero.
    pub fn truncated(&self, rank: usize) -> LowRank {
        let &Self { d_in, d_out, .. } = self;
        let count = self.values.len();
        let kept = rank.min(count);
        let mut a = Vec::with_capacity(d_in * kept);
        for row in self.inputs.chunks_exact(count.max(1)) {
            a.extend_from_slice(&row[..kept]);
        }
        let mut b = Vec::with_capacity(kept * d_out);
        for (value, row) in self.values.iter().zip(self.outputs.chunks_exact(d_out)).take(kept) {
            b.extend(row.iter().map(|number| number * value));
        }
        LowRank { d_in, d_out, rank: kept, a, b }.padded(rank)
    }
}

/// What an adapter adds to each of its layers, in the order of its pairs.
pub fn updates(adapter: &PeftAdapter) -> Vec<LowRank> {
    let lora = &adapter.config.lora;
    adapter.factors.iter().map(|factor| update_of(lora, factor)).collect()
}

/// What the adapter with these settings adds to one layer.
pub(super) fn update_of(lora: &LoraConfig, factor: &Factor) -> LowRank {
    LowRank::of(factor, lora.scaling_for(&factor.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f64> {
        (0..count).map(|i| ((i * i * 31 + i * 17 + seed * 101) as f64 * 0.7).sin()).collect()
    }

    fn update(d_in: usize, d_out: usize, rank: usize, seed: usize) -> LowRank {
        let (a, b) = (numbers(d_in * rank, seed), numbers(rank * d_out, seed + 1));
        LowRank { d_in, d_out, rank, a, b }
    }

    fn close(left: &[f64], right: &[f64], tolerance: f64) {
        assert_eq!(left.len(), right.len());
        for (left, right) in left.iter().zip(right) {
            assert!((left - right).abs() < tolerance, "{left} {right}");
        }
    }

    #[test]
    fn a_sum_is_the_sum() {
        let (one, two) = (update(5, 7, 2, 1), update(5, 7, 3, 5));
        let sum = LowRank::sum(&[one.clone(), two.clone().times(-0.5)]);
        assert_eq!(sum.rank, 5);
        let expected: Vec<f64> =
            one.dense().iter().zip(two.dense()).map(|(x, y)| x - 0.5 * y).collect();
        close(&sum.dense(), &expected, 1e-13);
    }

    #[test]
    fn norms_and_products_are_those_of_the_whole() {
        let (one, two) = (update(9, 4, 3, 2), update(9, 4, 2, 3));
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        assert!((one.inner(&two) - dot(&one.dense(), &two.dense())).abs() < 1e-12);
        assert!((one.norm() - dot(&one.dense(), &one.dense()).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn the_decomposition_is_that_of_the_whole_and_has_no_more_values_than_the_rank() {
        // The last one has more columns than the layer has inputs.
        for (d_in, d_out, rank) in [(8, 6, 3), (6, 8, 3), (4, 9, 6)] {
            let update = update(d_in, d_out, rank, 4);
            let found = update.decompose();
            let whole = Decomposed::of(&update.dense(), d_in, d_out);
            let count = found.values.len();
            assert_eq!(count, rank.min(d_in).min(d_out));
            close(&found.values, &whole.values[..count], 1e-11);
            close(&found.truncated(count).dense(), &update.dense(), 1e-11);
            let gram =
                product(&transposed(&found.inputs, d_in, count), &found.inputs, count, d_in, count);
            let identity: Vec<f64> = (0..count * count)
                .map(|i| f64::from(u8::from(i.is_multiple_of(count + 1))))
                .collect();
            close(&gram, &identity, 1e-12);
        }
    }

    #[test]
    fn what_is_cut_off_is_the_energy_of_the_smaller_values() {
        let update = update(8, 6, 4, 7);
        let found = update.decompose();
        let rest = LowRank::sum(&[update, found.truncated(2).times(-1.0)]);
        let expected = (found.values[2].powi(2) + found.values[3].powi(2)).sqrt();
        assert!((rest.norm() - expected).abs() < 1e-7, "{} {expected}", rest.norm());
    }

    #[test]
    fn zeros_fill_up_to_a_rank() {
        let update = update(3, 4, 2, 1);
        let padded = update.clone().padded(5);
        assert_eq!((padded.rank, padded.a.len(), padded.b.len()), (5, 15, 20));
        close(&padded.dense(), &update.dense(), 1e-15);
        assert_eq!(update.decompose().truncated(6).rank, 6);
    }
}
