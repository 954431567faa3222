//! The forward pass, some blocks of queries of one head a task.

use half::bf16;
use rayon::prelude::*;

use super::super::{Heads, Look, Shape};
use super::{AT_ONCE, Packed, Seen, left_side};
use crate::exp::exp;
use crate::matmul::Shared;
use crate::number::{LANES, Number, total};
use crate::pairs::{Engine, SIDE, Size, Step, Sums};
use crate::parallel::wide;
use crate::scratch::Halves;

/// As [`super::super::attention`].
pub(in crate::attention) fn forward(
    engine: Engine,
    [q, k, v]: [Heads<'_, bf16>; 3],
    shape: Shape,
    look: Look<'_>,
    (out, sums): (Shared<bf16>, Shared<f32>),
) {
    let keys = Packed::turned(engine, &k, shape.of_keys());
    let values = Packed::straight(engine, &v, shape.of_keys());
    let blocks = shape.queries.div_ceil(SIDE);
    let parts = blocks.div_ceil(AT_ONCE);
    (0..shape.rows * shape.heads * parts).into_par_iter().for_each(|task| {
        let (head, part) = (task / parts % shape.heads, task % parts);
        let row = task / parts / shape.heads;
        let mut block = Block { copy: Halves::none(), scores: Vec::new(), weights: Halves::none() };
        engine.with_tiles(|| {
            for index in part * AT_ONCE..((part + 1) * AT_ONCE).min(blocks) {
                let place = [row, index * SIDE, head];
                block.attend(engine, &q, (&keys, &values), shape, &look, place, (out, sums));
            }
        });
    });
}

/// Working memory of a task.
struct Block {
    copy: Halves,
    /// A block of scores for each block of keys.
    scores: Vec<Sums>,
    /// Exponentials, `[SIDE, keys]`.
    weights: Halves,
}

impl Block {
    #[expect(clippy::too_many_arguments, reason = "sides, sizes, place and results of one block")]
    fn attend(
        &mut self,
        engine: Engine,
        q: &Heads<'_, bf16>,
        (keys, values): (&Packed, &Packed),
        shape: Shape,
        look: &Look<'_>,
        [row, first, head]: [usize; 3],
        (out, sums): (Shared<bf16>, Shared<f32>),
    ) {
        let group = head / (shape.heads / shape.groups);
        let seen = Seen::new(shape, look, row, first);
        let key_blocks = seen.key_blocks();
        let count = SIDE.min(shape.queries - first);
        self.scores.resize_with(key_blocks.len(), Sums::new);
        let left = left_side(q, shape.of_queries(), [row, first, head], &mut self.copy);
        for (scores, key_block) in self.scores.iter_mut().zip(key_blocks.clone()) {
            let step = Step { right: keys.at([row, group], key_block, 0), ..left };
            // SAFETY: a block of queries and a packed panel of keys, both of the width.
            unsafe { engine.sum(&[step], (count, SIDE), scores) };
        }
        let stride = key_blocks.len() * SIDE;
        let weights = self.weights.resized(SIDE * stride);
        let scores = &mut self.scores[..];
        let totals = wide(
            #[inline(always)]
            || softmax(scores, weights, &seen, key_blocks.start, count, look.scale),
        );
        let mut mixed = Sums::new();
        for panel in 0..shape.width.div_ceil(SIDE) {
            let right = values.at([row, group], panel, key_blocks.start);
            let left = weights.as_ptr();
            let columns = SIDE.min(shape.width - panel * SIDE);
            let step = Step { blocks: key_blocks.len(), left, stride, right };
            let at = ((row * shape.queries + first) * shape.heads + head) * shape.width;
            // SAFETY: weights and packed values of these blocks of keys; this head of these queries
            // belongs to this task.
            unsafe {
                engine.sum(&[step], (count, columns), &mut mixed);
                let at = out.get().add(at + panel * SIDE);
                let stride = shape.heads * shape.width;
                let factor = |query: usize| 1.0 / totals[query].1;
                let mixed = &mixed;
                wide(
                    #[inline(always)]
                    || write(mixed, factor, (count, columns), (at, stride)),
                );
            }
        }
        for (query, (highest, total)) in totals.into_iter().enumerate().take(count) {
            let at = (row * shape.heads + head) * shape.queries + first + query;
            // SAFETY: within the sums, as checked; each query belongs to one task.
            unsafe { *sums.get().add(at) = highest + total.ln() };
        }
    }
}

/// Turns scores into exponentials, 0 where a query does not look; gives each query's highest score, scaled, and
/// the sum of its exponentials.
#[inline(always)]
fn softmax(
    scores: &mut [Sums],
    weights: &mut [bf16],
    seen: &Seen,
    first_block: usize,
    count: usize,
    scale: f32,
) -> [(f32, f32); SIDE] {
    let stride = scores.len() * SIDE;
    let mut all = [(0.0, 1.0); SIDE];
    for query in 0..count {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for (index, scores) in scores.iter_mut().enumerate() {
            let row = &mut scores.0[query * SIDE..][..SIDE];
            if !seen.sees_all_of(first_block + index) {
                let within = seen.within(query, first_block + index);
                row[..within.start].fill(f32::NEG_INFINITY);
                row[within.end..].fill(f32::NEG_INFINITY);
            }
            for half in row.as_chunks_mut::<LANES>().0 {
                for lane in 0..LANES {
                    half[lane] *= scale;
                    lanes[lane] = if half[lane] > lanes[lane] { half[lane] } else { lanes[lane] };
                }
            }
        }
        let highest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
        let mut sums = [0.0; LANES];
        for (index, scores) in scores.iter().enumerate() {
            let row = scores.0[query * SIDE..][..SIDE].as_chunks::<LANES>().0;
            let into = &mut weights[query * stride + index * SIDE..][..SIDE];
            for (half, into) in row.iter().zip(into.as_chunks_mut::<LANES>().0) {
                let mut exponentials = [0.0; LANES];
                for lane in 0..LANES {
                    exponentials[lane] = exp(half[lane] - highest);
                    sums[lane] += exponentials[lane];
                }
                for lane in 0..LANES {
                    into[lane] = <bf16 as Number>::from_f32(exponentials[lane]);
                }
            }
        }
        all[query] = (highest, total(sums));
    }
    all
}

/// Rounds a block of sums, multiplied by `factor`, into rows of a matrix of bf16.
///
/// # Safety
/// Rows and columns are writable at `at`, whose rows are the second number apart.
#[inline(always)]
unsafe fn write(
    sums: &Sums,
    factor: impl Fn(usize) -> f32,
    (rows, columns): Size,
    (at, stride): (*mut bf16, usize),
) {
    for row in 0..rows {
        let factor = factor(row);
        let mut line = [0.0; SIDE];
        line.copy_from_slice(&sums.0[row * SIDE..][..SIDE]);
        line.iter_mut().for_each(|sum| *sum *= factor);
        // SAFETY: the caller's promise.
        let out = unsafe { std::slice::from_raw_parts_mut(at.add(row * stride), columns) };
        match <&mut [bf16; SIDE]>::try_from(&mut *out) {
            Ok(out) => bf16::narrow(&line, out),
            Err(_) => bf16::narrow(&line[..columns], out),
        }
    }
}
