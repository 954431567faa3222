//! The left side of a product, packed.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::tile::tile_shape;
use crate::number::Number;
use crate::scratch::Scratch;

/// A matrix `[m, k]` in f32, its rows interleaved in blocks as the innermost loop reads them.
pub struct Left {
    /// `[blocks, k, rows of a block]`; rows beyond the last are zero.
    numbers: Scratch,
    rows: usize,
    depth: usize,
}

impl Left {
    /// Packs the `[rows, depth]` matrix whose rows are `stride` apart.
    ///
    /// # Panics
    /// Where `matrix` is too short.
    pub fn pack<T: Number>(matrix: &[T], [rows, depth]: [usize; 2], stride: usize) -> Self {
        assert!(
            rows * depth == 0 || matrix.len() >= (rows - 1) * stride + depth,
            "left side too short"
        );
        let block_rows = rows_of_a_block();
        let blocks = rows.div_ceil(block_rows);
        let mut numbers = Scratch::new(blocks * depth * block_rows);
        if rows > 0 && depth > 0 {
            let size = depth * block_rows;
            let each = |(block, into): (usize, &mut [f32])| {
                let first = block * block_rows;
                let valid = (rows - first).min(block_rows);
                let from = &matrix[first * stride..];
                Arch::new().dispatch(|| pack_block(from, (valid, stride), (into, block_rows)));
            };
            if rows * depth < 1 << 16 {
                numbers.chunks_exact_mut(size).enumerate().for_each(each);
            } else {
                numbers.par_chunks_exact_mut(size).enumerate().for_each(each);
            }
        }
        Self { numbers, rows, depth }
    }

    /// m.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// k.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Where row `k` of a block begins.
    pub(super) fn at<const ROWS: usize>(&self, block: usize, k: usize) -> *const f32 {
        self.numbers[(block * self.depth + k) * ROWS..].as_ptr()
    }
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
