//! Attention against float64: masks, windows, documents, grouped heads, widths that no vector divides.

use super::*;
use crate::pairs::Engine;

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|index| ((index * 7919 + seed * 104_729) % 10_007) as f32 / 5_003.0 - 1.0)
        .collect()
}

struct Case {
    shape: Shape,
    visible: Vec<[u32; 2]>,
}

/// Causal, with a window, two documents in the second half of the rows.
fn case(shape: Shape, window: usize) -> Case {
    let past = shape.keys - shape.queries;
    let visible = (0..shape.rows * shape.queries).map(|index| {
        let (row, query) = (index / shape.queries, past + index % shape.queries);
        let document = if row % 2 == 1 && query >= shape.keys / 3 { shape.keys / 3 } else { 0 };
        let start = document.max((query + 1).saturating_sub(window));
        [start as u32, query as u32 + 1]
    });
    Case { shape, visible: visible.collect() }
}

/// Output, and the gradients of q, k and v for the gradient `upper`, in f64; all contiguous.
fn reference(
    case: &Case,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    scale: f64,
    upper: &[f32],
) -> [Vec<f64>; 4] {
    let Shape { rows, heads, groups, queries, keys, width } = case.shape;
    let mut out = vec![0.0; upper.len()];
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let at = |numbers: &[f32], index: usize| f64::from(numbers[index]);
    for row in 0..rows {
        for head in 0..heads {
            let group = head / (heads / groups);
            for query in 0..queries {
                let [start, end] = case.visible[row * queries + query].map(|key| key as usize);
                let qi = ((row * queries + query) * heads + head) * width;
                let ki = |key: usize| ((row * keys + key) * groups + group) * width;
                let score = |key| {
                    scale * (0..width).map(|c| at(q, qi + c) * at(k, ki(key) + c)).sum::<f64>()
                };
                let scores: Vec<f64> = (start..end).map(score).collect();
                let highest = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
                let p: Vec<f64> =
                    scores.iter().map(|score| (score - highest).exp() / total).collect();
                let dp =
                    |key| (0..width).map(|c| at(upper, qi + c) * at(v, ki(key) + c)).sum::<f64>();
                let dp: Vec<f64> = (start..end).map(dp).collect();
                let inner: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for (key, (p, dp)) in (start..end).zip(p.iter().zip(&dp)) {
                    let ds = scale * p * (dp - inner);
                    for c in 0..width {
                        out[qi + c] += p * at(v, ki(key) + c);
                        dq[qi + c] += ds * at(k, ki(key) + c);
                        dk[ki(key) + c] += ds * at(q, qi + c);
                        dv[ki(key) + c] += p * at(upper, qi + c);
                    }
                }
            }
        }
    }
    [out, dq, dk, dv]
}

fn apart(found: &[f32], expected: &[f64]) -> f64 {
    let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-30);
    let apart = found.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).powi(2));
    apart.sum::<f64>().sqrt() / norm
}

const SHAPES: [(Shape, usize); 6] = [
    (Shape { rows: 2, heads: 6, groups: 2, queries: 100, keys: 100, width: 64 }, 1000),
    (Shape { rows: 1, heads: 3, groups: 3, queries: 65, keys: 65, width: 20 }, 7),
    (Shape { rows: 3, heads: 2, groups: 1, queries: 17, keys: 150, width: 96 }, 40),
    (Shape { rows: 1, heads: 1, groups: 1, queries: 1, keys: 1, width: 8 }, 1),
    (Shape { rows: 2, heads: 4, groups: 4, queries: 200, keys: 200, width: 33 }, 64),
    // Gradients of more than a megabyte, which may go past the caches.
    (Shape { rows: 3, heads: 9, groups: 3, queries: 200, keys: 200, width: 64 }, 1000),
];

