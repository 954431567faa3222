//! The block formats of GGUF files, to f32.
//!
//! A block holds 32 numbers (or 256, the "K" ones) as small integers q with a common scale d, for
//! some formats a minimum m as well: x = d·q, or x = d·q + m. The formats are those of
//! `ggml-quants.h`; the order of operations is theirs too, so that the numbers are theirs bit for
//! bit. Three of them are written in `gguf_quantise`.

use half::f16;

use super::StoredType;

/// Converts whole blocks.
///
/// # Panics
/// For a type that is not in blocks.
pub(crate) fn dequantise(stored: StoredType, bytes: &[u8], numbers: &mut [f32]) {
    match stored {
        StoredType::Q4_0 => each_block(bytes, numbers, q4_0),
        StoredType::Q4_1 => each_block(bytes, numbers, q4_1),
        StoredType::Q5_0 => each_block(bytes, numbers, q5_0),
        StoredType::Q5_1 => each_block(bytes, numbers, q5_1),
        StoredType::Q8_0 => each_block(bytes, numbers, q8_0),
        StoredType::Q4K => each_block(bytes, numbers, q4_k),
        StoredType::Q5K => each_block(bytes, numbers, q5_k),
        StoredType::Q6K => each_block(bytes, numbers, q6_k),
        dense => unreachable!("{dense} is not in blocks"),
    }
}

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
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The bits of byte 4·… that are the fifth bit of each number of a 5-bit block.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

// d, then 16 bytes: the low halves are numbers 0..16, the high halves 16..32.
fn q4_0(block: &[u8; 18], numbers: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    let (low, high) = numbers.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = scale * (f32::from(byte & 15) - 8.0);
        *high = scale * (f32::from(byte >> 4) - 8.0);
    }
}

// d, m, then as Q4_0 without the offset.
fn q4_1(block: &[u8; 20], numbers: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = numbers.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[4..]) {
        *low = scale * f32::from(byte & 15) + minimum;
        *high = scale * f32::from(byte >> 4) + minimum;
    }
}

// d, 32 fifth bits, then the four low bits as in Q4_0.
fn q5_0(block: &[u8; 22], numbers: &mut [f32; 32]) {
    let (scale, fifth) = (half_at(block, 0), fifth_bits(block, 2));
    let (low, high) = numbers.split_at_mut(16);
    for (index, &byte) in block[6..].iter().enumerate() {
        let low_bit = ((fifth >> index) & 1) << 4;
        let high_bit = ((fifth >> (index + 16)) & 1) << 4;
        low[index] = scale * ((u32::from(byte & 15) | low_bit) as f32 - 16.0);
        high[index] = scale * ((u32::from(byte >> 4) | high_bit) as f32 - 16.0);
    }
}

// d, m, then as Q5_0 without the offset.
fn q5_1(block: &[u8; 24], numbers: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let fifth = fifth_bits(block, 4);
    let (low, high) = numbers.split_at_mut(16);
    for (index, &byte) in block[8..].iter().enumerate() {
        let low_bit = ((fifth >> index) & 1) << 4;
        let high_bit = ((fifth >> (index + 16)) & 1) << 4;
        low[index] = scale * (u32::from(byte & 15) | low_bit) as f32 + minimum;
        high[index] = scale * (u32::from(byte >> 4) | high_bit) as f32 + minimum;
    }
}

// d, then 32 signed bytes.
fn q8_0(block: &[u8; 34], numbers: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (number, &byte) in numbers.iter_mut().zip(&block[2..]) {
        *number = scale * f32::from(byte.cast_signed());
    }
}

/// The eight 6-bit scales and minima packed in the 12 bytes of a Q4_K or Q5_K block: the first four
/// of each in the low six bits of bytes 0..4 and 4..8; of the last four, the low four bits in bytes
/// 8..12 and the two high ones in what those bytes had left.
fn packed_scales(packed: &[u8]) -> [(f32, f32); 8] {
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
fn q6_k(block: &[u8; 210], numbers: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    for (group, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (side, group_of_side) = (group / 4, group % 4);
        let low = &block[side * 64 + group_of_side % 2 * 32..][..32];
        let low_shift = group_of_side / 2 * 4;
        let high = &block[128 + side * 32..][..32];
        let high_shift = group_of_side * 2;
        for (index, number) in numbers.iter_mut().enumerate() {
            let quantum =
                ((low[index] >> low_shift) & 15) | (((high[index] >> high_shift) & 3) << 4);
            let scale_of_16 = f32::from(block[192 + group * 2 + index / 16].cast_signed());
            *number = scale * scale_of_16 * (f32::from(quantum) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::stored::read_all;

    /// Blocks of random bytes and what the `gguf` package of llama.cpp makes of them; written by
    /// `tests/fixtures/make_gguf_blocks.py`.
    fn golden(stored: StoredType) -> (&'static [u8], Vec<f32>) {
        macro_rules! pair {
            ($name:literal) => {
                (
                    include_bytes!(concat!("../../tests-data/gguf_blocks/", $name, ".blocks"))
                        .as_slice(),
                    include_bytes!(concat!("../../tests-data/gguf_blocks/", $name, ".f32"))
                        .as_slice(),
                )
            };
        }
        let (blocks, numbers) = match stored {
            StoredType::Q4_0 => pair!("q4_0"),
            StoredType::Q4_1 => pair!("q4_1"),
            StoredType::Q5_0 => pair!("q5_0"),
            StoredType::Q5_1 => pair!("q5_1"),
            StoredType::Q8_0 => pair!("q8_0"),
            StoredType::Q4K => pair!("q4_k"),
            StoredType::Q5K => pair!("q5_k"),
            StoredType::Q6K => pair!("q6_k"),
            StoredType::BF16 => pair!("bf16"),
            StoredType::F16 => pair!("f16"),
            other => unreachable!("no golden blocks for {other}"),
        };
        (blocks, read_all(StoredType::F32, numbers))
    }

    #[test]
    fn every_format_equals_the_reference_bit_for_bit() {
        for stored in [
            StoredType::Q4_0,
            StoredType::Q4_1,
            StoredType::Q5_0,
            StoredType::Q5_1,
            StoredType::Q8_0,
            StoredType::Q4K,
            StoredType::Q5K,
            StoredType::Q6K,
            StoredType::BF16,
            StoredType::F16,
        ] {
            let (blocks, expected) = golden(stored);
            let numbers = read_all(stored, blocks);
            assert_eq!(numbers.len(), expected.len(), "{stored}");
            for (index, (number, expected)) in numbers.iter().zip(&expected).enumerate() {
                assert_eq!(number, expected, "{stored}, number {index}");
            }
        }
    }

    #[test]
    fn a_block_by_hand() {
        // Scale 2, minimum -1; the first byte 0x73 holds number 0 (3) and number 16 (7).
        let mut block = [0u8; 20];
        block[..2].copy_from_slice(&f16::from_f32(2.0).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(-1.0).to_le_bytes());
        block[4] = 0x73;
        let numbers = read_all(StoredType::Q4_1, &block);
        assert_eq!((numbers[0], numbers[16], numbers[1]), (5.0, 13.0, -1.0));
    }
}
