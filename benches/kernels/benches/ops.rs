//! Times of the kernels, each at the sizes that it meets in SmolLM2-135M: 4 sequences of 256 tokens, or one token.
//!
//! `cargo bench --manifest-path benches/kernels/Cargo.toml` times all of them, with a word behind `--` those whose
//! names have it. Weights are those of several layers in turn, so that they come from memory as in a model;
//! inputs and outputs stay the same.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use lora_kernels::activation::{Activation, gated, gated_backward};
use lora_kernels::attention::{Heads, Look, Shape, Upper, attention, attention_backward};
use lora_kernels::cross_entropy::cross_entropy;
use lora_kernels::matmul::{
    Beside, Left, Patch, Product, Right, Rows, Stored, dot_rows, thin_product, thin_width,
};
use lora_kernels::norm::{rms_norm, rms_norm_backward};
use lora_kernels::number::Number;
use lora_kernels::rotary::rotary;

const TOKENS: usize = 1024;
const WIDTH: usize = 576;
const WIDE: usize = 1536;
const VOCABULARY: usize = 49_152;
/// Queries, keys and values of a token.
const HEADS: usize = 960;
/// Of each adapter.
const RANK: usize = 8;
/// Weights of as many layers take turns.
const LAYERS: usize = 12;

/// Inputs, outputs and adapters of the layers that read one input.
const LAYERS_TOGETHER: [(&str, usize, usize, usize); 4] = [
    ("queries, keys and values", WIDTH, HEADS, 3),
    ("attention's output", WIDTH, WIDTH, 1),
    ("gate and up", WIDTH, 2 * WIDE, 2),
    ("feed-forward's output", WIDE, WIDTH, 1),
];

/// Numbers in ±½, at the beginning of a line of the cache.
fn numbers<T: Number>(count: usize, seed: usize) -> &'static mut [T] {
    let number = |at: usize| ((at * 7919 + seed * 104_729) % 10_007) as f32 / 10_007.0 - 0.5;
    // Kept to the end: a vector would not begin where it should.
    let all: &'static mut [T] = Vec::leak((0..count + 64).map(|_| T::from_f32(0.0)).collect());
    let start = all.as_ptr().align_offset(64);
    let numbers = &mut all[start..start + count];
    numbers.iter_mut().enumerate().for_each(|(at, into)| *into = T::from_f32(number(at)));
    numbers
}

fn products<T: Number>(criterion: &mut Criterion, format: &str) {
    let mut group = criterion.benchmark_group(format!("product, {format}"));
    for (name, d_in, d_out, adapters) in LAYERS_TOGETHER {
        let rank = adapters * RANK;
        let (x, dy) = (numbers::<T>(TOKENS * d_in, 1), numbers::<T>(TOKENS * d_out, 2));
        let weights: Vec<&[T]> = (0..LAYERS).map(|at| &*numbers(d_in * d_out, at)).collect();
        let (a, b) = (numbers::<f32>(d_in * rank, 3), numbers::<f32>(rank * d_out, 4));
        let narrow = numbers::<f32>(TOKENS * rank, 5);
        let (y, dx) = (numbers::<T>(TOKENS * d_out, 6), numbers::<T>(TOKENS * d_in, 7));
        // Two operations for each number of each sum.
        group.throughput(Throughput::Elements(2 * (TOKENS * d_in * d_out) as u64));
        let mut layer = 0;
        group.bench_function(BenchmarkId::new("forward", name), |bencher| {
            let wide = Right::new([rank, d_out], vec![Patch::straight(b, [rank, d_out], [0, 0])]);
            bencher.iter(|| {
                layer = (layer + 1) % LAYERS;
                let weight = Patch::transposed(weights[layer], [d_out, d_in], [0, 0]);
                let right = Right::new([d_in, d_out], vec![weight]);
                let left = Left::pack(x, [TOKENS, d_in], d_in);
                let beside = left.pack_beside(narrow, [TOKENS, rank], rank);
                let low_rank = Some((&beside, &wide));
                Product { low_rank, ..Product::new(&left, &right) }.write(y);
            });
        });
        group.bench_function(BenchmarkId::new("backward", name), |bencher| {
            let turned = Patch::transposed(&*a, [d_in, rank], [0, 0]);
            let wide = Right::new([rank, d_in], vec![turned]);
            bencher.iter(|| {
                layer = (layer + 1) % LAYERS;
                let weight = Patch::straight(weights[layer], [d_out, d_in], [0, 0]);
                let right = Right::new([d_out, d_in], vec![weight]);
                let left = Left::pack(dy, [TOKENS, d_out], d_out);
                let beside = left.pack_beside(narrow, [TOKENS, rank], rank);
                let low_rank = Some((&beside, &wide));
                Product { low_rank, ..Product::new(&left, &right) }.write(dx);
            });
        });
    }
    group.finish();
}

/// Gradients of factors.
fn thin<T: Number>(criterion: &mut Criterion, format: &str) {
    let mut group = criterion.benchmark_group(format!("gradient of a factor, {format}"));
    for columns in [WIDTH, WIDE] {
        let narrow = numbers::<f32>(TOKENS * thin_width(RANK), 1);
        let right = numbers::<T>(TOKENS * columns, 2);
        let mut out = vec![0.0; RANK * columns];
        group.bench_function(BenchmarkId::from_parameter(columns), |bencher| {
            bencher.iter(|| {
                let (left, right) = ((&*narrow, thin_width(RANK)), (&*right, columns));
                thin_product(left, right, [TOKENS, RANK, columns], &mut out);
            });
        });
    }
    group.finish();
}

