//! Pairs against float64, at every tail, with every engine of this processor.

use half::bf16;

use super::super::tests::{assert_close, numbers, product, tolerance, transpose};
use super::super::{Left, Patch, Product, Right};
use super::{Pairs, Sum};
use crate::number::Number;
use crate::pairs::Engine;

const SIZES: [[usize; 3]; 13] = [
    [1, 1, 1],
    [2, 3, 5],
    [16, 32, 16],
    [17, 33, 17],
    [32, 32, 32],
    [33, 64, 48],
    [64, 96, 31],
    [7, 129, 15],
    [40, 640, 65],
    [100, 9, 129],
    [70, 160, 256],
    [31, 31, 200],
    [66, 5000, 130], // in several passes over the depth
];

/// What is left of a number in two bf16 numbers: 16 bits, of each side.
const SPLIT: f64 = 4.0 / 65536.0;

fn narrow(numbers: &[f32]) -> Vec<bf16> {
    numbers.iter().map(|number| <bf16 as Number>::from_f32(*number)).collect()
}

fn wide(numbers: &[bf16]) -> Vec<f32> {
    numbers.iter().map(|number| Number::to_f32(*number)).collect()
}

#[test]
fn every_tail_is_computed() {
    for engine in Engine::all() {
        for [m, k, n] in SIZES {
            let what = format!("{engine:?}, {m} x {k} x {n}");
            let (left, right) = (narrow(&numbers(m * k, 1)), narrow(&numbers(k * n, 2)));
            let expected = product(&wide(&left), &wide(&right), [m, k, n]);
            let packed = Left::for_engine(engine, &left, [m, k], k);
            let turned = narrow(&transpose(&wide(&right), [k, n]));
            let straight = Right::new([k, n], vec![Patch::straight(&right, [k, n], [0, 0])]);
            let transposed = Right::new([k, n], vec![Patch::transposed(&turned, [n, k], [0, 0])]);
            for right in [&straight, &transposed] {
                let mut out = vec![f32::NAN; m * n];
                Product::new(&packed, right).write(&mut out);
                assert_close(&out, &expected, tolerance(k), &what);
                let mut rounded = vec![bf16::NAN; m * n];
                Product::new(&packed, right).write(&mut rounded);
                assert_eq!(rounded, narrow(&out), "{what}, rounded");
            }
            // From the transpose, by the best engine or in f32.
            let turned = narrow(&transpose(&wide(&left), [m, k]));
            let mut out = vec![f32::NAN; m * n];
            Product::new(&Left::turned(&turned, [k, m], m), &straight).write(&mut out);
            assert_close(&out, &expected, tolerance(k), &format!("{what}, turned"));
        }
    }
}

#[test]
fn sides_in_f32_keep_sixteen_bits() {
    for engine in Engine::all() {
        for [m, k, n] in SIZES {
            let what = format!("{engine:?}, {m} x {k} x {n}");
            let (left, right) = (narrow(&numbers(m * k, 1)), numbers(k * n, 2));
            let expected = product(&wide(&left), &right, [m, k, n]);
            let packed = Left::for_engine(engine, &left, [m, k], k);
            let side = Right::new([k, n], vec![Patch::straight(&right, [k, n], [0, 0])]);
            let mut out = vec![f32::NAN; m * n];
            Product::new(&packed, &side).write(&mut out);
            let tolerance = tolerance(2 * k) + SPLIT * 0.25 * k as f64;
            assert_close(&out, &expected, tolerance, &what);
        }
    }
}

#[test]
fn a_low_rank_term_keeps_sixteen_bits() {
    for engine in Engine::all() {
        for ([m, k, n], rank) in
            SIZES.into_iter().zip([1, 3, 8, 11, 16, 4, 32, 40, 8, 64, 5, 2, 64])
        {
            let what = format!("{engine:?}, {m} x {k} x {n}, rank {rank}");
            let (left, right) = (narrow(&numbers(m * k, 1)), narrow(&numbers(k * n, 2)));
            let (low, high) = (numbers(m * (rank + 3), 3), numbers(rank * n, 4));
            let bias = numbers(n, 5);
            let used: Vec<f32> =
                low.chunks_exact(rank + 3).flat_map(|row| row[..rank].to_vec()).collect();
            let mut expected = product(&wide(&left), &wide(&right), [m, k, n]);
            let update = product(&used, &high, [m, rank, n]);
            for (index, sum) in expected.iter_mut().enumerate() {
                *sum += 0.5 * update[index] + f64::from(bias[index % n]);
            }
            let packed = Left::for_engine(engine, &left, [m, k], k);
            let beside = packed.pack_beside(&low, [m, rank], rank + 3);
            let right = Right::new([k, n], vec![Patch::straight(&right, [k, n], [0, 0])]);
            let update = Patch::straight(&high, [rank, n], [0, 0]).scaled(0.5);
            let update = Right::new([rank, n], vec![update]);
            let whole = Product {
                low_rank: Some((&beside, &update)),
                bias: Some(&bias),
                ..Product::new(&packed, &right)
            };
            let mut out = vec![f32::NAN; m * n];
            whole.write(&mut out);
            let tolerance = tolerance(k + 3 * rank) + SPLIT * 0.25 * rank as f64;
            assert_close(&out, &expected, tolerance, &what);
            Product { add: true, ..whole }.write(&mut out);
            let twice: Vec<f64> = expected.iter().map(|number| 2.0 * number).collect();
            assert_close(&out, &twice, 2.0 * tolerance, &format!("{what}, added"));
        }
    }
}

