//! The left side of a product: packed, or read where it lies.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::pairs::Pairs;
use super::tile::tile_shape;
use crate::number::Number;
#[cfg(test)]
use crate::pairs::Engine;
use crate::pairs::best_engine;
use crate::parallel::wide;
use crate::scratch::Scratch;

/// A matrix `[m, k]`, ready to be a left side.
pub struct Left<'a> {
    kind: Kind<'a>,
    rows: usize,
    depth: usize,
}

pub(super) enum Kind<'a> {
    /// In f32, its rows interleaved as the innermost loop reads them: `[blocks, k, rows of a block]`; rows
    /// beyond the last are zero.
    Wide(Scratch),
    /// In bf16, or in thirds of f32, for instructions that multiply pairs.
    Pairs(Pairs<'a>),
}

impl<'a> Left<'a> {
    /// The `[rows, depth]` matrix whose rows are `stride` apart, packed; one in bf16 is read where it lies, if the processor
    /// multiplies such numbers in pairs, and one in f32 is split into three of such, if it does that fast enough, by each
    /// product that meets it.
    ///
    /// # Panics
    /// Where `matrix` is too short.
    pub fn pack<T: Number>(matrix: &'a [T], [rows, depth]: [usize; 2], stride: usize) -> Self {
        check(matrix, [rows, depth], stride);
        let kind = match (T::as_bf16(matrix), T::as_f32(matrix), best_engine()) {
            (Some(matrix), _, Some(engine)) => {
                Kind::Pairs(Pairs::new(engine, matrix, [rows, depth], stride))
            }
            (_, Some(matrix), Some(engine)) if engine.multiplies_thirds() => {
                Kind::Pairs(Pairs::thirds(engine, matrix, [rows, depth], [stride, 1]))
            }
            _ => Kind::Wide(interleaved(matrix, [rows, depth], stride)),
        };
        Self { kind, rows, depth }
    }

    /// Packs the transpose of the `[depth, rows]` matrix whose rows are `stride` apart.
    ///
    /// # Panics
    /// Where `matrix` is too short.
    pub fn turned<T: Number>(matrix: &'a [T], [depth, rows]: [usize; 2], stride: usize) -> Self {
        check(matrix, [depth, rows], stride);
        let kind = match (T::as_bf16(matrix), T::as_f32(matrix), best_engine()) {
            (Some(matrix), _, Some(engine)) => {
                Kind::Pairs(Pairs::transposed(engine, matrix, [depth, rows], stride))
            }
            (_, Some(matrix), Some(engine)) if engine.multiplies_thirds() => {
                Kind::Pairs(Pairs::thirds(engine, matrix, [rows, depth], [1, stride]))
            }
            _ => Kind::Wide(beside_each_other(matrix, [depth, rows], stride)),
        };
        Self { kind, rows, depth }
    }

    /// Packs a matrix of small depth that is multiplied beside `self`, [`super::Product::low_rank`].
    ///
    /// # Panics
    /// Where `matrix` is too short.
    pub fn pack_beside<'b>(
        &self,
        matrix: &'b [f32],
        [rows, depth]: [usize; 2],
        stride: usize,
    ) -> Left<'b> {
        check(matrix, [rows, depth], stride);
        let kind = match &self.kind {
            Kind::Pairs(main) if main.are_thirds() => Kind::Pairs(
                Pairs::thirds(main.engine(), matrix, [rows, depth], [stride, 1]).split_up(),
            ),
            Kind::Pairs(main) => {
                Kind::Pairs(Pairs::split(main.engine(), matrix, [rows, depth], stride))
            }
            Kind::Wide(_) => Kind::Wide(interleaved(matrix, [rows, depth], stride)),
        };
        Left { kind, rows, depth }
    }

    /// The same with f32 numbers split now, where several products would do it again: a single one does it sooner
    /// itself, if its right side is in bf16.
    #[must_use]
    pub fn split_up(self) -> Self {
        let kind = match self.kind {
            Kind::Pairs(pairs) if pairs.is_unsplit() => Kind::Pairs(pairs.split_up()),
            kind => kind,
        };
        Self { kind, ..self }
    }

    /// m.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// k.
    pub fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn kind(&self) -> &Kind<'a> {
        &self.kind
    }

    /// As [`Self::pack`], for one engine.
    #[cfg(test)]
    pub(super) fn for_engine(
        engine: Engine,
        matrix: &'a [half::bf16],
        [rows, depth]: [usize; 2],
        stride: usize,
    ) -> Self {
        let kind = Kind::Pairs(Pairs::new(engine, matrix, [rows, depth], stride));
        Self { kind, rows, depth }
    }

    /// A matrix in f32, whose rows and columns are so far apart, in thirds for one engine, or as it is.
    #[cfg(test)]
    pub(super) fn in_f32(
        engine: Option<Engine>,
        matrix: &'a [f32],
        [rows, depth]: [usize; 2],
        steps: [usize; 2],
    ) -> Self {
        let kind = match (engine, steps) {
            (Some(engine), _) => Kind::Pairs(Pairs::thirds(engine, matrix, [rows, depth], steps)),
            (None, [stride, 1]) => Kind::Wide(interleaved(matrix, [rows, depth], stride)),
            (None, [_, stride]) => Kind::Wide(beside_each_other(matrix, [depth, rows], stride)),
        };
        Self { kind, rows, depth }
    }
}

