//! Packed matrices against bitsandbytes, and every way of unpacking against every other.

use half::bf16;

use super::nf4::Nf4;
use super::*;
use crate::matmul::{Beside, Patch, Rows, Stored as StoredRows, dot_rows};
use crate::testing::wave;

macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!("../../tests-data/nf4/", $name)).as_slice()
    };
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

const SHAPE: [usize; 2] = [30, 600];

/// The files are written by `tests/fixtures/make_nf4.py`.
#[test]
fn nf4_is_that_of_bitsandbytes() {
    let weights = floats(golden!("weights.f32"));
    assert_eq!(floats(golden!("nf4_levels.f32")), NF4_LEVELS);
    let nf4 = Nf4::of(&weights);
    let (codes, scales, scales_of_scales, mean, levels) = nf4.parts();
    // torch's last bits depend on how wide the vectors of its machine are.
    for (at, (level, expected)) in levels.iter().zip(floats(golden!("levels.f32"))).enumerate() {
        assert!((level - expected).abs() <= 2.4e-7 * expected.abs(), "{at}: {level} {expected}");
    }
    assert_eq!(codes, golden!("codes.u8"));
    // Its search on a processor takes the neighbour of the nearest level now and then.
    let theirs = golden!("scales.u8");
    let same = |block: usize| scales[block] == theirs[block];
    assert!((0..scales.len()).filter(|block| !same(*block)).count() <= scales.len() / 50);
    for (block, weights) in weights.chunks(64).enumerate().filter(|(block, _)| !same(*block)) {
        let largest = weights.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        let off = |code: u8| {
            let scale = levels[usize::from(code)] * scales_of_scales[block / 256] + mean;
            (scale - largest).abs()
        };
        assert!(off(scales[block]) < off(theirs[block]), "scale of block {block}");
    }
    let expected_mean = floats(golden!("mean.f32"))[0];
    assert!((mean - expected_mean).abs() <= 1e-6 * expected_mean, "{mean} {expected_mean}");
    for (scale, expected) in scales_of_scales.iter().zip(floats(golden!("scales_of_scales.f32"))) {
        assert!((scale - expected).abs() <= 2e-6 * expected, "{scale} {expected}");
    }
    let mut unpacked = vec![f32::NAN; weights.len()];
    Blocks::nf4(&weights, SHAPE).unpack(&mut unpacked);
    for (at, expected) in floats(golden!("unpacked.f32")).into_iter().enumerate() {
        let number = unpacked[at];
        assert!(
            !same(at / 64) || (number - expected).abs() <= 1e-6 * expected.abs() + 1e-9,
            "{number} {expected}"
        );
    }
}

#[test]
fn int8_is_that_of_bitsandbytes() {
    let weights = floats(golden!("weights.f32"));
    let int8 = Int8::of(&weights, SHAPE[1]);
    let expected: Vec<i8> = golden!("int8.i8").iter().map(|byte| byte.cast_signed()).collect();
    assert_eq!(int8.codes(), expected);
    let mut unpacked = vec![f32::NAN; weights.len()];
    Blocks::int8(&weights, SHAPE).unpack(&mut unpacked);
    for (number, expected) in unpacked.iter().zip(floats(golden!("int8.f32"))) {
        assert!((number - expected).abs() <= 3e-7 * expected.abs(), "{number} {expected}");
    }
}

/// Blocks of every format; their bytes are a formula, their scales numbers that f16 has.
fn every_format(rows: usize, columns: usize) -> Vec<Blocks> {
    let mut all = vec![
        Blocks::nf4(&wave::<f32>(rows * columns, 0.3), [rows, columns]),
        Blocks::int8(&wave::<f32>(rows * columns, 0.7), [rows, columns]),
    ];
    use GgufFormat::*;
    for format in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K] {
        let (block, size) = format.block();
        if !columns.is_multiple_of(block) {
            continue;
        }
        let mut bytes: Vec<u8> =
            (0..rows * columns / block * size).map(|at| (at * 89 + at / 7 % 251) as u8).collect();
        for (at, block) in bytes.chunks_exact_mut(size).enumerate() {
            let scale = half::f16::from_f32(0.01 + (at % 13) as f32 / 64.0).to_le_bytes();
            let place = if format == Q6K { 208 } else { 0 };
            block[place..place + 2].copy_from_slice(&scale);
            if matches!(format, Q4_1 | Q5_1 | Q4K | Q5K) {
                block[2..4].copy_from_slice(&half::f16::from_f32(-0.5).to_le_bytes());
            }
        }
        all.extend(Blocks::gguf(format, [rows, columns], bytes));
    }
    all
}

