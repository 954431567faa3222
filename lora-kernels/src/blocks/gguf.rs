//! The block formats of GGUF files, to f32.
//!
//! A block holds 32 numbers (or 256, the "K" ones) as small integers q with a common scale d, for
//! some formats a minimum m as well: x = d·q, or x = d·q + m. The formats are those of
//! `ggml-quants.h`; the order of operations is theirs too, so that the numbers are theirs bit for bit.

use crate::parallel::wide;

/// A block format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufFormat {
    /// 32 numbers, 4 bits and a scale.
    Q4_0,
    /// 32 numbers, 4 bits, a scale and a minimum.
    Q4_1,
    /// 32 numbers, 5 bits and a scale.
    Q5_0,
    /// 32 numbers, 5 bits, a scale and a minimum.
    Q5_1,
    /// 32 numbers, 8 bits and a scale.
    Q8_0,
    /// 256 numbers, 4 bits, 6-bit scales and minima for each 32.
    Q4K,
    /// 256 numbers, 5 bits, 6-bit scales and minima for each 32.
    Q5K,
    /// 256 numbers, 6 bits, 8-bit scales for each 16.
    Q6K,
}

impl GgufFormat {
    /// Numbers of a block, and its bytes.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// What ggml calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }
}

/// Unpacks whole blocks, on this thread.
pub fn unpack_blocks(format: GgufFormat, bytes: &[u8], numbers: &mut [f32]) {
    wide(
        #[inline(always)]
        || unpack(format, bytes, numbers),
    );
}

/// The same, inlined: it runs as wide as the dispatch it is called in.
#[inline(always)]
pub(super) fn unpack(format: GgufFormat, bytes: &[u8], numbers: &mut [f32]) {
    match format {
        GgufFormat::Q4_0 => each_block(bytes, numbers, q4_0),
        GgufFormat::Q4_1 => each_block(bytes, numbers, q4_1),
        GgufFormat::Q5_0 => each_block(bytes, numbers, q5_0),
        GgufFormat::Q5_1 => each_block(bytes, numbers, q5_1),
        GgufFormat::Q8_0 => each_block(bytes, numbers, q8_0),
        GgufFormat::Q4K => each_block(bytes, numbers, q4_k),
        GgufFormat::Q5K => each_block(bytes, numbers, q5_k),
        GgufFormat::Q6K => each_block(bytes, numbers, q6_k),
    }
}

#[inline(always)]
fn each_block<const BYTES: usize, const NUMBERS: usize>(
    bytes: &[u8],
    numbers: &mut [f32],
    convert: impl Fn(&[u8; BYTES], &mut [f32; NUMBERS]),
) {
    for (block, numbers) in
        bytes.as_chunks::<BYTES>().0.iter().zip(numbers.as_chunks_mut::<NUMBERS>().0)
    {
        convert(block, numbers);
    }
}

/// The f16 at byte `at`.
#[inline(always)]
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes([block[at], block[at + 1]]);
    let magnitude = u32::from(bits & 0x7fff);
    let scaled = if magnitude < 0x7c00 {
        // The exponent moved up by 112 in one multiplication, which is exact for the smallest numbers too.
        f32::from_bits(magnitude << 13) * f32::from_bits((112 + 127) << 23)
    } else {
        // Infinite, or not a number; no call, around which loops would keep their sums in memory.
        f32::from_bits(magnitude << 13 | 0x7f80_0000)
    };
    f32::from_bits(scaled.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// The bits of bytes `at..at + 4` that are the fifth bit of each number of a 5-bit block.
#[inline(always)]
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

// d, then 16 bytes: the low halves are numbers 0..16, the high halves 16..32.
#[inline(always)]
fn q4_0(block: &[u8; 18], numbers: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    let (low, high) = numbers.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = scale * (f32::from(byte & 15) - 8.0);
        *high = scale * (f32::from(byte >> 4) - 8.0);
    }
}

// d, m, then as Q4_0 without the offset.
#[inline(always)]
fn q4_1(block: &[u8; 20], numbers: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = numbers.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[4..]) {
        *low = scale * f32::from(byte & 15) + minimum;
        *high = scale * f32::from(byte >> 4) + minimum;
    }
}

