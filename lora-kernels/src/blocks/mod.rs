//! Matrices at rest in few bits: blocks of small integers with a common scale, unpacked a piece at a time
//! where a product meets them.
//!
//! Formats are those of GGUF files, NF4 with double quantisation as bitsandbytes lays it out (Dettmers et al.
//! 2023, <https://arxiv.org/abs/2305.14314>), and bytes with a scale for each row (Dettmers et al. 2022,
//! <https://arxiv.org/abs/2208.07339>, its weights).

mod dots;
pub mod gguf;
mod int8;
mod nf4;
mod planes;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;

use rayon::prelude::*;

use crate::number::Number;
use crate::parallel::for_each_row;
pub(crate) use dots::group_sums;
pub use gguf::GgufFormat;
use int8::Int8;
pub use nf4::NF4_LEVELS;
use nf4::Nf4;
pub use planes::Planes;

/// Numbers that are unpacked at once: whole blocks of every format.
pub(crate) const PIECE: usize = 256;

/// A matrix `[rows, columns]`, row by row, in few bits.
#[derive(Clone)]
pub struct Blocks {
    rows: usize,
    columns: usize,
    stored: Stored,
}

#[derive(Clone)]
enum Stored {
    Gguf(GgufFormat, Vec<u8>),
    Nf4(Nf4),
    Int8(Int8),
}

impl Blocks {
    /// The blocks of a GGUF file as they come; `None` where a row is not whole blocks or `bytes` are not as
    /// many as the shape takes.
    pub fn gguf(format: GgufFormat, [rows, columns]: [usize; 2], bytes: Vec<u8>) -> Option<Self> {
        let (block, block_bytes) = format.block();
        let expected = (columns / block).checked_mul(rows)?.checked_mul(block_bytes)?;
        let fits = columns.is_multiple_of(block) && bytes.len() == expected;
        fits.then_some(Self { rows, columns, stored: Stored::Gguf(format, bytes) })
    }

    /// `numbers` in NF4: blocks of 64 of them one after another, whichever row they are in.
    ///
    /// # Panics
    /// Where there are not as many numbers as the shape says.
    pub fn nf4(numbers: &[f32], [rows, columns]: [usize; 2]) -> Self {
        assert_eq!(numbers.len(), rows * columns, "{rows} x {columns} numbers");
        Self { rows, columns, stored: Stored::Nf4(Nf4::of(numbers)) }
    }

    /// `numbers` as bytes: `round(127·w/max|w|)` in each row.
    ///
    /// # Panics
    /// Where there are not as many numbers as the shape says.
    pub fn int8(numbers: &[f32], [rows, columns]: [usize; 2]) -> Self {
        assert_eq!(numbers.len(), rows * columns, "{rows} x {columns} numbers");
        Self { rows, columns, stored: Stored::Int8(Int8::of(numbers, columns)) }
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        match &self.stored {
            Stored::Gguf(_, bytes) => bytes.len(),
            Stored::Nf4(nf4) => nf4.bytes(),
            Stored::Int8(int8) => int8.bytes(),
        }
    }

    /// What the format is called: `Q4_K`, `NF4`, `INT8`.
    pub fn format(&self) -> &'static str {
        match &self.stored {
            Stored::Gguf(format, _) => format.name(),
            Stored::Nf4(_) => "NF4",
            Stored::Int8(_) => "INT8",
        }
    }

    /// Codes, scales and minima apart from each other, for devices that have no kernel of ours; `None` where
    /// blocks run across rows.
    pub fn planes(&self) -> Option<Planes> {
        planes::planes(self)
    }

    /// Every number, row by row, on all threads.
    ///
    /// # Panics
    /// Where `out` has another length than the matrix.
    pub fn unpack<T: Number>(&self, out: &mut [T]) {
        self.unpack_rows(0..self.rows, out);
    }

    /// The numbers of some rows, on all threads.
    ///
    /// # Panics
    /// Where `out` has another length than they, or there are no such rows.
    pub fn unpack_rows<T: Number>(&self, rows: Range<usize>, out: &mut [T]) {
        assert!(rows.end <= self.rows, "row {} of {}", rows.end, self.rows);
        assert_eq!(out.len(), rows.len() * self.columns, "{} x {}", rows.len(), self.columns);
        if out.is_empty() {
            return;
        }
        let first = rows.start;
        for_each_row(
            self.columns,
            (out.par_chunks_mut(self.columns), 0..rows.len()),
            #[inline(always)]
            |(out, row)| {
                let mut piece = [0.0; PIECE];
                for (number, out) in out.chunks_mut(PIECE).enumerate() {
                    let piece = &mut piece[..out.len()];
                    self.piece(first + row, number * PIECE, piece);
                    T::narrow(piece, out);
                }
            },
        );
    }

    /// The numbers of a row from `column` on, a multiple of [`PIECE`]: at most so many.
    #[inline(always)]
    pub(crate) fn piece(&self, row: usize, column: usize, out: &mut [f32]) {
        match &self.stored {
            Stored::Gguf(format, bytes) => {
                let (block, block_bytes) = format.block();
                let at = (row * self.columns + column) / block * block_bytes;
                gguf::unpack(*format, &bytes[at..at + out.len() / block * block_bytes], out);
            }
            Stored::Nf4(nf4) => nf4.unpack(row * self.columns + column, out),
            Stored::Int8(int8) => int8.unpack(row, row * self.columns + column, out),
        }
    }
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blocks({} {} x {})", self.format(), self.rows, self.columns)
    }
}
