//! f32 to the number formats that GGUF files are written in: F32, F16, BF16, Q8_0, Q4_0 and Q4_K. The
//! layouts of the blocks are those that `gguf_blocks` reads.
//!
//! Q8_0 and Q4_0 have one scale for 32 numbers, which follows from the largest of them: the bytes are
//! those of llama.cpp. Q4_K leaves a choice, a scale and a minimum for each 32 numbers, and takes the
//! pair with the least squared error of a handful; its bytes are not llama.cpp's, its error is.

use half::{bf16, f16};
use rayon::prelude::*;

use super::StoredType;

/// Formats that [`quantise`] writes.
pub(crate) const WRITABLE: [StoredType; 6] = [
    StoredType::F32,
    StoredType::F16,
    StoredType::BF16,
    StoredType::Q8_0,
    StoredType::Q4_0,
    StoredType::Q4K,
];

/// Numbers that one task of the thread pool converts, at least; whole blocks of every format.
const TASK_NUMBERS: usize = 1 << 15;

/// The bytes of whole blocks, on all threads.
///
/// # Panics
/// For a format that is not in [`WRITABLE`], and for numbers that are no whole blocks: the writer has
/// checked both.
pub(crate) fn quantise(stored: StoredType, numbers: &[f32]) -> Vec<u8> {
    let (block_numbers, block_bytes) = stored.block();
    assert!(numbers.len().is_multiple_of(block_numbers), "{} numbers in {stored}", numbers.len());
    let mut bytes = vec![0u8; numbers.len() / block_numbers * block_bytes];
    bytes
        .par_chunks_mut(TASK_NUMBERS / block_numbers * block_bytes)
        .zip(numbers.par_chunks(TASK_NUMBERS))
        .for_each(|(bytes, numbers)| fill(stored, numbers, bytes));
    bytes
}

fn fill(stored: StoredType, numbers: &[f32], bytes: &mut [u8]) {
    match stored {
        StoredType::F32 => each(numbers, bytes, |[number], four| *four = number.to_le_bytes()),
        StoredType::F16 => {
            each(numbers, bytes, |[number], two| *two = f16::from_f32(*number).to_le_bytes());
        }
        StoredType::BF16 => {
            each(numbers, bytes, |[number], two| *two = bf16::from_f32(*number).to_le_bytes());
        }
        StoredType::Q8_0 => each(numbers, bytes, q8_0),
        StoredType::Q4_0 => each(numbers, bytes, q4_0),
        StoredType::Q4K => each(numbers, bytes, q4_k),
        other => unreachable!("{other} is not written"),
    }
}

fn each<const NUMBERS: usize, const BYTES: usize>(
    numbers: &[f32],
    bytes: &mut [u8],
    convert: impl Fn(&[f32; NUMBERS], &mut [u8; BYTES]),
) {
    for (numbers, block) in
        numbers.as_chunks::<NUMBERS>().0.iter().zip(bytes.as_chunks_mut::<BYTES>().0)
    {
        convert(numbers, block);
    }
}

fn put_half(block: &mut [u8], at: usize, number: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(number).to_le_bytes());
}

/// 1/x, and 0 for 0.
fn inverse(number: f32) -> f32 {
    if number == 0.0 { 0.0 } else { 1.0 / number }
}

// The largest magnitude becomes 127.
fn q8_0(numbers: &[f32; 32], block: &mut [u8; 34]) {
    let largest = numbers.iter().fold(0.0f32, |largest, number| largest.max(number.abs()));
    let scale = largest / 127.0;
    let steps = inverse(scale);
    put_half(block, 0, scale);
    for (byte, number) in block[2..].iter_mut().zip(numbers) {
        *byte = ((number * steps).round() as i8).cast_unsigned();
    }
}

// The number of the largest magnitude becomes -8, whatever its sign; the first of several.
fn q4_0(numbers: &[f32; 32], block: &mut [u8; 18]) {
    let mut largest = 0.0f32;
    for &number in numbers {
        if number.abs() > largest.abs() {
            largest = number;
        }
    }
    let scale = largest / -8.0;
    let steps = inverse(scale);
    put_half(block, 0, scale);
    let level = |number: f32| ((number * steps + 8.5) as u8).min(15);
    let (low, high) = numbers.split_at(16);
    for ((byte, &low), &high) in block[2..].iter_mut().zip(low).zip(high) {
        *byte = level(low) | level(high) << 4;
    }
}

