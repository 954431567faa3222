//! The forward pass, a block of queries a task.

use pulp::{NullaryFnOnce, Simd, WithSimd};
use rayon::prelude::*;

use super::products::{mixed, products};
use super::sides::{Packed, QueryBlock};
use super::{Heads, Look, QUERIES, Shape};
use crate::exp::exp;
use crate::matmul::Shared;
use crate::matmul::tile::{lanes, tile_shape};
use crate::number::Number;
use crate::scratch::Scratch;

pub(super) struct Forward<'a, T> {
    pub(super) q: Heads<'a, T>,
    pub(super) k: Heads<'a, T>,
    pub(super) v: Heads<'a, T>,
    pub(super) shape: Shape,
    pub(super) look: Look<'a>,
    pub(super) out: Shared<T>,
    pub(super) sums: Shared<f32>,
}

impl<T: Number> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match const { tile_shape::<S>() } {
            (12, 2) => forward::<S, T, 12, 2>(simd, &self),
            (6, 4) => forward::<S, T, 6, 4>(simd, &self),
            (6, 2) => forward::<S, T, 6, 2>(simd, &self),
            _ => forward::<S, T, 2, 4>(simd, &self),
        }
    }
}

#[inline(always)]
fn forward<S: Simd, T: Number, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    run: &Forward<'_, T>,
) {
    let shape = run.shape;
    let panel = VECTORS * lanes::<S>();
    let keys = Packed::blocks(&run.k, shape, ROWS, run.look.scale);
    let values = Packed::panels(&run.v, shape, panel, shape.padded(ROWS));
    let blocks = shape.queries.div_ceil(QUERIES);
    let each = |task: usize| {
        let head = task / blocks % shape.heads;
        // The later of the blocks see more keys: they come first.
        let first = (blocks - 1 - task % blocks) * QUERIES;
        let place = [task / blocks / shape.heads, head, first];
        let group = head / (shape.heads / shape.groups);
        let (keys, values) = (keys.of(shape, place[0], group), values.of(shape, place[0], group));
        simd.vectorize(ForwardBlock::<S, T, ROWS, VECTORS> { simd, run, place, keys, values });
    };
    (0..shape.rows * shape.heads * blocks).into_par_iter().for_each(each);
}

struct ForwardBlock<'a, 'b, S, T, const ROWS: usize, const VECTORS: usize> {
    simd: S,
    run: &'a Forward<'b, T>,
    place: [usize; 3],
    keys: &'a [f32],
    values: &'a [f32],
}

impl<S: Simd, T: Number, const ROWS: usize, const VECTORS: usize> NullaryFnOnce
    for ForwardBlock<'_, '_, S, T, ROWS, VECTORS>
{
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, run, place, keys, values } = self;
        let shape = run.shape;
        let [row, head, first] = place;
        let panel = VECTORS * lanes::<S>();
        let block = QueryBlock::new(&run.q, shape, &run.look, place, panel);
        let key_blocks = block.some.start / ROWS..block.some.end.div_ceil(ROWS);
        let first_key = key_blocks.start * ROWS;
        let mut scores = Scratch::new(key_blocks.len() * ROWS * QUERIES);
        products::<S, ROWS, VECTORS>(
            simd,
            shape.width,
            keys,
            &block.numbers,
            key_blocks,
            &mut scores,
        );
        let (highest, totals) = softmax(&mut scores, first_key, &block);
        for query in 0..block.count {
            let at = (row * shape.heads + head) * shape.queries + first + query;
            // SAFETY: each query belongs to one task.
            unsafe { *run.sums.get().add(at) = highest[query] + totals[query].ln() };
        }
        let right = (values, shape.padded(ROWS));
        mixed::<S, ROWS, VECTORS>(
            simd,
            &scores,
            right,
            first_key,
            shape.width,
            |query, column, sums| {
                if query < block.count {
                    let factor = 1.0 / totals[query];
                    let token = row * shape.queries + first + query;
                    let at = (token * shape.heads + head) * shape.width + column;
                    // SAFETY: within the output; each query and head belongs to one task.
                    let out = unsafe {
                        std::slice::from_raw_parts_mut(run.out.get().add(at), sums.len())
                    };
                    for (out, sum) in out.iter_mut().zip(sums) {
                        *out = T::from_f32(sum * factor);
                    }
                }
            },
        );
    }
}

/// Turns scores into exponentials, 0 where a query does not look; gives each query's highest score and sum.
#[inline(always)]
fn softmax(
    scores: &mut [f32],
    first_key: usize,
    block: &QueryBlock,
) -> ([f32; QUERIES], [f32; QUERIES]) {
    let mut highest = [f32::NEG_INFINITY; QUERIES];
    for (index, scores) in scores.chunks_exact_mut(QUERIES).enumerate() {
        let key = first_key + index;
        if !block.every.contains(&key) {
            let key = key as f32;
            for query in 0..QUERIES {
                let seen = (key >= block.from[query]) & (key < block.until[query]);
                scores[query] = if seen { scores[query] } else { f32::NEG_INFINITY };
            }
        }
        for query in 0..QUERIES {
            highest[query] =
                if scores[query] > highest[query] { scores[query] } else { highest[query] };
        }
    }
    for highest in &mut highest[block.count..] {
        *highest = 0.0; // so that queries that are none give no NaN
    }
    let mut totals = [0.0; QUERIES];
    for scores in scores.chunks_exact_mut(QUERIES) {
        for query in 0..QUERIES {
            scores[query] = exp(scores[query] - highest[query]);
            totals[query] += scores[query];
        }
    }
    (highest, totals)
}
