//! Matrix products whose right side is a patchwork of weights, with a low-rank term in the same pass.
//!
//! `out = L·R + L'·R'`: left sides are made ready once and may serve several products, right sides are packed
//! panel by panel as they are met. Where a processor multiplies bf16 numbers in pairs (`pairs/`), bf16 is packed as
//! it is and, if that is faster, f32 as three such numbers; else both are multiplied in f32. A product leaves the
//! registers once, so that neither a bias nor a low-rank update costs another pass over the output.

mod beside;
mod left;
mod pairs;
mod right;
mod thin;
pub(crate) mod tile;
pub(crate) mod turn;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::number::Number;
use crate::scratch::Scratch;
pub use beside::Beside;
pub use left::Left;
use left::{Kind, row_of_block};
use pairs::{Pairs, Sum};
pub use right::{Patch, Right};
pub use thin::{Rows, Stored, dot_rows, thin_product, thin_width};
use tile::{lanes, tile, tile_shape};

#[cfg(test)]
mod tests;

/// Bytes of a block of packed right side: half of a small second-level cache.
const BLOCK_BYTES: usize = 256 << 10;
/// Rows of the right side that are packed at once.
const DEPTH_AT_ONCE: usize = 1536;
/// Rows of the left side that pass by one panel before the next: they stay in the second-level cache.
const ROWS_IN_REACH: usize = 24;

/// One product: what is multiplied, what is added.
pub struct Product<'a, T> {
    /// The left side, `[m, k]`.
    pub left: &'a Left<'a>,
    /// The right side, `[k, n]`.
    pub right: &'a Right<'a, T>,
    /// A second product of the same shape, of small depth.
    pub low_rank: Option<(&'a Left<'a>, &'a Right<'a, f32>)>,
    /// Added to each row, `[n]`.
    pub bias: Option<&'a [f32]>,
    /// Whether the product is added to what the output has already.
    pub add: bool,
}

impl<'a, T: Number> Product<'a, T> {
    /// `left·right` alone.
    pub fn new(left: &'a Left<'a>, right: &'a Right<'a, T>) -> Self {
        Self { left, right, low_rank: None, bias: None, add: false }
    }
}

impl<T: Number> Product<'_, T> {
    /// Computes the product into `out`, `[m, n]` row by row, every number of which is written; it is read
    /// only where the product is added to it.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn write<O: Number>(&self, out: &mut [O]) {
        let (rows, columns) = (self.left.rows(), self.right.columns());
        assert_eq!(out.len(), rows * columns, "output of {rows} x {columns}");
        assert_eq!(self.left.depth(), self.right.depth(), "depth of left and right side");
        if let Some((left, right)) = self.low_rank {
            assert_eq!((left.rows(), right.columns()), (rows, columns), "low-rank term");
            assert_eq!(left.depth(), right.depth(), "rank of left and right side");
        }
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), columns, "bias");
        }
        if out.is_empty() {
            return;
        }
        match (self.left.kind(), self.low_rank.map(|(left, right)| (left.kind(), right))) {
            (Kind::Pairs(left), None) => self.pairs(left, None).write(out),
            (Kind::Pairs(left), Some((Kind::Pairs(narrow), wide))) if narrow.fits_beside(left) => {
                self.pairs(left, Some((narrow, wide))).write(out);
            }
            (Kind::Wide(left), None) => self.wide(left, None, out),
            (Kind::Wide(left), Some((Kind::Wide(narrow), wide))) => {
                self.wide(left, Some((narrow, wide)), out);
            }
            _ => panic!("a low-rank term that is not packed beside its product"),
        }
    }
}

impl<'a, T: Number> Product<'a, T> {
    fn pairs<'b>(
        &self,
        left: &'b Pairs<'b>,
        low_rank: Option<(&'b Pairs<'b>, &'b Right<'b, f32>)>,
    ) -> Sum<'b, T>
    where
        'a: 'b,
    {
        Sum { left, right: self.right, low_rank, bias: self.bias, add: self.add }
    }

    fn wide<O: Number>(
        &self,
        left: &[f32],
        low_rank: Option<(&[f32], &Right<'_, f32>)>,
        out: &mut [O],
    ) {
        let sides = Sides {
            rows: self.left.rows(),
            left,
            right: self.right,
            low_rank,
            bias: self.bias,
            add: self.add,
        };
        Arch::new().dispatch(Run { product: &sides, out });
    }
}

/// A product of f32 numbers, both left sides packed.
struct Sides<'a, T> {
    rows: usize,
    left: &'a [f32],
    right: &'a Right<'a, T>,
    low_rank: Option<(&'a [f32], &'a Right<'a, f32>)>,
    bias: Option<&'a [f32]>,
    add: bool,
}

