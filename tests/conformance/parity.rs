//! Every number of PEFT's that a fixture holds, against ours.
//!
//! Tolerances are twenty times the distance between PyTorch's own two attention paths on the same
//! fixtures (worst over all: logits 3.5e-6 absolute, loss 1e-6, gradients 1.6e-6 relative L2 per
//! tensor, loss along the trajectory 1.4e-6, tensors after ten steps 3e-6 relative L2).

use std::cell::OnceCell;
use std::ops::{ControlFlow, Deref};
use std::rc::Rc;

use lora_core::LoraConfig;
use lora_core::config::TargetModules;
use lora_core::parameter::read_f32;
use lora_core::peft::PeftAdapter;
use lora_core::placement::{DType, Placement, Quantize};
use lora_core::target::resolve_targets;
use lora_models::generate::{GenerateOptions, generate_tokens};
use lora_models::sampling::SamplingConfig;
use lora_models::{Checkpoint, Decoder, Trainable};
use lora_tests::fixture::{Fixture, fixtures};
use lora_train::data::Batch;
use lora_train::evaluate;
use lora_train::recipe::{Length, Schedule, TrainSettings, Warmup};
use lora_train::step::{StepSettings, window_gradients};
use lora_train::trainer::{StepMetrics, Trainer};
use serde_json::Value;

use crate::case::{Case, Found, Lab, Stop, deviation, largest_difference, relative_l2, worst};

/// Logits, relative to the largest one where that is above 1.
const LOGITS: f64 = 7e-5;
const LOSS: f64 = 2e-5;
const GRADIENT: f64 = 3.2e-5;
const TRAJECTORY: f64 = 3e-5;
const TRAINED: f64 = 6e-5;
/// One rounding of W0 + ΔW, in numbers of up to 4.
const MERGED: f64 = 1e-6;
/// PEFT decomposes in f32: what it takes out of the base is off from the exact part by up to 6.0e-6.
const DECOMPOSED: f64 = 1.2e-5;
/// PyTorch in bf16 on the same fixtures is off from its own f32 by 1.8e-2 to 3.4e-2; twice the worst.
const LOGITS_BF16: f64 = 7e-2;
/// The loss is a mean over tokens, whose errors cancel in part; a trajectory adds what ten updates move.
const TRAJECTORY_BF16: f64 = 2.5e-2;

/// PEFT stops when a direction moves by less than an angle of cosine 0.99.
const EXPLAINED: f64 = 1e-2;

const NAME: &str = "default";
const PEFT: &str = "PEFT";

/// What is compared in each fixture: a row each.
type Check = fn(&Subject, &mut Lab) -> Found;

/// A fixture, and its ten steps once they were done: several rows look at them.
struct Subject {
    fixture: Fixture,
    run: OnceCell<Run>,
}

impl Subject {
    fn run(&self, lab: &Lab) -> &Run {
        self.run.get_or_init(|| Run::new(&self.fixture, adapted(&self.fixture, &lab.f32())))
    }
}

impl Deref for Subject {
    type Target = Fixture;

    fn deref(&self) -> &Fixture {
        &self.fixture
    }
}

/// A row of fixtures that start as a part of the base.
const RESIDUAL: &str = "what the start takes out of the base";

const CHECKS: [(&str, f64, Check); 17] = [
    ("configuration and adapter file", 0.0, files),
    ("logits", LOGITS, logits),
    ("loss", LOSS, losses),
    ("gradients", GRADIENT, |fixture, lab| gradients(fixture, lab, false)),
    ("gradients recomputed", GRADIENT, |fixture, lab| gradients(fixture, lab, true)),
    ("ten steps, loss", TRAJECTORY, trajectory),
    ("ten steps, gradient norms", GRADIENT, gradient_norms),
    ("ten steps, adapter", TRAINED, trained),
    ("ten steps from B = 0", TRAJECTORY, fresh_trajectory),
    ("merged and unmerged logits", LOGITS, merged_logits),
    ("merged weights", MERGED, merged_weights),
    ("greedy tokens", 0.0, greedy),
    ("bf16 logits", LOGITS_BF16, logits_bf16),
    ("bf16 ten steps, loss", TRAJECTORY_BF16, trajectory_bf16),
    (RESIDUAL, DECOMPOSED, residual),
    ("trained start as an ordinary adapter", LOGITS, converted),
    ("what the inputs vary along", EXPLAINED, explained),
];

