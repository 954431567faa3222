//! A resolved run: every setting has a value. The defaults stand here and nowhere else.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use lora_core::config::LoraConfig;
use lora_core::placement::{Precision, Quantize};

use crate::error::{Error, Result};
use crate::schedule::Schedule;

/// One run, resolved: what is trained, on what, how, and where the result goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The checkpoint: a folder, a GGUF file, `org/name[@revision]` or `builtin:`. Empty where
    /// `pretrain.config` describes a model that starts from random weights.
    pub model: String,
    /// What is learned.
    pub method: Method,
    /// Where it is computed: `auto`, or a device as [`lora_core::device::DeviceSpec::parse`] takes it.
    pub device: String,
    /// Number format of the computation.
    pub precision: Precision,
    /// In how many bits the frozen base rests.
    pub quantize: Quantize,
    /// Folder of a PEFT adapter to start from instead of a fresh one.
    pub initial_adapter: Option<PathBuf>,
    /// What it learns from.
    pub data: DataSettings,
    /// How it learns.
    pub train: TrainSettings,
    /// The run folder.
    pub output: PathBuf,
    /// How the weights are written where W0 itself is trained; adapters are always f32.
    pub weights: WeightType,
    /// Texts generated before and after.
    pub sample: SampleSettings,
    /// Present where W0 itself is pre-trained.
    pub pretrain: Option<PretrainSettings>,
    /// Each choice the recipe left open, with its reason.
    pub notes: Vec<String>,
}

impl Run {
    /// A LoRA run with the default settings on one data file.
    pub fn new(model: impl Into<String>, train: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            method: Method::Lora(default_adapter()),
            device: "auto".into(),
            precision: Precision::Auto,
            quantize: Quantize::None,
            initial_adapter: None,
            data: DataSettings { train: vec![DataFile::new(train)], ..DataSettings::default() },
            train: TrainSettings::default(),
            output: PathBuf::from("runs/lora"),
            weights: WeightType::F32,
            sample: SampleSettings::default(),
            pretrain: None,
            notes: Vec::new(),
        }
    }
}

/// The adapter of a recipe that says nothing about it: rank 16, α 32, every linear layer.
pub(crate) fn default_adapter() -> LoraConfig {
    LoraConfig::new(16, 32.0)
}

/// What is learned.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one of it in a run")]
pub enum Method {
    /// W0 frozen, ΔW = s·B·A learned.
    Lora(LoraConfig),
    /// W0 itself.
    Full,
}

/// How the numbers of a whole model are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// 32 bits, as they were trained.
    F32,
    /// 16 bits, as most published checkpoints have them.
    Bf16,
}

impl fmt::Display for WeightType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// What a run learns from.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSettings {
    /// How rows are written.
    pub format: Format,
    /// Longest sequence; longer rows are cut, and the cuts are counted.
    pub max_tokens: usize,
    /// Several rows share a sequence, kept apart by document masks.
    pub packing: bool,
    /// Which tokens are learned.
    pub learn: Learn,
    /// What happens to a row without a learned token.
    pub unlearnable: Unlearnable,
    /// What an encoder is to find.
    pub task: Task,
    /// Names of an encoder's labels, in the order of their numbers; empty where model or data say them.
    pub labels: Vec<String>,
    /// System message put before conversations that have none.
    pub system: Option<String>,
    /// Files to learn from.
    pub train: Vec<DataFile>,
    /// Files to evaluate on.
    pub validation: Vec<DataFile>,
    /// So many last rows of the training files are held out for evaluation; 0 = none.
    pub validation_rows: usize,
    /// This part of the training rows is held out for evaluation; 0 = none.
    pub validation_fraction: f64,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            format: Format::Auto,
            max_tokens: 1024,
            packing: true,
            learn: Learn::Assistant,
            unlearnable: Unlearnable::Error,
            task: Task::Auto,
            labels: Vec::new(),
            system: None,
            train: Vec::new(),
            validation: Vec::new(),
            validation_rows: 0,
            validation_fraction: 0.0,
        }
    }
}

impl DataSettings {
    /// Whether anything is held out for evaluation.
    pub fn has_validation(&self) -> bool {
        !self.validation.is_empty() || self.validation_rows > 0 || self.validation_fraction > 0.0
    }
}

/// One data file.
#[derive(Debug, Clone, PartialEq)]
pub struct DataFile {
    /// JSON lines, a JSON array or plain text.
    pub path: PathBuf,
    /// How often its rows are drawn in an epoch: 1 = once each, 0.5 = every second row.
    pub weight: f64,
    /// These rows only, counted from 0, the end not included.
    pub rows: Option<Range<usize>>,
}

impl DataFile {
    /// All rows of a file, once each.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), weight: 1.0, rows: None }
    }
}

/// How the rows of a data file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Found from the keys of the first row.
    Auto,
    /// `{"messages": [{"role", "content"}, …]}`.
    Messages,
    /// `{"prompt", "completion"}`.
    PromptCompletion,
    /// `{"instruction", "input", "output"}`.
    Alpaca,
    /// `{"conversations": [{"from", "value"}, …]}`.
    ShareGpt,
    /// `{"text"}`.
    Text,
    /// `{"text", "label"}`, or `{"text", "text_pair", "label"}`: for encoders.
    Labels,
}

impl Format {
    /// Every format, as recipes name them.
    pub const ALL: [Self; 7] = [
        Self::Auto,
        Self::Messages,
        Self::PromptCompletion,
        Self::Alpaca,
        Self::ShareGpt,
        Self::Text,
        Self::Labels,
    ];
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Auto => "auto",
            Self::Messages => "messages",
            Self::PromptCompletion => "prompt_completion",
            Self::Alpaca => "alpaca",
            Self::ShareGpt => "sharegpt",
            Self::Text => "text",
            Self::Labels => "labels",
        })
    }
}