struct Run<'a, 'b, T, O> {
    product: &'a Sides<'b, T>,
    out: &'a mut [O],
}

impl<T: Number, O: Number> WithSimd for Run<'_, '_, T, O> {
    type Output = ();

    fn with_simd<S: Simd>(self, simd: S) {
        match const { tile_shape::<S>() } {
            (12, 2) => run::<S, T, O, 12, 2>(simd, self),
            (6, 4) => run::<S, T, O, 6, 4>(simd, self),
            (6, 2) => run::<S, T, O, 6, 2>(simd, self),
            _ => run::<S, T, O, 2, 4>(simd, self),
        }
    }
}

/// A pointer that tasks share; each writes elements of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared<O>(pub(crate) *mut O);
// SAFETY: the tasks of one product write disjoint tiles of the output.
unsafe impl<O> Send for Shared<O> {}
// SAFETY: as above.
unsafe impl<O> Sync for Shared<O> {}

impl<O> Shared<O> {
    pub(crate) fn get(self) -> *mut O {
        self.0
    }
}

#[inline(always)]
fn run<S: Simd, T: Number, O: Number, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    run: Run<'_, '_, T, O>,
) {
    let product = run.product;
    let out = Shared(run.out.as_mut_ptr());
    let width = VECTORS * lanes::<S>();
    let panels = product.right.columns().div_ceil(width);
    let depth = product.right.depth().clamp(1, DEPTH_AT_ONCE);
    let panels_at_once = (BLOCK_BYTES / (depth * width * size_of::<f32>())).clamp(1, panels);
    let column_blocks = panels.div_ceil(panels_at_once);
    let panels_at_once = panels.div_ceil(column_blocks); // as even as they can be
    let row_blocks = product.rows.div_ceil(ROWS);
    // Rows are cut too where the columns alone do not keep every thread busy.
    let threads = rayon::current_num_threads();
    let wanted = if threads == 1 { 1 } else { 3 * threads };
    let row_parts = wanted.div_ceil(column_blocks).clamp(1, row_blocks.div_ceil(8));
    let rows_at_once = row_blocks.div_ceil(row_parts);
    let row_parts = row_blocks.div_ceil(rows_at_once);
    let each = |task: usize| {
        let first_panel = task / row_parts * panels_at_once;
        let first_row = task % row_parts * rows_at_once;
        let block = Block {
            panels: first_panel..(first_panel + panels_at_once).min(panels),
            row_blocks: first_row..(first_row + rows_at_once).min(row_blocks),
        };
        simd.vectorize(BlockRun::<S, T, O, ROWS, VECTORS> { simd, product, out, block });
    };
    let tasks = column_blocks * row_parts;
    if tasks == 1 { each(0) } else { (0..tasks).into_par_iter().for_each(each) }
}

/// Panels of columns and blocks of rows that one task computes.
struct Block {
    panels: std::ops::Range<usize>,
    row_blocks: std::ops::Range<usize>,
}

struct BlockRun<'a, 'b, S, T, O, const ROWS: usize, const VECTORS: usize> {
    simd: S,
    product: &'a Sides<'b, T>,
    out: Shared<O>,
    block: Block,
}

impl<S: Simd, T: Number, O: Number, const ROWS: usize, const VECTORS: usize> pulp::NullaryFnOnce
    for BlockRun<'_, '_, S, T, O, ROWS, VECTORS>
{
    type Output = ();

    #[inline(always)]
    fn call(self) {
        compute::<S, T, O, ROWS, VECTORS>(self);
    }
}