/// Rows of every fixture, and a skipped one for each that can't run.
pub(crate) fn cases() -> Vec<Case> {
    let found = fixtures();
    let mut cases = Vec::new();
    for fixture in found.run {
        let subject = Rc::new(Subject { fixture, run: OnceCell::new() });
        for (what, tolerance, check) in CHECKS {
            if !applies(what, &subject.fixture) {
                continue;
            }
            let subject = Rc::clone(&subject);
            // The file's A and B go with what PEFT took out of the base.
            let is_decomposed = tolerance == MERGED && applies(RESIDUAL, &subject);
            let tolerance = if is_decomposed { DECOMPOSED } else { tolerance };
            let name = format!("parity/{}/{what}", subject.name);
            cases.push(Case::new(name, PEFT, tolerance, move |lab| check(&subject, lab)));
        }
    }
    assert!(!cases.is_empty(), "no fixture can run");
    for (name, reason) in found.skipped {
        let run = move |_: &mut Lab| Err(Stop::Skipped(reason.clone()));
        cases.push(Case::new(format!("parity/{name}"), PEFT, 0.0, run));
    }
    cases
}

/// Whether the fixture holds what a row compares with.
fn applies(what: &str, fixture: &Fixture) -> bool {
    let has = |prefix: &str| !fixture.names(prefix).is_empty();
    match what {
        "gradients" | "gradients recomputed" => has("grad."),
        "ten steps from B = 0" => {
            fixture.numbers("/fresh_trajectory_loss").is_some() && is_drawn(fixture)
        }
        "greedy tokens" => has("gen."),
        "merged weights" => fixture.names("merged.").iter().any(|name| name != "logits"),
        RESIDUAL => has("residual."),
        "what the inputs vary along" => has("eva."),
        "trained start as an ordinary adapter" => has("residual.") && has("after10."),
        _ => !what.contains("ten steps") || fixture.numbers("/trajectory_loss").is_some(),
    }
}

/// PyTorch drew the start of an embedding's B anew.
fn is_drawn(fixture: &Fixture) -> bool {
    fixture.name != "llama/embed_lora"
}

/// Both spellings of config.json describe the same model. What we write is what PEFT wrote: the same
/// keys, shapes and numbers, and settings that give the same scale everywhere.
fn files(fixture: &Subject, lab: &mut Lab) -> Found {
    let read = |name: &str| {
        let path = fixture.base.join(name);
        let json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        lora_models::families::decoder_config(&json, &path).unwrap()
    };
    assert_eq!(read("config.json"), read("config_v4.json"));
    let mut decoder = adapted(fixture, &lab.f32());
    if fixture.meta.pointer("/optim/lora_fa").is_some() {
        decoder.freeze_a(NAME).unwrap();
    }
    let report = decoder.report(&Trainable::Adapter(NAME.into()));
    assert_eq!(report.trainable, fixture.number("/trainable_parameters") as u64);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("adapter");
    let exported = decoder.export(NAME, Some("../base")).unwrap();
    let config = &exported.config.lora;
    for (path, scaling) in fixture.meta["scaling"].as_object().unwrap() {
        let expected = scaling.as_f64().unwrap();
        let found = config.scaling_for(path);
        assert!((found - expected).abs() < 1e-12, "scale of {path}: {found}");
    }
    exported.save(&folder).unwrap();
    let read = PeftAdapter::load(&folder).unwrap();
    assert_eq!(read.factors.len(), exported.factors.len());
    let of_peft = PeftAdapter::load(&fixture.folder).unwrap().config;
    assert_eq!(read.config.fan_in_fan_out, of_peft.fan_in_fan_out, "fan_in_fan_out");
    assert_eq!(read.config.task_type, of_peft.task_type, "task_type");
    let of_some = ["bert_cls/lora", "roberta_regression/lora"].contains(&fixture.name.as_str());
    if fixture.name.ends_with("/lora") && !of_some || fixture.name == "bert_cls/pairs" {
        // These adapters are on all linear layers.
        let modules_to_save = of_peft.lora.modules_to_save.clone();
        let plain = LoraConfig { modules_to_save, ..LoraConfig::new(4, 8.0) };
        let all = resolve_targets(&plain, &decoder.linear_infos()).unwrap();
        let theirs = fixture.meta["scaling"].as_object().unwrap();
        assert_eq!(all.len(), theirs.len(), "all-linear");
        assert!(all.iter().all(|target| theirs.contains_key(&target.path)), "all-linear");
    }
    if applies(RESIDUAL, fixture) {
        // Written as an ordinary adapter of twice the rank, which the row of its own compares.
        return Ok(0.0);
    }
    let ours = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let theirs = std::fs::read(fixture.folder.join("adapter_model.safetensors")).unwrap();
    let ours = safetensors::SafeTensors::deserialize(&ours).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&theirs).unwrap();
    let names = |file: &safetensors::SafeTensors<'_>| {
        let mut names: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(names(&ours), names(&theirs));
    for name in names(&theirs) {
        let (ours, theirs) = (ours.tensor(&name).unwrap(), theirs.tensor(&name).unwrap());
        assert_eq!(ours.shape(), theirs.shape(), "{name}");
        assert!(ours.data() == theirs.data(), "{name} differs from PEFT's file");
    }
    Ok(0.0)
}

