//! The block formats of GGUF files, to f32 by `lora-kernels`, and as they are for a model that stays packed.
//! Three of them are written in `gguf_quantise`.

use lora_core::packed::GgufFormat;
use lora_core::packed::gguf::unpack_blocks;

use super::StoredType;

/// Converts whole blocks.
///
/// # Panics
/// For a type that is not in blocks.
pub(crate) fn dequantise(stored: StoredType, bytes: &[u8], numbers: &mut [f32]) {
    match format(stored) {
        Some(format) => unpack_blocks(format, bytes, numbers),
        None => unreachable!("{stored} is not in blocks"),
    }
}

/// The block format of a type, where it has one.
pub(crate) fn format(stored: StoredType) -> Option<GgufFormat> {
    Some(match stored {
        StoredType::Q4_0 => GgufFormat::Q4_0,
        StoredType::Q4_1 => GgufFormat::Q4_1,
        StoredType::Q5_0 => GgufFormat::Q5_0,
        StoredType::Q5_1 => GgufFormat::Q5_1,
        StoredType::Q8_0 => GgufFormat::Q8_0,
        StoredType::Q4K => GgufFormat::Q4K,
        StoredType::Q5K => GgufFormat::Q5K,
        StoredType::Q6K => GgufFormat::Q6K,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use half::f16;

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