/// Bf16 numbers on the right of f32 numbers lose nothing, and give the bits that they give as f32 numbers.
#[test]
fn bf16_meets_thirds_as_it_is() {
    for engine in Engine::all().into_iter().filter(|engine| engine.multiplies_thirds()) {
        for [m, k, n] in SIZES {
            let what = format!("{engine:?}, {m} x {k} x {n}");
            let (left, right) = (numbers(m * k, 1), narrow(&numbers(k * n, 2)));
            let expected = product(&left, &wide(&right), [m, k, n]);
            let packed = Left::in_f32(Some(engine), &left, [m, k], [k, 1]);
            let turned = narrow(&transpose(&wide(&right), [k, n]));
            let straight = Right::new([k, n], vec![Patch::straight(&right, [k, n], [0, 0])]);
            let transposed = Right::new([k, n], vec![Patch::transposed(&turned, [n, k], [0, 0])]);
            let of_f32 = wide(&right);
            let of_f32 = Right::new([k, n], vec![Patch::straight(&of_f32, [k, n], [0, 0])]);
            let mut both = vec![f32::NAN; m * n];
            Product::new(&packed, &of_f32).write(&mut both);
            for right in [&straight, &transposed] {
                let mut out = vec![f32::NAN; m * n];
                Product::new(&packed, right).write(&mut out);
                assert_close(&out, &expected, tolerance(k), &what);
                assert_eq!(out, both, "{what}");
                let rank = 1 + k % 40;
                let (low, high) = (numbers(m * rank, 3), numbers(rank * n, 4));
                let update = product(&low, &high, [m, rank, n]);
                let sum = expected.iter().zip(&update).map(|(sum, update)| sum + 0.5 * update);
                let beside = packed.pack_beside(&low, [m, rank], rank);
                let patch = Patch::straight(&high, [rank, n], [0, 0]).scaled(0.5);
                let update = Right::new([rank, n], vec![patch]);
                let low_rank = Some((&beside, &update));
                Product { low_rank, ..Product::new(&packed, right) }.write(&mut out);
                let tolerance = tolerance(k + rank);
                assert_close(&out, &sum.collect::<Vec<_>>(), tolerance, &format!("{what} {rank}"));
            }
        }
    }
}

/// The depth of what is added may be all that a pass has.
#[test]
fn a_low_rank_term_may_be_deeper_than_its_product() {
    let ([m, k, n], rank) = ([40, 33, 512], 2000);
    let (left, right) = (numbers(m * k, 1), narrow(&numbers(k * n, 2)));
    let (low, high) = (numbers(m * rank, 3), numbers(rank * n, 4));
    let main = product(&left, &wide(&right), [m, k, n]);
    let update = product(&low, &high, [m, rank, n]);
    let expected: Vec<f64> = main.iter().zip(&update).map(|(main, update)| main + update).collect();
    let wide_right = wide(&right);
    for engine in Engine::all().into_iter().filter(|engine| engine.multiplies_thirds()) {
        let packed = Left::in_f32(Some(engine), &left, [m, k], [k, 1]);
        let beside = packed.pack_beside(&low, [m, rank], rank);
        let update = Right::new([rank, n], vec![Patch::straight(&high, [rank, n], [0, 0])]);
        let low_rank = Some((&beside, &update));
        let mut out = vec![f32::NAN; m * n];
        let narrow = Right::new([k, n], vec![Patch::straight(&right, [k, n], [0, 0])]);
        Product { low_rank, ..Product::new(&packed, &narrow) }.write(&mut out);
        assert_close(&out, &expected, tolerance(k + rank), &format!("{engine:?}, bf16"));
        let whole = Right::new([k, n], vec![Patch::straight(&wide_right, [k, n], [0, 0])]);
        Product { low_rank, ..Product::new(&packed, &whole) }.write(&mut out);
        assert_close(&out, &expected, tolerance(k + rank), &format!("{engine:?}, f32"));
    }
}

