//! Attention of grouped query heads, forward and backward, keeping no score beyond a block of queries.
//!
//! Vaswani et al. 2017, equation 1: `softmax(s·Q·Kᵀ)·V`. Scores are recomputed in the backward pass from the
//! logarithm of each query's sum, as in Dao et al. 2022 (<https://arxiv.org/abs/2205.14135>); what one
//! task holds of them is `[keys, 64]`. Scores lie with their queries side by side, so that the softmax runs
//! over many queries at once, and each product finds its operand as it wants it.

use pulp::{Arch, NullaryFnOnce, Simd, WithSimd};
use rayon::prelude::*;

use crate::exp::exp;
use crate::matmul::Shared;
use crate::matmul::tile::{lanes, tile, tile_of_rows, tile_shape};
use crate::number::Number;
use crate::scratch::Scratch;

mod few;

/// Queries of a block.
const QUERIES: usize = 64;
/// Up to as many queries of a sequence are not worth a block.
const FEW: usize = 4;

/// The vectors of all heads and tokens: where each begins, and how far they are apart.
#[derive(Clone, Copy)]
pub struct Heads<'a, T> {
    /// The numbers, those of one head and token next to each other.
    pub numbers: &'a [T],
    /// How far sequences, tokens and heads are apart.
    pub steps: [usize; 3],
}

/// As [`Heads`], to write.
pub struct HeadsMut<'a, T> {
    /// The numbers.
    pub numbers: &'a mut [T],
    /// How far sequences, tokens and heads are apart.
    pub steps: [usize; 3],
}

/// Sizes of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub rows: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads; each serves `heads / groups` query heads that lie next to each other.
    pub groups: usize,
    /// Queries of a sequence.
    pub queries: usize,
    /// Keys of a sequence.
    pub keys: usize,
    /// Width of a head.
    pub width: usize,
}

/// What the queries may look at, and by what scores are multiplied.
#[derive(Clone, Copy)]
pub struct Look<'a> {
    /// First key, and the one after the last, of each query, `[rows, queries]`; at least one key each.
    pub visible: &'a [[u32; 2]],
    /// s, usually `1/√width`.
    pub scale: f32,
}

/// Computes `out`, `[rows, queries, heads, width]`, and the logarithm of each query's sum of
/// exponentials, `[rows, heads, queries]`.
///
/// # Panics
/// Where a slice is too short for the shape.
pub fn attention<T: Number>(
    [q, k, v]: [Heads<'_, T>; 3],
    shape: Shape,
    look: Look<'_>,
    out: &mut [T],
    sums: &mut [f32],
) {
    shape.check(&q, shape.heads, shape.queries);
    shape.check(&k, shape.groups, shape.keys);
    shape.check(&v, shape.groups, shape.keys);
    assert_eq!(out.len(), shape.rows * shape.queries * shape.heads * shape.width, "output");
    assert_eq!(sums.len(), shape.rows * shape.heads * shape.queries, "sums");
    assert_eq!(look.visible.len(), shape.rows * shape.queries, "visible keys");
    if shape.queries <= FEW && !out.is_empty() {
        few::attention([q, k, v], shape, look, out, sums);
    } else if !out.is_empty() {
        let (out, sums) = (Shared(out.as_mut_ptr()), Shared(sums.as_mut_ptr()));
        Arch::new().dispatch(Forward { q, k, v, shape, look, out, sums });
    }
}

/// What [`attention`] gave and what flows back into it.
#[derive(Clone, Copy)]
pub struct Upper<'a, T> {
    /// The output, `[rows, queries, heads, width]`.
    pub out: &'a [T],
    /// Its sums, `[rows, heads, queries]`.
    pub sums: &'a [f32],
    /// Gradient of the output.
    pub gradient: &'a [T],
}

