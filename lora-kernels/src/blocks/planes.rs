//! Packed matrices taken apart, for devices that unpack them by tensor operations.

use super::gguf::{GgufFormat, half_at, packed_scales};
use super::nf4::BLOCK;
use super::{Blocks, NF4_LEVELS, Stored};

/// A matrix as `w = level(code)·scale + minimum`, with one scale for each group of columns; level(code) is
/// the code less an offset, or one of sixteen levels.
#[derive(Debug, Clone)]
pub struct Planes {
    /// One for each number, `[rows, columns]`.
    pub codes: Vec<u8>,
    /// Bits that a code takes: 4 or 8.
    pub bits: usize,
    /// What is taken off a code.
    pub offset: f32,
    /// What a code stands for, where that is no difference.
    pub levels: Option<&'static [f32; 16]>,
    /// Columns with one scale.
    pub group: usize,
    /// `[rows, columns / group]`
    pub scales: Vec<f32>,
    /// `[rows, columns / group]`
    pub minima: Option<Vec<f32>>,
}

pub(super) fn planes(blocks: &Blocks) -> Option<Planes> {
    let [rows, columns] = blocks.shape();
    match &blocks.stored {
        Stored::Gguf(format, bytes) => Some(of_gguf(*format, bytes)),
        Stored::Nf4(nf4) => columns.is_multiple_of(BLOCK).then(|| Planes {
            codes: (0..rows * columns).map(|at| nf4.code(at)).collect(),
            bits: 4,
            offset: 0.0,
            levels: Some(&NF4_LEVELS),
            group: BLOCK,
            scales: (0..rows * columns / BLOCK).map(|block| nf4.scale(block)).collect(),
            minima: None,
        }),
        Stored::Int8(int8) => Some(Planes {
            codes: int8.codes().iter().map(|code| (i16::from(*code) + 128) as u8).collect(),
            bits: 8,
            offset: 128.0,
            levels: None,
            group: columns,
            scales: (0..rows).map(|row| int8.scale(row)).collect(),
            minima: None,
        }),
    }
}

fn of_gguf(format: GgufFormat, bytes: &[u8]) -> Planes {
    let (bits, offset, group, has_minima) = match format {
        GgufFormat::Q4_0 => (4, 8.0, 32, false),
        GgufFormat::Q4_1 | GgufFormat::Q4K => (4, 0.0, 32, true),
        GgufFormat::Q5_0 => (8, 16.0, 32, false),
        GgufFormat::Q5_1 | GgufFormat::Q5K => (8, 0.0, 32, true),
        GgufFormat::Q8_0 => (8, 128.0, 32, false),
        GgufFormat::Q6K => (8, 32.0, 16, false),
    };
    let (mut codes, mut scales, mut minima) = (Vec::new(), Vec::new(), Vec::new());
    for block in bytes.chunks_exact(format.block().1) {
        match format {
            GgufFormat::Q4_0 => halves(&block[2..], &mut codes),
            GgufFormat::Q4_1 => halves(&block[4..], &mut codes),
            GgufFormat::Q5_0 => fifth(&block[2..], &mut codes),
            GgufFormat::Q5_1 => fifth(&block[4..], &mut codes),
            GgufFormat::Q8_0 => codes.extend(block[2..].iter().map(|byte| byte ^ 0x80)),
            GgufFormat::Q4K => {
                for pair in block[16..].chunks_exact(32) {
                    codes.extend(pair.iter().map(|byte| byte & 15));
                    codes.extend(pair.iter().map(|byte| byte >> 4));
                }
            }
            GgufFormat::Q5K => {
                for group in 0..8 {
                    let low = &block[48 + group / 2 * 32..][..32];
                    let pairs = low.iter().zip(&block[16..48]);
                    codes.extend(pairs.map(|(low, fifth)| {
                        ((low >> (group % 2 * 4)) & 15) | (((fifth >> group) & 1) << 4)
                    }));
                }
            }
            GgufFormat::Q6K => {
                for group in 0..8 {
                    let (side, within) = (group / 4, group % 4);
                    let low = &block[side * 64 + within % 2 * 32..][..32];
                    let high = &block[128 + side * 32..][..32];
                    codes.extend(low.iter().zip(high).map(|(low, high)| {
                        ((low >> (within / 2 * 4)) & 15) | (((high >> (within * 2)) & 3) << 4)
                    }));
                }
            }
        }
        match format {
            GgufFormat::Q4K | GgufFormat::Q5K => {
                let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
                let parts = packed_scales(&block[4..16]);
                scales.extend(parts.iter().map(|part| scale * part.0));
                minima.extend(parts.iter().map(|part| -(minimum * part.1)));
            }
            GgufFormat::Q6K => {
                let scale = half_at(block, 208);
                let parts = block[192..208].iter();
                scales.extend(parts.map(|byte| scale * f32::from(byte.cast_signed())));
            }
            _ => {
                scales.push(half_at(block, 0));
                if has_minima {
                    minima.push(half_at(block, 2));
                }
            }
        }
    }
    let minima = has_minima.then_some(minima);
    Planes { codes, bits, offset, levels: None, group, scales, minima }
}

/// Low halves of bytes, then high halves.
fn halves(bytes: &[u8], codes: &mut Vec<u8>) {
    codes.extend(bytes.iter().map(|byte| byte & 15));
    codes.extend(bytes.iter().map(|byte| byte >> 4));
}

/// As [`halves`], after 32 fifth bits.
fn fifth(bytes: &[u8], codes: &mut Vec<u8>) {
    let start = codes.len();
    halves(&bytes[4..], codes);
    for (at, code) in codes[start..].iter_mut().enumerate() {
        *code |= ((bytes[at / 8] >> (at % 8)) & 1) << 4;
    }
}
