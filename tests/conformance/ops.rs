//! Every operation of a decoder, forward and backward, against float64.
//!
//! Inputs are numbers that the format under test holds exactly, so that a deviation is the operation's
//! own rounding. Deviations are relative to the largest number of the result (or to 1).

use burn::tensor::{Int, Tensor, TensorData};
use lora_core::LoraConfig;
use lora_core::linear::LoraLinear;
use lora_core::ops::{self, Activation, AttentionMask, HeadLayout, Scores, cast};
use lora_core::parameter::read_f32;
use lora_core::peft::Factor;
use lora_core::placement::{DType, Placement};
use lora_core::table::Table;
use lora_models::{Decoder, Trainable};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::case::{Case, Found, Lab, deviation, worst};
use crate::reference as truth;

/// f32 rounds at 6e-8; the longest sums here have 96 products, but for those over a vocabulary, whose terms are
/// small, and the longest chains five operations (softmax, its gradient). The worst measured on cpu is 3.9e-7; four
/// times that.
const F32: f64 = 1.5e-6;
/// bf16 rounds at 2⁻⁹ = 2e-3, once for each of up to six results on the way. The worst measured is
/// 5.2e-3; four times that.
const BF16: f64 = 2e-2;
/// Ten steps of f32 arithmetic. The worst measured is 1.2e-7; five times that.
const ADAMW: f64 = 6e-7;

const FLOAT64: &str = "float64";

/// An operation with the sizes it is tried at. Adding a line adds rows to every column.
type Check = fn(&Sizes, &Placement) -> f64;
const CHECKS: [(&str, Check, &[Sizes]); 15] = [
    ("lora_linear/forward", lora_linear_forward, &LINEARS),
    ("lora_linear/backward", lora_linear_backward, &LINEARS),
    ("rms_norm", rms_norm, &NORMS),
    ("layer_norm", layer_norm, &NORMS),
    ("rotary", rotary, &[[2, 5, 3, 8], [1, 7, 1, 2], [3, 4, 2, 16]]),
    ("swiglu", |s, p| gated(s, p, Activation::Silu), &GATES),
    ("geglu", |s, p| gated(s, p, Activation::GeluTanh), &GATES),
    ("gelu", |s, p| gelu(s, p, Activation::GeluTanh, truth::gelu_tanh), &GATES),
    ("gelu exact", |s, p| gelu(s, p, Activation::Gelu, truth::gelu), &GATES),
    ("attention/causal", |s, p| attention(s, p, Mask::Causal, None), &ATTENTIONS),
    ("attention/window", |s, p| attention(s, p, Mask::Window, None), &ATTENTIONS),
    ("attention/documents", |s, p| attention(s, p, Mask::Documents, None), &ATTENTIONS),
    ("attention/capped", |s, p| attention(s, p, Mask::Window, Some(0.7)), &ATTENTIONS),
    ("linear_cross_entropy", |s, p| linear_cross_entropy(s, p, None), &LOSSES),
    ("linear_cross_entropy/capped", |s, p| linear_cross_entropy(s, p, Some(1.5)), &LOSSES),
];

type Sizes = [usize; 4];
/// n, d_in, d_out, rank: with tails that no vector width divides.
const LINEARS: [Sizes; 4] = [[1, 8, 8, 1], [5, 33, 17, 3], [16, 64, 96, 8], [7, 96, 31, 16]];
const NORMS: [Sizes; 3] = [[3, 8, 0, 0], [5, 33, 0, 0], [1, 96, 0, 0]];
const GATES: [Sizes; 2] = [[1, 1, 0, 0], [7, 33, 0, 0]];
/// n, d, v; the last vocabulary is longer than what kernels take at once.
const LOSSES: [Sizes; 4] = [[1, 4, 9, 0], [7, 32, 50, 0], [5, 33, 257, 0], [3, 8, 6200, 0]];
/// b, heads, groups, t.
const ATTENTIONS: [Sizes; 5] =
    [[1, 1, 1, 1], [2, 4, 2, 7], [1, 6, 1, 9], [3, 3, 3, 16], [1, 2, 1, 71]];
const HEAD_WIDTH: usize = 8;

