//! Singular values, orthogonal bases and their random sketches, in f64 on every core.
//!
//! Matrices are row-major slices. The singular value decomposition is Jacobi's from one side (Hestenes
//! 1958; Drmač and Veselić 2008, <https://doi.org/10.1137/050639193>): slower than bidiagonalisation, but
//! every singular value comes out with small relative error, and it runs on all cores.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use crate::init::normal;

/// `A = U·diag(s)·Vᵀ` with k = min(rows, columns).
#[derive(Debug, Clone, PartialEq)]
pub struct Svd {
    /// U, `[rows, k]`, its columns orthonormal.
    pub u: Vec<f64>,
    /// The singular values, `[k]`, descending.
    pub s: Vec<f64>,
    /// Vᵀ, `[k, columns]`, its rows orthonormal.
    pub vt: Vec<f64>,
}

/// `A = Q·R` with k = min(rows, columns).
#[derive(Debug, Clone, PartialEq)]
pub struct Qr {
    /// Q, `[rows, k]`, its columns orthonormal.
    pub q: Vec<f64>,
    /// R, `[k, columns]`, zero below its diagonal.
    pub r: Vec<f64>,
}

/// Columns that are turned against each other while they are in the cache.
const BLOCK: usize = 16;
/// Far more than ever needed: ten are many.
const SWEEPS: usize = 60;

/// The thin singular value decomposition of a matrix, singular values descending.
///
/// # Shapes
/// - matrix: `[rows, columns]`, row-major, finite
///
/// # Panics
/// If the slice is not as long as the shape says.
pub fn svd(matrix: &[f64], rows: usize, columns: usize) -> Svd {
    assert_eq!(matrix.len(), rows * columns, "a {rows} × {columns} matrix");
    if rows < columns {
        let turned = svd(&transposed(matrix, rows, columns), columns, rows);
        return Svd {
            u: transposed(&turned.vt, rows, rows),
            s: turned.s,
            vt: transposed(&turned.u, columns, rows),
        };
    }
    if columns == 0 {
        return Svd { u: Vec::new(), s: Vec::new(), vt: Vec::new() };
    }
    // Scaled, so that no square is too small or too large.
    let scale = matrix.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let scale = if scale > 0.0 { scale } else { 1.0 };
    let column = |c: usize| matrix.iter().skip(c).step_by(columns).map(|value| value / scale);
    // A·P = Q·R with the columns from large to small; Rᵀ = L is close to having orthogonal columns.
    let mut columns_of: Vec<Vec<f64>> = (0..columns).map(|c| column(c).collect()).collect();
    let norms: Vec<f64> = columns_of.iter().map(|column| dot(column, column)).collect();
    let mut order: Vec<usize> = (0..columns).collect();
    order.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]));
    columns_of = order.iter().map(|&c| std::mem::take(&mut columns_of[c])).collect();
    let reflections = Reflections::of(columns_of, rows);
    let r = reflections.r(columns);
    // Column j of L is row j of R. L·W = Y with orthogonal columns, so that A·P = Q·W·diag(s)·Ŷᵀ.
    let mut turned: Vec<Turned> = (0..columns)
        .map(|j| {
            let mut unit = vec![0.0; columns];
            unit[j] = 1.0;
            Turned { y: r[j * columns..][..columns].to_vec(), w: unit, square: 0.0 }
        })
        .collect();
    orthogonalise(&mut turned);
    let mut s: Vec<f64> = turned.iter().map(|it| dot(&it.y, &it.y).sqrt()).collect();
    let mut by_size: Vec<usize> = (0..columns).collect();
    by_size.sort_by(|&a, &b| s[b].total_cmp(&s[a]));
    turned = by_size.iter().map(|&j| std::mem::take(&mut turned[j])).collect();
    s = by_size.iter().map(|&j| s[j]).collect();

    let left: Vec<Vec<f64>> = turned.iter_mut().map(|it| std::mem::take(&mut it.w)).collect();
    let left = reflections.apply(left);
    let mut right: Vec<Vec<f64>> = turned.into_iter().map(|it| it.y).collect();
    normalise(&mut right, &s);
    let mut vt = vec![0.0; columns * columns];
    for (row, direction) in vt.chunks_exact_mut(columns).zip(&right) {
        order.iter().zip(direction).for_each(|(&place, value)| row[place] = *value);
    }
    s.iter_mut().for_each(|s| *s *= scale);
    Svd { u: from_columns(&left, rows), s, vt }
}

