//! Attention of bf16 numbers by instructions that multiply them in pairs: 32 queries and 32 keys at a time.
//!
//! Probabilities are rounded to bf16 where they are multiplied with values, as the values are.

mod backward;
mod forward;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::{Heads, Look, Shape};
use crate::pairs::{BLOCK, DEPTH, Engine, SIDE, Step, are_lines, pack, packed_size};
use crate::scratch::{Halves, Scratch};
pub(super) use backward::backward;
pub(super) use forward::forward;

/// Blocks of queries, or of keys, in a task.
const AT_ONCE: usize = 4;

/// Heads of all sequences, packed as right sides.
struct Packed {
    numbers: Scratch,
    count: usize,
    size: usize,
    /// Blocks of the depth of a panel.
    blocks: usize,
}

impl Packed {
    /// Tokens as columns, `[panels of tokens, blocks of the width]`.
    fn turned(engine: Engine, heads: &Heads<'_, bf16>, sizes: Sizes) -> Self {
        Self::new(engine, heads, sizes, [sizes.width, sizes.tokens], [1, heads.steps[1]])
    }

    /// Tokens as the depth, `[panels of the width, blocks of tokens]`.
    fn straight(engine: Engine, heads: &Heads<'_, bf16>, sizes: Sizes) -> Self {
        Self::new(engine, heads, sizes, [sizes.tokens, sizes.width], [heads.steps[1], 1])
    }

    fn new(
        engine: Engine,
        heads: &Heads<'_, bf16>,
        sizes: Sizes,
        shape: [usize; 2],
        steps: [usize; 2],
    ) -> Self {
        let size = packed_size(shape);
        let mut numbers = Scratch::new(sizes.rows * sizes.count * size / 2);
        let all: &mut [bf16] = bytemuck::cast_slice_mut(&mut numbers);
        all.par_chunks_exact_mut(size).enumerate().for_each(|(index, into)| {
            let from = heads.from([index / sizes.count, 0, index % sizes.count]);
            pack(engine, from, shape, steps, into);
        });
        Self { numbers, count: sizes.count, size, blocks: shape[0].div_ceil(DEPTH) }
    }

    /// Where a block of the depth begins in a panel.
    fn at(&self, [row, head]: [usize; 2], panel: usize, block: usize) -> *const bf16 {
        let numbers: &[bf16] = bytemuck::cast_slice(&self.numbers);
        let of_head = &numbers[(row * self.count + head) * self.size..][..self.size];
        of_head[(panel * self.blocks + block) * BLOCK..].as_ptr()
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    /// Heads of a sequence.
    count: usize,
    tokens: usize,
    width: usize,
}

impl Shape {
    fn of_queries(&self) -> Sizes {
        let Self { rows, heads, queries, width, .. } = *self;
        Sizes { rows, count: heads, tokens: queries, width }
    }

    fn of_keys(&self) -> Sizes {
        let Self { rows, groups, keys, width, .. } = *self;
        Sizes { rows, count: groups, tokens: keys, width }
    }
}

/// Vectors of a block of tokens as a left side: where they lie, or copied where that is no whole block.
fn left_side<'a>(
    heads: &'a Heads<'_, bf16>,
    sizes: Sizes,
    [row, first, head]: [usize; 3],
    copy: &'a mut Halves,
) -> Step {
    let blocks = sizes.width.div_ceil(DEPTH);
    let left = heads.from([row, first, head]);
    let whole = first + SIDE <= sizes.tokens && sizes.width.is_multiple_of(DEPTH);
    if whole && are_lines(left, heads.steps[1]) {
        assert!(left.len() >= (SIDE - 1) * heads.steps[1] + sizes.width, "a block of tokens");
        return Step { blocks, left: left.as_ptr(), stride: heads.steps[1], right: left.as_ptr() };
    }
    let stride = blocks * DEPTH;
    let copy = copy.resized(SIDE * stride);
    copy.fill(bf16::ZERO);
    for (index, token) in (first..sizes.tokens).take(SIDE).enumerate() {
        let from = heads.at([row, token, head], sizes.width);
        copy[index * stride..][..sizes.width].copy_from_slice(from);
    }
    Step { blocks, left: copy.as_ptr(), stride, right: copy.as_ptr() }
}

/// What a block of queries looks at.
struct Seen {
    /// First key, and the one after the last, of each query; none for those that are no queries.
    of_each: [[usize; 2]; SIDE],
    /// Keys that any, and that every query sees.
    some: Range<usize>,
    every: Range<usize>,
}

impl Seen {
    fn new(shape: Shape, look: &Look<'_>, row: usize, first: usize) -> Self {
        let (mut of_each, mut some, mut every) = ([[0; 2]; SIDE], shape.keys..0, 0..shape.keys);
        let visible = &look.visible[row * shape.queries..][..shape.queries];
        for (each, visible) in of_each.iter_mut().zip(&visible[first..]) {
            let [from, until] = visible.map(|key| (key as usize).min(shape.keys));
            *each = [from, until];
            some = some.start.min(from)..some.end.max(until);
            every = every.start.max(from)..every.end.min(until);
        }
        if first + SIDE > shape.queries {
            every = 0..0;
        }
        Self { of_each, some, every }
    }

    /// Blocks of keys that any query sees.
    fn key_blocks(&self) -> Range<usize> {
        self.some.start / SIDE..self.some.end.div_ceil(SIDE).max(self.some.start / SIDE)
    }

    /// Whether every query sees every key of a block.
    fn sees_all_of(&self, key_block: usize) -> bool {
        self.every.start <= key_block * SIDE && (key_block + 1) * SIDE <= self.every.end
    }

    /// Those of a block's keys that a query sees, counted from the block's first.
    fn within(&self, query: usize, key_block: usize) -> Range<usize> {
        let [from, until] = self.of_each[query];
        let of_block = |key: usize| key.saturating_sub(key_block * SIDE).min(SIDE);
        of_block(from)..of_block(until).max(of_block(from))
    }
}