/// The rows of all operations.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, check, sizes) in CHECKS {
        for (dtype, label, tolerance) in [(DType::F32, "f32", F32), (DType::BF16, "bf16", BF16)] {
            let run = move |lab: &mut Lab| -> Found {
                let placement = lab.placed(dtype)?;
                Ok(sizes.iter().map(|sizes| check(sizes, &placement)).fold(0.0, worst))
            };
            cases.push(Case::new(format!("ops/{name}/{label}"), FLOAT64, tolerance, run));
        }
    }
    let split = |lab: &mut Lab| {
        // 256 bytes hold the scores of one row and key head at most: every split there is.
        let placement = Placement { buffer_limit: Some(256), ..lab.f32() };
        let kinds = [(Mask::Causal, None), (Mask::Documents, None), (Mask::Causal, Some(0.7))];
        let all = kinds.into_iter().flat_map(|kind| ATTENTIONS.map(|sizes| (sizes, kind)));
        let found = all.map(|(sizes, (mask, cap))| attention(&sizes, &placement, mask, cap));
        Ok(found.fold(0.0, worst))
    };
    cases.push(Case::new("ops/attention/in small buffers", FLOAT64, F32, split));
    let split = |lab: &mut Lab| {
        // Parts of 1, 7 and 31 rows of 33 numbers each.
        let limits = [1, 7 * 33 * 4, 31 * 33 * 4];
        let all = limits.into_iter().map(|limit| {
            let placement = Placement { buffer_limit: Some(limit), ..lab.f32() };
            // More tokens than parts, and fewer.
            [[5, 33, 67, 0], [40, 33, 67, 0]].iter().fold(0.0, |most, sizes| {
                let losses =
                    [None, Some(1.5)].map(|cap| linear_cross_entropy(sizes, &placement, cap));
                let loss = worst(losses[0], losses[1]);
                worst(most, worst(loss, split_embedding(sizes, &placement)))
            })
        });
        Ok(all.fold(0.0, worst))
    };
    cases.push(Case::new("ops/vocabulary in small buffers", FLOAT64, F32, split));
    let dropped =
        |lab: &mut Lab| Ok(LINEARS.iter().map(|sizes| dropout(sizes, &lab.f32())).fold(0.0, worst));
    cases.push(Case::new("ops/lora_linear/dropout/f32", FLOAT64, F32, dropped));
    let embed = |lab: &mut Lab| Ok(embedding(&lab.f32()));
    cases.push(Case::new("ops/embedding/f32", FLOAT64, F32, embed));
    cases.push(Case::new("ops/adamw, ten steps", FLOAT64, ADAMW, |lab| Ok(adamw(&lab.f32()))));
    cases
}

fn lora_linear_forward(sizes: &Sizes, placement: &Placement) -> f64 {
    let it = Linear::new(sizes, placement);
    let y = it.layer.forward(it.x.tensor(placement));
    let expected = truth::lora_linear(
        &it.x.f64(),
        &it.w.f64(),
        Some(&it.bias.f64()),
        &it.a.f64(),
        &it.b.f64(),
        SCALE,
        *sizes,
    );
    apart(y, &expected)
}

/// Gradients of x, A and B; none may come to be for the frozen W. Then of a W that is trained itself.
fn lora_linear_backward(sizes: &Sizes, placement: &Placement) -> f64 {
    let [n, _, d_out, _] = *sizes;
    let mut it = Linear::new(sizes, placement);
    let dy = Numbers::new(&[n, d_out], placement, 9);
    let expected = truth::lora_linear_backward(
        &it.x.f64(),
        &it.w.f64(),
        &it.a.f64(),
        &it.b.f64(),
        SCALE,
        &dy.f64(),
        *sizes,
    );
    for (_, mut factor) in it.layer.factors_mut("default") {
        factor.track(true);
    }
    let x = it.x.tensor::<2>(placement).autodiff().require_grad();
    let mut gradients = backward(it.layer.forward(x.clone()), &dy, placement);
    let mut most = apart(x.grad_remove(&mut gradients).unwrap(), &expected.x);
    let factors = it.layer.factors_mut("default");
    for ((_, factor), expected) in factors.iter().zip([&expected.a, &expected.b]) {
        most = worst(most, apart(factor.take_gradient(&mut gradients).unwrap(), expected));
    }
    for (key, frozen) in it.layer.base_mut() {
        assert!(!frozen.is_tracked(), "{key} is tracked");
    }
    for (_, mut base) in it.layer.base_mut() {
        base.track(true);
    }
    let x = x.detach();
    let mut gradients = backward(it.layer.forward(x.clone()), &dy, placement);
    for ((_, base), expected) in it.layer.base_mut().iter().zip([&expected.w, &expected.bias]) {
        most = worst(most, apart(base.take_gradient(&mut gradients).unwrap(), expected));
    }
    // The same W alone, in f32 as everything that is trained.
    it.layer.bias_mut().unwrap().track(false);
    let weight = cast(it.layer.weight().value(), DType::F32);
    it.layer.weight_mut().set(weight);
    let mut gradients = backward(it.layer.forward(x), &dy, placement);
    let (_, weight) = it.layer.base_mut().remove(0);
    worst(most, apart(weight.take_gradient(&mut gradients).unwrap(), &expected.w))
}