/// The thin decomposition `A = Q·R` by Householder's reflections; signs are those of LAPACK.
///
/// # Shapes
/// - matrix: `[rows, columns]`, row-major, finite
///
/// # Panics
/// If the slice is not as long as the shape says.
pub fn qr(matrix: &[f64], rows: usize, columns: usize) -> Qr {
    assert_eq!(matrix.len(), rows * columns, "a {rows} × {columns} matrix");
    let k = rows.min(columns);
    let columns_of =
        (0..columns).map(|c| matrix.iter().skip(c).step_by(columns).copied().collect()).collect();
    let reflections = Reflections::of(columns_of, rows);
    let unit = |j: usize| {
        let mut unit = vec![0.0; k];
        unit[j] = 1.0;
        unit
    };
    let q = reflections.apply((0..k).map(unit).collect());
    Qr { q: from_columns(&q, rows), r: reflections.r(columns) }
}

/// The first `rank` singular values and vectors from a random sketch (Halko, Martinsson and Tropp 2011,
/// <https://arxiv.org/abs/0909.4061>, algorithm 4.4): as good as exact where the singular values fall
/// fast, and the better the more `iterations`.
///
/// # Shapes
/// - matrix: `[rows, columns]`, row-major, finite
/// - result: k = min(rank, rows, columns)
///
/// # Panics
/// If the slice is not as long as the shape says.
pub fn svd_sketch(
    matrix: &[f64],
    rows: usize,
    columns: usize,
    rank: usize,
    iterations: usize,
    seed: u64,
) -> Svd {
    /// Directions beyond those asked for.
    const MORE: usize = 8;
    let width = (rank + MORE).min(rows).min(columns);
    let rank = rank.min(width);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let start: Vec<f64> = (0..columns * width).map(|_| normal(&mut random)).collect();
    let turned = transposed(matrix, rows, columns);
    let mut basis = qr(&product(matrix, &start, rows, columns, width), rows, width).q;
    for _ in 0..iterations {
        let other = qr(&product(&turned, &basis, columns, rows, width), columns, width).q;
        basis = qr(&product(matrix, &other, rows, columns, width), rows, width).q;
    }
    let small = product(&transposed(&basis, rows, width), matrix, width, rows, columns);
    let of_small = svd(&small, width, columns);
    let u = product(&basis, &of_small.u, rows, width, width);
    let first = |row: &[f64]| row[..rank].to_vec();
    Svd {
        u: u.chunks_exact(width.max(1)).flat_map(first).collect(),
        s: of_small.s[..rank].to_vec(),
        vt: of_small.vt[..rank * columns].to_vec(),
    }
}

/// `A·B`, `[rows, inner]` and `[inner, columns]`, row-major.
///
/// # Panics
/// If a slice is not as long as the shape says.
pub fn product(a: &[f64], b: &[f64], rows: usize, inner: usize, columns: usize) -> Vec<f64> {
    assert_eq!((a.len(), b.len()), (rows * inner, inner * columns), "lengths of a product");
    let mut out = vec![0.0; rows * columns];
    if columns == 0 || inner == 0 {
        return out;
    }
    out.par_chunks_exact_mut(columns).zip(a.par_chunks_exact(inner)).for_each(|(out, a)| {
        for (value, row) in a.iter().zip(b.chunks_exact(columns)) {
            add(out, *value, row);
        }
    });
    out
}

/// The transpose of a row-major `[rows, columns]` matrix.
pub fn transposed<T: Copy + Default + Send + Sync>(
    matrix: &[T],
    rows: usize,
    columns: usize,
) -> Vec<T> {
    let mut out = vec![T::default(); matrix.len()];
    // A narrow matrix has short columns: some of them are one piece of work.
    if let Some(least) = (1_usize << 15).checked_div(rows) {
        let columns_out = out.par_chunks_exact_mut(rows).with_min_len(least.max(1));
        columns_out.enumerate().for_each(|(column, out)| {
            out.iter_mut().enumerate().for_each(|(row, out)| *out = matrix[row * columns + column]);
        });
    }
    out
}

/// Householder's reflections `H = I − τ·v·vᵀ` that make a matrix upper triangular.
struct Reflections {
    /// v of each, from its diagonal on, and τ.
    all: Vec<(Vec<f64>, f64)>,
    /// The reflected columns: R above and on the diagonal.
    columns: Vec<Vec<f64>>,
    rows: usize,
}

