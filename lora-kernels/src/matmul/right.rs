//! The right side of a product: matrices laid out beside, below and across each other.

use std::ops::Range;

use super::turn::{SIDE, Square};
use crate::number::Number;

/// A matrix `[k, n]` made of patches; zero where there is none.
pub struct Right<'a, T> {
    depth: usize,
    columns: usize,
    patches: Vec<Patch<'a, T>>,
}

/// A matrix somewhere in a right side, multiplied by `scale`.
#[derive(Clone, Copy)]
pub struct Patch<'a, T> {
    /// Its numbers.
    pub numbers: &'a [T],
    /// Its rows and columns.
    pub shape: [usize; 2],
    /// How far its rows and its columns are apart; one of both is 1.
    pub steps: [usize; 2],
    /// Its first row and column in the whole.
    pub place: [usize; 2],
    /// What it is multiplied by.
    pub scale: f32,
}

impl<'a, T: Number> Patch<'a, T> {
    /// The matrix as it lies, `[rows, columns]` row by row.
    pub fn straight(numbers: &'a [T], shape: [usize; 2], place: [usize; 2]) -> Self {
        Self { numbers, shape, steps: [shape[1], 1], place, scale: 1.0 }
    }

    /// The transpose, `[columns, rows]`, of a matrix that lies as `[rows, columns]` row by row.
    pub fn transposed(numbers: &'a [T], [rows, columns]: [usize; 2], place: [usize; 2]) -> Self {
        Self { numbers, shape: [columns, rows], steps: [1, columns], place, scale: 1.0 }
    }

    /// The transpose of the matrix, at its place in another whole.
    #[must_use]
    pub fn turned(self, place: [usize; 2]) -> Self {
        let ([rows, columns], [row, column]) = (self.shape, self.steps);
        Self { shape: [columns, rows], steps: [column, row], place, ..self }
    }

    /// The same, multiplied by `scale`.
    #[must_use]
    pub fn scaled(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// The numbers from a row and column of the whole on.
    pub(super) fn from(&self, row: usize, column: usize) -> &'a [T] {
        let at = (row - self.place[0]) * self.steps[0] + (column - self.place[1]) * self.steps[1];
        &self.numbers[at..]
    }

    /// How far those of its rows or columns are apart that lie dense.
    pub(super) fn line_step(&self) -> usize {
        let [rows, columns] = self.steps;
        if columns == 1 { rows } else { columns }
    }

    fn rows(&self) -> Range<usize> {
        self.place[0]..self.place[0] + self.shape[0]
    }

    fn columns(&self) -> Range<usize> {
        self.place[1]..self.place[1] + self.shape[1]
    }
}

impl<'a, T: Number> Right<'a, T> {
    /// The matrix `[depth, columns]` made of `patches`, which do not overlap.
    ///
    /// # Panics
    /// Where a patch does not fit or has fewer numbers than it says.
    pub fn new([depth, columns]: [usize; 2], patches: Vec<Patch<'a, T>>) -> Self {
        for patch in &patches {
            assert!(patch.rows().end <= depth && patch.columns().end <= columns, "patch outside");
            let [rows, width] = patch.shape;
            let last =
                rows.saturating_sub(1) * patch.steps[0] + width.saturating_sub(1) * patch.steps[1];
            assert!(rows * width == 0 || last < patch.numbers.len(), "patch too short");
            assert!(patch.steps.contains(&1), "patch with gaps both ways");
        }
        Self { depth, columns, patches }
    }

    /// Whether every number is bf16 as it is.
    pub(super) fn is_exact(&self) -> bool {
        T::as_bf16(&[]).is_some() && self.patches.iter().all(|patch| patch.scale == 1.0)
    }

    /// The patches that reach into these columns and rows, with what each has of both.
    pub(super) fn overlaps(
        &self,
        columns: &Range<usize>,
        rows: &Range<usize>,
    ) -> impl Iterator<Item = (&Patch<'a, T>, Range<usize>, Range<usize>)> {
        self.patches.iter().filter_map(move |patch| {
            let rows = patch.rows().start.max(rows.start)..patch.rows().end.min(rows.end);
            let wide =
                patch.columns().start.max(columns.start)..patch.columns().end.min(columns.end);
            (!rows.is_empty() && !wide.is_empty()).then_some((patch, rows, wide))
        })
    }

    /// k.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// n.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The rows within `range` that are not zero somewhere in these columns.
    pub(super) fn rows_of(&self, columns: Range<usize>, range: &Range<usize>) -> Range<usize> {
        let mut used = range.end..range.start;
        for patch in &self.patches {
            let rows = patch.rows();
            let overlaps =
                patch.columns().start < columns.end && columns.start < patch.columns().end;
            let (start, end) = (rows.start.max(range.start), rows.end.min(range.end));
            if overlaps && start < end {
                used = used.start.min(start)..used.end.max(end);
            }
        }
        if used.start < used.end { used } else { range.start..range.start }
    }

    /// Packs rows `range` of `columns` into `into`, `[range, width]`; of those only the rows that
    /// [`Self::rows_of`] names, and zeros beyond the columns.
    #[inline(always)]
    pub(super) fn pack(
        &self,
        range: Range<usize>,
        columns: Range<usize>,
        width: usize,
        into: &mut [f32],
    ) {
        let used = self.rows_of(columns.clone(), &range);
        let covered = self.overlaps(&columns, &used);
        let covered: usize = covered.map(|(_, rows, wide)| rows.len() * wide.len()).sum();
        if covered < used.len() * width {
            into[(used.start - range.start) * width..(used.end - range.start) * width].fill(0.0);
        }
        for (patch, rows, wide) in self.overlaps(&columns, &used) {
            let at = (rows.start - range.start) * width + wide.start - columns.start;
            let size = [rows.len(), wide.len()];
            let from = patch.from(rows.start, wide.start);
            copy(from, patch.steps, patch.scale, size, &mut into[at..], width);
        }
    }
}

#[inline(always)]
fn copy<T: Number>(
    from: &[T],
    [row_step, column_step]: [usize; 2],
    scale: f32,
    [rows, columns]: [usize; 2],
    into: &mut [f32],
    width: usize,
) {
    if column_step == 1 {
        for row in 0..rows {
            let from = &from[row * row_step..][..columns];
            let into = &mut into[row * width..][..columns];
            for (into, number) in into.iter_mut().zip(from) {
                *into = number.to_f32() * scale;
            }
        }
        return;
    }
    // Columns lie as rows: a few rows of the panel at a time, so that lines are used whole.
    let mut square = Square([0.0; SIDE * SIDE]);
    for start in (0..rows).step_by(SIDE) {
        let run = SIDE.min(rows - start);
        // Whole squares are turned in registers.
        let squares = if run == SIDE && row_step == 1 { columns / SIDE } else { 0 };
        for first in (0..squares).map(|index| index * SIDE) {
            for (column, line) in square.0.chunks_exact_mut(SIDE).enumerate() {
                let from = &from[(first + column) * column_step + start..][..SIDE];
                for (into, number) in line.iter_mut().zip(from) {
                    *into = number.to_f32() * scale;
                }
            }
            square.turn(&mut into[start * width + first..], width);
        }
        for column in squares * SIDE..columns {
            let from = &from[column * column_step + start * row_step..];
            let into = &mut into[start * width + column..];
            if row_step == 1 {
                for (row, number) in from[..run].iter().enumerate() {
                    into[row * width] = number.to_f32() * scale;
                }
            } else {
                for row in 0..run {
                    into[row * width] = from[row * row_step].to_f32() * scale;
                }
            }
        }
    }
}