/// An update whose input is dropped in part: forward, and the gradients of x, A and B. A layer that gives back
/// its input shows which numbers a seed drops.
fn dropout([n, d_in, d_out, rank]: &Sizes, placement: &Placement) -> f64 {
    const SHARE: f64 = 0.25;
    const SEED: u64 = 11;
    let (n, d_in, d_out) = (*n, *d_in, *d_out);
    let x = Numbers::new(&[n, d_in], placement, 1);
    let tracked = |layer: &mut LoraLinear| {
        layer.set_training("default", true);
        layer.factors_mut("default").into_iter().for_each(|(_, mut factor)| factor.track(true));
    };
    let unit = |size: usize| -> Vec<f32> {
        (0..size * size).map(|at| f32::from(at % (size + 1) == 0)).collect()
    };
    let mut mirror = Linear::of(&[n, d_in, d_in, d_in], placement, SHARE);
    let nothing = Numbers { shape: vec![d_in, d_in], numbers: vec![0.0; d_in * d_in] };
    mirror.layer = LoraLinear::new("layer", nothing.tensor(placement), None);
    let factor = Factor {
        path: "layer".into(),
        d_in,
        d_out: d_in,
        rank: d_in,
        a: unit(d_in),
        b: unit(d_in),
    };
    mirror.layer.attach_factor("default", &factor, 1.0, SHARE, &placement.device);
    tracked(&mut mirror.layer);
    placement.device.seed(SEED);
    let seen = read_f32(mirror.layer.forward(x.tensor(placement)).inner());
    let kept: Vec<f64> = seen.iter().map(|seen| f64::from(*seen != 0.0) / (1.0 - SHARE)).collect();
    let masked = |numbers: &[f64]| -> Vec<f64> {
        numbers.iter().zip(&kept).map(|(number, kept)| number * kept).collect()
    };
    let of_mirror =
        deviation(&seen, &masked(&x.f64()).iter().map(|x| *x as f32).collect::<Vec<_>>());
    assert!(n * d_in < 100 || kept.contains(&0.0), "nothing was dropped");

    let sizes = [n, d_in, d_out, *rank];
    let mut it = Linear::of(&sizes, placement, SHARE);
    tracked(&mut it.layer);
    let dy = Numbers::new(&[n, d_out], placement, 9);
    let (x64, w, a, b) = (it.x.f64(), it.w.f64(), it.a.f64(), it.b.f64());
    let (no_w, no_a) = (vec![0.0; w.len()], vec![0.0; a.len()]);
    let base = truth::lora_linear(&x64, &w, Some(&it.bias.f64()), &no_a, &b, SCALE, sizes);
    let update = truth::lora_linear(&masked(&x64), &no_w, None, &a, &b, SCALE, sizes);
    let expected: Vec<f64> = base.iter().zip(&update).map(|(base, update)| base + update).collect();
    placement.device.seed(SEED);
    let leaf = it.x.leaf::<2>(placement);
    let y = it.layer.forward(leaf.clone());
    let forward = apart(y.clone(), &expected);
    let mut gradients = backward(y, &dy, placement);
    let base = truth::lora_linear_backward(&x64, &w, &no_a, &b, SCALE, &dy.f64(), sizes);
    let update = truth::lora_linear_backward(&masked(&x64), &no_w, &a, &b, SCALE, &dy.f64(), sizes);
    let dx: Vec<f64> = base.x.iter().zip(masked(&update.x)).map(|(base, x)| base + x).collect();
    let mut most =
        worst(of_mirror, worst(forward, apart(leaf.grad_remove(&mut gradients).unwrap(), &dx)));
    for ((_, factor), expected) in
        it.layer.factors_mut("default").iter().zip([&update.a, &update.b])
    {
        most = worst(most, apart(factor.take_gradient(&mut gradients).unwrap(), expected));
    }
    most
}

