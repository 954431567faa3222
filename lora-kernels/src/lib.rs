//! The processor's kernels under low-rank adaptation: slices in, slices out. Knows no tensors, no automatic
//! differentiation and no model.
//!
//! Numbers are f32 or bf16 ([`number::Number`]), sums are f32. Each kernel is compiled for several instruction
//! sets and takes the best of the processor it runs on. This is the one crate with `unsafe`: loads and
//! stores of vectors, and outputs that several threads write in parts.

#![expect(unsafe_code, reason = "vectors are read and written through pointers")]
#![expect(clippy::needless_range_loop, reason = "lanes run over several arrays side by side")]

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod awake;
pub mod blocks;
pub mod cross_entropy;
pub mod dropout;
pub mod elementwise;
mod exp;
pub mod limit;
pub mod matmul;
pub mod norm;
pub mod number;
mod pairs;
mod parallel;
pub mod rotary;
mod scratch;
mod softmax;
mod stream;
#[cfg(test)]
mod testing;

/// A vector of `length` numbers that `fill` writes; every one of them, since what they are before is not said.
pub fn filled<T: number::Number>(length: usize, fill: impl FnOnce(&mut [T])) -> Vec<T> {
    let mut numbers = Vec::with_capacity(length);
    // Clearing what is written next would cost as much as many a kernel.
    // SAFETY: the capacity is there, any bits are a number, and `fill` writes before anyone reads.
    unsafe { fill(std::slice::from_raw_parts_mut(numbers.as_mut_ptr(), length)) };
    // SAFETY: as above.
    unsafe { numbers.set_len(length) };
    numbers
}
