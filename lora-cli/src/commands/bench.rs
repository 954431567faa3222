//! `lora bench`: one piece of work, timed, as one line of JSON on standard output. `cargo xtask bench`
//! makes a table of such lines.
//!
//! The model has SmolLM2-135M's shape and random weights, so that nothing has to be fetched. Nothing is
//! averaged here: the line holds every step.

mod products;
mod setup;
mod turns;

use std::time::Instant;

use anyhow::{Context, ensure};
use lora_core::device::{DeviceSpec, OpenDevice};
use lora_core::placement::Placement;
use lora_core::profile;
use lora_models::generate::{GenerateOptions, Generation};
use lora_models::sampling::SamplingConfig;
use lora_models::{Decoder, Trainable};
use lora_train::Trainer;
use lora_train::memory::{peak_bytes, resident_bytes};
use lora_train::recipe::{Length, TrainSettings};
use serde_json::{Value, json};

use self::setup::{Random, SEED, adapter, random_batch, random_decoder, with_adapter};
use self::turns::wait_for_turn;
use super::open;
use crate::args::ComputeArguments;
use crate::args::bench::{
    BenchArguments, BenchGenerateArguments, BenchLoadArguments, BenchTargets, BenchTrainArguments,
    BenchVariant, BenchWork,
};
use crate::style::{self, Problem};

const LEARNING_RATE: f64 = 2e-4;
/// Why a paced run has nothing to print.
const TOO_FEW_TURNS: &str = "no more turns came before everything was timed";

/// Tokens that each variant generates before the clock starts.
const WARMUP_TOKENS: usize = 8;

/// Does the work and prints its line.
pub(crate) fn run(arguments: &BenchArguments) -> anyhow::Result<()> {
    let start = resident_bytes();
    let mut line = match &arguments.work {
        BenchWork::Train(arguments) => train(arguments)?,
        BenchWork::Generate(arguments) => generate(arguments)?,
        BenchWork::Products(arguments) => products::products(arguments)?,
        BenchWork::Load(arguments) => load(arguments)?,
    };
    line["start_rss_mb"] = json!(megabytes(start));
    line["peak_rss_mb"] = json!(megabytes(peak_bytes()));
    style::out_line(&line.to_string())?;
    Ok(())
}

fn train(arguments: &BenchTrainArguments) -> anyhow::Result<Value> {
    let full = arguments.targets == BenchTargets::Full;
    let (device, placement) = place(&arguments.compute, full)?;
    let mut decoder = random_decoder(&arguments.shape, &placement)?;
    let trainable = match full {
        true => Trainable::Base,
        false => {
            decoder.attach(open::ADAPTER, &adapter(arguments.targets), SEED)?;
            Trainable::Adapter(open::ADAPTER.to_owned())
        }
    };
    let trainable_parameters: usize =
        decoder.trainable_mut(&trainable).iter().map(|(_, parameter)| parameter.count()).sum();
    let Steps { losses, step_ms, parts_ms } = steps(&mut decoder, trainable, arguments)?;
    let parts: serde_json::Map<String, Value> = parts_ms
        .into_iter()
        .map(|(name, milliseconds)| (name.to_owned(), json!((milliseconds * 10.0).round() / 10.0)))
        .collect();
    let tokens = arguments.length.batch * arguments.length.sequence;
    Ok(json!({
        "kind": "train",
        "device": device.name,
        "dtype": number_format(&placement),
        "threads": threads(),
        "tokens": tokens,
        "quantize": placement.quantize.to_string(),
        "recompute": arguments.recompute,
        "trainable_parameters": trainable_parameters,
        "tok_s": per_second(tokens, &step_ms),
        "step_ms": step_ms,
        "loss_first": losses.first(),
        "loss_last": losses.last(),
        "profile_ms": parts,
    }))
}

