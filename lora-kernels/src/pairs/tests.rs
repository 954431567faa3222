//! Every engine of this processor against number by number.

use half::bf16;

use super::*;

fn numbers(count: usize, seed: usize) -> Vec<bf16> {
    let number = |index: usize| ((index * 7919 + seed * 104_729) % 257) as f32 / 64.0 - 2.0;
    (0..count).map(|index| bf16::from_f32(number(index))).collect()
}

#[test]
fn both_ways_of_packing_agree_at_every_tail() {
    for engine in Engine::all() {
        for [rows, columns] in [[1, 1], [32, 32], [64, 32], [33, 31], [70, 100], [5, 64]] {
            let matrix = numbers(rows * columns, 1);
            let turned: Vec<bf16> = (0..rows * columns)
                .map(|index| matrix[index % rows * columns + index / rows])
                .collect();
            let size = packed_size([rows, columns]);
            let mut packed = [vec![bf16::NAN; size], vec![bf16::NAN; size]];
            pack(engine, &matrix, [rows, columns], [columns, 1], &mut packed[0]);
            pack(engine, &turned, [rows, columns], [1, rows], &mut packed[1]);
            let panel = rows.div_ceil(DEPTH) * BLOCK;
            for (index, packed) in packed.iter().enumerate() {
                let mut expected = vec![bf16::ZERO; size];
                for row in 0..rows {
                    for column in 0..columns {
                        let at = column / SIDE * panel + place(row, column % SIDE);
                        expected[at] = matrix[row * columns + column];
                    }
                }
                assert_eq!(packed, &expected, "{engine:?}, {rows} x {columns}, way {index}");
            }
        }
    }
}

#[test]
fn steps_add_up() {
    // Numbers so coarse that every sum is exact.
    let (left, right) = (numbers(SIDE * 160, 1), numbers(4 * BLOCK, 2));
    let steps = [(3, 0, 0), (0, 0, 0), (1, 64, 3)].map(|(blocks, at, block)| Step {
        blocks,
        left: left[at..].as_ptr(),
        stride: 160,
        right: right[block * BLOCK..].as_ptr(),
    });
    for size in [(32, 32), (16, 32), (32, 16), (3, 9), (17, 1)] {
        let mut expected = Sums::new();
        // SAFETY: the steps lie within both sides.
        unsafe { Engine::Plain.sum(&steps, size, &mut expected) };
        for engine in Engine::all() {
            let mut sums = Sums([f32::NAN; SIDE * SIDE]);
            // SAFETY: as above.
            engine.with_tiles(|| unsafe { engine.sum(&steps, size, &mut sums) });
            for row in 0..size.0 {
                for column in 0..size.1 {
                    let at = row * SIDE + column;
                    assert_eq!(sums.0[at], expected.0[at], "{engine:?} {size:?} {row} {column}");
                }
            }
            // SAFETY: as above.
            engine.with_tiles(|| unsafe { engine.sum_more(&steps[..1], size, &mut sums) });
            let mut first = Sums::new();
            // SAFETY: as above.
            unsafe { Engine::Plain.sum(&steps[..1], size, &mut first) };
            for at in (0..size.0 * SIDE).filter(|at| at % SIDE < size.1) {
                assert_eq!(sums.0[at], expected.0[at] + first.0[at], "{engine:?} {size:?} {at}");
            }
        }
    }
}

#[test]
fn thirds_add_up_to_the_number() {
    let mut bits = 1_u32;
    for _ in 0..200_000 {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let number = f32::from_bits(bits);
        let parts = thirds(number).map(Number::to_f32);
        let (small, large) = (f32::powi(2.0, -110), Number::to_f32(bf16::MAX));
        if number.abs() > small && number.abs() <= large {
            // Nothing rounds: each sum has the bits of the number.
            assert_eq!(parts[0] + (parts[1] + parts[2]), number, "{bits:#x}");
            assert!(parts[1].abs() <= parts[0].abs() / 128.0, "{bits:#x}");
            assert!(parts[2].abs() <= parts[1].abs() / 128.0 || parts[1] == 0.0, "{bits:#x}");
        } else if !number.is_finite() {
            assert!(!parts.iter().sum::<f32>().is_finite(), "{bits:#x}");
        }
    }
    for number in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, f32::MAX] {
        assert!(!thirds(number).map(Number::to_f32).iter().sum::<f32>().is_finite(), "{number}");
    }
    assert_eq!(thirds(0.0), [bf16::ZERO; THIRDS]);
}

#[test]
fn steps_of_thirds_add_up() {
    // Middle and low parts of few bits, so that every sum is exact.
    let numbers = |count: usize, seed: usize| -> Vec<bf16> {
        let part = |at: usize| 0.25_f32.powi((at / BLOCK % THIRDS) as i32);
        let number = |at: usize| ((at * 7919 + seed) % 15) as f32 - 7.0;
        (0..count).map(|at| bf16::from_f32(number(at) * part(at))).collect()
    };
    let blocks = 4;
    let (left, right) = (numbers(blocks * THIRDS * BLOCK, 1), numbers(blocks * THIRDS * BLOCK, 2));
    let steps = [(3, 0), (0, 0), (1, 3)].map(|(blocks, first)| Step {
        blocks,
        left: left[first * THIRDS * BLOCK..].as_ptr(),
        stride: DEPTH,
        right: right[first * THIRDS * BLOCK..].as_ptr(),
    });
    let of_whole = steps.map(|step| {
        // SAFETY: as many blocks of a third of the numbers.
        let first = unsafe { step.right.offset_from(right.as_ptr()) } as usize / THIRDS;
        Step { right: right[first..].as_ptr(), ..step }
    });
    for engine in Engine::all().into_iter().filter(|engine| engine.multiplies_thirds()) {
        for size in [(32, 32), (16, 32), (32, 16), (3, 9), (17, 1)] {
            for more in [false, true] {
                let mut expected = Sums([3.0; SIDE * SIDE]);
                let mut sums = Sums([3.0; SIDE * SIDE]);
                // SAFETY: the steps lie within both sides.
                unsafe { Engine::Plain.sum_thirds(&steps, size, more, &mut expected) };
                // SAFETY: as above.
                engine.with_tiles(|| unsafe { engine.sum_thirds(&steps, size, more, &mut sums) });
                for at in (0..size.0 * SIDE).filter(|at| at % SIDE < size.1) {
                    assert_eq!(sums.0[at], expected.0[at], "{engine:?} {size:?} {more} {at}");
                }
                let (mut expected, mut sums) = ([3.0; 2]).map(|it| Sums([it; SIDE * SIDE])).into();
                // SAFETY: as above.
                unsafe { Engine::Plain.sum_left_thirds(&of_whole, size, more, &mut expected) };
                // SAFETY: as above.
                engine.with_tiles(|| unsafe {
                    engine.sum_left_thirds(&of_whole, size, more, &mut sums);
                });
                for at in (0..size.0 * SIDE).filter(|at| at % SIDE < size.1) {
                    assert_eq!(
                        sums.0[at], expected.0[at],
                        "whole: {engine:?} {size:?} {more} {at}"
                    );
                }
            }
        }
    }
}
