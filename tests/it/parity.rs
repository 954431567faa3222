//! Every number of PEFT's that a fixture holds, against ours.
//!
//! Tolerances are twenty times the distance between PyTorch's own two attention paths on the same
//! fixtures (worst over all: logits 3.5e-6 absolute, loss 1e-6, gradients 1.6e-6 relative L2 per
//! tensor, loss along the trajectory 1.4e-6, tensors after ten steps 3e-6 relative L2). Gradients and
//! trained tensors are compared by relative L2: where a gradient is nearly zero, Adam's division makes
//! single elements meaningless.

use std::ops::ControlFlow;

use lora_core::parameter::read_f32;
use lora_core::peft::PeftAdapter;
use lora_models::generate::{GenerateOptions, generate_tokens};
use lora_models::sampling::SamplingConfig;
use lora_models::{Checkpoint, Decoder, Trainable};
use lora_tests::fixture::{Fixture, fixtures};
use lora_train::data::Batch;
use lora_train::evaluate;
use lora_train::recipe::{Length, Schedule, TrainSettings, Warmup};
use lora_train::step::{StepSettings, window_gradients};
use lora_train::trainer::Trainer;

/// Logits, relative to the largest one where that is above 1.
const LOGITS: f64 = 7e-5;
const LOSS: f64 = 2e-5;
const GRADIENT: f64 = 3.2e-5;
const TRAJECTORY: f64 = 3e-5;
const TRAINED: f64 = 6e-5;
const NAME: &str = "default";

#[test]
fn every_fixture_agrees_with_peft() {
    let found = fixtures();
    for (name, reason) in &found.skipped {
        println!("skipped {name}: {reason}");
    }
    let mut failures = Vec::new();
    for fixture in &found.run {
        let mut check = Check { fixture, failures: Vec::new(), worst: Vec::new() };
        check.all();
        println!("{}: {}", fixture.name, check.worst.join(", "));
        failures.extend(check.failures);
    }
    println!("{} fixtures ran, {} skipped", found.run.len(), found.skipped.len());
    assert!(!found.run.is_empty(), "no fixture ran");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

struct Check<'a> {
    fixture: &'a Fixture,
    failures: Vec<String>,
    worst: Vec<String>,
}

