//! The backward pass: queries against all keys they see, then keys against all queries that see them. Scores are
//! computed in both, which costs less than keeping sums of keys and values apart for each query.

use half::bf16;
use rayon::prelude::*;

use super::super::{Heads, Look, Shape, Upper};
use super::{AT_ONCE, Packed, Seen, left_side};
use crate::exp::exp;
use crate::matmul::Shared;
use crate::number::{Number, dot};
use crate::pairs::{Engine, SIDE, Step, Sums};
use crate::parallel::wide;
use crate::scratch::Halves;
use crate::stream::Stream;

/// As [`super::super::attention_backward`].
pub(in crate::attention) fn backward(
    engine: Engine,
    [q, k, v]: [Heads<'_, bf16>; 3],
    shape: Shape,
    look: Look<'_>,
    upper: Upper<'_, bf16>,
    steps: [[usize; 3]; 3],
    gradients: [Shared<bf16>; 3],
) {
    let whole = shape.heads * shape.width;
    let of_output = |numbers| Heads { numbers, steps: [shape.queries * whole, whole, shape.width] };
    let (output, d_output) = (of_output(upper.out), of_output(upper.gradient));
    let inner = inner_products(&output, &d_output, shape);
    let run =
        Run { engine, q, k, v, d_output, shape, look, sums: upper.sums, inner, steps, gradients };
    run.of_queries();
    run.of_keys();
}

struct Run<'a> {
    engine: Engine,
    q: Heads<'a, bf16>,
    k: Heads<'a, bf16>,
    v: Heads<'a, bf16>,
    d_output: Heads<'a, bf16>,
    shape: Shape,
    look: Look<'a>,
    /// Logarithms of the sums, and `Σ dO∘O`, of each query, `[rows, heads, queries]`.
    sums: &'a [f32],
    inner: Vec<f32>,
    steps: [[usize; 3]; 3],
    gradients: [Shared<bf16>; 3],
}

/// `Σ dO∘O` of each query, `[rows, heads, queries]`.
fn inner_products(output: &Heads<'_, bf16>, d_output: &Heads<'_, bf16>, shape: Shape) -> Vec<f32> {
    let mut inner = vec![0.0; shape.rows * shape.heads * shape.queries];
    inner.par_chunks_exact_mut(shape.queries).enumerate().for_each(|(index, inner)| {
        let (row, head) = (index / shape.heads, index % shape.heads);
        wide(
            #[inline(always)]
            || {
                for (query, inner) in inner.iter_mut().enumerate() {
                    let at = [row, query, head];
                    *inner = dot(output.at(at, shape.width), d_output.at(at, shape.width));
                }
            },
        );
    });
    inner
}

