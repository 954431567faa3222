//! The story of a run: open, attach, encode, evaluate, learn, evaluate again, save.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lora_core::config::Init;
use lora_core::device::{DeviceSpec, guarded};
use lora_core::files::write_whole;
use lora_core::peft::PeftAdapter;
use lora_core::placement::Placement;
use lora_core::report::ParameterReport;
use lora_models::export::save_model;
use lora_models::formats::StoredType;
use lora_models::labels::write_labels;
use lora_models::{Checkpoint, Decoder, OpenOptions, Trainable};

use crate::batches::{BatchStream, evaluation_batches};
use crate::checkpoint::{Progress, RunCheckpoint};
use crate::data::{self, DataReport};
use crate::error::{Error, Result};
use crate::evaluate::Evaluation;
use crate::metrics::Metrics;
use crate::recipe::{Method, Run, WeightType, differing_keys};
use crate::samples::sample;
use crate::trainer::{StepMetrics, Trainer};

/// Name of the adapter that a run trains.
pub const ADAPTER: &str = "default";

/// How a run is carried out.
#[derive(Clone, Default)]
pub struct TrainOptions {
    /// Go on from the newest checkpoint of the run folder.
    pub resume: bool,
    /// Set from outside to stop after the step in hand, with a checkpoint.
    pub stop: Arc<AtomicBool>,
    /// How checkpoints are opened.
    pub open: OpenOptions,
}

