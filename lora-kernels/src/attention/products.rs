//! The products of attention: scores of a block, values mixed by them, gradients gathered by them.

use std::ops::Range;

use pulp::Simd;

use super::QUERIES;
use crate::matmul::tile::{lanes, tile, tile_of_rows};
use crate::number::Number;

/// `into[key, query] = left[key]·right[query]` for whole blocks of keys.
#[inline(always)]
pub(super) fn products<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    width: usize,
    left: &[f32],
    right: &[f32],
    key_blocks: Range<usize>,
    into: &mut [f32],
) {
    let panel = VECTORS * lanes::<S>();
    assert!(left.len() >= key_blocks.end * width * ROWS && right.len() >= QUERIES * width);
    assert!(into.len() >= key_blocks.len() * ROWS * QUERIES);
    for (index, block) in key_blocks.enumerate() {
        for column in (0..QUERIES).step_by(panel) {
            let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
            // SAFETY: within both sides and `into`, as asserted above.
            unsafe {
                let left = left.as_ptr().add(block * width * ROWS);
                let right = right.as_ptr().add(column * width);
                tile(simd, width, (left, ROWS), (right, panel), &mut sums);
                for (row, sums) in sums.iter().enumerate() {
                    for (vector, sum) in sums.iter().enumerate() {
                        let at = (index * ROWS + row) * QUERIES + column + vector * lanes::<S>();
                        f32::store(simd, into.as_mut_ptr().add(at), *sum);
                    }
                }
            }
        }
    }
}

/// `out[query] = Σ_key weights[key, query]·right[key]`, `[QUERIES, width]`, of all keys in `weights`.
#[inline(always)]
pub(super) fn mixed<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    weights: &[f32],
    (right, padded): (&[f32], usize),
    first_key: usize,
    width: usize,
    mut write: impl FnMut(usize, usize, &[f32]),
) {
    let panel = VECTORS * lanes::<S>();
    let depth = weights.len() / QUERIES;
    assert!(first_key + depth <= padded && right.len() >= width.div_ceil(panel) * padded * panel);
    for query in (0..QUERIES).step_by(ROWS) {
        // The last block of rows may begin earlier, so that it is whole.
        let query = query.min(QUERIES - ROWS);
        for column in (0..width).step_by(panel) {
            let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
            // SAFETY: within both sides, as asserted above.
            unsafe {
                let left = weights.as_ptr().add(query);
                let right = right.as_ptr().add((column / panel * padded + first_key) * panel);
                tile(simd, depth, (left, QUERIES), (right, panel), &mut sums);
            }
            let wide = panel.min(width - column);
            for (row, sums) in sums.iter().enumerate() {
                write(query + row, column, &bytemuck::cast_slice::<_, f32>(sums)[..wide]);
            }
        }
    }
}

/// `into[key] += Σ_query weights[key, query]·right[query]`, `[keys, stride]`, a row being whole panels.
#[inline(always)]
pub(super) fn gather<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    weights: &[f32],
    right: &[f32],
    stride: usize,
    into: &mut [f32],
) {
    let panel = VECTORS * lanes::<S>();
    let keys = weights.len() / QUERIES;
    assert!(into.len() >= keys * stride && right.len() >= stride * QUERIES);
    for key in (0..keys).step_by(ROWS) {
        for column in (0..stride).step_by(panel) {
            let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
            // SAFETY: within both sides and `into`, as asserted above; keys come in whole blocks.
            unsafe {
                let into = into.as_mut_ptr().add(key * stride + column);
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (vector, sum) in sums.iter_mut().enumerate() {
                        *sum = f32::load(simd, into.add(row * stride + vector * lanes::<S>()));
                    }
                }
                let left = weights.as_ptr().add(key * QUERIES);
                let right = right.as_ptr().add(column * QUERIES);
                tile_of_rows::<S, f32, ROWS, VECTORS, QUERIES>(
                    simd,
                    QUERIES,
                    (left, 1),
                    (right, panel),
                    &mut sums,
                );
                for (row, sums) in sums.into_iter().enumerate() {
                    for (vector, sum) in sums.into_iter().enumerate() {
                        f32::store(simd, into.add(row * stride + vector * lanes::<S>()), sum);
                    }
                }
            }
        }
    }
}
