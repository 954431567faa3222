//! The number formats found in checkpoint files, and their way to f32. The quantised ones are in
//! `gguf_blocks`.

use std::fmt;

use half::f16;
use half::slice::HalfFloatSliceExt;
use lora_core::packed::GgufFormat;
use rayon::prelude::*;

use super::gguf_blocks;

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoredType {
    /// 64-bit floats.
    F64,
    /// 32-bit floats.
    F32,
    /// 16-bit floats, IEEE half precision.
    F16,
    /// 16-bit floats with the exponent of F32.
    BF16,
    /// 8-bit floats, 4 bits of exponent; only named, not read: their scales are elsewhere.
    F8E4M3,
    /// 8-bit floats, 5 bits of exponent; only named, not read.
    F8E5M2,
    /// Truth values, a byte each.
    Bool,
    /// Unsigned bytes.
    U8,
    /// Signed bytes.
    I8,
    /// Unsigned 16-bit integers.
    U16,
    /// Signed 16-bit integers.
    I16,
    /// Unsigned 32-bit integers.
    U32,
    /// Signed 32-bit integers.
    I32,
    /// Unsigned 64-bit integers.
    U64,
    /// Signed 64-bit integers.
    I64,
    /// GGUF: blocks of 32, 4 bits and a scale.
    Q4_0,
    /// GGUF: blocks of 32, 4 bits, a scale and a minimum.
    Q4_1,
    /// GGUF: blocks of 32, 5 bits and a scale.
    Q5_0,
    /// GGUF: blocks of 32, 5 bits, a scale and a minimum.
    Q5_1,
    /// GGUF: blocks of 32, 8 bits and a scale.
    Q8_0,
    /// GGUF: blocks of 256, 4 bits, 6-bit scales and minima for each 32.
    Q4K,
    /// GGUF: blocks of 256, 5 bits, 6-bit scales and minima for each 32.
    Q5K,
    /// GGUF: blocks of 256, 6 bits, 8-bit scales for each 16.
    Q6K,
}

impl StoredType {
    /// How many numbers one block holds, and how many bytes it takes. Dense types have blocks of 1.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F64 | Self::U64 | Self::I64 => (1, 8),
            Self::F32 | Self::U32 | Self::I32 => (1, 4),
            Self::F16 | Self::BF16 | Self::U16 | Self::I16 => (1, 2),
            Self::F8E4M3 | Self::F8E5M2 | Self::Bool | Self::U8 | Self::I8 => (1, 1),
            _ => gguf_blocks::format(self).map_or((1, 1), GgufFormat::block),
        }
    }

    /// Whether the numbers are in blocks with common scales.
    pub fn is_quantised(self) -> bool {
        self.block().0 > 1
    }

    /// Whether the numbers can be read as f32.
    pub fn is_readable(self) -> bool {
        self.is_quantised() || matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// Bytes that `shape` takes; `None` where it overflows or a row is not whole blocks.
    pub fn bytes_of(self, shape: &[usize]) -> Option<usize> {
        let (elements, bytes) = self.block();
        if !shape.last().copied().unwrap_or(1).is_multiple_of(elements) {
            return None;
        }
        let count = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side))?;
        (count / elements).checked_mul(bytes)
    }

    /// The dtype of a safetensors header.
    pub(crate) fn from_safetensors(name: &str) -> Option<Self> {
        Some(match name {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::BF16,
            "F8_E4M3" => Self::F8E4M3,
            "F8_E5M2" => Self::F8E5M2,
            "BOOL" => Self::Bool,
            "U8" => Self::U8,
            "I8" => Self::I8,
            "U16" => Self::U16,
            "I16" => Self::I16,
            "U32" => Self::U32,
            "I32" => Self::I32,
            "U64" => Self::U64,
            "I64" => Self::I64,
            _ => return None,
        })
    }

    /// The tensor type of a GGUF file; the error says whether the number means anything.
    pub(crate) fn from_gguf(number: u32) -> Result<Self, String> {
        let name = match number {
            0 => return Ok(Self::F32),
            1 => return Ok(Self::F16),
            2 => return Ok(Self::Q4_0),
            3 => return Ok(Self::Q4_1),
            6 => return Ok(Self::Q5_0),
            7 => return Ok(Self::Q5_1),
            8 => return Ok(Self::Q8_0),
            12 => return Ok(Self::Q4K),
            13 => return Ok(Self::Q5K),
            14 => return Ok(Self::Q6K),
            24 => return Ok(Self::I8),
            25 => return Ok(Self::I16),
            26 => return Ok(Self::I32),
            27 => return Ok(Self::I64),
            28 => return Ok(Self::F64),
            30 => return Ok(Self::BF16),
            9 => "Q8_1",
            10 => "Q2_K",
            11 => "Q3_K",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            _ => return Err(format!("has the unknown tensor type {number}")),
        };
        Err(format!("is stored as {name}, which is not supported"))
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::U16 => "U16",
            Self::I16 => "I16",
            Self::U32 => "U32",
            Self::I32 => "I32",
            Self::U64 => "U64",
            Self::I64 => "I64",
            _ => gguf_blocks::format(*self).map_or("?", GgufFormat::name),
        })
    }
}