/// What an encoder is to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// What the model or the labels of the data say.
    Auto,
    /// One label of several: cross-entropy.
    Classification,
    /// A number: the square of the distance.
    Regression,
}

impl Task {
    /// Every task, as recipes name them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Classification, Self::Regression];
}

impl fmt::Display for Task {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Auto => "auto",
            Self::Classification => "classification",
            Self::Regression => "regression",
        })
    }
}

/// Which tokens are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learn {
    /// What the model itself would have to write.
    Assistant,
    /// Every token.
    All,
}

impl fmt::Display for Learn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Assistant => "assistant",
            Self::All => "all",
        })
    }
}

/// What happens to a row without a learned token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlearnable {
    /// The run stops and names file and line.
    Error,
    /// The row is left out and counted.
    Skip,
}

impl fmt::Display for Unlearnable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Error => "error",
            Self::Skip => "skip",
        })
    }
}

/// How a run learns.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSettings {
    /// How long it runs.
    pub length: Length,
    /// Sequences in one micro-batch.
    pub batch_size: usize,
    /// Micro-batches in one optimizer step.
    pub accumulation: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How the rate moves after the warm-up.
    pub schedule: Schedule,
    /// How long the rate rises from 0 to its peak.
    pub warmup: Warmup,
    /// Where linear and cosine decay end.
    pub minimum_learning_rate: f64,
    /// Decoupled weight decay of AdamW.
    pub weight_decay: f64,
    /// Decay vectors too: biases, norms and magnitudes.
    pub decay_vectors: bool,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// AdamW's guard against division by zero.
    pub epsilon: f64,
    /// Largest global norm of the gradient; `None` = no clipping.
    pub clip_norm: Option<f64>,
    /// Learning rate of B divided by that of A (LoRA+).
    pub lora_plus_ratio: f64,
    /// Train B alone and keep A as it starts (LoRA-FA).
    pub lora_fa: bool,
    /// Seed of initialisation, shuffling and dropout.
    pub seed: u64,
    /// Rows in a new order each epoch.
    pub shuffle: bool,
    /// Compute activations a second time in the backward pass instead of keeping them.
    pub recompute: bool,
    /// Tokens whose logits are held at once in the loss.
    pub loss_chunk_tokens: usize,
    /// Steps between evaluations; 0 = only before and after.
    pub evaluate_every: usize,
    /// Stop after so many evaluations without improvement; 0 = never.
    pub patience: usize,
    /// Keep the adapter with the lowest validation loss beside the last one.
    pub keep_best: bool,
    /// Steps between checkpoints; 0 = only at the end and on Ctrl-C.
    pub checkpoint_every: usize,
    /// Checkpoints kept, newest first.
    pub keep_checkpoints: usize,
    /// Steps between metrics lines.
    pub log_every: usize,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            length: Length::Epochs(1.0),
            batch_size: 4,
            accumulation: 1,
            learning_rate: 2e-4,
            schedule: Schedule::Constant,
            warmup: Warmup::Steps(0),
            minimum_learning_rate: 0.0,
            weight_decay: 0.0,
            decay_vectors: false,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip_norm: Some(1.0),
            lora_plus_ratio: 1.0,
            lora_fa: false,
            seed: 0,
            shuffle: true,
            recompute: false,
            loss_chunk_tokens: 512,
            evaluate_every: 0,
            patience: 0,
            keep_best: true,
            checkpoint_every: 100,
            keep_checkpoints: 2,
            log_every: 1,
        }
    }
}

impl TrainSettings {
    /// Optimizer steps of the warm-up in a run of `total_steps`; a fraction is rounded up, as in
    /// transformers.
    ///
    /// # Errors
    /// If the warm-up is longer than the run.
    pub fn warmup_steps(&self, total_steps: usize) -> Result<usize> {
        match self.warmup {
            Warmup::Steps(steps) if steps > total_steps => Err(Error::invalid(format!(
                "`train.warmup_steps` is {steps}, but the run has only {total_steps} steps"
            ))
            .with_hint("lower `train.warmup_steps`, or give `train.warmup_fraction` instead")),
            Warmup::Steps(steps) => Ok(steps),
            Warmup::Fraction(fraction) => {
                Ok(((total_steps as f64 * fraction).ceil() as usize).min(total_steps))
            }
        }
    }

    /// Optimizer steps of a run whose epoch has `batches` micro-batches.
    pub fn total_steps(&self, batches: usize) -> usize {
        match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => {
                let micro_batches = (batches as f64 * epochs).ceil() as usize;
                micro_batches.div_ceil(self.accumulation.max(1))
            }
        }
    }
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// So many times over the data.
    Epochs(f64),
    /// So many optimizer steps.
    Steps(usize),
}

/// How long the learning rate rises from 0 to its peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warmup {
    /// So many optimizer steps.
    Steps(usize),
    /// This part of all steps, rounded up.
    Fraction(f64),
}

/// Texts generated before and after training.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleSettings {
    /// What the model is asked.
    pub prompts: Vec<String>,
    /// Longest answer.
    pub max_tokens: usize,
}

impl Default for SampleSettings {
    fn default() -> Self {
        Self { prompts: Vec::new(), max_tokens: 64 }
    }
}

/// Pre-training of W0. From scratch `config` and one of the two tokenizer settings are there;
/// without any of them the run continues from `Run::model`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PretrainSettings {
    /// The `config.json` of a model that starts from random weights.
    pub config: Option<PathBuf>,
    /// Folder of a tokenizer, or its `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
    /// Entries of a tokenizer to be trained on the text.
    pub tokenizer_vocab: Option<usize>,
}