/// Products of one token.
fn dots<T: Number>(criterion: &mut Criterion, format: &str) {
    let mut group = criterion.benchmark_group(format!("one token, {format}"));
    for (name, d_in, d_out, adapters) in LAYERS_TOGETHER {
        let rank = adapters * RANK;
        let x = numbers::<f32>(d_in, 1);
        let weights: Vec<&[T]> = (0..8 * LAYERS).map(|at| &*numbers(d_in * d_out, at)).collect();
        let (a, b) = (numbers::<f32>(d_in * rank, 3), numbers::<f32>(rank * d_out, 4));
        let mut out = vec![0.0; d_out];
        group.throughput(Throughput::Bytes((d_in * d_out * size_of::<T>()) as u64));
        for adapted in [false, true] {
            let mut layer = 0;
            let of = if adapted { "with an adapter" } else { "base" };
            group.bench_function(BenchmarkId::new(of, name), |bencher| {
                bencher.iter(|| {
                    layer = (layer + 1) % weights.len();
                    let b = Patch::transposed(b, [d_out, rank], [0, 0]);
                    let update = adapted.then(|| Beside::new(a, b, 2.0, d_in));
                    let weight = Rows::Dense(weights[layer]);
                    let stored = Stored { weight, place: 0, updates: update.into_iter().collect() };
                    dot_rows(x, &[stored], [1, d_in], &mut out, d_out);
                });
            });
        }
    }
    group.finish();
}

fn heads<T: Number>(criterion: &mut Criterion, format: &str) {
    let mut group = criterion.benchmark_group(format!("attention, {format}"));
    let shape =
        Shape { rows: 4, heads: 9, groups: 3, queries: 256, keys: 256, width: 64 };
    let visible: Vec<[u32; 2]> = (0..TOKENS).map(|at| [0, at as u32 % 256 + 1]).collect();
    let look = Look { visible: &visible, scale: 0.125 };
    let rows = &*numbers::<T>(TOKENS * HEADS, 1);
    let steps = [256 * HEADS, HEADS, 64];
    let starts = [0, 576, 768];
    let sides = || starts.map(|start| Heads { numbers: &rows[start..], steps });
    let out = numbers::<T>(TOKENS * WIDTH, 2);
    let mut sums = vec![0.0; TOKENS * 9];
    group.bench_function("forward", |bencher| {
        bencher.iter(|| attention(sides(), shape, look, out, &mut sums));
    });
    let upper = &*numbers::<T>(TOKENS * WIDTH, 3);
    let gradient = numbers::<T>(TOKENS * HEADS, 4);
    group.bench_function("backward", |bencher| {
        bencher.iter(|| {
            let given = Upper { out, sums: &sums, gradient: upper };
            attention_backward(sides(), shape, look, given, starts, gradient);
        });
    });
    group.finish();
}

/// One pass each.
fn passes<T: Number>(criterion: &mut Criterion, format: &str) {
    let mut group = criterion.benchmark_group(format!("pass, {format}"));
    let (x, dy) = (&*numbers::<T>(TOKENS * WIDTH, 1), &*numbers::<T>(TOKENS * WIDTH, 2));
    let y = numbers::<T>(TOKENS * WIDTH, 3);
    let weight = numbers::<f32>(WIDTH, 4);
    let mut scale = vec![0.0; TOKENS];
    group.bench_function("rms norm, forward", |bencher| {
        bencher.iter(|| rms_norm(x, weight, 1e-5, y, &mut scale));
    });
    group.bench_function("rms norm, backward", |bencher| {
        bencher.iter(|| rms_norm_backward(x, weight, &scale, dy, y, true));
    });
    let (rows, turned) = (&*numbers::<T>(TOKENS * HEADS, 5), numbers::<T>(TOKENS * HEADS, 6));
    let (cosine, sine) = (&*numbers::<f32>(TOKENS * 32, 7), &*numbers::<f32>(TOKENS * 32, 8));
    group.bench_function("rotary", |bencher| {
        bencher.iter(|| rotary(rows, HEADS, 12, 64, cosine, sine, turned, false));
    });
    let both = &*numbers::<T>(TOKENS * 2 * WIDE, 9);
    let activated = numbers::<T>(TOKENS * WIDE, 10);
    group.bench_function("gated, forward", |bencher| {
        bencher.iter(|| gated(Activation::Silu, both, WIDE, activated));
    });
    let gradient = numbers::<T>(TOKENS * 2 * WIDE, 11);
    group.bench_function("gated, backward", |bencher| {
        bencher.iter(|| gated_backward(Activation::Silu, both, WIDE, activated, gradient));
    });
    group.finish();
}

/// The loss of some tokens, whose logits are f32 always.
fn loss(criterion: &mut Criterion) {
    const AT_ONCE: usize = 128;
    let logits = numbers::<f32>(AT_ONCE * VOCABULARY, 1);
    let targets = [5; AT_ONCE];
    let (mut losses, mut best, mut at_targets) = ([0.0; AT_ONCE], [0; AT_ONCE], [0.0; AT_ONCE]);
    criterion.bench_function("cross-entropy with its gradient", |bencher| {
        bencher.iter(|| {
            let wanted = Some(&mut at_targets[..]);
            cross_entropy::<f32>(logits, VOCABULARY, &targets, &mut losses, &mut best, wanted);
        });
    });
}

fn all(criterion: &mut Criterion) {
    products::<f32>(criterion, "f32");
    products::<bf16>(criterion, "bf16");
    thin::<f32>(criterion, "f32");
    thin::<bf16>(criterion, "bf16");
    dots::<f32>(criterion, "f32");
    dots::<bf16>(criterion, "bf16");
    heads::<f32>(criterion, "f32");
    heads::<bf16>(criterion, "bf16");
    passes::<f32>(criterion, "f32");
    passes::<bf16>(criterion, "bf16");
    loss(criterion);
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = ops; config = short(); targets = all }
criterion_main!(ops);
