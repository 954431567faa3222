//! Products with few rows: gradients of low-rank factors, and single tokens.

use std::ops::Range;

use pulp::{Arch, NullaryFnOnce, Simd, WithSimd};
use rayon::prelude::*;

use super::tile::{lanes, prefetch, tile};
use super::{Beside, Shared};
use crate::blocks::{Blocks, PIECE, group_sums};
use crate::number::Number;
use crate::parallel::wide;

/// Rows of the left side that are taken at once.
const ROWS: usize = 8;
/// Steps of the depth that are taken for all columns before the next.
const DEPTH: usize = 32;

/// `out = Lᵀ·R`: `out[i, j] = Σₖ left[k, i]·right[k, j]`, without packing either side.
///
/// # Shapes
/// - left: `[k, m]`, rows `left_stride` apart; m is small
/// - right: `[k, n]`, rows `right_stride` apart
/// - out: `[m, n]`
///
/// # Panics
/// Where a slice is too short.
pub fn thin_product<T: Number>(
    (left, left_stride): (&[f32], usize),
    (right, right_stride): (&[T], usize),
    [depth, rows, columns]: [usize; 3],
    out: &mut [f32],
) {
    assert_eq!(out.len(), rows * columns, "output of {rows} x {columns}");
    if depth == 0 {
        out.fill(0.0);
    }
    if depth == 0 || out.is_empty() {
        return;
    }
    assert!(left.len() >= (depth - 1) * left_stride + rows, "left side too short");
    assert!(right.len() >= (depth - 1) * right_stride + columns, "right side too short");
    let sides = Sides { left, left_stride, right, right_stride, depth, rows, columns };
    Arch::new().dispatch(Thin { sides, out: Shared(out.as_mut_ptr()) });
}

#[derive(Clone, Copy)]
struct Sides<'a, T> {
    left: &'a [f32],
    left_stride: usize,
    right: &'a [T],
    right_stride: usize,
    depth: usize,
    rows: usize,
    columns: usize,
}

struct Thin<'a, T> {
    sides: Sides<'a, T>,
    out: Shared<f32>,
}

impl<T: Number> WithSimd for Thin<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many sums as there are registers for.
        match S::REGISTER_COUNT >= 32 && self.sides.columns >= 3 * lanes::<S>() {
            true => self.by_strips::<S, 3>(simd),
            false => self.by_strips::<S, 1>(simd),
        }
    }
}

impl<T: Number> Thin<'_, T> {
    #[inline(always)]
    fn by_strips<S: Simd, const VECTORS: usize>(self, simd: S) {
        let Self { sides, out } = self;
        let panels = sides.columns.div_ceil(VECTORS * lanes::<S>());
        let threads = rayon::current_num_threads();
        let at_once = panels.div_ceil(3 * threads).max(2);
        let each = |part: usize| {
            let panels = part * at_once..((part + 1) * at_once).min(panels);
            simd.vectorize(Strip::<S, T, VECTORS> { simd, sides, out, panels });
        };
        let parts = panels.div_ceil(at_once);
        if sides.depth * sides.rows * sides.columns < 1 << 16 {
            (0..parts).for_each(each);
        } else {
            (0..parts).into_par_iter().for_each(each);
        }
    }
}

/// Some columns of the output, in panels of as many vectors.
struct Strip<'a, S, T, const VECTORS: usize> {
    simd: S,
    sides: Sides<'a, T>,
    out: Shared<f32>,
    panels: Range<usize>,
}