fn logits(fixture: &Subject, lab: &mut Lab) -> Found {
    let placement = lab.f32();
    let mut adapted = adapted(fixture, &placement);
    let (adapter, found) = logits_of(fixture, "adapter.logits", &adapted, "");
    lab.keep(format!("logits/{}", fixture.name), found);
    let (base, _) = logits_of(fixture, "base.logits", &base(fixture, &placement), "");
    let padded = fixture.find("padded.logits");
    let padded = padded.map(|_| logits_of(fixture, "padded.logits", &adapted, "padded.").0);
    adapted.set_active(&[]).unwrap();
    let (off, _) = logits_of(fixture, "base.logits", &adapted, "");
    Ok([adapter, base, off].into_iter().chain(padded).fold(0.0, worst))
}

fn losses(fixture: &Subject, lab: &mut Lab) -> Found {
    let placement = lab.f32();
    let adapted = adapted(fixture, &placement);
    let whole = fixture.batch("", 0..fixture.rows());
    let padded = fixture.find("padded.input_ids");
    let padded = padded.map(|_| fixture.batch("padded.", 0..fixture.rows()));
    let of = |name: &str, decoder: &Decoder, batch: &Batch| {
        let found = evaluate(decoder, std::slice::from_ref(batch), 7).loss;
        (found - fixture.number(&format!("/{name}"))).abs()
    };
    let all =
        [of("base_loss", &base(fixture, &placement), &whole), of("adapter_loss", &adapted, &whole)];
    let padded = padded.map(|padded| of("padded_loss", &adapted, &padded));
    Ok(all.into_iter().chain(padded).fold(0.0, worst))
}

fn gradients(fixture: &Subject, lab: &mut Lab, recompute: bool) -> Found {
    let trainable = Trainable::Adapter(NAME.into());
    let window = [fixture.batch("", 0..fixture.rows())];
    let mut decoder = adapted(fixture, &lab.f32());
    if fixture.meta.pointer("/optim/lora_fa").is_some() {
        decoder.freeze_a(NAME).unwrap();
    }
    decoder.set_trainable(&trainable).unwrap();
    // Chunks that do not divide the batch, so that their seams are tested.
    let settings = StepSettings { recompute, loss_chunk_tokens: 7, dropout_seed: 0 };
    let found = window_gradients(&mut decoder, &trainable, &window, &settings);
    let keys = decoder.trainable_mut(&trainable);
    let keys: Vec<_> = keys.into_iter().map(|(key, p)| (key, p.shape())).collect();
    assert_eq!(keys.len(), fixture.names("grad.").len(), "number of gradients");
    let mut most = (found.loss - fixture.number("/adapter_loss")).abs();
    let mut all = Vec::new();
    for ((key, shape), gradient) in keys.iter().zip(&found.gradients) {
        let gradient = gradient.as_ref().unwrap_or_else(|| panic!("no gradient: {key}"));
        let expected = fixture.tensor(&format!("grad.base_model.model.{key}")).1;
        most = worst(most, relative_l2(&as_stored(key, shape, gradient), &expected));
        all.extend(gradient);
    }
    if !recompute {
        lab.keep(format!("gradients/{}", fixture.name), all);
    }
    Ok(most)
}

