//! A low-rank update beside a weight that few rows are multiplied with.

use std::ops::Range;
use std::sync::OnceLock;

use super::Patch;
use super::thin::few_rows;
use super::tile::prefetch;
use crate::parallel;

/// Numbers in a line of the cache.
const LINE: usize = 16;
/// Numbers of a column of B that are multiplied at once.
const PART: usize = 8;

/// `s·(x·A)·B`, added to the products with a weight. `x·A` is computed once, by whoever needs it first, so that
/// reading A keeps no other thread from reading weights.
pub struct Beside<'a> {
    a: &'a [f32],
    b: Patch<'a, f32>,
    scale: f32,
    narrow: OnceLock<Vec<f32>>,
}

impl<'a> Beside<'a> {
    /// The update `scale·A·B` of a weight `[k, n]`; one token reads B faster where it lies as its transpose.
    ///
    /// # Shapes
    /// - a: `[k, rank]`
    /// - b: `[rank, n]`, straight or transposed
    ///
    /// # Panics
    /// Where a slice is too short.
    pub fn new(a: &'a [f32], b: Patch<'a, f32>, scale: f32, depth: usize) -> Self {
        let [rank, columns] = b.shape;
        assert!(a.len() >= depth * rank && b.numbers.len() >= rank * columns, "update too short");
        Self { a, b, scale, narrow: OnceLock::new() }
    }

    fn rank(&self) -> usize {
        self.b.shape[0]
    }

    /// n.
    pub(super) fn columns(&self) -> usize {
        self.b.shape[1]
    }

    /// Whether the numbers of one column lie next to each other.
    fn is_transposed(&self) -> bool {
        self.b.steps[0] == 1
    }

    /// `s·x·A`, `[m, rank]`, for those tasks that still need it.
    pub(super) fn prepare(&self, left: &[f32], sizes: [usize; 2]) {
        let _ = self.narrow.set(self.narrow(left, sizes));
    }

    /// Asks for these columns of B.
    pub(super) fn ask_for(&self, columns: &Range<usize>) {
        if self.is_transposed() {
            let rank = self.rank();
            let lines = self.b.numbers[columns.start * rank..columns.end * rank].chunks(LINE);
            return lines.for_each(|line| prefetch(line.as_ptr()));
        }
        for row in self.b.numbers.chunks(self.columns().max(1)).take(self.rank()) {
            for place in columns.clone().step_by(LINE) {
                prefetch(row[place..].as_ptr());
            }
        }
    }

    /// Adds the update of these columns to a row of the output.
    pub(super) fn add(
        &self,
        left: &[f32],
        sizes: [usize; 2],
        row: usize,
        columns: &Range<usize>,
        out: &mut [f32],
    ) {
        let own;
        let narrow = match self.narrow.get() {
            Some(narrow) => narrow,
            // Another thread may be at it; to do it too takes less than to wait.
            None => {
                own = self.narrow(left, sizes);
                &own
            }
        };
        let rank = self.rank();
        let narrow = &narrow[row * rank..][..rank];
        let b = self.b.numbers;
        parallel::wide(|| {
            if self.is_transposed() {
                return add_columns(narrow, &b[columns.start * rank..columns.end * rank], out);
            }
            for (factor, wide) in narrow.iter().zip(b.chunks(self.columns())) {
                let wide = &wide[columns.clone()];
                out.iter_mut().zip(wide).for_each(|(out, wide)| *out += factor * wide);
            }
        });
    }

    fn narrow(&self, left: &[f32], [rows, depth]: [usize; 2]) -> Vec<f32> {
        let mut narrow = vec![0.0; rows * self.rank()];
        few_rows(left, self.a, [rows, depth, self.rank()], &mut narrow);
        narrow.iter_mut().for_each(|number| *number *= self.scale);
        narrow
    }
}

/// `out[j] += Σᵣ narrow[r]·wide[j, r]`
#[inline(always)]
fn add_columns(narrow: &[f32], wide: &[f32], out: &mut [f32]) {
    for (out, wide) in out.iter_mut().zip(wide.chunks_exact(narrow.len())) {
        let (narrow, narrow_rest) = narrow.as_chunks::<PART>();
        let (wide, wide_rest) = wide.as_chunks::<PART>();
        let mut sums = [0.0; PART / 2];
        for (narrow, wide) in narrow.iter().zip(wide) {
            for at in 0..PART / 2 {
                sums[at] += narrow[at] * wide[at] + narrow[at + PART / 2] * wide[at + PART / 2];
            }
        }
        let rest = narrow_rest.iter().zip(wide_rest).map(|(narrow, wide)| narrow * wide);
        *out += (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest.sum::<f32>();
    }
}