const SCALE: f64 = 2.0;

struct Linear {
    x: Numbers,
    w: Numbers,
    bias: Numbers,
    a: Numbers,
    b: Numbers,
    layer: LoraLinear,
}

impl Linear {
    fn new(sizes: &Sizes, placement: &Placement) -> Self {
        Self::of(sizes, placement, 0.0)
    }

    fn of(sizes: &Sizes, placement: &Placement, dropout: f64) -> Self {
        let [n, d_in, d_out, rank] = *sizes;
        let x = Numbers::new(&[n, d_in], placement, 1);
        let w = Numbers::new(&[d_in, d_out], placement, 2);
        let bias = Numbers::new(&[d_out], placement, 3);
        let a = Numbers::new(&[d_in, rank], placement, 4);
        let b = Numbers::new(&[rank, d_out], placement, 5);
        // As checkpoints give it: the rows of the transpose one after another.
        let transposed = Numbers { shape: vec![d_out, d_in], numbers: transpose(&w.numbers, d_in) };
        let weight = transposed.tensor::<2>(placement).transpose();
        let mut layer = LoraLinear::new("layer", weight, Some(bias.tensor(placement)));
        let factor = Factor {
            path: "layer".into(),
            d_in,
            d_out,
            rank,
            a: a.numbers.clone(),
            b: b.numbers.clone(),
        };
        layer.attach_factor("default", &factor, SCALE, dropout, &placement.device);
        Self { x, w, bias, a, b, layer }
    }
}

fn rms_norm(sizes: &Sizes, placement: &Placement) -> f64 {
    let [n, d, ..] = *sizes;
    let x = Numbers::new(&[n, d], placement, 1);
    let weight = Numbers::new(&[d], placement, 2);
    let dy = Numbers::new(&[n, d], placement, 3);
    let (tx, tw) = (x.leaf::<2>(placement), weight.leaf::<1>(placement));
    let y = ops::rms_norm(tx.clone(), tw.clone(), 1e-5);
    let forward = apart(y.clone(), &truth::rms_norm(&x.f64(), &weight.f64(), 1e-5, [n, d]));
    let mut gradients = backward(y, &dy, placement);
    let (dx, dw) = truth::rms_norm_backward(&x.f64(), &weight.f64(), 1e-5, &dy.f64(), [n, d]);
    let of_x = apart(tx.grad_remove(&mut gradients).unwrap(), &dx);
    let of_w = apart(tw.grad_remove(&mut gradients).unwrap(), &dw);
    worst(forward, worst(of_x, of_w))
}

/// All heads of a row but the last are rotated.
fn rotary(sizes: &Sizes, placement: &Placement) -> f64 {
    let [b, t, turned, width] = *sizes;
    let (n, h) = (b * t, turned + 1);
    let x = Numbers::new(&[n, h * width], placement, 1);
    let dy = Numbers::new(&[n, h * width], placement, 2);
    // Tables are f32 in every format.
    let wide = Placement::f32(placement.device.clone());
    let angles = Numbers::new(&[n, width / 2], &wide, 3).numbers;
    let table = |of: fn(f32) -> f32| Numbers {
        shape: vec![n, width / 2],
        numbers: angles.iter().map(|angle| of(*angle * 9.0)).collect(),
    };
    let (cosine, sine) = (table(f32::cos), table(f32::sin));
    let rest_of = |mut rotated: Vec<f64>, whole: &Numbers| {
        let whole = whole.f64();
        let rows = rotated.chunks_mut(h * width).zip(whole.chunks(h * width));
        rows.for_each(|(row, whole)| {
            row[turned * width..].copy_from_slice(&whole[turned * width..]);
        });
        rotated
    };
    let tx = x.leaf::<2>(placement);
    let y = ops::rotary(tx.clone(), turned, &cosine.tensor(&wide), &sine.tensor(&wide));
    let expected = truth::rotary(&x.f64(), &cosine.f64(), &sine.f64(), [b, t, h, width]);
    let forward = apart(y.clone(), &rest_of(expected, &x));
    let mut gradients = backward(y, &dy, placement);
    let expected = truth::rotary_backward(&dy.f64(), &cosine.f64(), &sine.f64(), [b, t, h, width]);
    worst(forward, apart(tx.grad_remove(&mut gradients).unwrap(), &rest_of(expected, &dy)))
}