impl<S: Simd, T: Number, const VECTORS: usize> NullaryFnOnce for Strip<'_, S, T, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, sides, out, panels } = self;
        let wide = VECTORS * lanes::<S>();
        let blocks = sides.rows.div_ceil(ROWS);
        let readable = (sides.depth - 1) * sides.left_stride + blocks * ROWS <= sides.left.len();
        if !readable || sides.columns < wide {
            let end = (panels.end * wide).min(sides.columns);
            return sides.one_by_one(panels.start * wide..end, out);
        }
        // The last panel begins earlier, so that it is whole.
        let column_of = |panel: usize| (panel * wide).min(sides.columns - wide);
        let mut all = vec![[[simd.splat_f32s(0.0); VECTORS]; ROWS]; panels.len() * blocks];
        // A part of the depth for all columns, so that rows are read from one end to the other.
        for start in (0..sides.depth).step_by(DEPTH) {
            let steps = DEPTH.min(sides.depth - start);
            for (panel, all) in panels.clone().zip(all.chunks_exact_mut(blocks)) {
                for (block, sums) in all.iter_mut().enumerate() {
                    // SAFETY: whole tiles lie within both sides.
                    unsafe {
                        let left =
                            sides.left.as_ptr().add(start * sides.left_stride + block * ROWS);
                        let right = start * sides.right_stride + column_of(panel);
                        let right = sides.right.as_ptr().add(right);
                        let sides = ((left, sides.left_stride), (right, sides.right_stride));
                        tile(simd, steps, sides.0, sides.1, sums);
                    }
                }
            }
        }
        for (panel, all) in panels.zip(all.chunks_exact(blocks)) {
            let column = panel * wide;
            for (row, sums) in all.as_flattened().iter().enumerate().take(sides.rows) {
                let sums: &[f32] = &bytemuck::cast_slice(sums)[column - column_of(panel)..];
                // SAFETY: within the output; no other strip has these columns.
                unsafe {
                    let at = out.get().add(row * sides.columns + column);
                    at.copy_from_nonoverlapping(sums.as_ptr(), sums.len());
                }
            }
        }
    }
}

impl<T: Number> Sides<'_, T> {
    /// Where a tile does not fit.
    fn one_by_one(&self, columns: Range<usize>, out: Shared<f32>) {
        for row in 0..self.rows {
            for column in columns.clone() {
                let terms = (0..self.depth).map(|k| {
                    let right = self.right[k * self.right_stride + column].to_f32();
                    self.left[k * self.left_stride + row] * right
                });
                let sum: f32 = terms.sum();
                // SAFETY: within the output; no other strip has this column.
                unsafe { *out.get().add(row * self.columns + column) = sum };
            }
        }
    }
}

/// Columns that the left side of [`thin_product`] should have for `rows` rows of output that may begin
/// anywhere in it: what it reads beyond them is not used, but must be there.
pub fn thin_width(rows: usize) -> usize {
    (rows + ROWS - 1).next_multiple_of(ROWS)
}

/// `out = left·right` for few rows, of a right side that is narrow and small.
///
/// # Shapes
/// - left: `[m, k]`, right: `[k, n]`, out: `[m, n]`
///
/// # Panics
/// Where a slice is too short.
pub(super) fn few_rows(
    left: &[f32],
    right: &[f32],
    [rows, depth, columns]: [usize; 3],
    out: &mut [f32],
) {
    assert!(left.len() >= rows * depth && right.len() >= depth * columns, "a side is too short");
    let compute = || {
        for (row, out) in out.chunks_exact_mut(columns.max(1)).take(rows).enumerate() {
            let left = &left[row * depth..][..depth];
            for (block, out) in out.chunks_mut(ROWS).enumerate() {
                // Two sums, so that one step need not wait for the one before.
                let mut sums = [[0.0; ROWS]; 2];
                for (k, factor) in left.iter().enumerate() {
                    let right = &right[k * columns + block * ROWS..][..out.len()];
                    prefetch(right.as_ptr().wrapping_add(2 * AHEAD / size_of::<f32>()));
                    let sums = &mut sums[k % 2];
                    match right.first_chunk::<ROWS>() {
                        Some(right) => (0..ROWS).for_each(|at| sums[at] += factor * right[at]),
                        None => (0..right.len()).for_each(|at| sums[at] += factor * right[at]),
                    }
                }
                (0..out.len()).for_each(|at| out[at] = sums[0][at] + sums[1][at]);
            }
        }
    };
    wide(compute);
}

/// The rows of a weight as they are stored, `[n, k]`.
#[derive(Clone, Copy)]
pub enum Rows<'a, T> {
    /// Number by number.
    Dense(&'a [T]),
    /// In few bits.
    Packed(&'a Blocks),
}

impl<T> Rows<'_, T> {
    /// n, and the bytes of a row.
    fn size(&self, depth: usize) -> [usize; 2] {
        match self {
            Self::Dense(numbers) => [numbers.len() / depth, depth * size_of::<T>()],
            Self::Packed(blocks) => {
                let [rows, columns] = blocks.shape();
                assert_eq!(columns, depth, "depth of a packed weight");
                [rows, blocks.bytes() / rows.max(1)]
            }
        }
    }
}