/// Computes the gradients of queries, keys and values, which lie in `gradient` as they themselves lie, from
/// `starts` on.
///
/// # Panics
/// Where a slice is too short for the shape.
pub fn attention_backward<T: Number>(
    [q, k, v]: [Heads<'_, T>; 3],
    shape: Shape,
    look: Look<'_>,
    upper: Upper<'_, T>,
    starts: [usize; 3],
    gradient: &mut [T],
) {
    shape.check(&q, shape.heads, shape.queries);
    shape.check(&k, shape.groups, shape.keys);
    shape.check(&v, shape.groups, shape.keys);
    let steps = [q.steps, k.steps, v.steps];
    let sizes = [
        (shape.heads, shape.queries),
        (shape.groups, shape.keys),
        (shape.groups, shape.keys),
    ];
    for ((steps, start), (heads, tokens)) in steps.into_iter().zip(starts).zip(sizes) {
        shape.check(&Heads { numbers: &gradient[start..], steps }, heads, tokens);
    }
    let outputs = shape.rows * shape.queries * shape.heads * shape.width;
    assert_eq!((upper.out.len(), upper.gradient.len()), (outputs, outputs), "output");
    assert_eq!(upper.sums.len(), shape.rows * shape.heads * shape.queries, "sums");
    assert_eq!(look.visible.len(), shape.rows * shape.queries, "visible keys");
    if outputs == 0 {
        return;
    }
    let gradients = starts.map(|start| Shared(gradient[start..].as_mut_ptr()));
    Arch::new().dispatch(Backward { q, k, v, shape, look, upper, steps, gradients });
}

impl Shape {
    fn check<T>(&self, heads: &Heads<'_, T>, count: usize, tokens: usize) {
        let last = [self.rows, tokens, count]
            .iter()
            .zip(heads.steps)
            .map(|(size, step)| size.saturating_sub(1) * step)
            .sum::<usize>();
        let empty = self.rows * tokens * count == 0;
        assert!(empty || heads.numbers.len() >= last + self.width, "heads of {self:?}");
    }

    /// Keys in whole blocks of a tile's rows.
    fn padded(&self, tile_rows: usize) -> usize {
        self.keys.next_multiple_of(tile_rows)
    }
}

impl<T: Number> Heads<'_, T> {
    fn at(&self, [row, token, head]: [usize; 3], width: usize) -> &[T] {
        let start = row * self.steps[0] + token * self.steps[1] + head * self.steps[2];
        &self.numbers[start..start + width]
    }
}

/// Keys or values of all sequences and groups, packed once for all that read them.
struct Packed {
    numbers: Scratch,
    /// Numbers of one sequence and group.
    size: usize,
}

impl Packed {
    /// As the left side of a product: `[key blocks, width, ROWS]`.
    #[inline(always)]
    fn blocks<T: Number>(heads: &Heads<'_, T>, shape: Shape, tile_rows: usize, scale: f32) -> Self {
        Self::new(shape, shape.padded(tile_rows) * shape.width, |row, group, into| {
            let blocks = into.chunks_exact_mut(shape.width * tile_rows);
            for (block, into) in blocks.enumerate() {
                for index in 0..tile_rows {
                    let key = block * tile_rows + index;
                    let numbers = into[index..].iter_mut().step_by(tile_rows);
                    if key < shape.keys {
                        let from = heads.at([row, key, group], shape.width);
                        numbers.zip(from).for_each(|(into, number)| *into = number.to_f32() * scale);
                    } else {
                        numbers.for_each(|number| *number = 0.0);
                    }
                }
            }
        })
    }

    /// As the right side of a product: `[panels of the width, keys, panel]`.
    #[inline(always)]
    fn panels<T: Number>(heads: &Heads<'_, T>, shape: Shape, panel: usize, padded: usize) -> Self {
        let panels = shape.width.div_ceil(panel);
        Self::new(shape, panels * panel * padded, |row, group, into| {
            for (index, into) in into.chunks_exact_mut(padded * panel).enumerate() {
                let columns = index * panel..((index + 1) * panel).min(shape.width);
                for (key, into) in into.chunks_exact_mut(panel).enumerate() {
                    if key < shape.keys {
                        let from = &heads.at([row, key, group], shape.width)[columns.clone()];
                        let (into, beyond) = into.split_at_mut(from.len());
                        into.iter_mut().zip(from).for_each(|(into, from)| *into = from.to_f32());
                        beyond.fill(0.0);
                    } else {
                        into.fill(0.0);
                    }
                }
            }
        })
    }

    fn new(shape: Shape, size: usize, fill: impl Fn(usize, usize, &mut [f32]) + Sync) -> Self {
        let mut numbers = Scratch::new(shape.rows * shape.groups * size);
        let all = numbers.par_chunks_exact_mut(size.max(1)).enumerate();
        all.for_each(|(index, into)| {
            Arch::new().dispatch(|| fill(index / shape.groups, index % shape.groups, into));
        });
        Self { numbers, size }
    }

    fn of(&self, shape: Shape, row: usize, group: usize) -> &[f32] {
        &self.numbers[(row * shape.groups + group) * self.size..][..self.size]
    }
}

/// A block of queries as the right side of a product, `[panels of queries, width, panel]`, and what
/// they may see.
struct QueryBlock {
    numbers: Scratch,
    count: usize,
    /// First and last-but-one key of each query; nothing for those beyond the count.
    from: [f32; QUERIES],
    until: [f32; QUERIES],
    /// Keys that any, and that every query sees.
    some: std::ops::Range<usize>,
    every: std::ops::Range<usize>,
}