/// Rows that are split once for all and those that each task splits give the same bits.
#[test]
fn rows_are_split_early_or_late() {
    for engine in Engine::all().into_iter().filter(|engine| engine.multiplies_thirds()) {
        // Of the last ones each task has columns enough.
        let sizes = SIZES.into_iter().chain([[40, 70, 600], [33, 3000, 600]]);
        for ([m, k, n], turned) in sizes.flat_map(|size| [(size, false), (size, true)]) {
            let (left, right) = (numbers(m * k, 1), narrow(&numbers(k * n, 2)));
            let right = Right::new([k, n], vec![Patch::straight(&right, [k, n], [0, 0])]);
            let steps = if turned { [1, m] } else { [k, 1] };
            let late = Pairs::thirds(engine, &left, [m, k], steps);
            let early = late.split_up();
            assert!(late.is_unsplit() && !early.is_unsplit());
            let [late, early] = [&late, &early].map(|left| {
                let mut out = vec![f32::NAN; m * n];
                let (right, low_rank, bias, add) = (&right, None, None, false);
                Sum { left, right, low_rank, bias, add }.write(&mut out);
                out
            });
            assert_eq!(late, early, "{engine:?}, {m} x {k} x {n}, {turned}");
        }
    }
}

#[test]
fn patches_meet_within_a_block() {
    // Layers beside and below each other whose widths divide nothing.
    for engine in Engine::all() {
        let (m, k, widths) = (45, 96, [40, 13, 75]);
        let n: usize = widths.iter().sum();
        let left = narrow(&numbers(m * k, 1));
        let whole = narrow(&numbers(n * k, 2));
        let (mut patches, mut below, mut at) = (Vec::new(), Vec::new(), 0);
        for width in widths {
            let part = &whole[at * k..][..width * k];
            patches.push(Patch::transposed(part, [width, k], [0, at]));
            below.push(Patch::straight(part, [width, k], [at, 0]));
            at += width;
        }
        let expected = product(&wide(&left), &transpose(&wide(&whole), [n, k]), [m, k, n]);
        let mut out = vec![f32::NAN; m * n];
        let packed = Left::for_engine(engine, &left, [m, k], k);
        Product::new(&packed, &Right::new([k, n], patches)).write(&mut out);
        assert_close(&out, &expected, tolerance(k), &format!("{engine:?}, beside"));
        let left = narrow(&numbers(m * n, 3));
        let expected = product(&wide(&left), &wide(&whole), [m, n, k]);
        let mut out = vec![f32::NAN; m * k];
        let packed = Left::for_engine(engine, &left, [m, n], n);
        Product::new(&packed, &Right::new([n, k], below)).write(&mut out);
        assert_close(&out, &expected, tolerance(n), &format!("{engine:?}, below"));
    }
}

/// Results of more than a megabyte go past the caches, where they begin with a line of them.
#[test]
fn large_results_are_written_whole() {
    fn check<O: Number + PartialEq + std::fmt::Debug>(engine: Engine, [m, k, n]: [usize; 3]) {
        let (left, right) = (narrow(&numbers(m * k, 1)), narrow(&numbers(k * n, 2)));
        let expected = product(&wide(&left), &wide(&right), [m, k, n]);
        let packed = Left::for_engine(engine, &left, [m, k], k);
        let right = Right::new([k, n], vec![Patch::straight(&right, [k, n], [0, 0])]);
        let untouched = O::from_f32(77.0);
        let mut out = vec![untouched; m * n + 65];
        let first = out.as_ptr().align_offset(64);
        for start in [first, first + 1] {
            out.fill(untouched);
            Product::new(&packed, &right).write(&mut out[start..start + m * n]);
            let what = format!("{engine:?}, {m} x {k} x {n} of {} bytes", size_of::<O>());
            for (at, (found, expected)) in out[start..].iter().zip(&expected).enumerate() {
                let error = (f64::from(found.to_f32()) - expected).abs();
                let bound =
                    tolerance(k) + if size_of::<O>() == 2 { expected.abs() / 256.0 } else { 0.0 };
                assert!(error <= bound, "{what}: {found:?} for {expected} at {at}, from {start}");
            }
            let around = out[..start].iter().chain(&out[start + m * n..]);
            assert!(around.copied().all(|number| number == untouched), "{what}");
        }
    }
    for engine in Engine::all().into_iter().filter(|engine| *engine != Engine::Plain) {
        for n in [1056, 1040, 1033] {
            check::<bf16>(engine, [545, 40, n]);
            check::<f32>(engine, [545, 40, n]);
        }
    }
}