#[test]
fn forward_and_backward_are_those_of_float64() {
    for (shape, window) in SHAPES {
        let case = case(shape, window);
        let Shape { rows, heads, groups, queries, keys, width } = shape;
        let q = numbers(rows * queries * heads * width, 1);
        let k = numbers(rows * keys * groups * width, 2);
        let v = numbers(rows * keys * groups * width, 3);
        let upper = numbers(q.len(), 4);
        let scale = 1.3 / (width as f32).sqrt();
        let expected = reference(&case, &q, &k, &v, f64::from(scale), &upper);
        let of_q = [queries * heads * width, heads * width, width];
        let of_k = [keys * groups * width, groups * width, width];
        let sides = [
            Heads { numbers: &q[..], steps: of_q },
            Heads { numbers: &k, steps: of_k },
            Heads { numbers: &v, steps: of_k },
        ];
        let look = Look { visible: &case.visible, scale };
        let mut out = vec![f32::NAN; q.len()];
        let mut sums = vec![f32::NAN; rows * heads * queries];
        attention(sides, shape, look, &mut out, &mut sums);
        let mut gradient = vec![f32::NAN; q.len() + k.len() + v.len()];
        let given = Upper { out: &out, sums: &sums, gradient: &upper };
        let starts = [0, q.len(), q.len() + k.len()];
        attention_backward(sides, shape, look, given, starts, &mut gradient);
        let dq = gradient[..starts[1]].to_vec();
        let dk = gradient[starts[1]..starts[2]].to_vec();
        let dv = gradient[starts[2]..].to_vec();
        // Scores of up to ±4 are sums of up to 96 products: they are off by a few 1e-7·√96, and
        // so are, relatively, the probabilities. The worst measured is 1.1e-6; four times that.
        for (found, (expected, what)) in
            [&out, &dq, &dk, &dv].into_iter().zip(expected.iter().zip(["out", "dq", "dk", "dv"]))
        {
            let apart = apart(found, expected);
            assert!(apart < 4e-6, "{what} of {shape:?} is {apart:e} from float64");
        }
    }
}

#[test]
fn pairs_are_as_near_as_their_format_allows() {
    for engine in Engine::all() {
        for (shape, window) in SHAPES {
            let case = case(shape, window);
            let Shape { rows, heads, groups, queries, keys, width } = shape;
            let rounded = |count, seed| -> Vec<bf16> {
                numbers(count, seed).into_iter().map(bf16::from_f32).collect()
            };
            let wide = |numbers: &[bf16]| -> Vec<f32> {
                numbers.iter().map(|number| number.to_f32()).collect()
            };
            let q = rounded(rows * queries * heads * width, 1);
            let k = rounded(rows * keys * groups * width, 2);
            let v = rounded(rows * keys * groups * width, 3);
            let upper = rounded(q.len(), 4);
            let scale = 1.3 / (width as f32).sqrt();
            let [wide_q, wide_k, wide_v] = [&q, &k, &v].map(|side| wide(side));
            let upper_wide = wide(&upper);
            let scale_64 = f64::from(scale);
            let expected = reference(&case, &wide_q, &wide_k, &wide_v, scale_64, &upper_wide);
            let of_q = [queries * heads * width, heads * width, width];
            let of_k = [keys * groups * width, groups * width, width];
            let sides = [
                Heads { numbers: &q[..], steps: of_q },
                Heads { numbers: &k, steps: of_k },
                Heads { numbers: &v, steps: of_k },
            ];
            let look = Look { visible: &case.visible, scale };
            let mut out = vec![bf16::NAN; q.len()];
            let mut sums = vec![f32::NAN; rows * heads * queries];
            let into = (Shared(out.as_mut_ptr()), Shared(sums.as_mut_ptr()));
            pairs::forward(engine, sides, shape, look, into);
            let mut gradient = vec![bf16::NAN; q.len() + k.len() + v.len() + 32];
            // From a line of the cache on, as a tensor's.
            let first = gradient.as_ptr().align_offset(64);
            let starts = [first, first + q.len(), first + q.len() + k.len()];
            let gradients = starts.map(|start| Shared(gradient[start..].as_mut_ptr()));
            let given = Upper { out: &out, sums: &sums, gradient: &upper };
            pairs::backward(engine, sides, shape, look, given, [of_q, of_k, of_k], gradients);
            let dq = &gradient[starts[0]..starts[1]];
            let dk = &gradient[starts[1]..starts[2]];
            let dv = &gradient[starts[2]..starts[2] + v.len()];
            // bf16 keeps 8 bits: rounding moves a number by 2⁻⁹ at most, by 0.0011 of it in the mean. Outputs
            // and dV are rounded, and so are the probabilities before them; dS too, which is a difference.
            for (found, (expected, what)) in [&out[..], dq, dk, dv]
                .into_iter()
                .zip(expected.iter().zip(["out", "dq", "dk", "dv"]))
            {
                let apart = apart(&wide(found), expected);
                assert!(apart < 6e-3, "{engine:?}: {what} of {shape:?} is {apart:e} from float64");
            }
        }
    }
}