impl QueryBlock {
    #[inline(always)]
    fn new<T: Number>(
        queries: &Heads<'_, T>,
        shape: Shape,
        look: &Look<'_>,
        [row, head, first]: [usize; 3],
        panel: usize,
    ) -> Self {
        let count = QUERIES.min(shape.queries - first);
        let mut numbers = Scratch::new(QUERIES * shape.width);
        turn(queries, shape, [row, head, first], count, panel, &mut numbers);
        let (mut from, mut until) = ([0.0; QUERIES], [0.0; QUERIES]);
        let (mut some, mut every) = (shape.keys..0, 0..shape.keys);
        for index in 0..count {
            let [start, end] = look.visible[row * shape.queries + first + index].map(|key| key as usize);
            let end = end.min(shape.keys);
            (from[index], until[index]) = (start as f32, end as f32);
            some = some.start.min(start)..some.end.max(end);
            every = every.start.max(start)..every.end.min(end);
        }
        if count < QUERIES {
            every = 0..0;
        }
        Self { numbers, count, from, until, some, every }
    }
}

/// Packs the vectors of a block of queries as a right side: `[panels of queries, width, panel]`.
#[inline(always)]
fn turn<T: Number>(
    heads: &Heads<'_, T>,
    shape: Shape,
    [row, head, first]: [usize; 3],
    count: usize,
    panel: usize,
    into: &mut [f32],
) {
    for (index, into) in into.chunks_exact_mut(shape.width * panel).enumerate() {
        for column in 0..panel {
            let query = index * panel + column;
            let numbers = into[column..].iter_mut().step_by(panel);
            if query < count {
                let from = heads.at([row, first + query, head], shape.width);
                numbers.zip(from).for_each(|(into, number)| *into = number.to_f32());
            } else {
                numbers.for_each(|number| *number = 0.0);
            }
        }
    }
}

/// Packs the vectors of a block of queries as they lie: `[panels of the width, QUERIES, panel]`.
#[inline(always)]
fn lay<T: Number>(
    heads: &Heads<'_, T>,
    shape: Shape,
    [row, head, first]: [usize; 3],
    count: usize,
    panel: usize,
    into: &mut [f32],
) {
    for (index, into) in into.chunks_exact_mut(QUERIES * panel).enumerate() {
        let columns = index * panel..((index + 1) * panel).min(shape.width);
        for (query, into) in into.chunks_exact_mut(panel).enumerate() {
            if query < count {
                let from = &heads.at([row, first + query, head], shape.width)[columns.clone()];
                let (into, beyond) = into.split_at_mut(from.len());
                into.iter_mut().zip(from).for_each(|(into, from)| *into = from.to_f32());
                beyond.fill(0.0);
            } else {
                into.fill(0.0);
            }
        }
    }
}

