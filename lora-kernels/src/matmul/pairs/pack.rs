//! The right side of a product of pairs, packed.

use std::ops::Range;

use half::bf16;

use crate::matmul::{Patch, Right};
use crate::number::Number;
use crate::pairs::{BLOCK, DEPTH, Engine, SIDE, high_and_low, place};

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

/// Packs the panel of `columns`; gives the blocks that hold anything, and packs only those.
pub(super) fn panel<T: Number>(
    right: &Right<'_, T>,
    engine: Engine,
    columns: Range<usize>,
    part: Part,
    into: &mut [bf16],
) -> Range<usize> {
    let rows = right.rows_of(columns.clone(), &(0..right.depth()));
    let blocks = rows.start / DEPTH..rows.end.div_ceil(DEPTH);
    let covered = right.overlaps(&columns, &rows).map(|(_, rows, columns)| rows.len() * columns.len());
    if covered.sum::<usize>() < blocks.len() * BLOCK {
        into[blocks.start * BLOCK..blocks.end * BLOCK].fill(bf16::ZERO);
    }
    for (patch, rows, wide) in right.overlaps(&columns, &rows) {
        let whole = wide.len() == SIDE && part == Part::Whole;
        let mut row = rows.start;
        while row < rows.end {
            let end = rows.end.min((row / DEPTH + 1) * DEPTH);
            let from = patch.from(row, wide.start);
            match T::as_bf16(from) {
                Some(from) if whole && end - row == DEPTH => {
                    let into = &mut into[row / DEPTH * BLOCK..][..BLOCK];
                    engine.pack(from, patch.steps, into);
                }
                _ => {
                    let first = wide.start - columns.start;
                    one_by_one(patch, row..end, wide.clone(), part, (row, first), into);
                }
            }
            row = end;
        }
    }
    blocks
}

/// Packs all rows of the depth from row `first` of the panel on.
pub(super) fn spread<T: Number>(
    right: &Right<'_, T>,
    columns: Range<usize>,
    part: Part,
    first: usize,
    into: &mut [bf16],
) {
    for (patch, rows, wide) in right.overlaps(&columns, &(0..right.depth())) {
        let at = (first + rows.start, wide.start - columns.start);
        one_by_one(patch, rows, wide, part, at, into);
    }
}

fn one_by_one<T: Number>(
    patch: &Patch<'_, T>,
    rows: Range<usize>,
    columns: Range<usize>,
    part: Part,
    (first_row, first_column): (usize, usize),
    into: &mut [bf16],
) {
    for (row_index, row) in rows.enumerate() {
        let from = patch.from(row, columns.start);
        for column in 0..columns.len() {
            let number = from[column * patch.steps[1]].to_f32() * patch.scale;
            let (high, low) = high_and_low(number);
            into[place(first_row + row_index, first_column + column)] =
                if part == Part::Low { low } else { high };
        }
    }
}
