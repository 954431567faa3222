//! The backward pass, a head a task.

use pulp::{NullaryFnOnce, Simd, WithSimd};
use rayon::prelude::*;

use super::products::{gather, mixed, products};
use super::sides::{Packed, QueryBlock, lay, turn};
use super::{Heads, Look, QUERIES, Shape, Upper, WIDEST};
use crate::exp::exp;
use crate::matmul::Shared;
use crate::matmul::tile::{lanes, tile_shape};
use crate::number::{Number, dot};
use crate::parallel::wide;
use crate::scratch::Scratch;

pub(super) struct Backward<'a, T> {
    pub(super) q: Heads<'a, T>,
    pub(super) k: Heads<'a, T>,
    pub(super) v: Heads<'a, T>,
    pub(super) shape: Shape,
    pub(super) look: Look<'a>,
    pub(super) upper: Upper<'a, T>,
    pub(super) steps: [[usize; 3]; 3],
    pub(super) gradients: [Shared<T>; 3],
}

impl<T: Number> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match const { tile_shape::<S>() } {
            (12, 2) => backward::<S, T, 12, 2>(simd, &self),
            (6, 4) => backward::<S, T, 6, 4>(simd, &self),
            (6, 2) => backward::<S, T, 6, 2>(simd, &self),
            _ => backward::<S, T, 2, 4>(simd, &self),
        }
    }
}

/// Keys and values as the products of the backward pass read them.
struct BackwardSides {
    key_blocks: Packed,
    value_blocks: Packed,
    key_panels: Packed,
}

#[inline(always)]
fn backward<S: Simd, T: Number, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    run: &Backward<'_, T>,
) {
    let shape = run.shape;
    let panel = VECTORS * lanes::<S>();
    let padded = shape.padded(ROWS);
    let sides = BackwardSides {
        key_blocks: Packed::blocks(&run.k, shape, ROWS, run.look.scale),
        value_blocks: Packed::blocks(&run.v, shape, ROWS, 1.0),
        key_panels: Packed::panels(&run.k, shape, panel, padded),
    };
    // Each head sums its own gradients of keys and values; the heads of a group are added at the end.
    let stride = shape.width.next_multiple_of(panel);
    let size = padded * stride;
    let mut of_heads = Scratch::new(shape.rows * shape.heads * 2 * size);
    of_heads.par_chunks_exact_mut((2 * size).max(1)).enumerate().for_each(|(task, sums)| {
        sums.fill(0.0);
        let (dk, dv) = sums.split_at_mut(size);
        let place = [task / shape.heads, task % shape.heads];
        let sides = &sides;
        simd.vectorize(BackwardHead::<S, T, ROWS, VECTORS> { simd, run, place, sides, dk, dv });
    });
    let shared = shape.heads / shape.groups;
    (0..shape.rows * shape.groups).into_par_iter().for_each(|task| {
        let (row, group) = (task / shape.groups, task % shape.groups);
        for (which, output) in run.gradients[1..].iter().enumerate() {
            let steps = run.steps[1 + which];
            let head_of = |head: usize| {
                let head = row * shape.heads + group * shared + head;
                &of_heads[(2 * head + which) * size..][..size]
            };
            let add = || {
                for key in 0..shape.keys {
                    let at = row * steps[0] + key * steps[1] + group * steps[2];
                    // SAFETY: within the output, as checked; each group belongs to one task.
                    let output = unsafe {
                        std::slice::from_raw_parts_mut(output.get().add(at), shape.width)
                    };
                    let mut sum = [0.0; WIDEST];
                    for start in (0..shape.width).step_by(WIDEST) {
                        let sum = &mut sum[..WIDEST.min(shape.width - start)];
                        sum.fill(0.0);
                        for head in 0..shared {
                            let from = &head_of(head)[key * stride + start..][..sum.len()];
                            sum.iter_mut().zip(from).for_each(|(sum, from)| *sum += from);
                        }
                        T::narrow(sum, &mut output[start..start + sum.len()]);
                    }
                }
            };
            wide(add);
        }
    });
}