impl Reflections {
    fn of(mut columns: Vec<Vec<f64>>, rows: usize) -> Self {
        let mut all: Vec<(Vec<f64>, f64)> = Vec::with_capacity(rows.min(columns.len()));
        for start in (0..columns.len()).step_by(BLOCK) {
            let end = (start + BLOCK).min(columns.len());
            let block = &mut columns[start..end];
            block.par_iter_mut().for_each(|column| {
                all.iter().enumerate().for_each(|(k, (v, tau))| reflect(&mut column[k..], v, *tau));
            });
            for j in 0..block.len() {
                let (done, rest) = block.split_at_mut(j + 1);
                let diagonal = start + j;
                if diagonal >= rows {
                    continue;
                }
                let (v, tau) = reflection(&mut done[j][diagonal..]);
                rest.iter_mut().for_each(|column| reflect(&mut column[diagonal..], &v, tau));
                all.push((v, tau));
            }
        }
        Self { all, columns, rows }
    }

    /// R, `[k, columns]`.
    fn r(&self, columns: usize) -> Vec<f64> {
        let k = self.rows.min(columns);
        let mut r = vec![0.0; k * columns];
        for (j, column) in self.columns.iter().enumerate() {
            for (i, value) in column.iter().enumerate().take(k.min(j + 1)) {
                r[i * columns + j] = *value;
            }
        }
        r
    }

    /// `Q·x` of each x `[k]`.
    fn apply(&self, columns: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
        let mut columns = columns;
        columns.par_chunks_mut(BLOCK).for_each(|block| {
            block.iter_mut().for_each(|column| column.resize(self.rows, 0.0));
            for (k, (v, tau)) in self.all.iter().enumerate().rev() {
                block.iter_mut().for_each(|column| reflect(&mut column[k..], v, *tau));
            }
        });
        columns
    }
}

/// The reflection that leaves of `column` only its first element, which it also does.
fn reflection(column: &mut [f64]) -> (Vec<f64>, f64) {
    let mut v = column.to_vec();
    // Scaled, so that no square is too small or too large.
    let largest = v.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let below = v[1..].iter().any(|value| *value != 0.0);
    if largest == 0.0 || !below {
        v.fill(0.0);
        return (v, 0.0);
    }
    v.iter_mut().for_each(|value| *value /= largest);
    let norm = dot(&v, &v).sqrt();
    let first = if v[0] > 0.0 { -norm } else { norm };
    v[0] -= first;
    let tau = 2.0 / dot(&v, &v);
    column.fill(0.0);
    column[0] = first * largest;
    (v, tau)
}

fn reflect(column: &mut [f64], v: &[f64], tau: f64) {
    if tau != 0.0 {
        let along = tau * dot(v, column);
        add(column, -along, v);
    }
}

/// A column on its way to being orthogonal to all others, and what was done to the identity meanwhile.
#[derive(Default)]
struct Turned {
    y: Vec<f64>,
    w: Vec<f64>,
    /// |y|².
    square: f64,
}

/// Turns columns against each other until all are orthogonal: by blocks, each pair of which stays in the
/// cache, every block meeting every other once in a sweep and several pairs at once.
fn orthogonalise(columns: &mut Vec<Turned>) {
    let mut blocks: Vec<Vec<Turned>> = Vec::new();
    while !columns.is_empty() {
        let rest = columns.split_off(columns.len().min(BLOCK));
        blocks.push(std::mem::replace(columns, rest));
    }
    if blocks.len() % 2 == 1 {
        blocks.push(Vec::new());
    }
    let smallest = f64::MIN_POSITIVE;
    for _ in 0..SWEEPS {
        blocks.par_iter_mut().for_each(|block| {
            block.iter_mut().for_each(|it| it.square = dot(&it.y, &it.y));
        });
        let largest = blocks.iter().flatten().fold(smallest, |largest, it| largest.max(it.square));
        // A column this small is zero beside the largest: only noise could be turned out of it.
        let negligible = largest * 1e-34;
        let mut turned = blocks
            .par_iter_mut()
            .map(|block| {
                let mut turned = false;
                for j in 1..block.len() {
                    let (before, after) = block.split_at_mut(j);
                    before.iter_mut().for_each(|it| turned |= turn(it, &mut after[0], negligible));
                }
                turned
            })
            .reduce(|| false, |a, b| a | b);
        for _ in 1..blocks.len() {
            turned |= blocks
                .par_chunks_exact_mut(2)
                .map(|pair| {
                    let (one, other) = pair.split_at_mut(1);
                    let mut turned = false;
                    for a in &mut one[0] {
                        other[0].iter_mut().for_each(|b| turned |= turn(a, b, negligible));
                    }
                    turned
                })
                .reduce(|| false, |a, b| a | b);
            next_round(&mut blocks);
        }
        if !turned {
            break;
        }
    }
    columns.extend(blocks.into_iter().flatten());
}