fn layer_norm(sizes: &Sizes, placement: &Placement) -> f64 {
    let [n, d, ..] = *sizes;
    let x = Numbers::new(&[n, d], placement, 1);
    let (weight, bias) = (Numbers::new(&[d], placement, 2), Numbers::new(&[d], placement, 4));
    let dy = Numbers::new(&[n, d], placement, 3);
    let tx = x.leaf::<2>(placement);
    let (tw, tb) = (weight.leaf::<1>(placement), bias.leaf::<1>(placement));
    let y = ops::layer_norm(tx.clone(), tw.clone(), Some(tb.clone()), 1e-5);
    let (x, weight, bias) = (x.f64(), weight.f64(), bias.f64());
    let forward = apart(y.clone(), &truth::layer_norm(&x, &weight, &bias, 1e-5, [n, d]));
    let mut gradients = backward(y, &dy, placement);
    let (dx, dw, db) = truth::layer_norm_backward(&x, &weight, 1e-5, &dy.f64(), [n, d]);
    let of_x = apart(tx.grad_remove(&mut gradients).unwrap(), &dx);
    let of_w = apart(tw.grad_remove(&mut gradients).unwrap(), &dw);
    let of_b = apart(tb.grad_remove(&mut gradients).unwrap(), &db);
    [of_x, of_w, of_b].into_iter().fold(forward, worst)
}

fn gelu(
    sizes: &Sizes,
    placement: &Placement,
    activation: Activation,
    truth: fn(f64) -> (f64, f64),
) -> f64 {
    let [n, d, ..] = *sizes;
    let (x, dy) = (Numbers::new(&[n, d], placement, 1), Numbers::new(&[n, d], placement, 3));
    let tx = x.leaf::<2>(placement);
    let y = ops::activate(activation, tx.clone());
    let (expected, slopes): (Vec<f64>, Vec<f64>) = x.f64().into_iter().map(truth).unzip();
    let forward = apart(y.clone(), &expected);
    let mut gradients = backward(y, &dy, placement);
    let dx: Vec<f64> = slopes.iter().zip(dy.f64()).map(|(slope, dy)| slope * dy).collect();
    worst(forward, apart(tx.grad_remove(&mut gradients).unwrap(), &dx))
}

fn gated(sizes: &Sizes, placement: &Placement, activation: Activation) -> f64 {
    let [n, d, ..] = *sizes;
    let of = |seed| Numbers::new(&[n, d], placement, seed);
    let (gate, up, dy) = (of(1), of(2), of(3));
    let (tg, tu) = (gate.leaf::<2>(placement), up.leaf::<2>(placement));
    let y = ops::gated(activation, Tensor::cat(vec![tg.clone(), tu.clone()], 1));
    let (forward, back): (GateForward, GateBackward) = match activation {
        Activation::Silu => (truth::swiglu, truth::swiglu_backward),
        _ => (truth::geglu, truth::geglu_backward),
    };
    let forward = apart(y.clone(), &forward(&gate.f64(), &up.f64()));
    let mut gradients = backward(y, &dy, placement);
    let (dg, du) = back(&gate.f64(), &up.f64(), &dy.f64());
    let of_gate = apart(tg.grad_remove(&mut gradients).unwrap(), &dg);
    worst(forward, worst(of_gate, apart(tu.grad_remove(&mut gradients).unwrap(), &du)))
}

type GateForward = fn(&[f64], &[f64]) -> Vec<f64>;
type GateBackward = fn(&[f64], &[f64], &[f64]) -> (Vec<f64>, Vec<f64>);

#[derive(Clone, Copy)]
enum Mask {
    Causal,
    Window,
    Documents,
}

impl Mask {
    fn allows(self, row: usize, query: usize, key: usize) -> bool {
        let document = |at: usize| (at + row) / 3;
        key <= query
            && match self {
                Self::Causal => true,
                Self::Window => query - key < 3,
                Self::Documents => document(query) == document(key),
            }
    }
}