/// What happens in a run, as it happens.
pub enum Event<'a> {
    /// A decision, with its reason.
    Note(&'a str),
    /// What is trained.
    Report(&'a ParameterReport),
    /// What it learns from.
    Data(&'a DataReport),
    /// A text of the model.
    Sample {
        /// `before` or `after`.
        when: &'a str,
        /// What it was asked.
        prompt: &'a str,
        /// What it said.
        text: &'a str,
    },
    /// An optimizer step.
    Step(&'a StepMetrics),
    /// An evaluation on the validation data.
    Evaluation {
        /// Steps done.
        step: usize,
        /// What was found.
        found: &'a Evaluation,
    },
    /// A checkpoint was written.
    Checkpoint(&'a Path),
    /// The run is over.
    Finished(&'a Outcome),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The run folder.
    pub folder: PathBuf,
    /// The adapter, or the model where W0 itself was trained; `None` if the run was interrupted.
    pub result: Option<PathBuf>,
    /// The adapter or model of the lowest validation loss, where it is another one.
    pub best: Option<PathBuf>,
    /// Loss of the first step.
    pub first_loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Validation before the first step.
    pub validation_before: Option<f64>,
    /// Validation after the last step.
    pub validation_after: Option<f64>,
    /// Steps done.
    pub steps: usize,
    /// Whether it was stopped from outside.
    pub interrupted: bool,
    /// Whether it stopped because validation no longer improved.
    pub stopped_early: bool,
    /// Seconds of training, earlier parts of a resumed run included.
    pub seconds: f64,
    /// The most memory this process has held.
    pub peak_memory: u64,
    /// Whether the model is an encoder.
    pub classifies: bool,
}

/// Carries out `run`.
///
/// # Errors
/// Anything wrong with the recipe, the model, the data or the disk. What earlier steps have written stays.
pub fn train(
    run: &Run,
    options: &TrainOptions,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome> {
    let folder = RunFolder::prepare(run, options.resume)?;
    for note in &run.notes {
        on_event(Event::Note(note));
    }
    let device = DeviceSpec::parse(&run.device)?.open()?;
    on_event(Event::Note(&format!("device: {}", device.describe())));
    let trains_base = matches!(run.method, Method::Full);
    let (placement, reasons) = Placement::new(&device, run.precision, run.quantize, trains_base)?;
    for reason in &reasons {
        on_event(Event::Note(reason));
    }

    // Whatever a driver throws on the way, the checkpoints that were written are whole.
    let needs = || {
        let checkpoint = crate::start::open_checkpoint(run, &options.open).ok()?;
        let plan = crate::plan::plan(run, &checkpoint, None).ok()?;
        Some(crate::plan::bytes(plan.total_bytes()))
    };
    guarded(&device.name, needs, || {
        train_on(run, options, &folder, &device.name, &placement, on_event)
    })?
}

fn train_on(
    run: &Run,
    options: &TrainOptions,
    folder: &RunFolder,
    device: &str,
    placement: &Placement,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome> {
    let (checkpoint, mut decoder, note) = crate::start::open(run, &options.open, placement)?;
    if let Some(note) = note {
        on_event(Event::Note(&note));
    }
    let trainable = match run.method {
        Method::Lora(_) => Trainable::Adapter(ADAPTER.into()),
        Method::Full => Trainable::Base,
    };
    let starts_from_data = matches!(&run.method, Method::Lora(config)
        if config.init == Init::Eva && run.initial_adapter.is_none());
    if !starts_from_data {
        attach(run, &checkpoint, &mut decoder)?;
        on_event(Event::Report(&decoder.report(&trainable)));
    }

    let (train, validation) = data::load_for(&run.data, &checkpoint, &checkpoint.config)?;
    on_event(Event::Data(&train.report));
    if let Method::Lora(config) = &run.method
        && starts_from_data
    {
        crate::explained::attach(run, config, ADAPTER, &mut decoder, &train)?;
        on_event(Event::Report(&decoder.report(&trainable)));
    }
    let pad = crate::start::pad_token(&checkpoint);
    let classifies = checkpoint.config.encoder.is_some();
    let mut stream = BatchStream::new(&train, &run.data, &run.train, pad);
    let total_steps = stream.total_steps();
    if total_steps == 0 {
        return Err(Error::invalid("the data gives no step to train")
            .with_hint("add rows, or lower `train.batch_size`"));
    }
    let validation = evaluation_batches(&validation, &run.data, &run.train, pad);
    folder.write_start(run, &checkpoint, device, placement, total_steps)?;

    if !options.resume {
        for prompt in &run.sample.prompts {
            let text = sample(&checkpoint, &decoder, prompt, run.sample.max_tokens)?;
            on_event(Event::Sample { when: "before", prompt, text: &text });
        }
    }

    let mut trainer = Trainer::new(&mut decoder, trainable.clone(), &run.train, total_steps)?;
    let mut progress = Progress::default();
    if options.resume
        && let Some(found) = RunCheckpoint::newest(&folder.checkpoints())?
    {
        let tensors: Vec<_> = found.tensors.into_iter().map(|(key, _, data)| (key, data)).collect();
        trainer.restore(found.progress.step, found.moments, &tensors)?;
        stream.skip(found.progress.step);
        progress = found.progress;
        on_event(Event::Note(&format!("resumed after step {}", progress.step)));
    }
    let mut metrics = Metrics::open(&folder.path, progress.step)?;
    if progress.step == 0 && !validation.is_empty() {
        let found = trainer.evaluate(&validation)?;
        progress.validation_before = Some(found.loss);
        metrics.evaluation(0, &found)?;
        on_event(Event::Evaluation { step: 0, found: &found });
    }

    // The loop: a window of batches, one step, and what is due after it.
    let (mut interrupted, mut stopped_early) = (false, false);
    let mut last_evaluation = None;
    while trainer.steps_done() < total_steps {
        if options.stop.load(Ordering::Relaxed) {
            interrupted = true;
            break;
        }
        let started = Instant::now();
        let Some(window) = stream.next_window() else { break };
        let step = trainer.step(&window)?;
        progress.step = step.step;
        progress.last_loss = step.loss;
        if step.step == 1 {
            progress.first_loss = step.loss;
        }
        progress.seconds += started.elapsed().as_secs_f64();
        if step.step % run.train.log_every.max(1) == 0 || step.step == total_steps {
            metrics.step(&step)?;
        }
        on_event(Event::Step(&step));

        let every = |count: usize| count > 0 && step.step % count == 0;
        if every(run.train.evaluate_every) && !validation.is_empty() {
            let found = trainer.evaluate(&validation)?;
            metrics.evaluation(step.step, &found)?;
            on_event(Event::Evaluation { step: step.step, found: &found });
            last_evaluation = Some((step.step, found.loss));
            if note_best(&mut progress, &found) && run.train.keep_best {
                folder.save_result(run, &checkpoint, trainer.decoder(), "best")?;
            }
            let patience = run.train.patience;
            stopped_early = patience > 0 && progress.evaluations_without_improvement >= patience;
        }
        if every(run.train.checkpoint_every) && step.step < total_steps && !stopped_early {
            let place = save_checkpoint(folder, run, &mut trainer, &progress)?;
            on_event(Event::Checkpoint(&place));
        }
        if stopped_early {
            break;
        }
    }

    if interrupted {
        if progress.step > 0 {
            let place = save_checkpoint(folder, run, &mut trainer, &progress)?;
            on_event(Event::Checkpoint(&place));
        }
        let found = outcome(folder, &progress, None, None, (true, false));
        let outcome = Outcome { classifies, ..found };
        on_event(Event::Finished(&outcome));
        return Ok(outcome);
    }

    // The end: last evaluation, result, a checkpoint that a longer run could go on from.
    let mut after =
        last_evaluation.filter(|(step, _)| *step == progress.step).map(|(_, loss)| loss);
    if after.is_none() && !validation.is_empty() {
        let found = trainer.evaluate(&validation)?;
        metrics.evaluation(progress.step, &found)?;
        on_event(Event::Evaluation { step: progress.step, found: &found });
        if note_best(&mut progress, &found) && run.train.keep_best && folder.best().exists() {
            folder.save_result(run, &checkpoint, trainer.decoder(), "best")?;
        }
        after = Some(found.loss);
    }
    let place = save_checkpoint(folder, run, &mut trainer, &progress)?;
    on_event(Event::Checkpoint(&place));
    let result =
        folder.save_result(run, &checkpoint, trainer.decoder(), folder.result_name(run))?;
    decoder.set_trainable(&Trainable::Nothing)?;
    for prompt in &run.sample.prompts {
        let text = sample(&checkpoint, &decoder, prompt, run.sample.max_tokens)?;
        on_event(Event::Sample { when: "after", prompt, text: &text });
    }
    let found = outcome(folder, &progress, Some(result), after, (false, stopped_early));
    let outcome = Outcome { classifies, ..found };
    on_event(Event::Finished(&outcome));
    Ok(outcome)
}

/// Attaches what the recipe asks for.
fn attach(run: &Run, checkpoint: &Checkpoint, decoder: &mut Decoder) -> Result<()> {
    let Method::Lora(config) = &run.method else { return Ok(()) };
    match &run.initial_adapter {
        Some(folder) => {
            let labels = labels_of(decoder);
            decoder.attach_peft(ADAPTER, &PeftAdapter::load(folder)?)?;
            if labels_of(decoder) != labels {
                return Err(Error::malformed(
                    folder,
                    format!("the adapter's classifier is not for the {labels} labels of the run"),
                )
                .with_hint("name its labels in `data.labels`"));
            }
        }
        None if config.init == Init::Loftq => {
            decoder.attach_lost(ADAPTER, config, run.train.seed, &checkpoint.weights)?;
        }
        None => decoder.attach(ADAPTER, config, run.train.seed)?,
    }
    Ok(())
}

fn labels_of(decoder: &Decoder) -> usize {
    decoder.config().encoder.as_ref().map_or(0, |encoder| encoder.labels.len())
}

/// Remembers an evaluation; whether it is the best so far.
fn note_best(progress: &mut Progress, found: &Evaluation) -> bool {
    let better = progress.best_loss.is_none_or(|best| found.loss < best);
    if better {
        progress.best_loss = Some(found.loss);
        progress.best_step = progress.step;
        progress.evaluations_without_improvement = 0;
    } else {
        progress.evaluations_without_improvement += 1;
    }
    better
}

fn save_checkpoint(
    folder: &RunFolder,
    run: &Run,
    trainer: &mut Trainer<'_>,
    progress: &Progress,
) -> Result<PathBuf> {
    let checkpoint = RunCheckpoint {
        progress: progress.clone(),
        tensors: trainer.tensors(),
        moments: trainer.optimizer.moments.clone(),
    };
    checkpoint.save(&folder.checkpoints(), run.train.keep_checkpoints)
}

fn outcome(
    folder: &RunFolder,
    progress: &Progress,
    result: Option<PathBuf>,
    validation_after: Option<f64>,
    (interrupted, stopped_early): (bool, bool),
) -> Outcome {
    let best = folder.best();
    Outcome {
        folder: folder.path.clone(),
        best: (best.exists() && progress.best_step != progress.step).then_some(best),
        result,
        first_loss: progress.first_loss,
        last_loss: progress.last_loss,
        validation_before: progress.validation_before,
        validation_after,
        steps: progress.step,
        interrupted,
        stopped_early,
        seconds: progress.seconds,
        peak_memory: crate::memory::peak_bytes(),
        classifies: false,
    }
}

/// Where a run leaves its files.
struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// A fresh folder, or the folder of the run to go on with.
    fn prepare(run: &Run, resume: bool) -> Result<Self> {
        let path = run.output.clone();
        let recipe = path.join("recipe.toml");
        if !resume {
            if path.exists() {
                return Err(Error::invalid(format!(
                    "the output folder `{}` exists already",
                    path.display()
                ))
                .with_hint("add `--resume` to go on with it, or name another with `--output`"));
            }
            return Ok(Self { path });
        }
        if !recipe.is_file() {
            // Killed before anything was written: there is nothing to lose and nothing to go on from.
            if path.exists() && !is_only_scratch(&path) {
                return Err(Error::malformed(&path, "this is no run folder: no recipe.toml")
                    .with_hint("name the folder of an interrupted run"));
            }
            return Ok(Self { path });
        }
        let earlier = Run::load_resolved(&recipe)?;
        let differing = differing_keys(&earlier, run);
        if !differing.is_empty() {
            return Err(Error::malformed(
                &path,
                format!("the recipe has changed since this run began: {}", differing.join(", ")),
            )
            .with_hint("put these keys back, or start a new run with another `--output`"));
        }
        Ok(Self { path })
    }

    fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    fn best(&self) -> PathBuf {
        self.path.join("best")
    }

    fn result_name(&self, run: &Run) -> &'static str {
        match run.method {
            Method::Lora(_) => "adapter",
            Method::Full => "model",
        }
    }

    /// Recipe and circumstances, before the first step. Everything in it can be made again.
    fn write_start(
        &self,
        run: &Run,
        checkpoint: &Checkpoint,
        device: &str,
        placement: &Placement,
        total_steps: usize,
    ) -> Result<()> {
        fs::create_dir_all(self.checkpoints())
            .map_err(|error| Error::write(self.checkpoints(), error))?;
        let facts = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "burn": "0.22.1",
            "device": device,
            "dtype": format!("{:?}", placement.compute).to_lowercase(),
            "model": checkpoint.source,
            "seed": run.train.seed,
            "total_steps": total_steps,
        });
        let facts = serde_json::to_string_pretty(&facts).unwrap_or_default();
        write_whole(&self.path.join("run.json"), facts.as_bytes())?;
        Ok(write_whole(&self.path.join("recipe.toml"), run.to_toml().as_bytes())?)
    }

    /// Writes the adapter, or the model, under `name`; an earlier one is replaced.
    fn save_result(
        &self,
        run: &Run,
        checkpoint: &Checkpoint,
        decoder: &Decoder,
        name: &str,
    ) -> Result<PathBuf> {
        let place = self.path.join(name);
        let fresh = self.path.join(format!("{name}.new"));
        let old = self.path.join(format!("{name}.old"));
        for leftover in [&fresh, &old] {
            if leftover.exists() {
                fs::remove_dir_all(leftover).map_err(|error| Error::write(leftover, error))?;
            }
        }
        match run.method {
            Method::Lora(_) => {
                decoder.export(ADAPTER, Some(&checkpoint.source))?.save(&fresh)?;
                if let Some(encoder) = &decoder.config().encoder {
                    write_labels(&fresh, encoder)?;
                }
            }
            Method::Full => {
                let stored = match run.weights {
                    WeightType::F32 => StoredType::F32,
                    WeightType::Bf16 => StoredType::BF16,
                };
                save_model(checkpoint, decoder, &fresh, stored)?;
            }
        }
        let rename =
            |from: &Path, to: &Path| fs::rename(from, to).map_err(|error| Error::write(to, error));
        if place.exists() {
            rename(&place, &old)?;
        }
        rename(&fresh, &place)?;
        // The new result is in place; what is left of the old one is only space.
        let _ = fs::remove_dir_all(&old);
        Ok(place)
    }
}

/// Whether a folder holds nothing but files that were being written.
fn is_only_scratch(path: &Path) -> bool {
    let known = ["checkpoints", "run.json"];
    fs::read_dir(path).into_iter().flatten().flatten().all(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        known.contains(&name.as_ref()) || lora_core::files::is_partial(&name)
    })
}