// Eight groups of 32: x = scale·q - minimum, scales and minima in 63rds of the block's largest.
fn q4_k(numbers: &[f32; 256], block: &mut [u8; 144]) {
    let groups = numbers.as_chunks::<32>().0;
    let mut fits = [Fit::default(); 8];
    for (fit, group) in fits.iter_mut().zip(groups) {
        *fit = best_fit(group);
    }
    let largest = |of: fn(&Fit) -> f32| fits.iter().map(of).fold(0.0f32, f32::max);
    let (scale, minimum) = (largest(|fit| fit.scale) / 63.0, largest(|fit| fit.minimum) / 63.0);
    put_half(block, 0, scale);
    put_half(block, 2, minimum);
    // What the reader will multiply with.
    let units = Fit { scale: half_of(scale), minimum: half_of(minimum) };
    let mut packed = [(0, 0); 8];
    for ((packed, group), fit) in packed.iter_mut().zip(groups).zip(fits) {
        *packed = best_steps(group, fit, units);
    }
    pack_scales(&packed, &mut block[4..16]);
    for (group, (numbers, steps)) in groups.iter().zip(packed).enumerate() {
        let fit = units.times(steps);
        let steps = inverse(fit.scale);
        let bytes = &mut block[16 + group / 2 * 32..][..32];
        for (byte, number) in bytes.iter_mut().zip(numbers) {
            *byte |= level(number + fit.minimum, steps) << (group % 2 * 4);
        }
    }
}

fn half_of(number: f32) -> f32 {
    f16::from_f32(number).to_f32()
}

/// Scale and minimum of a group in whole units: the rounded ones, or with one unit more or less of either
/// if that is nearer.
fn best_steps(numbers: &[f32; 32], fit: Fit, units: Fit) -> (u8, u8) {
    let weights = weights(numbers);
    let whole = |number: f32, unit: f32| ((number * inverse(unit)).round() as u8).min(63);
    let around = |steps: u8| steps.saturating_sub(1)..=(steps + 1).min(63);
    let rounded = (whole(fit.scale, units.scale), whole(fit.minimum, units.minimum));
    let mut best = (squared_error(numbers, &weights, units.times(rounded)), rounded);
    for scale in around(rounded.0) {
        for minimum in around(rounded.1) {
            let error = squared_error(numbers, &weights, units.times((scale, minimum)));
            if error < best.0 {
                best = (error, (scale, minimum));
            }
        }
    }
    best.1
}

/// The 4-bit level of a number that is not negative but for rounding.
fn level(number: f32, steps: f32) -> u8 {
    ((number * steps).round() as u8).min(15)
}

/// The inverse of `gguf_blocks::packed_scales`.
fn pack_scales(scales: &[(u8, u8); 8], packed: &mut [u8]) {
    for (index, &(scale, minimum)) in scales.iter().enumerate() {
        if index < 4 {
            packed[index] |= scale;
            packed[index + 4] |= minimum;
        } else {
            packed[index + 4] = (scale & 15) | (minimum & 15) << 4;
            packed[index - 4] |= scale >> 4 << 6;
            packed[index] |= minimum >> 4 << 6;
        }
    }
}

/// x = scale·q - minimum; neither is negative.
#[derive(Clone, Copy, Default)]
struct Fit {
    scale: f32,
    minimum: f32,
}

impl Fit {
    fn times(self, (scale, minimum): (u8, u8)) -> Self {
        Self { scale: self.scale * f32::from(scale), minimum: self.minimum * f32::from(minimum) }
    }
}

/// How many ways of laying the levels over a group are tried.
const TRIALS: usize = 21;

/// Scale and minimum of 32 numbers with the least weighted squared error. Each trial spreads between 14
/// and 16 levels over the range, rounds, and solves for the best pair given those levels.
fn best_fit(numbers: &[f32; 32]) -> Fit {
    let low = numbers.iter().copied().fold(0.0f32, f32::min);
    let high = numbers.iter().copied().fold(f32::MIN, f32::max).max(low);
    if high <= low {
        return Fit { scale: 0.0, minimum: -low };
    }
    let weights = weights(numbers);
    let mut best = (f32::INFINITY, Fit::default());
    for trial in 0..TRIALS {
        let steps = (14.0 + 0.1 * trial as f32) / (high - low);
        let levels = numbers.map(|x| f32::from(level(x - low, steps)));
        let Some(fit) = least_squares(numbers, &weights, &levels) else { continue };
        let error = squared_error(numbers, &weights, fit);
        if error < best.0 {
            best = (error, fit);
        }
    }
    best.1
}

/// Large numbers weigh more: they are what a product with the row feels.
fn weights(numbers: &[f32; 32]) -> [f32; 32] {
    let typical = (numbers.iter().map(|x| x * x).sum::<f32>() / 32.0).sqrt();
    numbers.map(|x| typical + x.abs())
}

