//! Products against float64, at every tail.

use half::bf16;

use super::thin::few_rows;
use super::*;
use crate::pairs::Engine;

/// The ways in which f32 numbers are multiplied: as they are, and in thirds.
fn ways() -> Vec<Option<Engine>> {
    let engines = Engine::all().into_iter().filter(|engine| engine.multiplies_thirds());
    std::iter::once(None).chain(engines.map(Some)).collect()
}

/// Numbers in −½..½ that repeat late.
pub(super) fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|index| ((index * 7919 + seed * 104_729) % 10_007) as f32 / 10_007.0 - 0.5)
        .collect()
}

/// `[m, k]·[k, n]` in f64.
pub(super) fn product(left: &[f32], right: &[f32], [m, k, n]: [usize; 3]) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for row in 0..m {
        for step in 0..k {
            for column in 0..n {
                let term = f64::from(left[row * k + step]) * f64::from(right[step * n + column]);
                out[row * n + column] += term;
            }
        }
    }
    out
}

pub(super) fn transpose(matrix: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let place = |index: usize| matrix[index % rows * columns + index / rows];
    (0..rows * columns).map(place).collect()
}

/// A sum of k products of numbers below ½ has at most k/4 in magnitude; each step rounds by half an ulp
/// of the sum so far, and the steps are k. Random signs make it √k, which is what is allowed, fourfold.
pub(super) fn tolerance(k: usize) -> f64 {
    4.0 * (k.max(1) as f64).sqrt()
        * 0.25
        * f64::from(f32::EPSILON)
        * (k.max(1) as f64).sqrt().max(4.0)
}

pub(super) fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let apart = (f64::from(*found) - expected).abs();
        assert!(apart <= tolerance, "{what}: number {index} is {found}, expected {expected}");
    }
}

const SIZES: [[usize; 3]; 14] = [
    [1, 1, 1],
    [2, 3, 5],
    [6, 8, 16],
    [12, 16, 32],
    [13, 17, 33],
    [5, 1, 47],
    [24, 100, 31],
    [7, 769, 15],
    [40, 1600, 65],
    [3, 2, 200],
    [65, 64, 64],
    [100, 9, 129],
    [11, 770, 48],
    [96, 33, 192],
];

#[test]
fn every_tail_is_computed() {
    for [m, k, n] in SIZES {
        let (left, right) = (numbers(m * k, 1), numbers(k * n, 2));
        let expected = product(&left, &right, [m, k, n]);
        let turned = transpose(&right, [k, n]);
        let straight = Right::new([k, n], vec![Patch::straight(&right, [k, n], [0, 0])]);
        let transposed = Right::new([k, n], vec![Patch::transposed(&turned, [n, k], [0, 0])]);
        let left_turned = transpose(&left, [m, k]);
        for way in ways() {
            for right in [&straight, &transposed] {
                for (left, steps) in [(&left, [k, 1]), (&left_turned, [1, m])] {
                    let what = format!("{way:?} {steps:?}, {m} x {k} x {n}");
                    let left = Left::in_f32(way, left, [m, k], steps);
                    let mut out = vec![f32::NAN; m * n];
                    Product::new(&left, right).write(&mut out);
                    assert_close(&out, &expected, tolerance(k), &what);
                    Product { add: true, ..Product::new(&left, right) }.write(&mut out);
                    let twice: Vec<f64> = expected.iter().map(|number| 2.0 * number).collect();
                    assert_close(&out, &twice, 2.0 * tolerance(k), &format!("{what}, added"));
                }
            }
        }
        // The second half of the columns apart, with an update, which is taken away again.
        let half = n / 2;
        let part = |rows: std::ops::Range<usize>| &turned[rows.start * k..rows.end * k];
        for rank in [1, 3, 8, 18] {
            let (shape, a) = ([rank, n - half], numbers(k * rank, 7));
            let b = numbers(rank * (n - half), 8);
            let narrow: Vec<f32> =
                product(&left, &a, [m, k, rank]).iter().map(|number| *number as f32).collect();
            let taken = product(&narrow, &b, [m, rank, n - half]);
            let turned = transpose(&b, shape);
            let straight = Patch::straight(&b, shape, [0, 0]);
            for b in [straight, Patch::transposed(&turned, [n - half, rank], [0, 0])] {
                let mut out = vec![f32::NAN; m * n];
                let updates = vec![Beside::new(&a, b, 0.5, k)];
                let weights = [
                    Stored { weight: Rows::Dense(part(0..half)), place: 0, updates: Vec::new() },
                    Stored { weight: Rows::Dense(part(half..n)), place: half, updates },
                ];
                dot_rows(&left, &weights, [m, k], &mut out, n);
                for (out, taken) in out.chunks_exact_mut(n).zip(taken.chunks_exact(n - half)) {
                    let all = out[half..].iter_mut().zip(taken);
                    all.for_each(|(out, taken)| *out -= 0.5 * *taken as f32);
                }
                let what = format!("dots {m} x {k} x {n}, rank {rank}");
                assert_close(&out, &expected, tolerance(k + 8), &what);
            }
        }
        let mut out = vec![f32::NAN; m * n];
        few_rows(&left, &right, [m, k, n], &mut out);
        assert_close(&out, &expected, tolerance(k), &format!("few rows {m} x {k} x {n}"));
        let mut out = vec![f32::NAN; m * n];
        thin_product((&left_turned, m), (&right, n), [k, m, n], &mut out);
        assert_close(&out, &expected, tolerance(k), &format!("thin {m} x {k} x {n}"));
    }
}