fn attention(sizes: &Sizes, placement: &Placement, mask: Mask, cap: Option<f64>) -> f64 {
    let [b, heads, groups, t] = *sizes;
    let width = HEAD_WIDTH;
    let q = Numbers::new(&[b, heads, t, width], placement, 1);
    let k = Numbers::new(&[b, groups, t, width], placement, 2);
    let v = Numbers::new(&[b, groups, t, width], placement, 3);
    let dy = Numbers::new(&[b, heads, t, width], placement, 4);
    let mut allowed = Vec::new();
    for row in 0..b {
        for query in 0..t {
            allowed.extend((0..t).map(|key| mask.allows(row, query, key)));
        }
    }
    let visible = allowed.chunks(t).map(|keys| {
        let first = keys.iter().position(|seen| *seen).unwrap();
        [first as u32, (first + keys.iter().filter(|seen| **seen).count()) as u32]
    });
    let the_mask = AttentionMask::new(visible.collect(), [b, t, t], &placement.device);
    let limit = placement.buffer_limit;
    let shape = truth::AttentionSizes { b, heads, groups, t, s: t, width };
    // Not 1/√width, which a body might take by itself.
    let scores = Scores { scale: 0.4, cap };
    let score = (scores.scale, cap);
    let (q64, k64, v64, dy64) = (q.f64(), k.f64(), v.f64(), dy.f64());
    let expected = truth::attention(&q64, &k64, &v64, &allowed, score, shape);
    let (dq, dk, dv) = truth::attention_backward(&q64, &k64, &v64, &allowed, score, &dy64, shape);

    // Apart, as a generation has them.
    let sides = [q.tensor(placement), k.tensor(placement), v.tensor(placement)];
    let of_apart = apart(ops::attention_over(sides, scores, Some(&the_mask), limit), &expected);
    // In rows, as training has them.
    let (tq, tk, tv) = (q.leaf::<4>(placement), k.leaf(placement), v.leaf(placement));
    let row = |x: &Tensor<4>, h: usize| x.clone().swap_dims(1, 2).reshape([b * t, h * width]);
    let rows = Tensor::cat(vec![row(&tq, heads), row(&tk, groups), row(&tv, groups)], 1);
    let layout = HeadLayout { heads, groups, width };
    let y = ops::attention(rows, layout, [b, t], scores, Some(&the_mask), limit);
    let y = y.reshape([b, t, heads, width]).swap_dims(1, 2); // [b, heads, t, width]
    let forward = worst(of_apart, apart(y.clone(), &expected));
    let mut gradients = backward(y, &dy, placement);
    let leaves = [(tq, dq), (tk, dk), (tv, dv)].into_iter();
    let of_leaves =
        leaves.map(|(leaf, expected)| apart(leaf.grad_remove(&mut gradients).unwrap(), &expected));
    of_leaves.fold(forward, worst)
}

fn linear_cross_entropy(sizes: &Sizes, placement: &Placement, cap: Option<f64>) -> f64 {
    let [n, d, v, _] = *sizes;
    let hidden = Numbers::new(&[n, d], placement, 1);
    let head = Numbers::new(&[d, v], placement, 2);
    let targets: Vec<usize> = (0..n).map(|at| (at * 7 + 3) % v).collect();
    let labels: Vec<i32> = targets.iter().map(|target| *target as i32).collect();
    let rows = transpose(&head.numbers, d);
    let place = (&placement.device, placement.compute);
    let table = Table::new(rows, [v, d], place, placement.buffer_limit);
    let (parts, given) = (table.parts(), hidden.tensor(placement));
    let found = ops::linear_cross_entropy(&given, &parts, &labels, cap, true);
    let (sum, gradient, _) =
        truth::cross_entropy(&hidden.f64(), &head.f64(), &targets, cap, [n, d, v]);
    let losses: f64 = read_f32(found.losses).iter().map(|loss| f64::from(*loss)).sum();
    let of_loss = (losses - sum).abs() / sum.max(1.0);
    let best = found.best.into_data().convert::<i32>().try_into_vec::<i32>().unwrap();
    let logits = truth::matmul(&hidden.f64(), &head.f64(), [n, d, v]);
    for (best, logits) in best.iter().zip(logits.chunks(v)) {
        let highest = logits.iter().fold(f64::NEG_INFINITY, |most, logit| most.max(*logit));
        assert!(highest - logits[*best as usize] < 0.1, "not the most likely token");
    }
    let frozen = worst(of_loss, apart(found.hidden_gradient.unwrap(), &gradient));
    match cap {
        None => worst(frozen, trained_head(sizes, placement)),
        Some(_) => frozen,
    }
}