// d, 32 fifth bits, then the four low bits as in Q4_0.
#[inline(always)]
fn q5_0(block: &[u8; 22], numbers: &mut [f32; 32]) {
    let (scale, fifth) = (half_at(block, 0), fifth_bits(block, 2));
    for index in 0..16 {
        let byte = block[6 + index];
        let low_bit = ((fifth >> index) & 1) << 4;
        let high_bit = ((fifth >> (index + 16)) & 1) << 4;
        numbers[index] = scale * ((u32::from(byte & 15) | low_bit) as f32 - 16.0);
        numbers[index + 16] = scale * ((u32::from(byte >> 4) | high_bit) as f32 - 16.0);
    }
}

// d, m, then as Q5_0 without the offset.
#[inline(always)]
fn q5_1(block: &[u8; 24], numbers: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let fifth = fifth_bits(block, 4);
    for index in 0..16 {
        let byte = block[8 + index];
        let low_bit = ((fifth >> index) & 1) << 4;
        let high_bit = ((fifth >> (index + 16)) & 1) << 4;
        numbers[index] = scale * (u32::from(byte & 15) | low_bit) as f32 + minimum;
        numbers[index + 16] = scale * (u32::from(byte >> 4) | high_bit) as f32 + minimum;
    }
}

// d, then 32 signed bytes.
#[inline(always)]
fn q8_0(block: &[u8; 34], numbers: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (number, &byte) in numbers.iter_mut().zip(&block[2..]) {
        *number = scale * f32::from(byte.cast_signed());
    }
}

/// The eight 6-bit scales and minima packed in the 12 bytes of a Q4_K or Q5_K block: the first four
/// of each in the low six bits of bytes 0..4 and 4..8; of the last four, the low four bits in bytes
/// 8..12 and the two high ones in what those bytes had left.
#[inline(always)]
pub(super) fn packed_scales(packed: &[u8]) -> [(f32, f32); 8] {
    std::array::from_fn(|index| {
        let (scale, minimum) = if index < 4 {
            (packed[index] & 63, packed[index + 4] & 63)
        } else {
            let low = packed[index + 4];
            ((low & 15) | ((packed[index - 4] >> 6) << 4), (low >> 4) | ((packed[index] >> 6) << 4))
        };
        (f32::from(scale), f32::from(minimum))
    })
}

// d, dmin, packed scales, then 4 × 32 bytes: the low halves are 32 numbers, the high halves the next.
#[inline(always)]
fn q4_k(block: &[u8; 144], numbers: &mut [f32; 256]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let scales = packed_scales(&block[4..16]);
    for (group, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = (scale * scales[group].0, minimum * scales[group].1);
        let bytes = &block[16 + group / 2 * 32..][..32];
        let shift = group % 2 * 4;
        for (number, &byte) in numbers.iter_mut().zip(bytes) {
            *number = scale * f32::from((byte >> shift) & 15) - minimum;
        }
    }
}

// As Q4_K, with 32 bytes of fifth bits in between: bit g of byte i belongs to number i of group g.
#[inline(always)]
fn q5_k(block: &[u8; 176], numbers: &mut [f32; 256]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let scales = packed_scales(&block[4..16]);
    let fifth = &block[16..48];
    for (group, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = (scale * scales[group].0, minimum * scales[group].1);
        let bytes = &block[48 + group / 2 * 32..][..32];
        let shift = group % 2 * 4;
        for ((number, &byte), &fifth) in numbers.iter_mut().zip(bytes).zip(fifth) {
            let quantum = ((byte >> shift) & 15) | (((fifth >> group) & 1) << 4);
            *number = scale * f32::from(quantum) - minimum;
        }
    }
}

// 128 bytes of low halves, 64 bytes of upper pairs of bits, 16 signed scales, d. In each half of the
// block, the 32 numbers of group g take their low bits from bytes 32·(g mod 2).., low halves first.
#[inline(always)]
fn q6_k(block: &[u8; 210], numbers: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    for (group, numbers) in numbers.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (group, place) = (group / 2, group % 2 * 16);
        let (side, group_of_side) = (group / 4, group % 4);
        let low = &block[side * 64 + group_of_side % 2 * 32 + place..][..16];
        let low_shift = group_of_side / 2 * 4;
        let high = &block[128 + side * 32 + place..][..16];
        let high_shift = group_of_side * 2;
        let scale = scale * f32::from(block[192 + group * 2 + place / 16].cast_signed());
        for ((number, low), high) in numbers.iter_mut().zip(low).zip(high) {
            let quantum = ((low >> low_shift) & 15) | (((high >> high_shift) & 3) << 4);
            *number = scale * (f32::from(quantum) - 32.0);
        }
    }
}
