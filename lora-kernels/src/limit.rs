//! How fast this processor can multiply at most: products of numbers that are in its registers and its nearest
//! cache already, on every thread. Products are measured against it.

use std::hint::black_box;
use std::time::Instant;

use bytemuck::{cast_slice, cast_slice_mut};
use half::bf16;
use pulp::{Arch, Simd, WithSimd};

use crate::matmul::tile::lanes;
use crate::number::Number;
use crate::pairs::{BLOCK, DEPTH, Engine, SIDE, Step, Sums, THIRDS, best_engine};
use crate::scratch::Scratch;

/// Sums that do not wait for each other: more than any processor has under way.
const SUMS: usize = 12;
/// Blocks of the depth, whose both sides fit into the nearest cache.
const BLOCKS: usize = 8;
/// Work of one thread in one round, in vectors of sums or in blocks.
const REPEATS: usize = 1 << 23;
const ROUNDS: usize = 20;

/// Floating-point operations per second of a product of numbers in this format; a multiplication and an addition
/// count as two. Of bf16 by whatever multiplies such numbers fastest, of f32 by vectors of them.
pub fn product_limit<T: Number>() -> f64 {
    match best_engine().filter(|_| T::as_bf16(&[]).is_some()) {
        Some(engine) => most(|| in_pairs(engine, [1, 1])),
        None => most(|| Arch::new().dispatch(InRegisters)),
    }
}

/// The same of f32 numbers with weights in the format `W` where each f32 number is taken as three of bf16, if products
/// take that way here.
pub fn product_limit_in_thirds<W: Number>() -> Option<f64> {
    let engine = best_engine().filter(|engine| engine.multiplies_thirds())?;
    let of_weights = if W::as_bf16(&[]).is_some() { 1 } else { THIRDS };
    Some(most(|| in_pairs(engine, [THIRDS, of_weights])))
}

/// The most operations per second that all threads do of `work`, which gives the number of its own.
fn most(work: impl Fn() -> f64 + Sync) -> f64 {
    let round = || {
        let started = Instant::now();
        let operations: f64 = rayon::broadcast(|_| work()).into_iter().sum();
        operations / started.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(|_| round()).fold(0.0, f64::max)
}

/// Blocks of numbers that are made of so many parts on either side.
fn in_pairs(engine: Engine, parts: [usize; 2]) -> f64 {
    let width = BLOCKS * DEPTH;
    let sizes = parts.map(|parts| parts * SIDE * width);
    let mut both = Scratch::new((sizes[0] + sizes[1]) / 2);
    cast_slice_mut::<f32, bf16>(&mut both).fill(bf16::ONE);
    let (left, right) = cast_slice::<f32, bf16>(&both).split_at(sizes[0]);
    let stride = if parts[0] == THIRDS { DEPTH } else { width };
    let step = Step { blocks: BLOCKS, left: left.as_ptr(), stride, right: right.as_ptr() };
    let steps = vec![step; REPEATS / BLOCKS / SIDE / parts[0]];
    let (mut sums, size) = (Sums::new(), (SIDE, SIDE));
    // SAFETY: every step reads `SIDE` rows of `BLOCKS · DEPTH` numbers and as many packed blocks, each as
    // often as there are parts.
    engine.with_tiles(|| unsafe {
        match parts {
            [THIRDS, THIRDS] => engine.sum_thirds(&steps, size, false, &mut sums),
            [THIRDS, _] => engine.sum_left_thirds(&steps, size, false, &mut sums),
            _ => engine.sum(&steps, size, &mut sums),
        }
    });
    black_box(&sums.0);
    (steps.len() * BLOCKS * BLOCK * SIDE * 2) as f64
}

struct InRegisters;

impl WithSimd for InRegisters {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let factors = black_box([0.999, 1e-3]).map(|factor| simd.splat_f32s(factor));
        let mut sums = [simd.splat_f32s(0.0); SUMS];
        for _ in 0..REPEATS {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(factors[0], *sum, factors[1]);
            }
        }
        black_box(sums);
        (REPEATS * SUMS * lanes::<S>() * 2) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_multiplies() {
        // A loop that is left out would be faster than any processor.
        let limits = [product_limit::<f32>(), product_limit::<bf16>()];
        let in_thirds = [product_limit_in_thirds::<f32>(), product_limit_in_thirds::<bf16>()];
        for limit in limits.into_iter().chain(in_thirds.into_iter().flatten()) {
            assert!((1e8..1e15).contains(&limit), "{limit:e} operations per second");
        }
    }
}