/// The same where the head is trained too, in chunks of every kind; a third of the loss flows back.
fn trained_head([n, d, v, _]: &Sizes, placement: &Placement) -> f64 {
    let hidden = Numbers::new(&[*n, *d], placement, 1);
    let rows = Numbers::new(&[*v, *d], placement, 2);
    let targets: Vec<usize> = (0..*n).map(|at| (at * 5 + 1) % v).collect();
    let labels: Vec<i32> = targets.iter().map(|target| *target as i32).collect();
    let head: Vec<f64> = transpose(&rows.numbers, *v).into_iter().map(f64::from).collect();
    let (sum, of_hidden, of_head) =
        truth::cross_entropy(&hidden.f64(), &head, &targets, None, [*n, *d, *v]);
    let third = |gradient: &[f64]| gradient.iter().map(|x| x / 3.0).collect::<Vec<_>>();
    let of_head: Vec<f32> = of_head.into_iter().map(|x| x as f32).collect();
    let of_head: Vec<f64> = transpose(&of_head, *d).into_iter().map(f64::from).collect();
    let chunks = [1, 3, *n].into_iter().map(|chunk| {
        let leaf = hidden.leaf::<2>(placement);
        let table = cast(rows.tensor::<2>(placement), DType::F32).autodiff().require_grad();
        let Some(found) = ops::trained_cross_entropy(&leaf, &table, &labels, chunk) else {
            return 0.0; // taken apart: what the other operations are is checked by themselves
        };
        let losses: f64 = read_f32(found.losses).iter().map(|loss| f64::from(*loss)).sum();
        let of_loss = (losses - sum).abs() / sum.max(1.0);
        let mut gradients = (found.sum / 3.0).backward();
        let of_leaf = apart(leaf.grad_remove(&mut gradients).unwrap(), &third(&of_hidden));
        let of_table = apart(table.grad_remove(&mut gradients).unwrap(), &third(&of_head));
        worst(of_loss, worst(of_leaf, of_table))
    });
    chunks.fold(0.0, worst)
}

fn split_embedding([n, d, v, _]: &Sizes, placement: &Placement) -> f64 {
    let numbers = Numbers::new(&[*v, *d], placement, 1);
    let place = (&placement.device, placement.compute);
    let table = Table::new(numbers.numbers.clone(), [*v, *d], place, placement.buffer_limit);
    assert!(table.whole().is_none(), "nothing was split");
    let tokens: Vec<usize> = (0..*n).map(|at| (at * 29 + 66) % v).collect();
    let indices: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
    let found = table.select(&indices, &placement.device);
    let selected = apart(found, &truth::embedding(&numbers.f64(), &tokens, *d));
    let hidden = Numbers::new(&[*n, *d], placement, 2);
    let transposed: Vec<f64> = transpose(&numbers.numbers, *v).into_iter().map(f64::from).collect();
    let expected = truth::matmul(&hidden.f64(), &transposed, [*n, *d, *v]);
    worst(selected, apart(table.logits(&hidden.tensor(placement)), &expected))
}

fn embedding(placement: &Placement) -> f64 {
    let [v, d] = [11, 6];
    let tokens = [3, 0, 10, 3, 3, 7];
    let table = Numbers::new(&[v, d], placement, 1);
    let dy = Numbers::new(&[tokens.len(), d], placement, 2);
    let leaf = table.leaf::<2>(placement);
    let indices: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
    let indices = TensorData::new(indices, [tokens.len()]);
    let y = leaf.clone().select(0, Tensor::<1, Int>::from_data(indices, &placement.device));
    let forward = apart(y.clone(), &truth::embedding(&table.f64(), &tokens, d));
    let mut gradients = backward(y, &dy, placement);
    let expected = truth::embedding_backward(&tokens, &dy.f64(), [v, d]);
    worst(forward, apart(leaf.grad_remove(&mut gradients).unwrap(), &expected))
}