fn trajectory(subject: &Subject, lab: &mut Lab) -> Found {
    let run = subject.run(lab);
    lab.keep(format!("trajectory/{}", subject.name), run.losses());
    Ok(run.distance(subject, "/trajectory_loss"))
}

fn gradient_norms(fixture: &Subject, lab: &mut Lab) -> Found {
    let run = fixture.run(lab);
    if let Some(rates) = fixture.numbers("/trajectory_lr") {
        for (step, rate) in run.steps.iter().zip(rates) {
            assert!((step.learning_rate - rate).abs() < 1e-12, "learning rate");
        }
    }
    let expected = fixture.numbers("/trajectory_grad_norm").unwrap();
    let pairs = run.steps.iter().zip(expected);
    Ok(pairs.map(|(step, norm)| (step.gradient_norm / norm - 1.0).abs()).fold(0.0, worst))
}

fn trained(fixture: &Subject, lab: &mut Lab) -> Found {
    let run = fixture.run(lab);
    let mut most: f64 = 0.0;
    for (key, shape, numbers) in &run.trained {
        let expected = fixture.tensor(&format!("after10.base_model.model.{key}")).1;
        let gradient = fixture.tensor(&format!("grad.base_model.model.{key}")).1;
        // Adam gives a gradient of nothing but rounding (a key's bias, where it hardly turns) a whole step.
        let largest = gradient.iter().fold(0.0f32, |most, number| most.max(number.abs()));
        let is_rounding = |gradient: f32| gradient != 0.0 && gradient.abs() < 1e-5 * largest;
        let keep = |numbers: Vec<f32>| -> Vec<f32> {
            let kept = numbers.into_iter().zip(&gradient).filter(|(_, it)| !is_rounding(**it));
            kept.map(|(number, _)| number).collect()
        };
        let found = keep(as_stored(key, shape, numbers));
        most = worst(most, relative_l2(&found, &keep(expected)));
    }
    Ok(most)
}

/// A real start: the A of the file, B = 0, saved modules as the base has them.
fn fresh_trajectory(fixture: &Subject, lab: &mut Lab) -> Found {
    let mut adapter = PeftAdapter::load(&fixture.folder).unwrap();
    for factor in &mut adapter.factors {
        factor.b.fill(0.0);
    }
    let mut fresh = base(fixture, &lab.f32());
    let of_base = |name: &str| fresh.tensors().find(|(found, ..)| found == name);
    for saved in adapter.saved.iter_mut().chain(&mut adapter.extra) {
        if let Some(path) = saved.name.strip_suffix(".lora_magnitude_vector") {
            let (_, shape, weight) = of_base(&format!("{path}.weight")).unwrap();
            // One for each output: a row of what is stored, or a column where that is turned round.
            let outputs = if adapter.config.fan_in_fan_out { shape[1] } else { shape[0] };
            let mut squares = vec![0.0; outputs];
            for (at, x) in weight.iter().enumerate() {
                let of = if adapter.config.fan_in_fan_out { at % outputs } else { at / shape[1] };
                squares[of] += f64::from(*x).powi(2);
            }
            saved.data = squares.into_iter().map(|square| square.sqrt() as f32).collect();
        } else if let Some((_, _, numbers)) = of_base(&saved.name.replace(".base_layer.", ".")) {
            saved.data = numbers;
        }
    }
    fresh.attach_peft(NAME, &adapter).unwrap();
    Ok(Run::new(fixture, fresh).distance(fixture, "/fresh_trajectory_loss"))
}

/// Merging twice changes nothing, and unmerging gives the base back.
fn merged_logits(fixture: &Subject, lab: &mut Lab) -> Found {
    let mut decoder = adapted(fixture, &lab.f32());
    // Where PEFT's own merge is not what its adapter computes, the fixture has none.
    let merged = if fixture.find("merged.logits").is_some() { "merged" } else { "adapter" };
    let expected = format!("{merged}.logits");
    decoder.merge();
    let (once, _) = logits_of(fixture, &expected, &decoder, "");
    decoder.merge();
    let (twice, _) = logits_of(fixture, &expected, &decoder, "");
    decoder.unmerge();
    let (unmerged, _) = logits_of(fixture, "adapter.logits", &decoder, "");
    decoder.set_active(&[]).unwrap();
    let (base, _) = logits_of(fixture, "base.logits", &decoder, "");
    Ok([once, twice, unmerged, base].into_iter().fold(0.0, worst))
}

