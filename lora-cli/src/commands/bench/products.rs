//! The matrix products of a training step: alone, within the step, and what the processor could do.

use std::time::Instant;

use lora_core::linear::LoraLinear;
use lora_core::ops::{gated, linear_cross_entropy, product_limit, product_limit_in_thirds};
use lora_core::placement::DType;
use lora_core::profile;
use lora_models::{Decoder, Input, Trainable};
use lora_train::recipe::TrainSettings;
use serde_json::{Value, json};

use super::setup::{Random, SEED, adapter, random_batch, random_decoder};
use super::{Steps, number_format, place, steps, threads};
use crate::args::bench::{BenchProductsArguments, BenchTargets, BenchTrainArguments};
use crate::commands::open;
use crate::style::Problem;

/// The products of the blocks, without those that are narrow: `[n, d_in] × [d_in, d_out]` forward and
/// backward, and the packing of their left sides.
const OF_BLOCKS: [&str; 3] = ["linear", "linear, backward", "linear, pack"];
/// Those of the head.
const OF_HEAD: [&str; 2] = ["loss, logits", "loss, gradient"];

/// Linear layers of a block that read one input, by their places among the seven of it.
const TOGETHER: [std::ops::Range<usize>; 4] = [0..3, 3..4, 4..6, 6..7];

/// `step` and `sum` are times of a step and of all its products alone: those of every linear layer, forward
/// and backward, those of A and B among them, and those of the head. `inside` is the speed of the products with
/// the frozen weights within the steps, `alone` that of 1024 × 576 × 1536 (with 4 × 256 tokens), `limit` that
/// of numbers in the nearest cache, and `limit in thirds` that of f32 numbers in three parts with weights as these
/// rest, where they are multiplied so.
pub(super) fn products(arguments: &BenchProductsArguments) -> anyhow::Result<Value> {
    let (device, placement) = place(&arguments.compute, false)?;
    let limit = || {
        let limit = product_limit(placement.compute).filter(|_| device.backend.is_processor());
        limit.map(|limit| limit / 1e9).ok_or_else(|| {
            Problem::new(format!("there are no products of our own on `{}`", device.name))
                .with_hint("use `--device cpu` with `--precision f32` or `--precision bf16`")
        })
    };
    let is_f32 = placement.compute == DType::F32;
    let first_limit = limit()?;
    let mut decoder = random_decoder(&arguments.shape, &placement)?;
    let weights = decoder.linears()[0].weight().at_rest().dtype();
    let in_thirds = || product_limit_in_thirds(weights).filter(|_| is_f32);
    let first_in_thirds = in_thirds();
    decoder.attach(open::ADAPTER, &adapter(BenchTargets::All), SEED)?;
    let trainable = Trainable::Adapter(open::ADAPTER.to_owned());
    decoder.set_trainable(&trainable)?;

    let mut alone = vec![one_product(&decoder, arguments)?];
    let mut sums = vec![sum_of_products(&decoder, arguments)];
    let run = BenchTrainArguments {
        targets: BenchTargets::All,
        length: arguments.length,
        recompute: false,
        paced: false,
        shape: arguments.shape.clone(),
        compute: arguments.compute.clone(),
    };
    let Steps { step_ms, parts_ms, .. } = steps(&mut decoder, trainable, &run)?;
    // Around the steps, so that what disturbs the machine meets both.
    sums.push(sum_of_products(&decoder, arguments));
    alone.push(one_product(&decoder, arguments)?);
    let limit = limit()?.max(first_limit);

    let in_thirds: Vec<f64> = first_in_thirds
        .zip(in_thirds())
        .map(|(first, second)| first.max(second) / 1e9)
        .into_iter()
        .collect();

    let tokens = arguments.length.batch * arguments.length.sequence;
    let inside_ms: f64 = sum_of(&parts_ms, &OF_BLOCKS);
    let inside = 2.0 * multiplications(&decoder, tokens) / inside_ms / 1e6;
    Ok(json!({
        "kind": "products",
        "device": device.name,
        "dtype": number_format(&placement),
        "threads": threads(),
        "tokens": tokens,
        "variants": [
            {"variant": "step", "step_ms": step_ms},
            {"variant": "sum", "step_ms": sums},
            {"variant": "inside", "gflop_s": [inside]},
            {"variant": "alone", "gflop_s": alone},
            {"variant": "limit", "gflop_s": [limit]},
            {"variant": "limit in thirds", "gflop_s": in_thirds},
        ],
    }))
}