#[test]
fn thin_products_read_parts_of_wider_sides() {
    for [depth, rows, columns] in
        [[1, 1, 48], [31, 8, 47], [32, 3, 49], [70, 11, 100], [200, 24, 331]]
    {
        let (left_stride, right_stride) = (thin_width(rows + 2), columns + 5);
        let left = numbers(depth * left_stride, 1);
        let right: Vec<bf16> =
            numbers(depth * right_stride, 2).into_iter().map(bf16::from_f32).collect();
        let wide: Vec<f32> = right.iter().map(|number| number.to_f32()).collect();
        // Both begin within their rows.
        let part = |numbers: &[f32], stride: usize, start: usize, width: usize| -> Vec<f32> {
            let rows = numbers.chunks_exact(stride);
            rows.flat_map(|row| row[start..start + width].to_vec()).collect()
        };
        let of_left = transpose(&part(&left, left_stride, 2, rows), [depth, rows]);
        let expected =
            product(&of_left, &part(&wide, right_stride, 3, columns), [rows, depth, columns]);
        let what = format!("{depth} x {rows} x {columns}");
        let (left, sizes) = ((&left[2..], left_stride), [depth, rows, columns]);
        let mut out = vec![f32::NAN; rows * columns];
        thin_product(left, (&right[3..], right_stride), sizes, &mut out);
        assert_close(&out, &expected, tolerance(depth), &format!("bf16 {what}"));
        let mut out = vec![f32::NAN; rows * columns];
        thin_product(left, (&wide[3..], right_stride), sizes, &mut out);
        assert_close(&out, &expected, tolerance(depth), &format!("f32 {what}"));
    }
}

#[test]
fn weights_in_bf16_are_read_exactly() {
    let [m, k, n] = [19, 50, 37];
    let left: Vec<bf16> = numbers(m * k, 1).into_iter().map(bf16::from_f32).collect();
    let right: Vec<bf16> = numbers(k * n, 2).into_iter().map(bf16::from_f32).collect();
    let wide = |numbers: &[bf16]| numbers.iter().map(|number| number.to_f32()).collect::<Vec<_>>();
    let expected = product(&wide(&left), &wide(&right), [m, k, n]);
    let packed = Left::pack(&left, [m, k], k);
    let right_side = Right::new([k, n], vec![Patch::straight(&right, [k, n], [0, 0])]);
    let whole = Product::new(&packed, &right_side);
    let mut out = vec![f32::NAN; m * n];
    whole.write(&mut out);
    assert_close(&out, &expected, tolerance(k), "bf16 sides");
    let mut rounded = vec![bf16::NAN; m * n];
    whole.write(&mut rounded);
    let nearest: Vec<bf16> = out.iter().map(|number| bf16::from_f32(*number)).collect();
    assert_eq!(rounded, nearest);
}