fn merged_weights(fixture: &Subject, lab: &mut Lab) -> Found {
    let mut decoder = adapted(fixture, &lab.f32());
    decoder.merge();
    let weights: Vec<_> = decoder.tensors().collect();
    let mut most: f64 = 0.0;
    for name in fixture.names("merged.").into_iter().filter(|name| name != "logits") {
        let found = weights.iter().find(|(found, ..)| *found == name);
        let (_, shape, numbers) = found.unwrap_or_else(|| panic!("no weight `{name}`"));
        let (expected_shape, expected) = fixture.tensor(&format!("merged.{name}"));
        assert_eq!(*shape, expected_shape, "{name}");
        most = worst(most, largest_difference(numbers, &expected));
    }
    Ok(most)
}

/// W less what PiSSA starts with, against the frozen weights that PEFT leaves.
fn residual(fixture: &Subject, lab: &mut Lab) -> Found {
    let decoder = adapted(fixture, &lab.f32());
    let exported = decoder.export(NAME, None).unwrap();
    let weights: Vec<_> = base(fixture, &lab.f32()).tensors().collect();
    let mut most: f64 = 0.0;
    for factor in &exported.factors {
        let name = format!("{}.weight", factor.path);
        let (_, expected) = fixture.tensor(&format!("residual.{name}"));
        let weight = &weights.iter().find(|(found, ..)| *found == name).unwrap().2;
        let scale = exported.config.lora.scaling_for(&factor.path);
        // The second half of the rank is A₀ and −B₀.
        let found = (0..factor.d_out).flat_map(|row| (0..factor.d_in).map(move |c| (row, c)));
        let found: Vec<f32> = found
            .map(|(row, column)| {
                let pairs = (factor.rank / 2..factor.rank).map(|k| {
                    let a = f64::from(factor.a[column * factor.rank + k]);
                    a * f64::from(factor.b[k * factor.d_out + row])
                });
                let weight = f64::from(weight[row * factor.d_in + column]);
                (weight + scale * pairs.sum::<f64>()) as f32
            })
            .collect();
        most = worst(most, largest_difference(&found, &expected));
    }
    Ok(most)
}

/// The ranks that EVA gives each layer, and the directions that its A then spans: how far the cosine of the
/// worst is from 1.
fn explained(fixture: &Subject, lab: &mut Lab) -> Found {
    let mut decoder = base(fixture, &lab.f32());
    let mut config = PeftAdapter::load(&fixture.folder).unwrap().config.lora;
    config.target = TargetModules::AllLinear;
    (config.rank_pattern, config.alpha_pattern) = (Vec::new(), Vec::new());
    let batch = lora_tests::input_of(&fixture.batch("", 0..fixture.rows()));
    let mut pass = |decoder: &Decoder| drop(decoder.forward(&batch, None));
    decoder.attach_explained(NAME, &config, 0, 2.0, &mut pass).unwrap();
    let found = decoder.export(NAME, None).unwrap();
    assert_eq!(found.factors.len(), fixture.names("eva.").len());
    let mut most: f64 = 0.0;
    for factor in &found.factors {
        let (shape, expected) = fixture.tensor(&format!("eva.{}", factor.path));
        assert_eq!(shape, [factor.rank, factor.d_in], "{}", factor.path);
        let scale = found.config.lora.scaling_for(&factor.path);
        let expected_scale = fixture.meta["scaling"][&factor.path].as_f64().unwrap();
        assert!((scale - expected_scale).abs() < 1e-12, "scale of {}", factor.path);
        for (k, theirs) in expected.chunks(factor.d_in).enumerate() {
            let ours = factor.a.iter().skip(k).step_by(factor.rank);
            let cosine: f64 = ours.zip(theirs).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            most = worst(most, 1.0 - cosine.abs());
        }
    }
    Ok(most)
}