/// The next pairing of a tournament in which everyone meets everyone: neighbours play, the first stays,
/// all others move by one seat around the table.
fn next_round<T>(seats: &mut [T]) {
    let count = seats.len();
    if count <= 2 {
        return;
    }
    // Seats 0, 2, 4, … are one side of the table from left to right, 1, 3, 5, … the other.
    let around: Vec<usize> = (2..count)
        .step_by(2)
        .chain((1..count).step_by(2).collect::<Vec<_>>().into_iter().rev())
        .collect();
    for pair in around.windows(2).rev() {
        seats.swap(pair[0], pair[1]);
    }
}

/// Turns two columns in their plane so that they are orthogonal; says whether that was needed.
fn turn(a: &mut Turned, b: &mut Turned, negligible: f64) -> bool {
    if a.square <= negligible || b.square <= negligible {
        return false;
    }
    let across = dot(&a.y, &b.y);
    // As orthogonal as the rounding of a sum of so many products can tell.
    let orthogonal = f64::EPSILON * (a.y.len() as f64).sqrt();
    if across.abs() <= orthogonal * (a.square * b.square).sqrt() {
        return false;
    }
    let zeta = (b.square - a.square) / (2.0 * across);
    let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
    let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
    let sine = cosine * tangent;
    rotate(&mut a.y, &mut b.y, cosine, sine);
    rotate(&mut a.w, &mut b.w, cosine, sine);
    a.square = (a.square - tangent * across).max(0.0);
    b.square += tangent * across;
    true
}

fn rotate(a: &mut [f64], b: &mut [f64], cosine: f64, sine: f64) {
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
}

/// Divides each column by its length; what is zero beside the largest becomes any direction that is
/// orthogonal to all others.
fn normalise(columns: &mut [Vec<f64>], lengths: &[f64]) {
    let largest = lengths.first().copied().unwrap_or(0.0);
    let size = columns.first().map_or(0, Vec::len);
    let mut unit = 0;
    for j in 0..columns.len() {
        if lengths[j] > largest * 1e-16 {
            columns[j].iter_mut().for_each(|value| *value /= lengths[j]);
            continue;
        }
        loop {
            let mut fresh = vec![0.0; size];
            fresh[unit % size] = 1.0;
            unit += 1;
            // Twice is enough (Kahan), and j < size: one of the unit vectors is far from the span.
            for _ in 0..2 {
                for other in &columns[..j] {
                    let along = dot(other, &fresh);
                    add(&mut fresh, -along, other);
                }
            }
            let length = dot(&fresh, &fresh).sqrt();
            if length > 0.5 / (size as f64).sqrt() {
                fresh.iter_mut().for_each(|value| *value /= length);
                columns[j] = fresh;
                break;
            }
        }
    }
}