#[test]
fn layers_beside_each_other_with_their_low_rank_terms() {
    // Three layers on one input, as queries, keys and values are; ranks and widths that divide nothing.
    let (m, k, rank) = (29, 70, 3);
    let widths = [40, 13, 21];
    let n: usize = widths.iter().sum();
    let left = numbers(m * k, 1);
    let weights: Vec<Vec<f32>> = widths.iter().map(|width| numbers(width * k, *width)).collect();
    let narrow = numbers(m * 3 * rank, 5);
    let wide: Vec<Vec<f32>> = widths.iter().map(|width| numbers(rank * width, width + 1)).collect();
    let bias = numbers(n, 9);
    let (mut patches, mut low, mut at) = (Vec::new(), Vec::new(), 0);
    let mut expected = vec![0.0; m * n];
    for (index, width) in widths.into_iter().enumerate() {
        patches.push(Patch::transposed(&weights[index], [width, k], [0, at]));
        low.push(Patch::straight(&wide[index], [rank, width], [index * rank, at]).scaled(0.5));
        let of_weight = product(&left, &transpose(&weights[index], [width, k]), [m, k, width]);
        let part: Vec<f32> = (0..m)
            .flat_map(|row| narrow[row * 3 * rank + index * rank..][..rank].to_vec())
            .collect();
        let of_rank = product(&part, &wide[index], [m, rank, width]);
        for row in 0..m {
            for column in 0..width {
                let from = row * width + column;
                expected[row * n + at + column] =
                    of_weight[from] + 0.5 * of_rank[from] + f64::from(bias[at + column]);
            }
        }
        at += width;
    }
    let right = Right::new([k, n], patches);
    let low_rank = Right::new([3 * rank, n], low);
    for way in ways() {
        let packed = Left::in_f32(way, &left, [m, k], [k, 1]);
        let narrow = packed.pack_beside(&narrow, [m, 3 * rank], 3 * rank);
        let low_rank = Some((&narrow, &low_rank));
        let mut out = vec![f32::NAN; m * n];
        let whole = Product { low_rank, bias: Some(&bias), ..Product::new(&packed, &right) };
        whole.write(&mut out);
        assert_close(&out, &expected, tolerance(k + rank), &format!("{way:?}, beside each other"));
        Product { add: true, ..whole }.write(&mut out);
        let twice: Vec<f64> = expected.iter().map(|number| 2.0 * number).collect();
        let what = format!("{way:?}, added to what was there");
        assert_close(&out, &twice, 2.0 * tolerance(k + rank), &what);
    }
    // Below each other: the gradient of the input, a sum over the three.
    let gradient = numbers(m * n, 3);
    let mut below = Vec::new();
    let (mut at, mut stacked) = (0, Vec::new());
    for (index, width) in widths.into_iter().enumerate() {
        below.push(Patch::straight(&weights[index], [width, k], [at, 0]));
        stacked.extend_from_slice(&weights[index]);
        at += width;
    }
    let expected = product(&gradient, &stacked, [m, n, k]);
    let right = Right::new([n, k], below);
    for way in ways() {
        let packed = Left::in_f32(way, &gradient, [m, n], [n, 1]);
        let mut out = vec![f32::NAN; m * k];
        Product::new(&packed, &right).write(&mut out);
        assert_close(&out, &expected, tolerance(n), &format!("{way:?}, below each other"));
    }
}

#[test]
fn thirds_are_as_exact_as_f32() {
    // Numbers of very different sizes, all positive, so that no error hides behind another; few of them, where
    // a lost part would show, and many, where roundings add up.
    let sizes = |numbers: Vec<f32>| -> Vec<f32> {
        let size = |index: usize| f32::powi(2.0, index as i32 % 41 - 20);
        numbers.iter().enumerate().map(|(at, number)| (number + 0.51) * size(at)).collect()
    };
    for [m, k, n] in [[33, 8, 40], [33, 3000, 40]] {
        let (left, right) = (sizes(numbers(m * k, 1)), sizes(numbers(k * n, 2)));
        let expected = product(&left, &right, [m, k, n]);
        let side = Right::new([k, n], vec![Patch::straight(&right, [k, n], [0, 0])]);
        let error = |way: Option<Engine>| -> f64 {
            let left = Left::in_f32(way, &left, [m, k], [k, 1]);
            let mut out = vec![f32::NAN; m * n];
            Product::new(&left, &side).write(&mut out);
            let both = out.iter().zip(&expected);
            let errors = both.map(|(out, right)| (f64::from(*out) / right - 1.0).powi(2));
            (errors.sum::<f64>() / out.len() as f64).sqrt()
        };
        let in_f32 = error(None);
        for way in ways() {
            let found = error(way);
            assert!(found <= 1.5 * in_f32, "{way:?} is off by {found:e}, f32 by {in_f32:e}");
        }
    }
}