struct BackwardHead<'a, 'b, S, T, const ROWS: usize, const VECTORS: usize> {
    simd: S,
    run: &'a Backward<'b, T>,
    place: [usize; 2],
    sides: &'a BackwardSides,
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

impl<S: Simd, T: Number, const ROWS: usize, const VECTORS: usize> NullaryFnOnce
    for BackwardHead<'_, '_, S, T, ROWS, VECTORS>
{
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, run, place: [row, head], sides, dk, dv } = self;
        let (shape, upper, scale) = (run.shape, run.upper, run.look.scale);
        let panel = VECTORS * lanes::<S>();
        let group = head / (shape.heads / shape.groups);
        let whole = shape.heads * shape.width;
        let of_output =
            |numbers| Heads { numbers, steps: [shape.queries * whole, whole, shape.width] };
        let (out, gradient) = (of_output(upper.out), of_output(upper.gradient));
        let panels = shape.width.div_ceil(panel) * panel;
        let mut turned = Scratch::new(QUERIES * shape.width);
        let mut laid_queries = Scratch::new(QUERIES * panels);
        let mut laid_gradient = Scratch::new(QUERIES * panels);
        for first in (0..shape.queries).step_by(QUERIES) {
            let place = [row, head, first];
            let block = QueryBlock::new(&run.q, shape, &run.look, place, panel);
            let count = block.count;
            turn(&gradient, shape, place, count, panel, &mut turned);
            lay(&run.q, shape, place, count, panel, &mut laid_queries);
            lay(&gradient, shape, place, count, panel, &mut laid_gradient);
            let (mut sums, mut inner) = ([f32::INFINITY; QUERIES], [0.0; QUERIES]);
            for query in 0..count {
                sums[query] =
                    upper.sums[(row * shape.heads + head) * shape.queries + first + query];
                let at = [row, first + query, head];
                inner[query] = dot(out.at(at, shape.width), gradient.at(at, shape.width));
            }
            let key_blocks = block.some.start / ROWS..block.some.end.div_ceil(ROWS);
            let first_key = key_blocks.start * ROWS;
            let size = key_blocks.len() * ROWS * QUERIES;
            let (mut weights, mut change) = (Scratch::new(size), Scratch::new(size));
            let left = sides.key_blocks.of(shape, row, group);
            products::<S, ROWS, VECTORS>(
                simd,
                shape.width,
                left,
                &block.numbers,
                key_blocks.clone(),
                &mut weights,
            );
            let left = sides.value_blocks.of(shape, row, group);
            products::<S, ROWS, VECTORS>(simd, shape.width, left, &turned, key_blocks, &mut change);
            softmax_backward(&mut weights, &mut change, first_key, &block, &sums, &inner, scale);
            let right = (sides.key_panels.of(shape, row, group), shape.padded(ROWS));
            mixed::<S, ROWS, VECTORS>(
                simd,
                &change,
                right,
                first_key,
                shape.width,
                |query, column, sums| {
                    if query < count {
                        let steps = run.steps[0];
                        let at =
                            row * steps[0] + (first + query) * steps[1] + head * steps[2] + column;
                        // SAFETY: within the output, as checked; each head belongs to one task.
                        let out = unsafe {
                            std::slice::from_raw_parts_mut(
                                run.gradients[0].get().add(at),
                                sums.len(),
                            )
                        };
                        T::narrow(sums, out);
                    }
                },
            );
            let dk = &mut dk[first_key * panels..];
            gather::<S, ROWS, VECTORS>(simd, &change, &laid_queries, panels, dk);
            let dv = &mut dv[first_key * panels..];
            gather::<S, ROWS, VECTORS>(simd, &weights, &laid_gradient, panels, dv);
        }
    }
}

/// From scores and `dP` to probabilities and `dS = s·P∘(dP − Σ dO∘O)`.
#[inline(always)]
fn softmax_backward(
    weights: &mut [f32],
    change: &mut [f32],
    first_key: usize,
    block: &QueryBlock,
    sums: &[f32; QUERIES],
    inner: &[f32; QUERIES],
    scale: f32,
) {
    let both = weights.chunks_exact_mut(QUERIES).zip(change.chunks_exact_mut(QUERIES));
    for (index, (weights, change)) in both.enumerate() {
        let key = first_key + index;
        for query in 0..QUERIES {
            weights[query] = exp(weights[query] - sums[query]);
        }
        if !block.every.contains(&key) {
            let key = key as f32;
            for query in 0..QUERIES {
                let seen = (key >= block.from[query]) & (key < block.until[query]);
                weights[query] = if seen { weights[query] } else { 0.0 };
            }
        }
        for query in 0..QUERIES {
            change[query] = scale * weights[query] * (change[query] - inner[query]);
        }
    }
}