/// `[rows, k]`, row-major, of k columns.
fn from_columns(columns: &[Vec<f64>], rows: usize) -> Vec<f64> {
    (0..rows).flat_map(|row| columns.iter().map(move |column| column[row])).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Eight sums at once, which the compiler keeps in vector registers.
    let mut sums = [0.0; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

/// `out += factor·row`.
fn add(out: &mut [f64], factor: f64, row: &[f64]) {
    out.iter_mut().zip(row).for_each(|(out, value)| *out += factor * value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(count: usize, seed: u64) -> Vec<f64> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| normal(&mut random)).collect()
    }

    fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()))
    }

    fn identity(n: usize) -> Vec<f64> {
        (0..n * n).map(|at| if at % (n + 1) == 0 { 1.0 } else { 0.0 }).collect()
    }

    /// Distance of the matrix's columns from being orthonormal.
    fn from_orthonormal(matrix: &[f64], rows: usize, columns: usize) -> f64 {
        let turned = transposed(matrix, rows, columns);
        let gram = product(&turned, matrix, columns, rows, columns);
        largest_difference(&gram, &identity(columns))
    }

    fn check(matrix: &[f64], rows: usize, columns: usize) -> Svd {
        let k = rows.min(columns);
        let found = svd(matrix, rows, columns);
        let scale = found.s.first().copied().unwrap_or(0.0).max(1e-300);
        assert!(found.s.windows(2).all(|pair| pair[0] >= pair[1]), "{:?}", found.s);
        assert!(from_orthonormal(&found.u, rows, k) < 1e-12, "U of {rows} × {columns}");
        let v = transposed(&found.vt, k, columns);
        assert!(from_orthonormal(&v, columns, k) < 1e-12, "V of {rows} × {columns}");
        let mut us = found.u.clone();
        us.chunks_exact_mut(k).for_each(|row| {
            row.iter_mut().zip(&found.s).for_each(|(value, s)| *value *= s);
        });
        let again = product(&us, &found.vt, rows, k, columns);
        assert!(largest_difference(&again, matrix) < 1e-12 * scale, "{rows} × {columns}");
        found
    }

    #[test]
    fn any_shape_is_put_together_again() {
        let shapes = [(1, 1), (1, 7), (7, 1), (5, 5), (33, 17), (17, 33), (64, 64), (100, 49)];
        for (seed, (rows, columns)) in shapes.into_iter().enumerate() {
            check(&random(rows * columns, seed as u64), rows, columns);
        }
    }

    #[test]
    fn the_singular_values_of_a_known_matrix() {
        // AᵀA = [[25, 20], [20, 25]], with eigenvalues 45 and 5.
        let found = check(&[3.0, 0.0, 4.0, 5.0], 2, 2);
        assert!(largest_difference(&found.s, &[45f64.sqrt(), 5f64.sqrt()]) < 1e-14);
    }

    #[test]
    fn a_matrix_of_low_rank_still_has_whole_bases() {
        let (rows, columns, rank) = (40, 30, 3);
        let low = product(&random(rows * rank, 1), &random(rank * columns, 2), rows, rank, columns);
        let found = check(&low, rows, columns);
        assert!(found.s[rank - 1] > 1.0 && found.s[rank] < 1e-12, "{:?}", &found.s[..5]);
        let zeros = check(&[0.0; 12], 4, 3);
        assert_eq!(zeros.s, [0.0; 3]);
    }

    #[test]
    fn small_singular_values_are_relatively_exact() {
        // The columns of a graded matrix: a method that squares it would lose all below 1e-8.
        let n = 12;
        let basis = qr(&random(n * n, 3), n, n).q;
        let sizes: Vec<f64> = (0..n).map(|j| 10f64.powi(-(j as i32))).collect();
        let graded: Vec<f64> = basis
            .chunks_exact(n)
            .flat_map(|row| row.iter().zip(&sizes).map(|(q, s)| q * s))
            .collect();
        let found = svd(&graded, n, n);
        for (found, size) in found.s.iter().zip(&sizes) {
            assert!((found / size - 1.0).abs() < 1e-12, "{found} is not {size}");
        }
    }

    #[test]
    fn numbers_far_from_one_neither_vanish_nor_overflow() {
        for scale in [1e-120, 1e120] {
            let matrix: Vec<f64> = random(20 * 10, 4).into_iter().map(|x| x * scale).collect();
            check(&matrix, 20, 10);
        }
    }

    #[test]
    fn q_and_r_are_what_they_should_be() {
        for (rows, columns) in [(1, 1), (6, 6), (50, 20), (20, 50), (40, 40)] {
            let k = rows.min(columns);
            let matrix = random(rows * columns, 5);
            let Qr { q, r } = qr(&matrix, rows, columns);
            assert!(from_orthonormal(&q, rows, k) < 1e-13);
            assert!(largest_difference(&product(&q, &r, rows, k, columns), &matrix) < 1e-12);
            for i in 0..k {
                assert!(
                    r[i * columns..][..i].iter().all(|value| *value == 0.0),
                    "below the diagonal"
                );
            }
        }
    }

    #[test]
    fn a_sketch_finds_what_stands_out() {
        let (rows, columns, rank) = (60, 45, 4);
        let mut matrix =
            product(&random(rows * rank, 6), &random(rank * columns, 7), rows, rank, columns);
        let noise = random(rows * columns, 8);
        matrix.iter_mut().zip(&noise).for_each(|(value, noise)| *value += 1e-3 * noise);
        let exact = svd(&matrix, rows, columns);
        let found = svd_sketch(&matrix, rows, columns, rank, 4, 0);
        assert_eq!((found.u.len(), found.vt.len()), (rows * rank, rank * columns));
        assert!(largest_difference(&found.s, &exact.s[..rank]) < 1e-9);
        for k in 0..rank {
            let row = |svd: &Svd| svd.vt[k * columns..][..columns].to_vec();
            assert!((dot(&row(&found), &row(&exact)).abs() - 1.0).abs() < 1e-9, "direction {k}");
        }
    }

    #[test]
    fn everyone_meets_everyone() {
        for count in [2usize, 4, 6, 12] {
            let mut seats: Vec<usize> = (0..count).collect();
            let mut met = std::collections::BTreeSet::new();
            for _ in 1..count {
                for pair in seats.chunks_exact(2) {
                    met.insert((pair[0].min(pair[1]), pair[0].max(pair[1])));
                }
                next_round(&mut seats);
            }
            assert_eq!(met.len(), count * (count - 1) / 2, "{count} seats");
        }
    }
}