/// A weight as it is stored, with the low-rank updates of its outputs.
pub struct Stored<'a, T> {
    /// `[n, k]`
    pub weight: Rows<'a, T>,
    /// First column of its outputs.
    pub place: usize,
    /// What is added to its outputs.
    pub updates: Vec<Beside<'a>>,
}

/// `out[i, place + j] = Σₖ left[i, k]·weight[j, k] + s·Σᵣ (x·A)[i, r]·B[r, j]`: few rows against the rows of
/// weights as they are stored. Each weight is read once, for all rows.
///
/// # Shapes
/// - left: `[m, k]`, m small
/// - out: m rows, `stride` apart
///
/// # Panics
/// Where a slice is too short.
pub fn dot_rows<T: Number>(
    left: &[f32],
    weights: &[Stored<'_, T>],
    [rows, depth]: [usize; 2],
    out: &mut [f32],
    stride: usize,
) {
    assert!(left.len() >= rows * depth, "left side too short");
    if depth == 0 || rows == 0 {
        out.fill(0.0);
        return;
    }
    let mut tasks = Vec::new();
    for stored in weights {
        let [columns, row_bytes] = stored.weight.size(depth);
        // About as much weight for a task as is worth waking a thread.
        let at_once = ((64 << 10) / row_bytes.max(1)).max(4);
        assert!(out.len() >= (rows - 1) * stride + stored.place + columns, "output too short");
        assert!(
            stored.updates.iter().all(|update| update.columns() == columns),
            "width of an update"
        );
        let starts = (0..columns).step_by(at_once);
        tasks.extend(starts.map(|start| (stored, start..(start + at_once).min(columns))));
    }
    let out = Shared(out.as_mut_ptr());
    let each = |(stored, columns): (&Stored<'_, T>, Range<usize>)| {
        // SAFETY: the columns of one weight lie within a row of the output, as asserted.
        let out = Shared(unsafe { out.get().add(stored.place) });
        Dots { left, rows, depth, columns, out, stride }.compute(stored);
    };
    if tasks.len() <= 2 {
        tasks.into_iter().for_each(each);
    } else {
        tasks.into_par_iter().for_each(each);
    }
}

/// Bytes that are asked for before they are read.
const AHEAD: usize = 1024;

/// Some columns of the product of a few rows with one weight.
struct Dots<'a> {
    left: &'a [f32],
    rows: usize,
    depth: usize,
    columns: Range<usize>,
    out: Shared<f32>,
    stride: usize,
}

impl Dots<'_> {
    /// Each kind of weight, and the updates, in a function of their own: together they are too long for what is
    /// inlined to be compiled well.
    fn compute<T: Number>(self, stored: &Stored<'_, T>) {
        let sizes = [self.rows, self.depth];
        for update in &stored.updates {
            if self.columns.start == 0 {
                update.prepare(self.left, sizes);
            }
            update.ask_for(&self.columns);
        }
        match stored.weight {
            Rows::Dense(weight) => Arch::new().dispatch(DenseDots { dots: &self, weight }),
            Rows::Packed(blocks) => Arch::new().dispatch(PackedDots { dots: &self, blocks }),
        }
        for row in 0..self.rows {
            // SAFETY: within the output; each column belongs to one task.
            let out = unsafe {
                let at = self.out.get().add(row * self.stride + self.columns.start);
                std::slice::from_raw_parts_mut(at, self.columns.len())
            };
            for update in &stored.updates {
                update.add(self.left, sizes, row, &self.columns, out);
            }
        }
    }

    /// Where a number of the output is.
    ///
    /// # Safety
    /// The row and the column are of this task.
    #[inline(always)]
    unsafe fn at(&self, row: usize, column: usize) -> *mut f32 {
        // SAFETY: within the output, as it was asserted; each column belongs to one task.
        unsafe { self.out.get().add(row * self.stride + column) }
    }
}

