//! Instructions that multiply bf16 numbers in pairs and sum in f32, a block of 32 × 32 sums at a time.
//!
//! A left side is read where it lies, `SIDE` rows of blocks of `DEPTH` numbers. A right side is packed in blocks
//! of `DEPTH` rows and `SIDE` columns, two rows beside each other, which serves tiles as well as vectors.

mod engine;
#[cfg(any(test, target_arch = "x86_64"))]
mod plain;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::bf16;

use crate::number::Number;
pub(crate) use engine::{Engine, best_engine};

/// Numbers of the depth in a block: a row of a tile.
pub(crate) const DEPTH: usize = 32;
/// Rows and columns of the output that are summed at once.
pub(crate) const SIDE: usize = 32;
/// Numbers of a packed block of the right side: `[2 halves of the columns, 16 pairs, 16 columns, 2]`.
pub(crate) const BLOCK: usize = DEPTH * SIDE;

/// Bf16 numbers that an f32 number is the sum of, to its last bit: a high, a middle and a low one (Henry, Tang and
/// Heinecke 2019, <https://arxiv.org/abs/1904.06376>).
pub(crate) const THIRDS: usize = 3;

/// Columns of half a block, which lie beside each other for each pair.
const HALF: usize = SIDE / 2;

/// Blocks of the depth: where they begin on both sides.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) blocks: usize,
    /// `SIDE` rows of `blocks · DEPTH` numbers, `stride` numbers apart; of thirds, `[blocks, THIRDS, SIDE, DEPTH]`,
    /// where `stride` is `DEPTH`.
    pub(crate) left: *const bf16,
    pub(crate) stride: usize,
    /// `blocks` packed blocks, or as many times their thirds, where both sides are in thirds.
    pub(crate) right: *const bf16,
}

/// Rows and columns of a block of the output. A tuple, which stays in registers: an array is written in two halves
/// and read as a whole, which waits for everything that tiles have yet to store.
pub(crate) type Size = (usize, usize);

/// The sums of a block of the output; rows are whole lines of the cache.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [f32; SIDE * SIDE]);

impl Sums {
    pub(crate) fn new() -> Self {
        Self([0.0; SIDE * SIDE])
    }
}

/// Where row `k` of the depth and a column of the panel lie in packed blocks.
pub(crate) fn place(k: usize, column: usize) -> usize {
    let (block, row) = (k / DEPTH, k % DEPTH);
    let (half, column) = (column / HALF, column % HALF);
    block * BLOCK + half * (BLOCK / 2) + row / 2 * SIDE + 2 * column + row % 2
}

/// Packs a right side, `[panels of columns, blocks of rows]`, zero beyond the matrix `[rows, columns]`, whose rows
/// and columns lie so far apart, one of both dense.
pub(crate) fn pack(
    engine: Engine,
    from: &[bf16],
    [rows, columns]: [usize; 2],
    steps: [usize; 2],
    into: &mut [bf16],
) {
    let blocks = rows.div_ceil(DEPTH);
    for (index, into) in into.chunks_exact_mut(BLOCK).enumerate() {
        let (row, column) = (index % blocks * DEPTH, index / blocks * SIDE);
        let (height, width) = (DEPTH.min(rows - row), SIDE.min(columns - column));
        let from = &from[row * steps[0] + column * steps[1]..];
        if (height, width) == (DEPTH, SIDE) {
            engine.pack(from, steps, into);
        } else {
            into.fill(bf16::ZERO);
            for k in 0..height {
                for column in 0..width {
                    into[place(k, column)] = from[k * steps[0] + column * steps[1]];
                }
            }
        }
    }
}

/// Numbers of a right side that [`pack`] writes.
pub(crate) fn packed_size([rows, columns]: [usize; 2]) -> usize {
    rows.div_ceil(DEPTH) * columns.div_ceil(SIDE) * BLOCK
}

/// Whether rows that far apart begin with lines of the cache: a tile is read line by line, and rows that lie
/// across two lines take more than twice as long as a copy of them costs.
pub(crate) fn are_lines(numbers: &[bf16], stride: usize) -> bool {
    numbers.as_ptr().addr().is_multiple_of(64) && stride.is_multiple_of(DEPTH)
}

/// A number as the sum of two, to 16 bits.
#[inline(always)]
pub(crate) fn high_and_low(number: f32) -> (bf16, bf16) {
    let high = <bf16 as Number>::from_f32(number);
    let low = <bf16 as Number>::from_f32(number - Number::to_f32(high));
    (high, low)
}

/// A number as the sum of three bf16 numbers.
///
/// Tiles lose nothing of numbers from 2⁻¹⁰³ to bf16's largest, 3.39e38. Of smaller ones they count as zero what is
/// subnormal, from 2⁻¹¹⁰ down all of the low part. Infinities, and larger numbers, which round to one, make NaN.
#[inline(always)]
pub(crate) fn thirds(number: f32) -> [bf16; THIRDS] {
    // The nearest, ties away from zero; what is left fits exactly, so how ties are broken does not matter.
    let nearest = |number: f32| f32::from_bits(number.to_bits().wrapping_add(0x8000) & 0xffff_0000);
    let high = nearest(number);
    let rest = number - high;
    let middle = nearest(rest);
    [high, middle, rest - middle].map(|part| bf16::from_bits((part.to_bits() >> 16) as u16))
}

/// The first line of some numbers.
///
/// # Panics
/// Where they are fewer.
#[inline(always)]
pub(crate) fn first_line<T>(numbers: &[T]) -> &[T; DEPTH] {
    match numbers.first_chunk() {
        Some(line) => line,
        None => panic!("{} numbers are no line of {DEPTH}", numbers.len()),
    }
}

/// The thirds of a line of numbers, each in a line of its own. Inlined, so it runs as wide as its caller may.
#[inline(always)]
pub(crate) fn split<T: Number>(line: &[T; DEPTH], scale: f32, into: [&mut [bf16; DEPTH]; THIRDS]) {
    let [high, middle, low] = into;
    for at in 0..DEPTH {
        [high[at], middle[at], low[at]] = thirds(line[at].to_f32() * scale);
    }
}
