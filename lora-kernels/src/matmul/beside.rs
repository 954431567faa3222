//! A low-rank update beside a weight that few rows are multiplied with.

use std::ops::Range;
use std::sync::OnceLock;

use super::thin::few_rows;
use super::tile::prefetch;

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// `s·(x·A)·B`, added to the products with a weight. `x·A` is computed once, by whoever needs it first, so that
/// reading A keeps no other thread from reading weights.
pub struct Beside<'a> {
    a: &'a [f32],
    b: &'a [f32],
    scale: f32,
    rank: usize,
    columns: usize,
    narrow: OnceLock<Vec<f32>>,
}

impl<'a> Beside<'a> {
    /// The update `scale·A·B` of a weight `[k, n]`.
    ///
    /// # Shapes
    /// - a: `[k, rank]`
    /// - b: `[rank, n]`
    ///
    /// # Panics
    /// Where a slice is too short.
    pub fn new(a: &'a [f32], b: &'a [f32], scale: f32, [depth, rank, columns]: [usize; 3]) -> Self {
        assert!(a.len() >= depth * rank && b.len() >= rank * columns, "update too short");
        Self { a, b, scale, rank, columns, narrow: OnceLock::new() }
    }

    /// n.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// `s·x·A`, `[m, rank]`, for those tasks that still need it.
    pub(super) fn prepare(&self, left: &[f32], sizes: [usize; 2]) {
        let _ = self.narrow.set(self.narrow(left, sizes));
    }

    /// Asks for these columns of B.
    pub(super) fn ask_for(&self, columns: &Range<usize>) {
        for row in self.b.chunks(self.columns.max(1)).take(self.rank) {
            for place in columns.clone().step_by(LINE / size_of::<f32>()) {
                prefetch(row[place..].as_ptr());
            }
        }
    }

    /// Adds the update of these columns to a row of the output.
    #[inline(always)]
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
        let narrow = &narrow[row * self.rank..][..self.rank];
        for (factor, wide) in narrow.iter().zip(self.b.chunks(self.columns)) {
            let wide = &wide[columns.clone()];
            out.iter_mut().zip(wide).for_each(|(out, wide)| *out += factor * wide);
        }
    }

    fn narrow(&self, left: &[f32], [rows, depth]: [usize; 2]) -> Vec<f32> {
        let mut narrow = vec![0.0; rows * self.rank];
        few_rows(left, self.a, [rows, depth, self.rank], &mut narrow);
        narrow.iter_mut().for_each(|number| *number *= self.scale);
        narrow
    }
}