impl Check<'_> {
    fn all(&mut self) {
        self.configurations();
        self.adapter_file();
        self.logits_and_losses();
        self.gradients();
        self.trajectories();
        self.merging();
        self.generation();
    }

    /// Both spellings of config.json describe the same model.
    fn configurations(&mut self) {
        let read = |name: &str| {
            let path = self.fixture.base.join(name);
            let json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            lora_models::families::decoder_config(&json, &path).unwrap()
        };
        assert_eq!(read("config.json"), read("config_v4.json"), "{}", self.fixture.name);
    }

    /// What we write is what PEFT wrote: the same keys, shapes and numbers, and settings that give the
    /// same scale everywhere.
    fn adapter_file(&mut self) {
        let fixture = self.fixture;
        let decoder = self.adapted();
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("adapter");
        decoder.export(NAME, Some("../base")).unwrap().save(&folder).unwrap();
        let ours = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        let theirs = std::fs::read(fixture.folder.join("adapter_model.safetensors")).unwrap();
        let ours = safetensors::SafeTensors::deserialize(&ours).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&theirs).unwrap();
        let names = |file: &safetensors::SafeTensors<'_>| {
            let mut names: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
            names.sort();
            names
        };
        assert_eq!(names(&ours), names(&theirs), "{}", fixture.name);
        for name in names(&theirs) {
            let (ours, theirs) = (ours.tensor(&name).unwrap(), theirs.tensor(&name).unwrap());
            assert_eq!(ours.shape(), theirs.shape(), "{}: {name}", fixture.name);
            assert_eq!(ours.data(), theirs.data(), "{}: {name}", fixture.name);
        }
        let config = PeftAdapter::load(&folder).unwrap().config.lora;
        for (path, scaling) in fixture.meta["scaling"].as_object().unwrap() {
            let expected = scaling.as_f64().unwrap();
            let found = config.scaling_for(path);
            assert!((found - expected).abs() < 1e-12, "{}: {path}: {found}", fixture.name);
        }
        let mut decoder = decoder;
        let report = decoder.report(&Trainable::Adapter(NAME.into()));
        let expected = fixture.number("/trainable_parameters") as u64;
        assert_eq!(report.trainable, expected, "{}", fixture.name);
    }

    fn logits_and_losses(&mut self) {
        let fixture = self.fixture;
        let whole = fixture.batch("", 0..fixture.rows());
        let base = self.base();
        self.logits("base.logits", &base, &whole, "");
        self.loss("base_loss", &base, &whole);
        let mut adapted = self.adapted();
        self.logits("adapter.logits", &adapted, &whole, "");
        self.loss("adapter_loss", &adapted, &whole);
        let padded = fixture.batch("padded.", 0..fixture.rows());
        self.logits("padded.logits", &adapted, &padded, "padded.");
        self.loss("padded_loss", &adapted, &padded);
        adapted.set_active(&[]).unwrap();
        self.logits("base.logits", &adapted, &whole, "");
    }

    fn gradients(&mut self) {
        let fixture = self.fixture;
        let trainable = Trainable::Adapter(NAME.into());
        let window = [fixture.batch("", 0..fixture.rows())];
        for recompute in [false, true] {
            let mut decoder = self.adapted();
            decoder.set_trainable(&trainable).unwrap();
            // Chunks that do not divide the batch, so that their seams are tested.
            let settings = StepSettings { recompute, loss_chunk_tokens: 7, dropout_seed: 0 };
            let found = window_gradients(&mut decoder, &trainable, &window, &settings);
            let keys = decoder.trainable_mut(&trainable);
            let keys: Vec<_> = keys.into_iter().map(|(key, p)| (key, p.shape())).collect();
            let expected = fixture.names("grad.");
            assert_eq!(keys.len(), expected.len(), "{}: {expected:?}", fixture.name);
            let mut worst: f64 = 0.0;
            for ((key, shape), gradient) in keys.iter().zip(&found.gradients) {
                let gradient = gradient.as_ref().unwrap_or_else(|| panic!("no gradient: {key}"));
                let expected = fixture.tensor(&format!("grad.base_model.model.{key}")).1;
                let distance = relative_l2(&as_stored(key, shape, gradient), &expected);
                worst = worst.max(distance);
                self.expect(&format!("grad {key} (recompute {recompute})"), distance, GRADIENT);
            }
            let of_loss = (found.loss - fixture.number("/adapter_loss")).abs();
            self.expect("loss of the gradient's pass", of_loss, LOSS);
            self.worst.push(format!("gradients {worst:.1e}"));
        }
    }

    fn trajectories(&mut self) {
        let fixture = self.fixture;
        let adapted = self.adapted();
        let trained = self.trajectory(adapted, "/trajectory_loss", "/trajectory_grad_norm");
        let mut worst: f64 = 0.0;
        for (key, shape, numbers) in &trained {
            let expected = fixture.tensor(&format!("after10.base_model.model.{key}")).1;
            let distance = relative_l2(&as_stored(key, shape, numbers), &expected);
            worst = worst.max(distance);
            self.expect(&format!("after ten steps {key}"), distance, TRAINED);
        }
        self.worst.push(format!("after ten steps {worst:.1e}"));
        if fixture.numbers("/fresh_trajectory_loss").is_some() {
            // A real start: the A of the file, B = 0, saved modules as the base has them.
            let mut adapter = PeftAdapter::load(&fixture.folder).unwrap();
            for factor in &mut adapter.factors {
                factor.b.fill(0.0);
            }
            let base = self.base();
            for saved in &mut adapter.saved {
                let found = base.tensors().find(|(name, ..)| *name == saved.name);
                if let Some((_, _, numbers)) = found {
                    saved.data = numbers;
                }
            }
            let mut fresh = base;
            fresh.attach_peft(NAME, &adapter).unwrap();
            self.trajectory(fresh, "/fresh_trajectory_loss", "/fresh_trajectory_grad_norm");
        }
    }

    /// Ten AdamW steps on the same batch; gives what was trained.
    fn trajectory(
        &mut self,
        mut decoder: Decoder,
        losses: &str,
        norms: &str,
    ) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let fixture = self.fixture;
        let rows = fixture.rows();
        let whole = fixture.batch("", 0..rows);
        let scheduled = fixture.numbers("/trajectory_lr");
        let window: Vec<Batch> = match scheduled {
            Some(_) => (0..rows).map(|row| fixture.batch("", row..row + 1)).collect(),
            None => vec![whole.clone()],
        };
        let steps = fixture.number("/optim/steps") as usize;
        let settings = TrainSettings {
            length: Length::Steps(steps),
            learning_rate: fixture.number("/optim/lr"),
            schedule: if scheduled.is_some() { Schedule::Cosine } else { Schedule::Constant },
            warmup: Warmup::Steps(scheduled.as_ref().map_or(0, |rates| warmup_of(rates))),
            beta1: fixture.number("/optim/betas/0"),
            beta2: fixture.number("/optim/betas/1"),
            epsilon: fixture.number("/optim/eps"),
            weight_decay: fixture.number("/optim/weight_decay"),
            clip_norm: fixture
                .meta
                .pointer("/optim/clip_grad_norm")
                .and_then(serde_json::Value::as_f64),
            ..TrainSettings::default()
        };
        let trainable = Trainable::Adapter(NAME.into());
        let mut trainer = Trainer::new(&mut decoder, trainable, &settings, steps).unwrap();
        let (expected, expected_norms) =
            (fixture.numbers(losses).unwrap(), fixture.numbers(norms).unwrap());
        let mut worst: f64 = 0.0;
        for step in 0..steps {
            let metrics = trainer.step(&window).unwrap();
            let distance = (metrics.loss - expected[step]).abs();
            worst = worst.max(distance);
            self.expect(&format!("{losses} {step}"), distance, TRAJECTORY);
            let distance = (metrics.gradient_norm / expected_norms[step] - 1.0).abs();
            self.expect(&format!("{norms} {step}"), distance, GRADIENT);
            if let Some(rates) = &scheduled {
                let distance = (metrics.learning_rate - rates[step]).abs();
                self.expect(&format!("learning rate {step}"), distance, 1e-12);
            }
        }
        let last = trainer.evaluate(&[whole]).unwrap().loss;
        self.expect(&format!("{losses} at the end"), (last - expected[steps]).abs(), TRAJECTORY);
        self.worst.push(format!("trajectory {worst:.1e}"));
        trainer.tensors()
    }

    fn merging(&mut self) {
        let fixture = self.fixture;
        let whole = fixture.batch("", 0..fixture.rows());
        let mut decoder = self.adapted();
        decoder.merge();
        self.logits("merged.logits", &decoder, &whole, "");
        self.loss("merged_loss", &decoder, &whole);
        let weights: Vec<_> = decoder.tensors().collect();
        for name in fixture.names("merged.").into_iter().filter(|name| name != "logits") {
            let found = weights.iter().find(|(found, ..)| *found == name);
            let (_, shape, numbers) = found.unwrap_or_else(|| panic!("no weight `{name}`"));
            let (expected_shape, expected) = fixture.tensor(&format!("merged.{name}"));
            assert_eq!(*shape, expected_shape, "{}: {name}", fixture.name);
            self.expect(&format!("merged {name}"), largest_distance(numbers, &expected), 1e-6);
        }
        // Merging twice changes nothing, and unmerging gives the base back.
        decoder.merge();
        self.logits("merged.logits", &decoder, &whole, "");
        decoder.unmerge();
        self.logits("adapter.logits", &decoder, &whole, "");
        decoder.set_active(&[]).unwrap();
        self.logits("base.logits", &decoder, &whole, "");
    }

    /// Greedy tokens through the KV cache.
    fn generation(&mut self) {
        let fixture = self.fixture;
        let prompt: Vec<u32> = fixture.tensor("gen.prompt").1.iter().map(|id| *id as u32).collect();
        for (name, decoder) in [("base", self.base()), ("adapter", self.adapted())] {
            let expected = fixture.tensor(&format!("gen.{name}")).1;
            let options = GenerateOptions {
                max_tokens: expected.len(),
                sampling: SamplingConfig::greedy(),
                stop: Vec::new(),
                eos: Vec::new(),
            };
            let mut go_on = |_| Ok(ControlFlow::Continue(()));
            let found = generate_tokens(&decoder, &prompt, &options, &mut go_on).unwrap();
            let found: Vec<f32> = found.tokens.iter().map(|id| *id as f32).collect();
            assert_eq!(found, expected, "{}: greedy tokens of {name}", fixture.name);
        }
    }

    fn base(&self) -> Decoder {
        let device = lora_tests::device();
        let (config, _, weights) = Checkpoint::open_weights(&self.fixture.base).unwrap();
        Decoder::load(&config, &weights, &device).unwrap()
    }

    fn adapted(&self) -> Decoder {
        let mut decoder = self.base();
        let adapter = PeftAdapter::load(&self.fixture.folder).unwrap();
        decoder.attach_peft(NAME, &adapter).unwrap();
        decoder
    }

    /// Compares logits where the attention mask is 1.
    fn logits(&mut self, name: &str, decoder: &Decoder, batch: &Batch, prefix: &str) {
        let (shape, expected) = self.fixture.tensor(name);
        let (_, mask) = self.fixture.tensor(&format!("{prefix}attention_mask"));
        let hidden = decoder.forward(&lora_tests::input_of(batch), None);
        let found = read_f32(decoder.logits(hidden));
        let scale = expected.iter().fold(1.0f32, |most, x| most.max(x.abs()));
        let mut worst: f64 = 0.0;
        let vocabulary = shape[2];
        for (row, mask) in mask.iter().enumerate() {
            if *mask == 1.0 {
                let row = row * vocabulary..(row + 1) * vocabulary;
                worst = worst.max(largest_distance(&found[row.clone()], &expected[row]));
            }
        }
        let worst = worst / f64::from(scale);
        self.worst.push(format!("{name} {worst:.1e}"));
        self.expect(name, worst, LOGITS);
    }

    fn loss(&mut self, name: &str, decoder: &Decoder, batch: &Batch) {
        let found = evaluate(decoder, std::slice::from_ref(batch), 7).loss;
        let distance = (found - self.fixture.number(&format!("/{name}"))).abs();
        self.expect(name, distance, LOSS);
    }

    fn expect(&mut self, what: &str, distance: f64, tolerance: f64) {
        // A NaN must fail.
        if distance.is_nan() || distance > tolerance {
            let name = &self.fixture.name;
            self.failures
                .push(format!("{name}: {what}: off by {distance:.2e}, allowed {tolerance:.1e}"));
        }
    }
}

/// Steps until the rate is at its peak.
fn warmup_of(rates: &[f64]) -> usize {
    let peak = rates.iter().fold(0.0, |most: f64, rate| most.max(*rate));
    rates.iter().position(|rate| *rate == peak).unwrap_or(0)
}

/// Our row-major numbers in the layout of the file: matrices are transposed there, all but the embedding.
fn as_stored(key: &str, shape: &[usize], numbers: &[f32]) -> Vec<f32> {
    if shape.len() == 1 || key.contains("embed_tokens") {
        return numbers.to_vec();
    }
    let (rows, columns) = (shape[0], shape[1]);
    let transposed = (0..columns).flat_map(|c| (0..rows).map(move |r| (r, c)));
    transposed.map(|(r, c)| numbers[r * columns + c]).collect()
}

fn largest_distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most: f64, (a, b)| {
        let distance = f64::from(a - b).abs();
        if distance.is_nan() { f64::NAN } else { most.max(distance) }
    })
}

fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let distance: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    let size: f64 = b.iter().map(|b| square(*b)).sum();
    (distance / size.max(1e-40)).sqrt()
}