/// `into[key, query] = left[key]·right[query]` for whole blocks of keys.
#[inline(always)]
fn products<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    width: usize,
    left: &[f32],
    right: &[f32],
    key_blocks: std::ops::Range<usize>,
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
fn mixed<S: Simd, T: Number, const ROWS: usize, const VECTORS: usize>(
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

struct Forward<'a, T> {
    q: Heads<'a, T>,
    k: Heads<'a, T>,
    v: Heads<'a, T>,
    shape: Shape,
    look: Look<'a>,
    out: Shared<T>,
    sums: Shared<f32>,
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
        products::<S, ROWS, VECTORS>(simd, shape.width, keys, &block.numbers, key_blocks, &mut scores);
        let (highest, totals) = softmax(&mut scores, first_key, &block);
        for query in 0..block.count {
            let at = (row * shape.heads + head) * shape.queries + first + query;
            // SAFETY: each query belongs to one task.
            unsafe { *run.sums.get().add(at) = highest[query] + totals[query].ln() };
        }
        let right = (values, shape.padded(ROWS));
        mixed::<S, T, ROWS, VECTORS>(simd, &scores, right, first_key, shape.width, |query, column, sums| {
            if query < block.count {
                let factor = 1.0 / totals[query];
                let token = row * shape.queries + first + query;
                let at = (token * shape.heads + head) * shape.width + column;
                for (index, sum) in sums.iter().enumerate() {
                    // SAFETY: within the output; each query and head belongs to one task.
                    unsafe { *run.out.get().add(at + index) = T::from_f32(sum * factor) };
                }
            }
        });
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
            highest[query] = if scores[query] > highest[query] { scores[query] } else { highest[query] };
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

struct Backward<'a, T> {
    q: Heads<'a, T>,
    k: Heads<'a, T>,
    v: Heads<'a, T>,
    shape: Shape,
    look: Look<'a>,
    upper: Upper<'a, T>,
    steps: [[usize; 3]; 3],
    gradients: [Shared<T>; 3],
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
    let size = padded * shape.width;
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
            for key in 0..shape.keys {
                let steps = run.steps[1 + which];
                let at = row * steps[0] + key * steps[1] + group * steps[2];
                for column in 0..shape.width {
                    let of_head = |head: usize| {
                        let head = row * shape.heads + group * shared + head;
                        of_heads[(2 * head + which) * size + key * shape.width + column]
                    };
                    let sum: f32 = (0..shared).map(of_head).sum();
                    // SAFETY: within the output, as checked; each group belongs to one task.
                    unsafe { *output.get().add(at + column) = T::from_f32(sum) };
                }
            }
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
        let of_output = |numbers| Heads { numbers, steps: [shape.queries * whole, whole, shape.width] };
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
                sums[query] = upper.sums[(row * shape.heads + head) * shape.queries + first + query];
                let at = [row, first + query, head];
                let both = out.at(at, shape.width).iter().zip(gradient.at(at, shape.width));
                inner[query] = both.map(|(out, gradient)| out.to_f32() * gradient.to_f32()).sum();
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
            mixed::<S, T, ROWS, VECTORS>(simd, &change, right, first_key, shape.width, |query, column, sums| {
                if query < count {
                    let steps = run.steps[0];
                    let at = row * steps[0] + (first + query) * steps[1] + head * steps[2] + column;
                    for (index, sum) in sums.iter().enumerate() {
                        // SAFETY: within the output, as checked; each head belongs to one task.
                        unsafe { *run.gradients[0].get().add(at + index) = T::from_f32(*sum) };
                    }
                }
            });
            let width = shape.width;
            let dk = &mut dk[first_key * width..];
            gather::<S, ROWS, VECTORS>(simd, &change, &laid_queries, width, dk);
            let dv = &mut dv[first_key * width..];
            gather::<S, ROWS, VECTORS>(simd, &weights, &laid_gradient, width, dv);
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

/// `into[key] += Σ_query weights[key, query]·right[query]`, `[keys, width]`.
#[inline(always)]
fn gather<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    weights: &[f32],
    right: &[f32],
    width: usize,
    into: &mut [f32],
) {
    let panel = VECTORS * lanes::<S>();
    let keys = weights.len() / QUERIES;
    assert!(into.len() >= keys * width && right.len() >= width.div_ceil(panel) * QUERIES * panel);
    for key in (0..keys).step_by(ROWS) {
        for column in (0..width).step_by(panel) {
            let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
            // SAFETY: within both sides, as asserted above; keys come in whole blocks.
            unsafe {
                let left = weights.as_ptr().add(key * QUERIES);
                let right = right.as_ptr().add(column * QUERIES);
                tile_of_rows::<S, f32, ROWS, VECTORS, QUERIES>(
                    simd,
                    QUERIES,
                    (left, 1),
                    (right, panel),
                    &mut sums,
                );
            }
            let wide = panel.min(width - column);
            for (row, sums) in sums.iter().enumerate() {
                let into = &mut into[(key + row) * width + column..][..wide];
                let sums = &bytemuck::cast_slice::<_, f32>(sums)[..wide];
                into.iter_mut().zip(sums).for_each(|(into, sum)| *into += sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|index| ((index * 7919 + seed * 104_729) % 10_007) as f32 / 5_003.0 - 1.0).collect()
    }

    struct Case {
        shape: Shape,
        visible: Vec<[u32; 2]>,
    }

    /// Causal, with a window, two documents in the second half of the rows.
    fn case(shape: Shape, window: usize) -> Case {
        let past = shape.keys - shape.queries;
        let visible = (0..shape.rows * shape.queries).map(|index| {
            let (row, query) = (index / shape.queries, past + index % shape.queries);
            let document = if row % 2 == 1 && query >= shape.keys / 3 { shape.keys / 3 } else { 0 };
            let start = document.max((query + 1).saturating_sub(window));
            [start as u32, query as u32 + 1]
        });
        Case { shape, visible: visible.collect() }
    }

    /// Output, and the gradients of q, k and v for the gradient `upper`, in f64; all contiguous.
    fn reference(case: &Case, q: &[f32], k: &[f32], v: &[f32], scale: f64, upper: &[f32]) -> [Vec<f64>; 4] {
        let Shape { rows, heads, groups, queries, keys, width } = case.shape;
        let mut out = vec![0.0; upper.len()];
        let (mut dq, mut dk, mut dv) =
            (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let at = |numbers: &[f32], index: usize| f64::from(numbers[index]);
        for row in 0..rows {
            for head in 0..heads {
                let group = head / (heads / groups);
                for query in 0..queries {
                    let [start, end] = case.visible[row * queries + query].map(|key| key as usize);
                    let qi = ((row * queries + query) * heads + head) * width;
                    let ki = |key: usize| ((row * keys + key) * groups + group) * width;
                    let score = |key| scale * (0..width).map(|c| at(q, qi + c) * at(k, ki(key) + c)).sum::<f64>();
                    let scores: Vec<f64> = (start..end).map(score).collect();
                    let highest = scores.iter().copied().fold(f64::MIN, f64::max);
                    let total: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
                    let p: Vec<f64> = scores.iter().map(|score| (score - highest).exp() / total).collect();
                    let dp = |key| (0..width).map(|c| at(upper, qi + c) * at(v, ki(key) + c)).sum::<f64>();
                    let dp: Vec<f64> = (start..end).map(dp).collect();
                    let inner: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                    for (key, (p, dp)) in (start..end).zip(p.iter().zip(&dp)) {
                        let ds = scale * p * (dp - inner);
                        for c in 0..width {
                            out[qi + c] += p * at(v, ki(key) + c);
                            dq[qi + c] += ds * at(k, ki(key) + c);
                            dk[ki(key) + c] += ds * at(q, qi + c);
                            dv[ki(key) + c] += p * at(upper, qi + c);
                        }
                    }
                }
            }
        }
        [out, dq, dk, dv]
    }

    fn apart(found: &[f32], expected: &[f64]) -> f64 {
        let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-30);
        let apart = found.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).powi(2));
        apart.sum::<f64>().sqrt() / norm
    }

    #[test]
    fn forward_and_backward_are_those_of_float64() {
        let shapes = [
            (Shape { rows: 2, heads: 6, groups: 2, queries: 100, keys: 100, width: 64 }, 1000),
            (Shape { rows: 1, heads: 3, groups: 3, queries: 65, keys: 65, width: 20 }, 7),
            (Shape { rows: 3, heads: 2, groups: 1, queries: 17, keys: 150, width: 96 }, 40),
            (Shape { rows: 1, heads: 1, groups: 1, queries: 1, keys: 1, width: 8 }, 1),
            (Shape { rows: 2, heads: 4, groups: 4, queries: 200, keys: 200, width: 33 }, 64),
        ];
        for (shape, window) in shapes {
            let case = case(shape, window);
            let Shape { rows, heads, groups, queries, keys, width } = shape;
            let q = numbers(rows * queries * heads * width, 1);
            let k = numbers(rows * keys * groups * width, 2);
            let v = numbers(rows * keys * groups * width, 3);
            let upper = numbers(q.len(), 4);
            let scale = 1.3 / (width as f32).sqrt();
            let expected = reference(&case, &q, &k, &v, f64::from(scale), &upper);
            let of_q = [queries * heads * width, heads * width, width];
            let of_k = [keys * groups * width, groups * width, width];
            let sides = [
                Heads { numbers: &q[..], steps: of_q },
                Heads { numbers: &k, steps: of_k },
                Heads { numbers: &v, steps: of_k },
            ];
            let look = Look { visible: &case.visible, scale };
            let mut out = vec![f32::NAN; q.len()];
            let mut sums = vec![f32::NAN; rows * heads * queries];
            attention(sides, shape, look, &mut out, &mut sums);
            let mut gradient = vec![f32::NAN; q.len() + k.len() + v.len()];
            let given = Upper { out: &out, sums: &sums, gradient: &upper };
            let starts = [0, q.len(), q.len() + k.len()];
            attention_backward(sides, shape, look, given, starts, &mut gradient);
            let dq = gradient[..starts[1]].to_vec();
            let dk = gradient[starts[1]..starts[2]].to_vec();
            let dv = gradient[starts[2]..].to_vec();
            // Scores of up to ±4 are sums of up to 96 products: they are off by a few 1e-7·√96, and
            // so are, relatively, the probabilities. The worst measured is 1.1e-6; four times that.
            for (found, (expected, what)) in
                [&out, &dq, &dk, &dv].into_iter().zip(expected.iter().zip(["out", "dq", "dk", "dv"]))
            {
                let apart = apart(found, expected);
                assert!(apart < 4e-6, "{what} of {shape:?} is {apart:e} from float64");
            }
        }
    }
}
