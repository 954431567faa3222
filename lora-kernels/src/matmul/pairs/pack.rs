//! The right side of a product of pairs, packed.

use std::ops::Range;

use half::bf16;

use crate::matmul::tile::prefetch;
use crate::matmul::{Patch, Right};
use crate::number::Number;
use crate::pairs::{BLOCK, DEPTH, Engine, SIDE, THIRDS, first_line, high_and_low, split};
use crate::parallel::wide;

/// What of a number is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: the numbers are bf16.
    Whole,
    /// The nearest bf16 number.
    High,
    /// What that leaves, as bf16.
    Low,
}

/// A block before it is packed, `[DEPTH, SIDE]`.
#[repr(align(64))]
struct Laid([bf16; BLOCK]);

/// Packs some blocks of the panel of `columns`, the first of them at the beginning; gives those that hold anything, and
/// packs only those.
pub(super) fn panel<T: Number>(
    right: &Right<'_, T>,
    engine: Engine,
    columns: Range<usize>,
    part: Part,
    all: Range<usize>,
    into: &mut [bf16],
) -> Range<usize> {
    let blocks = used(right, &columns, &all);
    let mut laid = Laid([bf16::ZERO; BLOCK]);
    for block in blocks.clone() {
        let into = &mut into[(block - all.start) * BLOCK..][..BLOCK];
        let rows = block * DEPTH..(block + 1) * DEPTH;
        if let Some((from, steps)) = whole_block(right, &columns, &rows, part) {
            ask_for_next(from, steps);
            engine.pack(from, steps, into);
        } else {
            wide(
                #[inline(always)]
                || {
                    laid.0.fill(bf16::ZERO);
                    laid.lay(right, &columns, rows.clone(), part, 0);
                },
            );
            engine.pack(&laid.0, [SIDE, 1], into);
        }
    }
    blocks
}

/// The blocks that hold anything in these columns.
fn used<T: Number>(
    right: &Right<'_, T>,
    columns: &Range<usize>,
    blocks: &Range<usize>,
) -> Range<usize> {
    let rows = blocks.start * DEPTH..(blocks.end * DEPTH).min(right.depth());
    let rows = right.rows_of(columns.clone(), &rows);
    rows.start / DEPTH..rows.end.div_ceil(DEPTH)
}

/// Packs a side in f32 to be multiplied with high, low and high parts: its own high, high and low parts below each
/// other.
pub(super) fn in_parts(
    right: &Right<'_, f32>,
    engine: Engine,
    columns: Range<usize>,
    blocks: Range<usize>,
    into: &mut [bf16],
) -> Range<usize> {
    let depth = right.depth();
    let mut laid = Laid([bf16::ZERO; BLOCK]);
    for (block, into) in blocks.clone().zip(into.chunks_exact_mut(BLOCK)) {
        let all = block * DEPTH..(block + 1) * DEPTH;
        wide(
            #[inline(always)]
            || {
                laid.0.fill(bf16::ZERO);
                for (index, part) in [Part::High, Part::High, Part::Low].into_iter().enumerate() {
                    let start = index * depth;
                    let rows = all.start.max(start)..all.end.min(start + depth);
                    if rows.start < rows.end {
                        let own = rows.start - start..rows.end - start;
                        laid.lay(right, &columns, own, part, rows.start - all.start);
                    }
                }
            },
        );
        engine.pack(&laid.0, [SIDE, 1], into);
    }
    blocks
}

/// As [`panel`], in all thirds or some of them, `[blocks, thirds, BLOCK]`.
pub(super) fn thirds<T: Number>(
    right: &Right<'_, T>,
    engine: Engine,
    columns: Range<usize>,
    which: Range<usize>,
    all: Range<usize>,
    into: &mut [bf16],
) -> Range<usize> {
    let blocks = used(right, &columns, &all);
    let mut laid = [const { Laid([bf16::ZERO; BLOCK]) }; THIRDS];
    for block in blocks.clone() {
        let rows = block * DEPTH..(block + 1) * DEPTH;
        let columns_are_lines = wide(
            #[inline(always)]
            || lay_thirds(right, &columns, &rows, &mut laid),
        );
        let steps = if columns_are_lines { [1, DEPTH] } else { [SIDE, 1] };
        let into = into[(block - all.start) * which.len() * BLOCK..].chunks_exact_mut(BLOCK);
        laid[which.clone()]
            .iter()
            .zip(into)
            .for_each(|(laid, into)| engine.pack(&laid.0, steps, into));
    }
    blocks
}

