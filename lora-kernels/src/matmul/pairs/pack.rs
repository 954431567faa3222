//! The right side of a product of pairs, packed.

use std::ops::Range;

use half::bf16;

use crate::matmul::{Patch, Right};
use crate::number::Number;
use crate::pairs::{BLOCK, DEPTH, Engine, SIDE, high_and_low};
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
    let mut laid = Laid([bf16::ZERO; BLOCK]);
    for block in blocks.clone() {
        let into = &mut into[block * BLOCK..][..BLOCK];
        let rows = block * DEPTH..(block + 1) * DEPTH;
        if let Some((from, steps)) = whole_block(right, &columns, &rows, part) {
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

/// Packs a side in f32 to be multiplied with high, low and high parts: its own high, high and low parts below each
/// other.
pub(super) fn in_parts(
    right: &Right<'_, f32>,
    engine: Engine,
    columns: Range<usize>,
    blocks: usize,
    into: &mut [bf16],
) {
    let depth = right.depth();
    let mut laid = Laid([bf16::ZERO; BLOCK]);
    for (block, into) in into.chunks_exact_mut(BLOCK).take(blocks).enumerate() {
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
