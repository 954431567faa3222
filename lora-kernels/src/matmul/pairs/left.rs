//! The left side of a product of pairs.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use crate::matmul::turn::{self, Square};
use crate::number::Number;
use crate::pairs::{
    BLOCK, DEPTH, Engine, SIDE, THIRDS, are_lines, first_line, high_and_low, split,
};
use crate::parallel::wide;
use crate::scratch::Scratch;

/// A matrix `[m, k]`: one in bf16 is read where it lies as far as that goes in whole blocks and lines of the cache, one
/// in f32 is split into parts.
pub(in crate::matmul) struct Pairs<'a> {
    engine: Engine,
    rows: usize,
    /// Blocks of the depth.
    blocks: usize,
    matrix: &'a [bf16],
    stride: usize,
    /// Blocks of rows that are read from the matrix; the others are packed.
    direct: usize,
    /// `[blocks of rows, SIDE, blocks · DEPTH]`, zero beyond the matrix; of thirds,
    /// `[blocks of rows, blocks, THIRDS, SIDE, DEPTH]`.
    packed: Scratch,
    form: Form,
    /// F32 numbers of which each block of rows is split when it is met.
    unsplit: Option<Unsplit<'a>>,
}

/// A matrix of f32 numbers whose rows and columns are so far apart.
#[derive(Clone, Copy)]
struct Unsplit<'a> {
    numbers: &'a [f32],
    depth: usize,
    steps: [usize; 2],
}

/// What a left side is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Bf16 numbers.
    Whole,
    /// The two parts of f32 numbers that keep 16 bits.
    Halves,
    /// All three parts of f32 numbers.
    Thirds,
}

impl<'a> Pairs<'a> {
    /// The `[rows, depth]` matrix whose rows are `stride` apart.
    pub(in crate::matmul) fn new(
        engine: Engine,
        matrix: &'a [bf16],
        [rows, depth]: [usize; 2],
        stride: usize,
    ) -> Self {
        let fits = depth.is_multiple_of(DEPTH) && are_lines(matrix, stride);
        let direct = if fits { rows / SIDE } else { 0 };
        let copy = |row: usize, into: &mut [bf16]| {
            into[..depth].copy_from_slice(&matrix[row * stride..][..depth]);
            into[depth..].fill(bf16::ZERO);
        };
        Self { matrix, stride, ..Self::packed(Form::Whole, engine, [rows, depth], direct, copy) }
    }

    /// A matrix in f32 as high, low and high parts beside each other, `[rows, 3·depth]`: with a right side
    /// of high, high and low parts below each other, their product keeps 16 bits of both.
    pub(in crate::matmul) fn split(
        engine: Engine,
        matrix: &[f32],
        [rows, depth]: [usize; 2],
        stride: usize,
    ) -> Self {
        Self::packed(Form::Halves, engine, [rows, 3 * depth], 0, |row, into| {
            let from = &matrix[row * stride..][..depth];
            for (at, number) in from.iter().enumerate() {
                let (high, low) = high_and_low(*number);
                (into[at], into[depth + at], into[2 * depth + at]) = (high, low, high);
            }
            into[3 * depth..].fill(bf16::ZERO);
        })
    }

    /// The transpose of a `[depth, rows]` matrix.
    pub(in crate::matmul) fn transposed(
        engine: Engine,
        matrix: &[bf16],
        [depth, rows]: [usize; 2],
        stride: usize,
    ) -> Self {
        Self::packed(Form::Whole, engine, [rows, depth], 0, |row, into| {
            let column = matrix[row..].iter().step_by(stride).take(depth);
            into.iter_mut().zip(column).for_each(|(into, number)| *into = *number);
            into[depth..].fill(bf16::ZERO);
        })
    }

    fn packed(
        form: Form,
        engine: Engine,
        [rows, depth]: [usize; 2],
        direct: usize,
        fill: impl Fn(usize, &mut [bf16]) + Sync,
    ) -> Self {
        let blocks = depth.div_ceil(DEPTH);
        let width = blocks * DEPTH;
        let count = rows.div_ceil(SIDE) - direct;
        let mut packed = Scratch::new(count * SIDE * width / 2);
        if width > 0 {
            let numbers: &mut [bf16] = bytemuck::cast_slice_mut(&mut packed);
            let each = |(index, into): (usize, &mut [bf16])| {
                let row = direct * SIDE + index;
                if row < rows { fill(row, into) } else { into.fill(bf16::ZERO) }
            };
            if numbers.len() < 1 << 16 {
                numbers.chunks_exact_mut(width).enumerate().for_each(each);
            } else {
                let numbers = numbers.par_chunks_exact_mut(width).enumerate();
                numbers.with_min_len(SIDE).for_each(each);
            }
        }
        let unsplit = None;
        Self { engine, rows, blocks, matrix: &[], stride: 0, direct, packed, form, unsplit }
    }

    /// A matrix whose rows and columns are so far apart, one of both by 1, to be taken in thirds.
    pub(in crate::matmul) fn thirds(
        engine: Engine,
        numbers: &'a [f32],
        [rows, depth]: [usize; 2],
        steps: [usize; 2],
    ) -> Self {
        let unsplit = Some(Unsplit { numbers, depth, steps });
        let (blocks, packed) = (depth.div_ceil(DEPTH), Scratch::new(0));
        let form = Form::Thirds;
        Self { engine, rows, blocks, matrix: &[], stride: 0, direct: 0, packed, form, unsplit }
    }