struct DenseDots<'a, T> {
    dots: &'a Dots<'a>,
    weight: &'a [T],
}

impl<T: Number> WithSimd for DenseDots<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { dots, weight } = self;
        let Dots { left, rows, depth, ref columns, .. } = *dots;
        // One row after another, so that memory is read from one end to the other; several sums, so that one
        // step need not wait for the one before.
        const SUMS: usize = 4;
        let width = lanes::<S>();
        let whole = depth / (SUMS * width) * (SUMS * width);
        for column in columns.clone() {
            let weights = &weight[column * depth..][..depth];
            for row in 0..rows {
                let left = &left[row * depth..][..depth];
                let mut sums = [simd.splat_f32s(0.0); SUMS];
                let mut k = 0;
                while k < whole {
                    for sum in &mut sums {
                        // SAFETY: a vector at k lies within both rows; what lies beyond is not read but
                        // asked for.
                        unsafe {
                            let at = weights.as_ptr().add(k);
                            let factor = f32::load(simd, left.as_ptr().add(k));
                            *sum = simd.mul_add_e_f32s(factor, T::load(simd, at), *sum);
                        }
                        k += width;
                    }
                    prefetch(weights.as_ptr().wrapping_add(k + AHEAD / size_of::<T>()));
                    prefetch(weights.as_ptr().wrapping_add(k + (AHEAD + 64) / size_of::<T>()));
                }
                let rest = left[whole..].iter().zip(&weights[whole..]);
                let rest: f32 = rest.map(|(left, right)| left * right.to_f32()).sum();
                let [a, b, c, d] = sums;
                let sum = simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d));
                let sum = simd.reduce_sum_f32s(sum) + rest;
                // SAFETY: of this task.
                unsafe { *dots.at(row, column) = sum };
            }
        }
    }
}

/// As [`DenseDots`]: pieces of the weight are unpacked where they are met, once for all rows.
struct PackedDots<'a> {
    dots: &'a Dots<'a>,
    blocks: &'a Blocks,
}

impl WithSimd for PackedDots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const SUMS: usize = 4;
        const ROWS_AT_ONCE: usize = 4;
        let Self { dots, blocks } = self;
        let Dots { left, rows, depth, ref columns, .. } = *dots;
        let width = lanes::<S>();
        let mut piece = [0.0; PIECE];
        let sums = if rows == 1 { group_sums(&left[..depth]) } else { Vec::new() };
        for column in columns.clone() {
            if rows == 1
                && let Some(sum) = blocks.dot(simd, column, &left[..depth], &sums)
            {
                // SAFETY: of this task.
                unsafe { *dots.at(0, column) = sum };
                continue;
            }
            for first in (0..rows).step_by(ROWS_AT_ONCE) {
                let count = ROWS_AT_ONCE.min(rows - first);
                let mut sums = [[simd.splat_f32s(0.0); SUMS]; ROWS_AT_ONCE];
                let mut rest = [0.0; ROWS_AT_ONCE];
                for start in (0..depth).step_by(PIECE) {
                    let piece = &mut piece[..PIECE.min(depth - start)];
                    blocks.piece(column, start, piece);
                    let whole = piece.len() / width * width;
                    for row in 0..count {
                        let left = &left[(first + row) * depth + start..][..piece.len()];
                        let mut k = 0;
                        while k < whole {
                            let sum = &mut sums[row][k / width % SUMS];
                            // SAFETY: a vector at k lies within both.
                            unsafe {
                                let factor = f32::load(simd, left.as_ptr().add(k));
                                let weight = f32::load(simd, piece.as_ptr().add(k));
                                *sum = simd.mul_add_e_f32s(factor, weight, *sum);
                            }
                            k += width;
                        }
                        let terms = left[whole..].iter().zip(&piece[whole..]);
                        rest[row] += terms.map(|(left, right)| left * right).sum::<f32>();
                    }
                }
                for row in 0..count {
                    let [a, b, c, d] = sums[row];
                    let sum = simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d));
                    let sum = simd.reduce_sum_f32s(sum) + rest[row];
                    // SAFETY: of this task.
                    unsafe { *dots.at(first + row, column) = sum };
                }
            }
        }
    }
}