/// Lays a block in thirds, rows or columns as lines; whether it is columns.
#[inline(always)]
fn lay_thirds<T: Number>(
    right: &Right<'_, T>,
    columns: &Range<usize>,
    rows: &Range<usize>,
    laid: &mut [Laid; THIRDS],
) -> bool {
    let [high, middle, low] = laid.each_mut().map(|laid| laid.0.as_chunks_mut::<SIDE>().0);
    if let Some((patch, of_rows, of_columns)) = right.overlaps(columns, rows).next()
        && [of_rows.len(), of_columns.len()] == [DEPTH, SIDE]
    {
        let line_step = patch.line_step();
        let from = patch.from(rows.start, columns.start);
        ask_for_next(from, patch.steps);
        for at in 0..SIDE {
            let line = first_line(&from[at * line_step..]);
            split(line, patch.scale, [&mut high[at], &mut middle[at], &mut low[at]]);
        }
        return patch.steps[1] != 1;
    }
    let mut block = [[0.0; SIDE]; DEPTH];
    for (patch, of_rows, of_columns) in right.overlaps(columns, rows) {
        for row in of_rows {
            let from = patch.from(row, of_columns.start).iter().step_by(patch.steps[1]);
            let into = &mut block[row - rows.start][of_columns.start - columns.start..];
            let into = into[..of_columns.len()].iter_mut();
            into.zip(from).for_each(|(into, number)| *into = number.to_f32() * patch.scale);
        }
    }
    for (at, line) in block.iter().enumerate() {
        split(line, 1.0, [&mut high[at], &mut middle[at], &mut low[at]]);
    }
    false
}

/// Asks for the lines of the cache that the next block of the depth lies in.
#[inline(always)]
fn ask_for_next<T>(from: &[T], [row_step, column_step]: [usize; 2]) {
    let next = from.as_ptr().wrapping_add(DEPTH * row_step);
    let step = row_step.max(column_step);
    for at in 0..SIDE {
        let line = next.wrapping_add(at * step);
        prefetch(line);
        if size_of::<T>() > 2 {
            prefetch(line.wrapping_byte_add(64));
        }
    }
}

/// The numbers of a block that lies whole in one patch, as they are wanted.
fn whole_block<'a, T: Number>(
    right: &Right<'a, T>,
    columns: &Range<usize>,
    rows: &Range<usize>,
    part: Part,
) -> Option<(&'a [bf16], [usize; 2])> {
    let (patch, of_rows, of_columns) = right.overlaps(columns, rows).next()?;
    let whole = of_rows.len() == DEPTH && of_columns.len() == SIDE && part == Part::Whole;
    let from = whole.then(|| patch.from(rows.start, columns.start))?;
    Some((T::as_bf16(from)?, patch.steps))
}

impl Laid {
    /// Lays rows of a panel from row `first` of the block on.
    #[inline(always)]
    fn lay<T: Number>(
        &mut self,
        right: &Right<'_, T>,
        columns: &Range<usize>,
        rows: Range<usize>,
        part: Part,
        first: usize,
    ) {
        for (patch, of_rows, of_columns) in right.overlaps(columns, &rows) {
            let Patch { steps, scale, .. } = *patch;
            for row in of_rows {
                let from = patch.from(row, of_columns.start);
                let at = (first + row - rows.start) * SIDE + of_columns.start - columns.start;
                let into = self.0[at..][..of_columns.len()].iter_mut();
                match (steps[1], part) {
                    (1, Part::Low) => into.zip(from).for_each(|(into, number)| {
                        *into = high_and_low(number.to_f32() * scale).1;
                    }),
                    (1, _) => into.zip(from).for_each(|(into, number)| {
                        *into = <bf16 as Number>::from_f32(number.to_f32() * scale);
                    }),
                    (step, _) => into.zip(from.iter().step_by(step)).for_each(|(into, number)| {
                        let (high, low) = high_and_low(number.to_f32() * scale);
                        *into = if part == Part::Low { low } else { high };
                    }),
                }
            }
        }
    }
}
