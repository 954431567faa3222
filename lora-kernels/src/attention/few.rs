//! Attention of a few new tokens over many old ones: keys and values are read once, as they lie.

use rayon::prelude::*;

use super::{Heads, Look, Shape};
use crate::number::{LANES, Number, total};
use crate::parallel::wide;
use crate::softmax::softmax_row;

/// Products of keys and queries below which the calling thread computes alone.
const ALONE: usize = 1 << 17;

/// As [`super::attention`], one query after another.
pub(super) fn attention<T: Number>(
    [q, k, v]: [Heads<'_, T>; 3],
    shape: Shape,
    look: Look<'_>,
    out: &mut [T],
    sums: &mut [f32],
) {
    // Queries come first in `out` and last in `sums`.
    let mut places = vec![0.0; shape.rows * shape.queries * shape.heads];
    let each = |(index, (out, sum)): (usize, (&mut [T], &mut f32))| {
        let (token, head) = (index / shape.heads, index % shape.heads);
        let (row, query) = (token / shape.queries, token % shape.queries);
        let group = head / (shape.heads / shape.groups);
        let [first, end] = look.visible[token].map(|key| key as usize);
        let q = q.at([row, query, head], shape.width);
        let keys = first..end.min(shape.keys);
        *sum = wide(
            #[inline(always)]
            || {
                let sides = |key| {
                    let at = [row, key, group];
                    (k.at(at, shape.width), v.at(at, shape.width))
                };
                one(q, keys.clone(), look.scale, sides, out)
            },
        );
    };
    if shape.rows * shape.queries * shape.heads * shape.keys * shape.width < ALONE {
        out.chunks_exact_mut(shape.width).zip(&mut places).enumerate().for_each(each);
    } else {
        out.par_chunks_exact_mut(shape.width).zip(&mut places).enumerate().for_each(each);
    }
    for (index, sum) in places.into_iter().enumerate() {
        let (token, head) = (index / shape.heads, index % shape.heads);
        let (row, query) = (token / shape.queries, token % shape.queries);
        sums[(row * shape.heads + head) * shape.queries + query] = sum;
    }
}

/// One query of one head; gives the logarithm of its sum.
#[inline(always)]
fn one<'a, T: Number>(
    q: &[T],
    keys: std::ops::Range<usize>,
    scale: f32,
    at: impl Fn(usize) -> (&'a [T], &'a [T]),
    out: &mut [T],
) -> f32 {
    let query: Vec<f32> = q.iter().map(|number| number.to_f32() * scale).collect();
    let mut scores: Vec<f32> = keys.clone().map(|key| dot(&query, at(key).0)).collect();
    let sum = softmax_row(&mut scores);
    let mut mixed = vec![0.0; out.len()];
    for (key, weight) in keys.zip(scores) {
        let value = at(key).1;
        mixed.iter_mut().zip(value).for_each(|(mixed, value)| *mixed += weight * value.to_f32());
    }
    T::narrow(&mixed, out);
    sum
}

#[inline(always)]
fn dot<T: Number>(left: &[f32], right: &[T]) -> f32 {
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane].to_f32();
        }
    }
    let rest = left_rest.iter().zip(right_rest);
    total(sums) + rest.map(|(left, right)| left * right.to_f32()).sum::<f32>()
}
