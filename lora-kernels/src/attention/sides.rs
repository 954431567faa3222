//! Queries, keys and values as the products of attention read them.

use std::ops::Range;

use rayon::prelude::*;

use super::{Heads, Look, QUERIES, Shape};
use crate::matmul::turn::{self, Square};
use crate::number::Number;
use crate::parallel::wide;
use crate::scratch::Scratch;

/// Keys or values of all sequences and groups, packed once for all that read them.
pub(super) struct Packed {
    numbers: Scratch,
    /// Numbers of one sequence and group.
    size: usize,
}

impl Packed {
    /// As the left side of a product: `[key blocks, width, ROWS]`.
    #[inline(always)]
    pub(super) fn blocks<T: Number>(
        heads: &Heads<'_, T>,
        shape: Shape,
        tile_rows: usize,
        scale: f32,
    ) -> Self {
        Self::new(shape, shape.padded(tile_rows) * shape.width, |row, group, into| {
            let vector = |key| (key < shape.keys).then(|| heads.at([row, key, group], shape.width));
            interleave(vector, (shape.width, tile_rows), scale, into);
        })
    }

    /// As the right side of a product: `[panels of the width, keys, panel]`.
    #[inline(always)]
    pub(super) fn panels<T: Number>(
        heads: &Heads<'_, T>,
        shape: Shape,
        panel: usize,
        padded: usize,
    ) -> Self {
        let panels = shape.width.div_ceil(panel);
        Self::new(shape, panels * panel * padded, |row, group, into| {
            let vector = |key| (key < shape.keys).then(|| heads.at([row, key, group], shape.width));
            spread(vector, (padded, panel), into);
        })
    }

    fn new(shape: Shape, size: usize, fill: impl Fn(usize, usize, &mut [f32]) + Sync) -> Self {
        let mut numbers = Scratch::new(shape.rows * shape.groups * size);
        let all = numbers.par_chunks_exact_mut(size.max(1)).enumerate();
        all.for_each(|(index, into)| {
            wide(|| fill(index / shape.groups, index % shape.groups, into));
        });
        Self { numbers, size }
    }

    pub(super) fn of(&self, shape: Shape, row: usize, group: usize) -> &[f32] {
        &self.numbers[(row * shape.groups + group) * self.size..][..self.size]
    }
}

/// A block of queries as the right side of a product, `[panels of queries, width, panel]`, and what
/// they may see.
pub(super) struct QueryBlock {
    pub(super) numbers: Scratch,
    pub(super) count: usize,
    /// First and last-but-one key of each query; nothing for those beyond the count.
    pub(super) from: [f32; QUERIES],
    pub(super) until: [f32; QUERIES],
    /// Keys that any, and that every query sees.
    pub(super) some: Range<usize>,
    pub(super) every: Range<usize>,
}

impl QueryBlock {
    #[inline(always)]
    pub(super) fn new<T: Number>(
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
            let [start, end] =
                look.visible[row * shape.queries + first + index].map(|key| key as usize);
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
pub(super) fn turn<T: Number>(
    heads: &Heads<'_, T>,
    shape: Shape,
    [row, head, first]: [usize; 3],
    count: usize,
    panel: usize,
    into: &mut [f32],
) {
    let vector = |query| (query < count).then(|| heads.at([row, first + query, head], shape.width));
    interleave(vector, (shape.width, panel), 1.0, into);
}

/// Packs the vectors of a block of queries as they lie: `[panels of the width, QUERIES, panel]`.
#[inline(always)]
pub(super) fn lay<T: Number>(
    heads: &Heads<'_, T>,
    shape: Shape,
    [row, head, first]: [usize; 3],
    count: usize,
    panel: usize,
    into: &mut [f32],
) {
    let vector = |query| (query < count).then(|| heads.at([row, first + query, head], shape.width));
    spread(vector, (QUERIES, panel), into);
}

/// `into[group, number, vector in group] = scale·vector[number]`; zero where there is no vector.
#[inline(always)]
fn interleave<'a, T: Number>(
    vector: impl Fn(usize) -> Option<&'a [T]>,
    (width, group): (usize, usize),
    scale: f32,
    into: &mut [f32],
) {
    // Whole squares are turned in registers.
    let squares = if width.is_multiple_of(turn::SIDE) { group / turn::SIDE } else { 0 };
    let mut square = Square([0.0; turn::SIDE * turn::SIDE]);
    for (block, into) in into.chunks_exact_mut(width * group).enumerate() {
        for first in (0..squares).map(|index| index * turn::SIDE) {
            for start in (0..width).step_by(turn::SIDE) {
                for (index, line) in square.0.chunks_exact_mut(turn::SIDE).enumerate() {
                    let Some(from) = vector(block * group + first + index) else {
                        line.fill(0.0);
                        continue;
                    };
                    for (into, from) in line.iter_mut().zip(&from[start..]) {
                        *into = from.to_f32() * scale;
                    }
                }
                square.turn(&mut into[start * group + first..], group);
            }
        }
        for index in squares * turn::SIDE..group {
            let numbers = into[index..].iter_mut().step_by(group);
            match vector(block * group + index) {
                Some(from) => {
                    numbers.zip(from).for_each(|(into, from)| *into = from.to_f32() * scale);
                }
                None => numbers.for_each(|into| *into = 0.0),
            }
        }
    }
}

/// `into[panel, vector, number in panel]`: vectors as they lie, cut into panels of their width; zero
/// beyond it, and where there is no vector.
#[inline(always)]
fn spread<'a, T: Number>(
    vector: impl Fn(usize) -> Option<&'a [T]>,
    (vectors, panel): (usize, usize),
    into: &mut [f32],
) {
    for (index, into) in into.chunks_exact_mut(vectors * panel).enumerate() {
        for (at, into) in into.chunks_exact_mut(panel).enumerate() {
            let from = vector(at).unwrap_or_default();
            let from = &from[(index * panel).min(from.len())..];
            let (into, beyond) = into.split_at_mut(from.len().min(panel));
            into.iter_mut().zip(from).for_each(|(into, from)| *into = from.to_f32());
            beyond.fill(0.0);
        }
    }
}