fn check<T>(matrix: &[T], [rows, depth]: [usize; 2], stride: usize) {
    let enough = rows * depth == 0 || matrix.len() >= (rows - 1) * stride + depth;
    assert!(enough, "left side too short");
}

fn interleaved<T: Number>(matrix: &[T], [rows, depth]: [usize; 2], stride: usize) -> Scratch {
    let block_rows = rows_of_a_block();
    let blocks = rows.div_ceil(block_rows);
    let mut numbers = Scratch::new(blocks * depth * block_rows);
    if rows > 0 && depth > 0 {
        let size = depth * block_rows;
        let each = |(block, into): (usize, &mut [f32])| {
            let first = block * block_rows;
            let valid = (rows - first).min(block_rows);
            let from = &matrix[first * stride..];
            wide(|| pack_block(from, (valid, stride), (into, block_rows)));
        };
        if rows * depth < 1 << 16 {
            numbers.chunks_exact_mut(size).enumerate().for_each(each);
        } else {
            numbers.par_chunks_exact_mut(size).enumerate().for_each(each);
        }
    }
    numbers
}

/// As [`interleaved`], of a matrix whose columns are the rows: what is interleaved lies so already.
fn beside_each_other<T: Number>(matrix: &[T], [depth, rows]: [usize; 2], stride: usize) -> Scratch {
    let block_rows = rows_of_a_block();
    let blocks = rows.div_ceil(block_rows);
    let mut numbers = Scratch::new(blocks * depth * block_rows);
    if rows > 0 && depth > 0 {
        let each = |(block, into): (usize, &mut [f32])| {
            let first = block * block_rows;
            let valid = (rows - first).min(block_rows);
            wide(|| {
                for (from, into) in matrix.chunks(stride).zip(into.chunks_exact_mut(block_rows)) {
                    let (numbers, beyond) = into.split_at_mut(valid);
                    let from = from[first..][..valid].iter();
                    numbers.iter_mut().zip(from).for_each(|(into, from)| *into = from.to_f32());
                    beyond.fill(0.0);
                }
            });
        };
        numbers.par_chunks_exact_mut(depth * block_rows).enumerate().for_each(each);
    }
    numbers
}

/// Where row `k` of a block begins in a packed matrix.
pub(super) fn row_of_block<const ROWS: usize>(
    packed: &[f32],
    depth: usize,
    block: usize,
    k: usize,
) -> *const f32 {
    packed[(block * depth + k) * ROWS..].as_ptr()
}

#[inline(always)]
fn pack_block<T: Number>(
    from: &[T],
    (valid, stride): (usize, usize),
    (into, block_rows): (&mut [f32], usize),
) {
    if valid < block_rows {
        into.fill(0.0);
    }
    let depth = into.len() / block_rows;
    // Runs of the depth, so that what is written stays in the nearest cache.
    for start in (0..depth).step_by(64) {
        let run = start..(start + 64).min(depth);
        let into = &mut into[start * block_rows..run.end * block_rows];
        for row in 0..valid {
            let from = &from[row * stride..][run.clone()];
            for (number, into) in from.iter().zip(into.chunks_exact_mut(block_rows)) {
                into[row] = number.to_f32();
            }
        }
    }
}

/// Rows of a block on this processor.
pub(super) fn rows_of_a_block() -> usize {
    struct Rows;
    impl WithSimd for Rows {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _simd: S) -> usize {
            tile_shape::<S>().0
        }
    }
    Arch::new().dispatch(Rows)
}