#[inline(always)]
fn compute<S: Simd, T: Number, O: Number, const ROWS: usize, const VECTORS: usize>(
    run: BlockRun<'_, '_, S, T, O, ROWS, VECTORS>,
) {
    let BlockRun { simd, product, out, block } = run;
    let width = VECTORS * lanes::<S>();
    let (rows, columns, depth) = (product.rows, product.right.columns(), product.right.depth());
    let panel_count = block.panels.len();
    let steps = depth.div_ceil(DEPTH_AT_ONCE).max(1);
    let at_once = depth.div_ceil(steps).max(1);
    let blocks_in_reach = (ROWS_IN_REACH / ROWS).max(1);
    let rank = product.low_rank.map_or(0, |(_, right)| right.depth());
    let stride = (at_once + rank) * width; // of a panel
    let mut packed = Scratch::new(panel_count * stride);
    // Sums between two parts of the depth.
    let block_columns = panel_count * width;
    let between = if steps > 1 { block.row_blocks.len() * ROWS * block_columns } else { 0 };
    let mut between = Scratch::new(between);

    for step in 0..steps {
        let range = step * at_once..((step + 1) * at_once).min(depth);
        let last = step + 1 == steps;
        for (index, panel) in block.panels.clone().enumerate() {
            let (main, low_rank) = packed[index * stride..][..stride].split_at_mut(at_once * width);
            let place = panel * width..((panel + 1) * width).min(columns);
            product.right.pack(range.clone(), place.clone(), width, main);
            if let (Some((_, right)), true) = (product.low_rank, last) {
                right.pack(0..rank, place, width, low_rank);
            }
        }
        for chunk in block.row_blocks.clone().step_by(blocks_in_reach) {
            let chunk = chunk..(chunk + blocks_in_reach).min(block.row_blocks.end);
            for (index, panel) in block.panels.clone().enumerate() {
                let place = panel * width..((panel + 1) * width).min(columns);
                let used = product.right.rows_of(place.clone(), &range);
                let bias = product.bias.map(|bias| &bias[place.clone()]);
                let low_rank = product.low_rank.filter(|_| last);
                let low_rank =
                    low_rank.map(|(left, right)| (left, right.rows_of(place.clone(), &(0..rank))));
                let panel_at = packed[index * stride..].as_ptr();
                for row_block in chunk.clone() {
                    let first_row = row_block * ROWS;
                    let kept = (row_block - block.row_blocks.start) * ROWS * block_columns;
                    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
                    // SAFETY: packed panels hold `width` numbers for each row of the range, the left
                    // side `ROWS`; `between` has every tile; `store` keeps within the output.
                    unsafe {
                        if step > 0 {
                            let from = between.as_ptr().add(kept + index * width);
                            for (row, sums) in sums.iter_mut().enumerate() {
                                for (vector, sum) in sums.iter_mut().enumerate() {
                                    let at = row * block_columns + vector * lanes::<S>();
                                    *sum = f32::load(simd, from.add(at));
                                }
                            }
                        }
                        let left = row_of_block::<ROWS>(product.left, depth, row_block, used.start);
                        let right = panel_at.add((used.start - range.start) * width);
                        tile(simd, used.len(), (left, ROWS), (right, width), &mut sums);
                        if !last {
                            let into = between.as_mut_ptr().add(kept + index * width);
                            for (row, sums) in sums.into_iter().enumerate() {
                                for (vector, sum) in sums.into_iter().enumerate() {
                                    let at = row * block_columns + vector * lanes::<S>();
                                    f32::store(simd, into.add(at), sum);
                                }
                            }
                            continue;
                        }
                        if let Some((left, used)) = &low_rank {
                            let left = row_of_block::<ROWS>(left, rank, row_block, used.start);
                            let right = panel_at.add((at_once + used.start) * width);
                            tile(simd, used.len(), (left, ROWS), (right, width), &mut sums);
                        }
                        let size = ((rows - first_row).min(ROWS), place.len());
                        let at = out.get().add(first_row * columns + place.start);
                        store(simd, sums, (bias, product.add), size, (at, columns));
                    }
                }
            }
        }
    }
}

/// Writes a tile's first `rows` × `columns` numbers.
///
/// # Safety
/// They are writable at `at`, whose rows are `stride` apart.
#[inline(always)]
unsafe fn store<S: Simd, O: Number, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    sums: [[S::f32s; VECTORS]; ROWS],
    (bias, add): (Option<&[f32]>, bool),
    (rows, columns): (usize, usize),
    (at, stride): (*mut O, usize),
) {
    let lanes = lanes::<S>();
    if rows == ROWS && columns == VECTORS * lanes && bias.is_none() {
        for (row, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                // SAFETY: a whole tile, as the caller promises.
                unsafe {
                    let at = at.add(row * stride + vector * lanes);
                    let sum = if add { simd.add_f32s(*sum, O::load(simd, at)) } else { *sum };
                    O::store(simd, at, sum);
                }
            }
        }
        return;
    }
    for (row, sums) in sums.iter().enumerate().take(rows) {
        let sums: &[f32] = bytemuck::cast_slice(sums);
        for column in 0..columns {
            let sum = sums[column] + bias.map_or(0.0, |bias| bias[column]);
            // SAFETY: within rows and columns, as the caller promises.
            unsafe {
                let at = at.add(row * stride + column);
                *at = O::from_f32(if add { sum + (*at).to_f32() } else { sum });
            }
        }
    }
}