/// PEFT's conversion of its trained adapter and ours of the one trained here, each on the base as it was.
fn converted(fixture: &Subject, lab: &mut Lab) -> Found {
    let placement = lab.f32();
    let with = |adapter: &PeftAdapter| {
        let mut decoder = base(fixture, &placement);
        decoder.attach_peft(NAME, adapter).unwrap();
        logits_of(fixture, "after10.logits", &decoder, "").0
    };
    let run = fixture.run(lab);
    let mut trained = adapted(fixture, &placement);
    let trainable = Trainable::Adapter(NAME.into());
    let device = trained.device().clone();
    for ((key, mut parameter), (found, _, numbers)) in
        trained.trainable_mut(&trainable).into_iter().zip(&run.trained)
    {
        assert_eq!(key, *found);
        parameter.write(numbers.clone(), &device);
    }
    let ours = trained.export(NAME, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    ours.save(folder.path()).unwrap();
    let found = with(&PeftAdapter::load(folder.path()).unwrap());
    let converted_by_peft = fixture.folder.join("after10_as_lora");
    if !converted_by_peft.is_dir() {
        return Ok(found);
    }
    let theirs = PeftAdapter::load(&converted_by_peft).unwrap();
    assert_eq!(ours.config.lora.rank, theirs.config.lora.rank);
    assert_eq!(ours.config.lora.alpha, theirs.config.lora.alpha);
    Ok(worst(found, with(&theirs)))
}

/// Greedy tokens through the KV cache; the deviation is the number of other tokens.
fn greedy(fixture: &Subject, lab: &mut Lab) -> Found {
    let placement = lab.f32();
    let prompt: Vec<u32> = fixture.tensor("gen.prompt").1.iter().map(|id| *id as u32).collect();
    let mut others = 0;
    let decoders = [("base", base(fixture, &placement)), ("adapter", adapted(fixture, &placement))];
    for (name, decoder) in decoders {
        let expected = fixture.tensor(&format!("gen.{name}")).1;
        let options = GenerateOptions {
            max_tokens: expected.len(),
            sampling: SamplingConfig::greedy(),
            stop: Vec::new(),
            eos: Vec::new(),
        };
        let mut go_on = |_| Ok(ControlFlow::Continue(()));
        let found = generate_tokens(&decoder, &prompt, &options, &mut go_on).unwrap();
        assert_eq!(found.tokens.len(), expected.len(), "greedy tokens of {name}");
        let pairs = found.tokens.iter().zip(&expected);
        others += pairs.filter(|(found, expected)| **found as f32 != **expected).count();
    }
    Ok(others as f64)
}

fn logits_bf16(fixture: &Subject, lab: &mut Lab) -> Found {
    let decoder = adapted(fixture, &lab.placed(DType::BF16)?);
    Ok(logits_of(fixture, "adapter.logits", &decoder, "").0)
}

fn trajectory_bf16(fixture: &Subject, lab: &mut Lab) -> Found {
    let decoder = adapted(fixture, &lab.placed(DType::BF16)?);
    Ok(Run::new(fixture, decoder).distance(fixture, "/trajectory_loss"))
}

/// Ten AdamW steps on the same batch.
struct Run {
    steps: Vec<StepMetrics>,
    last: f64,
    trained: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Run {
    fn new(fixture: &Fixture, mut decoder: Decoder) -> Self {
        let rows = fixture.rows();
        let whole = fixture.batch("", 0..rows);
        let scheduled = fixture.numbers("/trajectory_lr");
        let window: Vec<Batch> = match scheduled {
            Some(_) => (0..rows).map(|row| fixture.batch("", row..row + 1)).collect(),
            None => vec![whole.clone()],
        };
        let steps = fixture.number("/optim/steps") as usize;
        let option = |name: &str| fixture.meta.pointer(&format!("/optim/{name}"));
        let clip = option("clip_grad_norm");
        let settings = TrainSettings {
            length: Length::Steps(steps),
            learning_rate: fixture.number("/optim/lr"),
            schedule: if scheduled.is_some() { Schedule::Cosine } else { Schedule::Constant },
            warmup: Warmup::Steps(scheduled.as_ref().map_or(0, |rates| warmup_of(rates))),
            beta1: fixture.number("/optim/betas/0"),
            beta2: fixture.number("/optim/betas/1"),
            epsilon: fixture.number("/optim/eps"),
            weight_decay: fixture.number("/optim/weight_decay"),
            // PyTorch's AdamW decays whatever it is given.
            decay_vectors: true,
            clip_norm: clip.and_then(Value::as_f64),
            lora_plus_ratio: option("lora_plus_ratio").and_then(Value::as_f64).unwrap_or(1.0),
            lora_fa: option("lora_fa").is_some(),
            ..TrainSettings::default()
        };
        let trainable = Trainable::Adapter(NAME.into());
        let mut trainer = Trainer::new(&mut decoder, trainable, &settings, steps).unwrap();
        let steps = (0..steps).map(|_| trainer.step(&window).unwrap()).collect();
        let last = trainer.evaluate(&[whole]).unwrap().loss;
        Self { steps, last, trained: trainer.tensors() }
    }

    /// Losses before each step and after the last.
    fn losses(&self) -> Vec<f32> {
        let before = self.steps.iter().map(|step| step.loss);
        before.chain([self.last]).map(|loss| loss as f32).collect()
    }

    fn distance(&self, fixture: &Fixture, of: &str) -> f64 {
        let expected = fixture.numbers(of).unwrap();
        let found = self.steps.iter().map(|step| step.loss).chain([self.last]);
        assert_eq!(expected.len(), self.steps.len() + 1, "{of}");
        found.zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, worst)
    }
}

pub(crate) fn base(fixture: &Fixture, placement: &Placement) -> Decoder {
    let (config, _, weights) = Checkpoint::open_weights(&fixture.base).unwrap();
    let named = fixture.meta.get("quantize").map_or("none", |named| named.as_str().unwrap());
    let quantize = Quantize::ALL.into_iter().find(|it| it.to_string() == named);
    let placement = placement.clone().quantized(quantize.unwrap());
    Decoder::load(&config, &weights, &placement).unwrap()
}

pub(crate) fn adapted(fixture: &Fixture, placement: &Placement) -> Decoder {
    let mut decoder = base(fixture, placement);
    let adapter = PeftAdapter::load(&fixture.folder).unwrap();
    decoder.attach_peft(NAME, &adapter).unwrap();
    decoder
}

/// Deviation of the logits where the attention mask is 1, and the logits.
fn logits_of(fixture: &Fixture, name: &str, decoder: &Decoder, prefix: &str) -> (f64, Vec<f32>) {
    let batch = fixture.batch(prefix, 0..fixture.rows());
    let (shape, expected) = fixture.tensor(name);
    let (_, mask) = fixture.tensor(&format!("{prefix}attention_mask"));
    let hidden = decoder.forward(&lora_tests::input_of(&batch), None);
    if let [rows, _] = shape[..] {
        // Of whole texts, from their first tokens.
        let first = hidden.reshape([rows, batch.columns, decoder.config().hidden_size]);
        let found = read_f32(decoder.logits(first.narrow(1, 0, 1).squeeze_dim::<2>(1)));
        return (deviation(&found, &expected), found);
    }
    let found = read_f32(decoder.logits(hidden));
    let kept = |numbers: &[f32]| -> Vec<f32> {
        let rows = numbers.chunks(shape[2]).zip(&mask).filter(|(_, mask)| **mask == 1.0);
        rows.flat_map(|(row, _)| row.to_vec()).collect()
    };
    (deviation(&kept(&found), &kept(&expected)), found)
}

/// Steps until the rate is at its peak.
fn warmup_of(rates: &[f64]) -> usize {
    let peak = rates.iter().fold(0.0, |most: f64, rate| most.max(*rate));
    rates.iter().position(|rate| *rate == peak).unwrap_or(0)
}

/// Our row-major numbers in the layout of the file: matrices are transposed there, all but rows of tokens.
fn as_stored(key: &str, shape: &[usize], numbers: &[f32]) -> Vec<f32> {
    let rows_of_tokens = key.contains("embed_tokens") && !key.contains("lora_embedding_");
    if shape.len() == 1 || rows_of_tokens {
        return numbers.to_vec();
    }
    let (rows, columns) = (shape[0], shape[1]);
    let transposed = (0..columns).flat_map(|c| (0..rows).map(move |r| (r, c)));
    transposed.map(|(r, c)| numbers[r * columns + c]).collect()
}