#[test]
fn a_long_depth_is_walked_in_parts() {
    // Deeper than what is packed at once, with few and with many panels.
    // An update of several blocks lies across what is packed at once, too.
    for ([m, k, n], rank) in [([70, 6200, 33], 3), ([33, 3100, 300], 70), ([40, 1340, 130], 70)] {
        let (left, right) = (numbers(m * k, 1), numbers(k * n, 2));
        let expected = product(&left, &right, [m, k, n]);
        let (narrow, wide) = (numbers(m * rank, 3), numbers(rank * n, 4));
        let update = product(&narrow, &wide, [m, rank, n]);
        let expected: Vec<f64> =
            expected.iter().zip(update).map(|(sum, more)| sum + more).collect();
        let right = Right::new([k, n], vec![Patch::straight(&right, [k, n], [0, 0])]);
        let wide = Right::new([rank, n], vec![Patch::straight(&wide, [rank, n], [0, 0])]);
        for way in ways() {
            let left = Left::in_f32(way, &left, [m, k], [k, 1]);
            let narrow = left.pack_beside(&narrow, [m, rank], rank);
            let mut out = vec![f32::NAN; m * n];
            let low_rank = Some((&narrow, &wide));
            Product { low_rank, ..Product::new(&left, &right) }.write(&mut out);
            let what = format!("{way:?}, {m} x {k} x {n}, rank {rank}");
            assert_close(&out, &expected, tolerance(k + rank), &what);
        }
    }
}

#[test]
fn whole_blocks_are_scaled_and_read_from_bf16() {
    let [m, k, n] = [33, 64, 96];
    let left = numbers(m * k, 1);
    let narrow: Vec<bf16> = numbers(k * n, 2).into_iter().map(bf16::from_f32).collect();
    let right: Vec<f32> = narrow.iter().map(|number| number.to_f32()).collect();
    let expected = product(&left, &right, [m, k, n]);
    let half: Vec<f64> = expected.iter().map(|number| 0.5 * number).collect();
    let scaled = Right::new([k, n], vec![Patch::straight(&right, [k, n], [0, 0]).scaled(0.5)]);
    let in_bf16 = Right::new([k, n], vec![Patch::straight(&narrow, [k, n], [0, 0])]);
    for way in ways() {
        let left = Left::in_f32(way, &left, [m, k], [k, 1]);
        let mut out = vec![f32::NAN; m * n];
        Product::new(&left, &scaled).write(&mut out);
        assert_close(&out, &half, tolerance(k), &format!("{way:?}, scaled"));
        Product::new(&left, &in_bf16).write(&mut out);
        assert_close(&out, &expected, tolerance(k), &format!("{way:?}, from bf16"));
    }
}

#[test]
#[should_panic(expected = "not packed beside its product")]
fn a_term_in_another_form_is_refused() {
    let (left, right) = (numbers(32 * 32, 1), numbers(32 * 32, 2));
    let narrow: Vec<bf16> = left.iter().map(|number| bf16::from_f32(*number)).collect();
    let right = Right::new([32, 32], vec![Patch::straight(&right, [32, 32], [0, 0])]);
    let main = Left::in_f32(Some(Engine::Plain), &left, [32, 32], [32, 1]);
    let other = Left::for_engine(Engine::Plain, &narrow, [32, 32], 32);
    let low_rank = Some((&other, &right));
    Product { low_rank, ..Product::new(&main, &right) }.write(&mut [0.0_f32; 32 * 32]);
}