/// Steps of a training run.
struct Steps {
    /// Of every step, those before the clock started included.
    losses: Vec<f64>,
    /// Of the timed steps.
    step_ms: Vec<f64>,
    /// Own time of each part of a step, the mean of the timed ones.
    parts_ms: Vec<(&'static str, f64)>,
}

fn steps(
    decoder: &mut Decoder,
    trainable: Trainable,
    arguments: &BenchTrainArguments,
) -> anyhow::Result<Steps> {
    at_least("--steps", arguments.length.steps, 1)?;
    at_least("--batch", arguments.length.batch, 1)?;
    // The last token of a sequence has no next one to predict.
    at_least("--sequence", arguments.length.sequence, 2)?;
    let total_steps = arguments.length.warmup_steps + arguments.length.steps;
    let settings = TrainSettings {
        length: Length::Steps(total_steps),
        batch_size: arguments.length.batch,
        learning_rate: LEARNING_RATE,
        clip_norm: None,
        recompute: arguments.recompute,
        ..TrainSettings::default()
    };
    let vocabulary = decoder.config().vocab_size;
    let mut trainer = Trainer::new(decoder, trainable, &settings, total_steps)?;
    let mut random = Random(SEED);
    let mut losses = Vec::new();
    let mut step_ms = Vec::new();
    for step in 0..total_steps {
        let batch = random_batch(
            &mut random,
            vocabulary,
            arguments.length.batch,
            arguments.length.sequence,
        );
        if step == arguments.length.warmup_steps {
            profile::start();
        }
        if !wait_for_turn(arguments.paced)? {
            break;
        }
        let started = Instant::now();
        let done = trainer.step(&[batch])?;
        let milliseconds = started.elapsed().as_secs_f64() * 1e3;
        losses.push(done.loss);
        if step >= arguments.length.warmup_steps {
            step_ms.push(milliseconds);
        }
    }
    // So that who measures knows when the last step ended.
    wait_for_turn(arguments.paced)?;
    ensure!(!step_ms.is_empty(), TOO_FEW_TURNS);
    let mean = |part: profile::Part| part.time.as_secs_f64() * 1e3 / step_ms.len() as f64;
    let parts_ms = profile::finish().into_iter().map(|(name, part)| (name, mean(part))).collect();
    Ok(Steps { losses, step_ms, parts_ms })
}

fn generate(arguments: &BenchGenerateArguments) -> anyhow::Result<Value> {
    at_least("--runs", arguments.runs, 1)?;
    at_least("--prompt-tokens", arguments.prompt_tokens, 1)?;
    // The first new token belongs to the prompt's time.
    at_least("--new-tokens", arguments.new_tokens, 2)?;
    if arguments.targets == BenchTargets::Full {
        let problem = Problem::new("`--targets full` leaves no adapter to generate with");
        return Err(problem.with_hint("use `--targets all` or `--targets qv`").into());
    }
    let (device, placement) = place(&arguments.compute, false)?;
    let base = match &arguments.model {
        Some(model) => {
            let checkpoint = open::open_checkpoint(model, true, true)?;
            let (name, formats) = open::compute(&arguments.compute);
            open::load_decoder(&checkpoint, name, formats, true)?
        }
        None => random_decoder(&arguments.shape, &placement)?,
    };
    let vocabulary = base.config().vocab_size;
    let mut random = Random(SEED);
    let prompt: Vec<u32> =
        (0..arguments.prompt_tokens).map(|_| random.below(vocabulary) as u32).collect();
    let mut variants = Vec::new();
    for &variant in &arguments.variants {
        let decoder = with_adapter(&base, variant, arguments.targets)?;
        decode(&[&decoder], &prompt, WARMUP_TOKENS)?;
        variants.push((variant, decoder, Vec::new()));
    }
    for _ in 0..arguments.runs {
        if !wait_for_turn(arguments.paced)? {
            break;
        }
        let decoders: Vec<&Decoder> = variants.iter().map(|(_, decoder, _)| decoder).collect();
        let times = decode(&decoders, &prompt, arguments.new_tokens)?;
        for ((_, _, runs), times) in variants.iter_mut().zip(times) {
            runs.push(times);
        }
    }
    ensure!(variants.iter().all(|(_, _, runs)| !runs.is_empty()), TOO_FEW_TURNS);
    let results: Vec<Value> =
        variants.iter().map(|(variant, _, runs)| generated(*variant, runs)).collect();
    Ok(json!({
        "kind": "generate",
        "device": device.name,
        "dtype": number_format(&placement),
        "quantize": placement.quantize.to_string(),
        "threads": threads(),
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens,
        "variants": results,
    }))
}

/// Milliseconds of one generation.
struct GenerationTimes {
    /// The choice of the first new token included.
    prompt_ms: f64,
    /// Of each token after the first, on average.
    token_ms: f64,
}

/// Every run of one variant.
fn generated(variant: BenchVariant, runs: &[GenerationTimes]) -> Value {
    let token_ms: Vec<f64> = runs.iter().map(|run| run.token_ms).collect();
    let prompt_ms: Vec<f64> = runs.iter().map(|run| run.prompt_ms).collect();
    json!({
        "variant": variant.name(),
        "tok_s": per_second(1, &token_ms),
        "step_ms": token_ms,
        "prompt_ms": prompt_ms,
    })
}

fn load(arguments: &BenchLoadArguments) -> anyhow::Result<Value> {
    let (name, formats) = open::compute(&arguments.compute);
    let (device, placement) = place(&arguments.compute, false)?;
    at_least("--runs", arguments.runs, 1)?;
    let (mut open_ms, mut ready_ms, mut sizes) = (Vec::new(), Vec::new(), [0; 2]);
    for _ in 0..arguments.runs {
        let started = Instant::now();
        let checkpoint = open::open_checkpoint(&arguments.model, true, true)?;
        open_ms.push(started.elapsed().as_secs_f64() * 1e3);
        let decoder = open::load_decoder(&checkpoint, name, formats, true)?;
        ready_ms.push(started.elapsed().as_secs_f64() * 1e3);
        sizes = [decoder.config().parameter_count() as usize, decoder.resident_bytes()];
    }
    Ok(json!({
        "kind": "load",
        "device": device.name,
        "dtype": number_format(&placement),
        "threads": threads(),
        "quantize": placement.quantize.to_string(),
        "parameters": sizes[0],
        "resident_bytes": sizes[1],
        "open_ms": open_ms,
        "step_ms": ready_ms,
    }))
}

fn place(compute: &ComputeArguments, trains_base: bool) -> anyhow::Result<(OpenDevice, Placement)> {
    let (device, formats) = open::compute(compute);
    let device = DeviceSpec::parse(device)?.open()?;
    let open::Formats { precision, quantize } = formats;
    let (placement, _) = Placement::new(&device, precision, quantize, trains_base)?;
    Ok((device, placement))
}

/// One generation of each decoder. They take turns token by token, so that what disturbs the machine disturbs all of
/// them.
fn decode(
    decoders: &[&Decoder],
    prompt: &[u32],
    max_tokens: usize,
) -> anyhow::Result<Vec<GenerationTimes>> {
    let options = GenerateOptions {
        max_tokens,
        sampling: SamplingConfig::greedy(),
        stop: Vec::new(),
        eos: Vec::new(),
    };
    let mut generations = Vec::new();
    for decoder in decoders {
        generations.push((Generation::new(decoder, prompt, &options)?, Vec::new()));
    }
    for _ in 0..max_tokens {
        for (generation, token_ms) in &mut generations {
            let started = Instant::now();
            let token = generation.next();
            token_ms.push(started.elapsed().as_secs_f64() * 1e3);
            ensure!(token.is_some(), "the model has no room for {max_tokens} new tokens");
        }
    }
    let times = generations.into_iter().map(|(_, token_ms)| {
        let (prompt_ms, rest) = token_ms.split_first().context("no token was asked for")?;
        let count = rest.len().max(1) as f64;
        Ok(GenerationTimes { prompt_ms: *prompt_ms, token_ms: rest.iter().sum::<f64>() / count })
    });
    times.collect()
}

fn at_least(option: &str, value: usize, least: usize) -> anyhow::Result<()> {
    if value < least {
        let problem = Problem::new(format!("`{option} {value}` leaves nothing to time"));
        return Err(problem.with_hint(format!("use {least} or more")).into());
    }
    Ok(())
}

fn per_second(count: usize, milliseconds: &[f64]) -> Vec<f64> {
    milliseconds.iter().map(|time| count as f64 * 1e3 / time).collect()
}

fn number_format(placement: &Placement) -> String {
    format!("{:?}", placement.compute).to_lowercase()
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Threads that the processor's backends compute with.
fn threads() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|number| number.parse().ok());
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    asked.filter(|&number| number > 0).unwrap_or(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_those_of_single_steps() {
        assert_eq!(per_second(1_024, &[1_000.0, 2_000.0]), [1_024.0, 512.0]);
    }
}