fn unpacked(blocks: &Blocks) -> Vec<f32> {
    let [rows, columns] = blocks.shape();
    let mut numbers = vec![f32::NAN; rows * columns];
    blocks.unpack(&mut numbers);
    numbers
}

#[test]
fn rows_alone_and_in_bf16_are_those_of_the_whole() {
    for columns in [32, 64, 65, 288, 512, 576, 1024] {
        for blocks in every_format(7, columns) {
            let whole = unpacked(&blocks);
            assert!(whole.iter().all(|number| number.is_finite()), "{blocks:?}");
            let mut some = vec![f32::NAN; 3 * columns];
            blocks.unpack_rows(2..5, &mut some);
            assert_eq!(some, whole[2 * columns..5 * columns], "{blocks:?}");
            let mut narrow = vec![bf16::NAN; 7 * columns];
            blocks.unpack(&mut narrow);
            let rounded: Vec<bf16> = whole.iter().map(|it| bf16::from_f32(*it)).collect();
            assert_eq!(narrow, rounded, "{blocks:?}");
        }
    }
    assert_eq!(every_format(7, 512).len(), 10);
}

#[test]
fn planes_are_the_same_numbers() {
    for columns in [64, 65, 512] {
        for blocks in every_format(5, columns) {
            let Some(planes) = blocks.planes() else {
                assert_eq!((columns, blocks.format()), (65, "NF4"));
                continue;
            };
            let whole = unpacked(&blocks);
            assert_eq!(planes.codes.len(), whole.len());
            for (at, number) in whole.iter().enumerate() {
                let group = at / planes.group;
                let code = planes.codes[at];
                assert!(planes.bits == 8 || code < 16);
                let level = match planes.levels {
                    Some(levels) => levels[usize::from(code)],
                    None => f32::from(code) - planes.offset,
                };
                let minimum = planes.minima.as_ref().map_or(0.0, |minima| minima[group]);
                assert_eq!(level * planes.scales[group] + minimum, *number, "{blocks:?} at {at}");
            }
        }
    }
}

#[test]
fn products_with_few_rows_are_those_with_the_unpacked() {
    for columns in [32, 64, 65, 288, 512, 576, 1536] {
        for blocks in every_format(37, columns) {
            let dense = unpacked(&blocks);
            for rows in [1, 2, 3, 5] {
                let left: Vec<f32> = wave(rows * columns, 0.1);
                let (a, b): (Vec<f32>, Vec<f32>) = (wave(columns * 2, 0.5), wave(2 * 37, 0.9));
                let product = |weight| {
                    let b = Patch::straight(&b, [2, 37], [0, 0]);
                    let updates = vec![Beside::new(&a, b, 0.1, columns)];
                    let stored = StoredRows { weight, place: 3, updates };
                    let mut out = vec![0.0; rows * 41];
                    dot_rows::<f32>(&left, &[stored], [rows, columns], &mut out, 41);
                    out
                };
                let (found, expected) =
                    (product(Rows::Packed(&blocks)), product(Rows::Dense(&dense)));
                for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let row = at / 41;
                    let size: f32 = left[row * columns..][..columns].iter().map(|x| x.abs()).sum();
                    let largest = dense.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                    let bound = 2e-6 * size * largest;
                    assert!(
                        (found - expected).abs() <= bound,
                        "{blocks:?} {rows} {at}: {found} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn sizes() {
    let blocks = Blocks::nf4(&vec![0.5; 64 * 1024], [64, 1024]);
    // 4 bits, and a byte for each 64, 4 bytes for each 256 · 64, and the mean.
    assert_eq!(blocks.bytes(), 32 * 1024 + 1024 + 16 + 4);
    assert_eq!(Blocks::int8(&[1.0; 12], [3, 4]).bytes(), 12 + 3 * 4);
    assert!(Blocks::gguf(GgufFormat::Q4_0, [2, 32], vec![0; 36]).is_some());
    assert!(Blocks::gguf(GgufFormat::Q4_0, [2, 32], vec![0; 35]).is_none());
    assert!(Blocks::gguf(GgufFormat::Q4_0, [2, 48], vec![0; 54]).is_none());
}

#[test]
fn every_scale_is_read() {
    for bits in 0..=u16::MAX {
        let expected = half::f16::from_bits(bits).to_f32();
        let found = super::gguf::half_at(&bits.to_le_bytes(), 0);
        assert!(found == expected || found.is_nan() && expected.is_nan(), "{bits:#x}: {found}");
        assert_eq!(found.is_sign_negative(), bits >> 15 == 1, "{bits:#x}");
    }
}