/// Numbers that one task of the thread pool converts, at least.
const TASK_NUMBERS: usize = 1 << 15;

/// All numbers of a tensor, row by row, on all threads. Output row `r` is stored row `source_row(r)`.
///
/// # Panics
/// Where `bytes` is not `rows` rows of `row_length` numbers in `stored`, or `stored` is not readable;
/// the readers have checked both.
pub(crate) fn read_rows(
    stored: StoredType,
    bytes: &[u8],
    rows: usize,
    row_length: usize,
    source_row: impl Fn(usize) -> usize + Sync,
) -> Vec<f32> {
    let mut numbers = vec![0.0f32; rows * row_length];
    if numbers.is_empty() {
        return numbers;
    }
    let row_bytes = bytes.len() / rows;
    let rows_per_task = TASK_NUMBERS.div_ceil(row_length);
    numbers.par_chunks_mut(rows_per_task * row_length).enumerate().for_each(|(task, chunk)| {
        for (offset, row) in chunk.chunks_exact_mut(row_length).enumerate() {
            let start = source_row(task * rows_per_task + offset) * row_bytes;
            fill(stored, &bytes[start..start + row_bytes], row);
        }
    });
    numbers
}

/// All numbers of a tensor in the order in which they are stored, on all threads.
///
/// # Panics
/// As [`read_rows`].
pub(crate) fn read_all(stored: StoredType, bytes: &[u8]) -> Vec<f32> {
    let (block_numbers, block_bytes) = stored.block();
    let blocks = bytes.len() / block_bytes;
    let mut numbers = vec![0.0f32; blocks * block_numbers];
    let blocks_per_task = TASK_NUMBERS.div_ceil(block_numbers);
    numbers
        .par_chunks_mut(blocks_per_task * block_numbers)
        .zip(bytes.par_chunks(blocks_per_task * block_bytes))
        .for_each(|(numbers, bytes)| fill(stored, bytes, numbers));
    numbers
}

/// Converts whole blocks, on this thread.
fn fill(stored: StoredType, bytes: &[u8], numbers: &mut [f32]) {
    match stored {
        StoredType::F32 => {
            for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *number = f32::from_le_bytes(*bytes);
            }
        }
        StoredType::BF16 => {
            for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *number = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
        StoredType::F16 => {
            // Through aligned memory, so that the conversion instructions of the CPU are used.
            let mut halves = [f16::ZERO; 256];
            for (numbers, bytes) in numbers.chunks_mut(256).zip(bytes.chunks(512)) {
                for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *half = f16::from_le_bytes(*bytes);
                }
                halves[..numbers.len()].convert_to_f32_slice(numbers);
            }
        }
        StoredType::F64 => {
            for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *number = f64::from_le_bytes(*bytes) as f32;
            }
        }
        _ => gguf_blocks::dequantise(stored, bytes, numbers),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn sizes_of_shapes() {
        assert_eq!(StoredType::Q4_1.bytes_of(&[3, 64]), Some(3 * 2 * 20));
        assert_eq!(StoredType::Q4_1.bytes_of(&[64, 3]), None);
        assert_eq!(StoredType::Q6K.bytes_of(&[256]), Some(210));
        assert_eq!(StoredType::F32.bytes_of(&[]), Some(4));
        assert_eq!(StoredType::F32.bytes_of(&[usize::MAX, 2]), None);
        assert_eq!(StoredType::F16.bytes_of(&[0, 7]), Some(0));
    }

    #[test]
    fn dense_types_to_f32() {
        let values = [0.0f32, -1.5, 3.25, 65504.0, f32::INFINITY, 1.0 / 1024.0];
        let many: Vec<f32> = (0..100_003).map(|i| values[i % values.len()]).collect();
        let bytes: Vec<u8> = many.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        assert_eq!(read_all(StoredType::F16, &bytes), many);
        let bytes: Vec<u8> = many.iter().flat_map(|&v| v.to_le_bytes()).collect();
        assert_eq!(read_all(StoredType::F32, &bytes), many);
        let bytes: Vec<u8> = many.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect();
        assert_eq!(read_all(StoredType::F64, &bytes), many);
        let bytes: Vec<u8> = many.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        let expected: Vec<f32> = many.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
        assert_eq!(read_all(StoredType::BF16, &bytes), expected);
    }

    #[test]
    fn rows_in_another_order() {
        let rows = 5_000;
        let stored: Vec<f32> = (0..rows * 3).map(|i| i as f32).collect();
        let bytes: Vec<u8> = stored.iter().flat_map(|v| v.to_le_bytes()).collect();
        let read = read_rows(StoredType::F32, &bytes, rows, 3, |row| rows - 1 - row);
        assert_eq!(&read[..3], &stored[(rows - 1) * 3..]);
        assert_eq!(&read[(rows - 1) * 3..], &stored[..3]);
    }

    #[test]
    fn names_of_gguf_types() {
        assert_eq!(StoredType::from_gguf(14).unwrap().to_string(), "Q6_K");
        assert_eq!(
            StoredType::from_gguf(16).unwrap_err(),
            "is stored as IQ2_XXS, which is not supported"
        );
        assert_eq!(StoredType::from_gguf(5).unwrap_err(), "has the unknown tensor type 5");
    }
}