/// The pair that minimises Σ w·(scale·q - minimum - x)² for given levels q, with minimum ≥ 0.
fn least_squares(numbers: &[f32; 32], weights: &[f32; 32], levels: &[f32; 32]) -> Option<Fit> {
    // Σw, Σwq, Σwq², Σwx and Σwqx.
    let [mut one, mut q, mut square, mut x, mut product] = [0.0f64; 5];
    for ((&number, &weight), &level) in numbers.iter().zip(weights).zip(levels) {
        let (number, weight, level) = (f64::from(number), f64::from(weight), f64::from(level));
        one += weight;
        q += weight * level;
        square += weight * level * level;
        x += weight * number;
        product += weight * level * number;
    }
    let determinant = one * square - q * q;
    let (mut scale, mut offset) = (0.0, 1.0);
    if determinant > 0.0 {
        scale = (one * product - q * x) / determinant;
        offset = (square * x - q * product) / determinant;
    }
    if offset > 0.0 {
        // The format subtracts its minimum; one that would be added is left out.
        (scale, offset) = (if square > 0.0 { product / square } else { 0.0 }, 0.0);
    }
    (scale > 0.0).then_some(Fit { scale: scale as f32, minimum: -offset as f32 })
}

/// The error with the levels that this scale and minimum give.
fn squared_error(numbers: &[f32; 32], weights: &[f32; 32], fit: Fit) -> f32 {
    let steps = inverse(fit.scale);
    let error = |(x, w): (&f32, &f32)| {
        let back = fit.scale * f32::from(level(x + fit.minimum, steps)) - fit.minimum;
        w * (back - x) * (back - x)
    };
    numbers.iter().zip(weights).map(error).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::stored::read_all;

    /// Numbers, and their bytes in a format as others write them: Q8_0 and Q4_0 by the `gguf` package,
    /// Q4_K by llama.cpp itself. Written by `tests/fixtures/make_gguf_quantised.py`.
    fn golden(stored: StoredType) -> (Vec<f32>, &'static [u8]) {
        macro_rules! file {
            ($name:literal) => {
                include_bytes!(concat!("../../tests-data/gguf_quantised/", $name)).as_slice()
            };
        }
        let blocks = match stored {
            StoredType::F16 => file!("f16.blocks"),
            StoredType::BF16 => file!("bf16.blocks"),
            StoredType::Q8_0 => file!("q8_0.blocks"),
            StoredType::Q4_0 => file!("q4_0.blocks"),
            StoredType::Q4K => file!("q4_k.blocks"),
            other => unreachable!("no golden blocks for {other}"),
        };
        (read_all(StoredType::F32, file!("numbers.f32")), blocks)
    }

    #[test]
    fn what_has_one_answer_is_that_of_the_reference_bit_for_bit() {
        for stored in [StoredType::F16, StoredType::BF16, StoredType::Q8_0, StoredType::Q4_0] {
            let (numbers, expected) = golden(stored);
            let found = quantise(stored, &numbers);
            assert_eq!(found.len(), expected.len(), "{stored}");
            for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert_eq!(found, expected, "{stored}, byte {index}");
            }
        }
    }

    #[test]
    fn q4_k_is_as_near_as_that_of_llama_cpp() {
        let (numbers, blocks) = golden(StoredType::Q4K);
        let error = |bytes: &[u8], range: std::ops::Range<usize>| {
            let back = read_all(StoredType::Q4K, bytes);
            let pairs = numbers[range.clone()].iter().zip(&back[range]);
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let ours = quantise(StoredType::Q4K, &numbers);
        for block in 0..numbers.len() / 256 {
            let range = block * 256..(block + 1) * 256;
            let (found, expected) = (error(&ours, range.clone()), error(blocks, range));
            assert!(found <= expected * 1.02, "block {block}: {found}, theirs {expected}");
        }
        let (found, expected) = (error(&ours, 0..numbers.len()), error(blocks, 0..numbers.len()));
        assert!(found <= expected, "{found}, llama.cpp has {expected}");
    }

    #[test]
    fn numbers_that_a_format_holds_come_back_as_they_were() {
        let scale = f16::from_f32(0.03).to_f32();
        let numbers: Vec<f32> = (0..256).map(|i| scale * ((i * 7 % 16) as f32 - 8.0)).collect();
        for stored in [StoredType::F32, StoredType::Q4_0] {
            assert_eq!(read_all(stored, &quantise(stored, &numbers)), numbers, "{stored}");
        }
        let zero = vec![0.0f32; 256];
        for stored in WRITABLE {
            assert_eq!(read_all(stored, &quantise(stored, &zero)), zero, "{stored}");
        }
    }

    #[test]
    fn many_tasks_write_what_one_does() {
        let (numbers, _) = golden(StoredType::Q4K);
        let many: Vec<f32> = numbers.iter().copied().cycle().take(3 * TASK_NUMBERS).collect();
        for stored in WRITABLE {
            let bytes = quantise(stored, &many);
            let start = quantise(stored, &numbers);
            let period = start.len();
            assert_eq!(bytes[..period], start, "{stored}");
            let again = 2 * period;
            assert_eq!(bytes[again..again + period], start, "{stored}");
        }
    }
}