impl Run<'_> {
    /// `dQ = dS·K`.
    fn of_queries(&self) {
        let Self { engine, shape, .. } = *self;
        let keys = Packed::turned(engine, &self.k, shape.of_keys());
        let values = Packed::turned(engine, &self.v, shape.of_keys());
        let laid_keys = Packed::straight(engine, &self.k, shape.of_keys());
        let blocks = shape.queries.div_ceil(SIDE);
        let parts = blocks.div_ceil(AT_ONCE);
        (0..shape.rows * shape.heads * parts).into_par_iter().for_each(|task| {
            let (head, part) = (task / parts % shape.heads, task % parts);
            let row = task / parts / shape.heads;
            let group = head / (shape.heads / shape.groups);
            let mut copies = [Halves::none(), Halves::none()];
            let mut change = Halves::none();
            let (mut scores, mut slope) = (Sums::new(), Sums::new());
            let stream = self.stream();
            let sides = [&keys, &values, &laid_keys];
            engine.with_tiles(|| {
                for index in part * AT_ONCE..((part + 1) * AT_ONCE).min(blocks) {
                    let first = index * SIDE;
                    let sums = ([&mut scores, &mut slope], stream.as_ref());
                    let work = (&mut copies, &mut change, sums);
                    self.block_of_queries(sides, [row, first, head], group, work);
                }
            });
        });
    }

    fn block_of_queries(
        &self,
        [keys, values, laid_keys]: [&Packed; 3],
        [row, first, head]: [usize; 3],
        group: usize,
        (copies, change, ([scores, slope], stream)): (
            &mut [Halves; 2],
            &mut Halves,
            ([&mut Sums; 2], Option<&Stream>),
        ),
    ) {
        let Self { engine, shape, .. } = *self;
        let seen = Seen::new(shape, &self.look, row, first);
        let key_blocks = seen.key_blocks();
        let count = SIDE.min(shape.queries - first);
        let stride = key_blocks.len() * SIDE;
        let change = change.resized(SIDE * stride);
        let [copy, other] = copies;
        let left = left_side(&self.q, shape.of_queries(), [row, first, head], copy);
        let d_left = left_side(&self.d_output, shape.of_queries(), [row, first, head], other);
        let of_queries = (row * shape.heads + head) * shape.queries + first;
        let sums = &self.sums[of_queries..][..count];
        let inner = &self.inner[of_queries..][..count];
        for (index, key_block) in key_blocks.clone().enumerate() {
            let right = [keys, values].map(|side| side.at([row, group], key_block, 0));
            // SAFETY: blocks of queries and packed panels of keys and values, all of the width.
            unsafe {
                engine.sum(&[Step { right: right[0], ..left }], (count, SIDE), scores);
                engine.sum(&[Step { right: right[1], ..d_left }], (count, SIDE), slope);
            }
            let all = seen.sees_all_of(key_block);
            let (scores, slope, seen, scale) = (&*scores, &*slope, &seen, self.look.scale);
            let change = &mut change[index * SIDE..];
            wide(
                #[inline(always)]
                || {
                    for query in 0..count {
                        let within = if all { 0..SIDE } else { seen.within(query, key_block) };
                        let mut line = [0.0; SIDE];
                        let scores = &scores.0[query * SIDE..][..SIDE];
                        let slope = &slope.0[query * SIDE..][..SIDE];
                        for key in 0..SIDE {
                            let weight = exp(scale * scores[key] - sums[query]);
                            line[key] = scale * weight * (slope[key] - inner[query]);
                        }
                        line[..within.start].fill(0.0);
                        line[within.end..].fill(0.0);
                        bf16::narrow(&line, &mut change[query * stride..][..SIDE]);
                    }
                },
            );
        }
        for panel in 0..shape.width.div_ceil(SIDE) {
            let right = laid_keys.at([row, group], panel, key_blocks.start);
            let step = Step { blocks: key_blocks.len(), left: change.as_ptr(), stride, right };
            // SAFETY: changes and packed keys of these blocks; the head belongs to this task.
            unsafe { self.finish(0, &[step], [row, first, head], panel, count, (scores, stream)) };
        }
    }

    /// `dK = dSᵀ·Q` and `dV = Pᵀ·dO`, of all heads of a group.
    fn of_keys(&self) {
        let Self { engine, shape, .. } = *self;
        let queries = Packed::turned(engine, &self.q, shape.of_queries());
        let d_outputs = Packed::turned(engine, &self.d_output, shape.of_queries());
        let laid_queries = Packed::straight(engine, &self.q, shape.of_queries());
        let laid_d_outputs = Packed::straight(engine, &self.d_output, shape.of_queries());
        let query_blocks = shape.queries.div_ceil(SIDE);
        let seen: Vec<Seen> = (0..shape.rows * query_blocks)
            .map(|index| {
                let (row, block) = (index / query_blocks, index % query_blocks);
                Seen::new(shape, &self.look, row, block * SIDE)
            })
            .collect();
        let blocks = shape.keys.div_ceil(SIDE);
        let parts = blocks.div_ceil(AT_ONCE);
        (0..shape.rows * shape.groups * parts).into_par_iter().for_each(|task| {
            let (group, part) = (task / parts % shape.groups, task % parts);
            let row = task / parts / shape.groups;
            let seen = &seen[row * query_blocks..][..query_blocks];
            let mut work = OfKeys::new(self.stream());
            let sides = [&queries, &d_outputs, &laid_queries, &laid_d_outputs];
            engine.with_tiles(|| {
                for block in part * AT_ONCE..((part + 1) * AT_ONCE).min(blocks) {
                    self.block_of_keys(sides, [row, block, group], seen, &mut work);
                }
            });
        });
    }

    fn block_of_keys(
        &self,
        [queries, d_outputs, laid_queries, laid_d_outputs]: [&Packed; 4],
        [row, key_block, group]: [usize; 3],
        seen: &[Seen],
        work: &mut OfKeys,
    ) {
        let Self { engine, shape, .. } = *self;
        let shared = shape.heads / shape.groups;
        let first = key_block * SIDE;
        let count = SIDE.min(shape.keys - first);
        let looks = |seen: &&Seen| seen.some.start < first + SIDE && first < seen.some.end;
        let start = seen.iter().position(|seen| looks(&seen)).unwrap_or(0);
        let end = seen.iter().rposition(|seen| looks(&seen)).map_or(start, |last| last + 1);
        let stride = shared * (end - start) * SIDE;
        let OfKeys { copies: [copy, other], weights, change, scores, slope, stream } = work;
        let stream = stream.as_ref();
        let (weights, change) = (weights.resized(SIDE * stride), change.resized(SIDE * stride));
        let left = left_side(&self.k, shape.of_keys(), [row, first, group], copy);
        let v_left = left_side(&self.v, shape.of_keys(), [row, first, group], other);
        for index in 0..shared {
            let head = group * shared + index;
            for (block, seen) in (start..end).zip(&seen[start..end]) {
                let right = [queries, d_outputs].map(|side| side.at([row, head], block, 0));
                // SAFETY: blocks of keys and values and packed panels of queries, all of the width.
                unsafe {
                    engine.sum(&[Step { right: right[0], ..left }], (count, SIDE), scores);
                    engine.sum(&[Step { right: right[1], ..v_left }], (count, SIDE), slope);
                }
                let of_queries = (row * shape.heads + head) * shape.queries + block * SIDE;
                let valid = SIDE.min(shape.queries - block * SIDE);
                // Infinite sums leave queries that are none without any weight.
                let (mut sums, mut inner) = ([f32::INFINITY; SIDE], [0.0; SIDE]);
                sums[..valid].copy_from_slice(&self.sums[of_queries..][..valid]);
                inner[..valid].copy_from_slice(&self.inner[of_queries..][..valid]);
                let at = (index * (end - start) + block - start) * SIDE;
                let all = seen.sees_all_of(key_block);
                let (scores, slope, scale) = (&*scores, &*slope, self.look.scale);
                let (weights, change) = (&mut weights[at..], &mut change[at..]);
                wide(
                    #[inline(always)]
                    || {
                        for key in 0..count {
                            let scores = &scores.0[key * SIDE..][..SIDE];
                            let slope = &slope.0[key * SIDE..][..SIDE];
                            let (mut weight, mut line) = ([0.0; SIDE], [0.0; SIDE]);
                            for query in 0..SIDE {
                                weight[query] = exp(scale * scores[query] - sums[query]);
                            }
                            if !all {
                                let key = first + key;
                                for query in 0..SIDE {
                                    let [from, until] = seen.of_each[query];
                                    let seen = (from <= key) & (key < until);
                                    weight[query] = if seen { weight[query] } else { 0.0 };
                                }
                            }
                            for query in 0..SIDE {
                                line[query] = scale * weight[query] * (slope[query] - inner[query]);
                            }
                            bf16::narrow(&weight, &mut weights[key * stride..][..SIDE]);
                            bf16::narrow(&line, &mut change[key * stride..][..SIDE]);
                        }
                    },
                );
            }
        }
        let of_heads = |left: &[bf16], right: &Packed, panel: usize, steps: &mut Vec<Step>| {
            steps.clear();
            for index in 0..shared {
                let left = left[index * (end - start) * SIDE..].as_ptr();
                let right = right.at([row, group * shared + index], panel, start);
                steps.push(Step { blocks: end - start, left, stride, right });
            }
        };
        let mut steps = Vec::with_capacity(shared);
        let place = [row, first, group];
        for panel in 0..shape.width.div_ceil(SIDE) {
            for (which, left, right) in
                [(1, &*change, laid_queries), (2, &*weights, laid_d_outputs)]
            {
                // Keys that nobody sees get zeros: the sum of no steps.
                if start < end {
                    of_heads(left, right, panel, &mut steps);
                }
                // SAFETY: changes or weights and packed queries of these blocks; the group belongs to
                // this task.
                unsafe { self.finish(which, &steps, place, panel, count, (scores, stream)) };
            }
        }
    }

    /// For a task, whose part of the gradients is read when all of them are done.
    fn stream(&self) -> Option<Stream> {
        let Shape { rows, heads, groups, queries, keys, width } = self.shape;
        let all = rows * width * (heads * queries + 2 * groups * keys);
        // SAFETY: nobody reads what a task writes before it ends.
        unsafe { Stream::begin::<bf16>(self.engine, all) }
    }

    /// Sums `steps` and writes them as a panel of the gradient of queries, keys or values.
    ///
    /// # Safety
    /// The steps lie within both sides; the head of these tokens belongs to this task.
    unsafe fn finish(
        &self,
        which: usize,
        steps: &[Step],
        [row, token, head]: [usize; 3],
        panel: usize,
        count: usize,
        (sums, stream): (&mut Sums, Option<&Stream>),
    ) {
        let columns = SIDE.min(self.shape.width - panel * SIDE);
        let places = self.steps[which];
        let at = row * places[0] + token * places[1] + head * places[2] + panel * SIDE;
        // SAFETY: the caller's promise; places were checked against the output, which is read when it is whole.
        unsafe {
            self.engine.sum(steps, (count, columns), sums);
            let at = (self.gradients[which].get().add(at), places[1]);
            self.engine.store(sums, None, false, (count, columns), at, stream);
        }
    }
}

/// Working memory of a task over keys.
struct OfKeys {
    copies: [Halves; 2],
    /// Probabilities and changes of scores, `[SIDE, heads of the group · queries]`.
    weights: Halves,
    change: Halves,
    scores: Sums,
    slope: Sums,
    stream: Option<Stream>,
}

impl OfKeys {
    fn new(stream: Option<Stream>) -> Self {
        Self {
            copies: [Halves::none(), Halves::none()],
            weights: Halves::none(),
            change: Halves::none(),
            scores: Sums::new(),
            slope: Sums::new(),
            stream,
        }
    }
}
