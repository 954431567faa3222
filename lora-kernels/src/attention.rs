//! Attention of grouped query heads, forward and backward, keeping no score beyond a block of queries.
//!
//! Vaswani et al. 2017, equation 1: `softmax(s·Q·Kᵀ)·V`. Scores are recomputed in the backward pass from the
//! logarithm of each query's sum, as in Dao et al. 2022 (<https://arxiv.org/abs/2205.14135>); what one
//! task holds of them is `[keys, 64]`. Scores lie with their queries side by side, so that the softmax runs
//! over many queries at once, and each product finds its operand as it wants it.

use half::bf16;
use pulp::Arch;

use crate::matmul::Shared;
use crate::number::Number;
use crate::pairs::best_engine;
use backward::Backward;
use forward::Forward;

mod backward;
mod few;
mod forward;
mod pairs;
mod products;
mod sides;
#[cfg(test)]
mod tests;

/// Queries of a block.
const QUERIES: usize = 64;
/// Numbers of a head that are summed at once.
const WIDEST: usize = 128;
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
        if let (Some(engine), [Some(q), Some(k), Some(v)]) =
            (best_engine(), [q, k, v].map(Heads::as_bf16))
        {
            let out = Shared(out.get().cast::<bf16>());
            pairs::forward(engine, [q, k, v], shape, look, (out, sums));
            return;
        }
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

impl<'a, T: Number> Upper<'a, T> {
    fn as_bf16(self) -> Option<Upper<'a, bf16>> {
        let Self { out, sums, gradient } = self;
        Some(Upper { out: T::as_bf16(out)?, sums, gradient: T::as_bf16(gradient)? })
    }
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
    let sizes =
        [(shape.heads, shape.queries), (shape.groups, shape.keys), (shape.groups, shape.keys)];
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
    if let (Some(engine), [Some(q), Some(k), Some(v)], Some(upper)) =
        (best_engine(), [q, k, v].map(Heads::as_bf16), upper.as_bf16())
    {
        let gradients = gradients.map(|gradient| Shared(gradient.get().cast::<bf16>()));
        pairs::backward(engine, [q, k, v], shape, look, upper, steps, gradients);
        return;
    }
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

impl<'a, T: Number> Heads<'a, T> {
    /// The same, where they are bf16.
    fn as_bf16(self) -> Option<Heads<'a, bf16>> {
        Some(Heads { numbers: T::as_bf16(self.numbers)?, steps: self.steps })
    }

    /// The numbers from a sequence, token and head on.
    fn from(&self, [row, token, head]: [usize; 3]) -> &'a [T] {
        &self.numbers[row * self.steps[0] + token * self.steps[1] + head * self.steps[2]..]
    }

    fn at(&self, [row, token, head]: [usize; 3], width: usize) -> &[T] {
        let start = row * self.steps[0] + token * self.steps[1] + head * self.steps[2];
        &self.numbers[start..start + width]
    }
}