/// The optimizer on the factors of a decoder of one block, with gradients made up for it.
fn adamw(placement: &Placement) -> f64 {
    use lora_train::optimizer::{AdamW, global_norm};
    use lora_train::recipe::TrainSettings;
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": 7, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    });
    let config = lora_models::families::decoder_config(&json, "config.json".as_ref()).unwrap();
    let mut decoder = Decoder::random(&config, 3, placement).unwrap();
    decoder.attach("default", &LoraConfig::new(2, 4.0), 1).unwrap();
    let trainable = Trainable::Adapter("default".into());
    decoder.set_trainable(&trainable).unwrap();
    let settings = TrainSettings { weight_decay: 0.1, clip_norm: None, ..TrainSettings::default() };
    let mut optimizer = AdamW::new(&settings);
    let read = |decoder: &mut Decoder| -> Vec<Vec<f32>> {
        decoder.trainable_mut(&trainable).iter().map(|(_, parameter)| parameter.read()).collect()
    };
    let wide = |numbers: &[f32]| -> Vec<f64> { numbers.iter().map(|x| f64::from(*x)).collect() };
    let mut expected: Vec<Vec<f64>> = read(&mut decoder).iter().map(|x| wide(x)).collect();
    let mut first: Vec<Vec<f64>> = expected.iter().map(|x| vec![0.0; x.len()]).collect();
    let mut second = first.clone();
    for step in 1..=10 {
        let gradients: Vec<Vec<f32>> = expected
            .iter()
            .enumerate()
            .map(|(at, x)| Numbers::new(&[x.len()], placement, (step * 100 + at) as u64).numbers)
            .collect();
        let options = truth::AdamWSettings {
            rate: 1e-2,
            beta1: settings.beta1,
            beta2: settings.beta2,
            epsilon: settings.epsilon,
            weight_decay: settings.weight_decay,
        };
        let moments = first.iter_mut().zip(&mut second);
        for ((x, gradient), (first, second)) in expected.iter_mut().zip(&gradients).zip(moments) {
            truth::adamw(x, &wide(gradient), first, second, step, options);
        }
        let gradients: Vec<_> = gradients.into_iter().map(Some).collect();
        let norm = global_norm(&gradients);
        optimizer.update(&mut decoder, &trainable, &gradients, norm, 1e-2);
    }
    let narrow = |x: &[f64]| -> Vec<f32> { x.iter().map(|x| *x as f32).collect() };
    let found = read(&mut decoder);
    found.iter().zip(&expected).map(|(a, b)| deviation(a, &narrow(b))).fold(0.0, worst)
}

/// Made-up numbers in (-1, 1) that the placement's format holds exactly.
struct Numbers {
    shape: Vec<usize>,
    numbers: Vec<f32>,
}

impl Numbers {
    fn new(shape: &[usize], placement: &Placement, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let exact = |number: f32| match placement.compute {
            DType::BF16 => f32::from_bits(number.to_bits() & 0xffff_0000),
            _ => number,
        };
        let count = shape.iter().product();
        let numbers = (0..count).map(|_| exact(random.random_range(-1.0..1.0))).collect();
        Self { shape: shape.to_vec(), numbers }
    }

    fn f64(&self) -> Vec<f64> {
        self.numbers.iter().map(|number| f64::from(*number)).collect()
    }

    fn tensor<const D: usize>(&self, placement: &Placement) -> Tensor<D> {
        let data = TensorData::new(self.numbers.clone(), self.shape.clone());
        Tensor::from_data(data, (&placement.device, placement.compute))
    }

    fn leaf<const D: usize>(&self, placement: &Placement) -> Tensor<D> {
        self.tensor(placement).autodiff().require_grad()
    }
}

fn backward<const D: usize>(
    y: Tensor<D>,
    dy: &Numbers,
    placement: &Placement,
) -> burn::tensor::Gradients {
    let dy = cast(dy.tensor::<D>(placement), DType::F32);
    (cast(y, DType::F32) * dy).sum().backward()
}

fn apart<const D: usize>(found: Tensor<D>, expected: &[f64]) -> f64 {
    let expected: Vec<f32> = expected.iter().map(|number| *number as f32).collect();
    deviation(&read_f32(found), &expected)
}

/// `[n, m]` to `[m, n]`.
fn transpose(numbers: &[f32], n: usize) -> Vec<f32> {
    let m = numbers.len() / n;
    (0..m).flat_map(|column| (0..n).map(move |row| numbers[row * m + column])).collect()
}