    /// Split into thirds once for all: where many products, or many parts of one, read the same rows.
    pub(in crate::matmul) fn split_up(&self) -> Pairs<'static> {
        let Self { engine, rows, blocks, form, .. } = *self;
        let size = blocks * THIRDS * BLOCK;
        let mut packed = Scratch::new(rows.div_ceil(SIDE) * size / 2);
        if size > 0 {
            let numbers: &mut [bf16] = bytemuck::cast_slice_mut(&mut packed);
            let each =
                |(index, into): (usize, &mut [bf16])| self.split_block(index, 0..blocks, into);
            if numbers.len() < 1 << 16 {
                numbers.chunks_exact_mut(size).enumerate().for_each(each);
            } else {
                numbers.par_chunks_exact_mut(size).enumerate().for_each(each);
            }
        }
        let (matrix, unsplit) = (&[], None);
        Pairs { engine, rows, blocks, matrix, stride: 0, direct: 0, packed, form, unsplit }
    }

    /// Whether a block of rows has to be split before it is multiplied.
    pub(in crate::matmul) fn is_unsplit(&self) -> bool {
        self.unsplit.is_some()
    }

    /// Splits some blocks of the depth of a block of rows into `[blocks, THIRDS, SIDE, DEPTH]`.
    pub(super) fn split_block(&self, row_block: usize, blocks: Range<usize>, into: &mut [bf16]) {
        let Some(Unsplit { numbers, depth, steps }) = self.unsplit else { return };
        let first = [row_block * SIDE, blocks.start * DEPTH];
        let size = [(self.rows - first[0]).min(SIDE), depth.min(blocks.end * DEPTH) - first[1]];
        let from = &numbers[first[0] * steps[0] + first[1] * steps[1]..];
        let into = &mut into[..blocks.len() * THIRDS * BLOCK];
        wide(
            #[inline(always)]
            || split_rows(from, size, steps, into),
        );
    }

    /// Whether these are thirds of f32 numbers.
    pub(in crate::matmul) fn are_thirds(&self) -> bool {
        self.form == Form::Thirds
    }

    /// Whether a low-rank term of this form can be added to the product of `main`.
    pub(in crate::matmul) fn fits_beside(&self, main: &Self) -> bool {
        let wanted = if main.are_thirds() { Form::Thirds } else { Form::Halves };
        (self.form, self.engine) == (wanted, main.engine)
    }

    pub(in crate::matmul) fn engine(&self) -> Engine {
        self.engine
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Where block `block` of the depth begins in a block of `SIDE` rows, and how far rows are apart.
    pub(super) fn at(&self, row_block: usize, block: usize) -> (*const bf16, usize) {
        if self.are_thirds() {
            let packed: &[bf16] = bytemuck::cast_slice(&self.packed);
            let at = (row_block * self.blocks + block) * THIRDS * BLOCK;
            (packed[at..].as_ptr(), DEPTH)
        } else if row_block < self.direct {
            (self.matrix[row_block * SIDE * self.stride + block * DEPTH..].as_ptr(), self.stride)
        } else {
            let width = self.blocks * DEPTH;
            let packed: &[bf16] = bytemuck::cast_slice(&self.packed);
            let at = (row_block - self.direct) * SIDE * width + block * DEPTH;
            (packed[at..].as_ptr(), width)
        }
    }
}

/// Splits a block of rows, `[height, depth]`, into `[blocks, THIRDS, SIDE, DEPTH]`.
#[inline(always)]
fn split_rows<T: Number>(
    from: &[T],
    [height, depth]: [usize; 2],
    [row_step, column_step]: [usize; 2],
    into: &mut [bf16],
) {
    for (block, into) in into.chunks_exact_mut(THIRDS * BLOCK).enumerate() {
        let start = block * DEPTH;
        let width = (depth - start).min(DEPTH);
        let lines = into.as_chunks_mut::<DEPTH>().0;
        let (high, rest) = lines.split_at_mut(SIDE);
        let (middle, low) = rest.split_at_mut(SIDE);
        if column_step == 1 && [height, width] == [SIDE, DEPTH] {
            for (row, high) in high.iter_mut().enumerate() {
                let line = first_line(&from[row * row_step + start..]);
                split(line, 1.0, [high, &mut middle[row], &mut low[row]]);
            }
            continue;
        }
        let mut laid = [[0.0; DEPTH]; SIDE];
        if row_step == 1 && [height, width] == [SIDE, DEPTH] {
            turned(&from[start * column_step..], column_step, &mut laid);
        } else {
            for (row, laid) in laid.iter_mut().enumerate().take(height) {
                for (at, number) in laid.iter_mut().enumerate().take(width) {
                    *number = from[row * row_step + (start + at) * column_step].to_f32();
                }
            }
        }
        for (row, line) in laid.iter().enumerate() {
            split(line, 1.0, [&mut high[row], &mut middle[row], &mut low[row]]);
        }
    }
}

/// `into[row][at] = from[at · step + row]`, square by square.
#[inline(always)]
fn turned<T: Number>(from: &[T], step: usize, into: &mut [[f32; DEPTH]; SIDE]) {
    let mut square = Square([0.0; turn::SIDE * turn::SIDE]);
    for at in (0..DEPTH).step_by(turn::SIDE) {
        for row in (0..SIDE).step_by(turn::SIDE) {
            for (line, into) in square.0.chunks_exact_mut(turn::SIDE).enumerate() {
                T::widen(&from[(at + line) * step + row..][..turn::SIDE], into);
            }
            square.turn(&mut into.as_flattened_mut()[row * DEPTH + at..], DEPTH);
        }
    }
}