/// Multiplications with frozen weights of the blocks, forward and backward.
fn multiplications(decoder: &Decoder, tokens: usize) -> f64 {
    let linears = decoder.linears();
    let sizes = linears.iter().map(|linear| {
        let info = linear.info();
        info.d_in * info.d_out
    });
    let all: usize = sizes.clone().sum();
    // No gradient is wanted of what the embedding gives.
    let first: usize = sizes.take(TOGETHER[0].end).sum();
    (tokens * (2 * all - first)) as f64
}

/// Speed of `[n, 576] × [576, 1536]` alone, in billions of operations per second.
fn one_product(decoder: &Decoder, arguments: &BenchProductsArguments) -> anyhow::Result<f64> {
    let mut plain = decoder.untracked();
    plain.set_active(&[])?;
    let linears = plain.linears();
    let gate = &linears[TOGETHER[2].start];
    let x = plain.embed(&input(plain.config().vocab_size, arguments));
    let times = (0..=arguments.length.steps).map(|_| {
        let started = Instant::now();
        let y = gate.forward(x.clone());
        let seconds = started.elapsed().as_secs_f64();
        drop(y);
        seconds
    });
    let info = gate.info();
    let operations = 2.0 * (x.dims()[0] * info.d_in * info.d_out) as f64;
    Ok(operations / median(times.skip(1).collect()) / 1e9)
}

/// Time of all products of a step, each group of them alone, in milliseconds.
fn sum_of_products(decoder: &Decoder, arguments: &BenchProductsArguments) -> f64 {
    let config = decoder.config();
    let linears = decoder.linears();
    let block = linears.len() / config.num_hidden_layers;
    let narrow = decoder.embed(&input(config.vocab_size, arguments));
    let plain = decoder.untracked();
    let both = &plain.linears()[TOGETHER[2].clone()];
    let wide = gated(config.activation, LoraLinear::forward_together(both, narrow.clone()));
    let of_parts = |names: &[&str], work: &dyn Fn()| {
        let times = (0..=arguments.length.steps).map(|_| {
            profile::start();
            work();
            let parts = profile::finish();
            parts
                .iter()
                .filter(|(name, _)| names.contains(name) || names.is_empty())
                .map(|(_, part)| part.time.as_secs_f64() * 1e3)
                .sum()
        });
        median(times.skip(1).collect())
    };
    let mut sum = 0.0;
    for (index, together) in TOGETHER.into_iter().enumerate() {
        let linears = &linears[..block][together];
        let x = if linears[0].info().d_in == config.hidden_size { &narrow } else { &wide };
        let of_group = |is_tracked: bool| {
            of_parts(&[], &|| {
                let x = x.clone();
                let x = if is_tracked { x.autodiff().require_grad() } else { x };
                LoraLinear::forward_together(linears, x).sum().backward();
            })
        };
        let blocks = config.num_hidden_layers;
        // Nothing goes back into the embedding.
        let first = if index == 0 { 1 } else { 0 };
        sum += of_group(true) * (blocks - first) as f64;
        if first > 0 {
            sum += of_group(false);
        }
    }
    let tokens = arguments.length.batch * arguments.length.sequence;
    let chunk = TrainSettings::default().loss_chunk_tokens.min(tokens);
    let hidden = narrow.narrow(0, 0, chunk);
    if let Some(head) = decoder.frozen_head() {
        let targets = vec![1; chunk];
        let of_chunk = of_parts(&OF_HEAD, &|| {
            linear_cross_entropy(&hidden, &head, &targets, config.logit_cap, true);
        });
        sum += of_chunk * tokens as f64 / chunk as f64;
    }
    sum
}

fn input(vocabulary: usize, arguments: &BenchProductsArguments) -> Input {
    let batch = random_batch(
        &mut Random(SEED),
        vocabulary,
        arguments.length.batch,
        arguments.length.sequence,
    );
    Input {
        rows: batch.rows,
        columns: batch.columns,
        tokens: batch.tokens,
        positions: batch.positions,
        documents: batch.documents,
        segments: batch.segments,
    }
}

fn sum_of(parts: &[(&'static str, f64)], names: &[&str]) -> f64 {
    parts.iter().filter(|(name, _)| names.contains(name)).map(|(_, time)| time).sum()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}
