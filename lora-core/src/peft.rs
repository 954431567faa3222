//! Adapters as PEFT stores them: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//! Here is the adapter as plain data, reading, writing, and the question whether it fits a model; the two
//! files are in `settings`, `render` and `tensors`. Python's pickled `adapter_model.bin` is not read.
//!
//! PyTorch keeps a linear weight as `[d_out, d_in]` and so PEFT keeps `lora_A` as `[rank, d_in]` and `lora_B`
//! as `[d_out, rank]`. In memory everything is the other way round, as Burn has it; the transposes
//! are in this module and nowhere else.

mod extra;
mod render;
mod scaled;
mod settings;
mod tensors;

use std::fs;
use std::path::Path;

pub use self::scaled::most_common;
pub(crate) use self::tensors::values as read_numbers;
use crate::config::{Bias, LoraConfig, TargetModules};
use crate::error::{Error, Result};
use crate::files;
use crate::target::{self, Adapted, LinearInfo, Matcher};

/// Name of the file with the settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the file with the weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// An adapter as it is on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftAdapter {
    /// Its settings.
    pub config: PeftConfig,
    /// The low-rank pairs. Read from disk they are in the order of their paths.
    pub factors: Vec<Factor>,
    /// Weights that were trained whole (`modules_to_save`), by the name they have in the model
    /// (`lm_head.weight`), in PyTorch's shape.
    pub saved: Vec<NamedTensor>,
    /// What methods beyond the plain pair store beside it, by PEFT's names without their prefix
    /// (`….q_proj.lora_magnitude_vector`, `….q_proj.lora_B.bias`, `….q_proj.base_layer.bias`,
    /// `….embed_tokens.token_adapter.trainable_tokens_delta`), in PyTorch's shape.
    pub extra: Vec<NamedTensor>,
}

/// Settings of an adapter on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftConfig {
    /// What the adapter is.
    pub lora: LoraConfig,
    /// The model it was trained on: folder or hub id.
    pub base_model: Option<String>,
    /// The base's linear weights are stored `[d_in, d_out]`, as GPT-2's are. PEFT wants to know; the files
    /// of an adapter are the same.
    pub fan_in_fan_out: bool,
    /// What the model is for, in PEFT's words: `CAUSAL_LM`.
    pub task_type: Option<String>,
    /// What was in the file and is left out because it does not change what the adapter computes.
    pub warnings: Vec<String>,
}

/// A weight with its name.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Name in the model: `lm_head.weight`.
    pub name: String,
    /// Shape, as in the file.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub data: Vec<f32>,
}

/// The low-rank pair of one linear layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    /// Path of the layer in the model: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Inputs of the layer.
    pub d_in: usize,
    /// Outputs of the layer.
    pub d_out: usize,
    /// Rank of the pair.
    pub rank: usize,
    /// A, `[d_in, rank]` row-major.
    pub a: Vec<f32>,
    /// B, `[rank, d_out]` row-major.
    pub b: Vec<f32>,
}

impl PeftConfig {
    /// The settings of a new adapter for a language model.
    pub fn new(lora: LoraConfig, base_model: Option<String>) -> Self {
        let task_type = Some("CAUSAL_LM".to_owned());
        Self { lora, base_model, fan_in_fan_out: false, task_type, warnings: Vec::new() }
    }
}

impl PeftAdapter {
    /// An adapter of low-rank pairs alone.
    pub fn new(config: PeftConfig, factors: Vec<Factor>) -> Self {
        Self { config, factors, saved: Vec::new(), extra: Vec::new() }
    }

    /// Reads an adapter.
    ///
    /// # Errors
    /// A missing or damaged file; a setting that changes what an adapter computes and is not supported here; a
    /// tensor that is missing, unexpected, of the wrong shape or not finite.
    pub fn load(folder: &Path) -> Result<Self> {
        let config_path = folder.join(CONFIG_FILE);
        let weights_path = folder.join(WEIGHTS_FILE);
        let read = settings::parse(&files::read_text(&config_path)?, &config_path)?;
        if !weights_path.exists() && folder.join("adapter_model.bin").exists() {
            return Err(Error::malformed(
                folder.join("adapter_model.bin"),
                "weights pickled by Python are not read",
            )
            .with_hint(
                "save the adapter again with PEFT: `save_pretrained(…, safe_serialization=True)`",
            ));
        }
        let stored = tensors::read(&files::read(&weights_path)?, &weights_path)?;
        let mut adapter = Self {
            config: read.config,
            factors: stored.factors,
            saved: stored.saved,
            extra: stored.extra,
        };
        adapter.sort_biases();
        if read.targets_are_in_the_weights {
            let paths = adapter.factors.iter().map(|factor| factor.path.clone()).collect();
            let lora = &mut adapter.config.lora;
            lora.target = TargetModules::Suffixes(paths);
            lora.exclude = Vec::new();
        }
        let settings_fit = adapter.config.lora.validate();
        settings_fit.map_err(|error| Error::malformed(&config_path, error.to_string()))?;
        adapter.check().map_err(|reason| {
            Error::malformed(&weights_path, reason).with_hint(
                "the two files of the adapter must be whole and belong together: save it again with what \
                 trained it, or download it again",
            )
        })?;
        Ok(adapter)
    }

    /// Writes the adapter into the folder, which is created if need be. Each file lands whole, and neither is
    /// put in place before both are written.
    ///
    /// # Errors
    /// The operating system's; an adapter that could not be read back: settings and weights that
    /// contradict each other, values that are not finite. Nothing is then written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.config.lora.validate()?;
        self.check().map_err(|reason| {
            Error::invalid(format!(
                "the adapter can't be saved to `{}`: {reason}",
                folder.display()
            ))
        })?;
        let weights = tensors::serialize(&self.factors, &self.saved, &self.extra);
        let settings = render::settings(&self.config, &self.factors);
        fs::create_dir_all(folder).map_err(|error| Error::write(folder, error))?;
        let weights = files::stage(&folder.join(WEIGHTS_FILE), &weights)?;
        let settings = files::stage(&folder.join(CONFIG_FILE), settings.as_bytes())?;
        weights.commit()?;
        settings.commit()
    }

    /// The linear layers of a model that this adapter is for, in the model's order, each with its pair.
    ///
    /// # Errors
    /// The adapter is for another base: a pair without a layer, a layer without a pair, or another shape.
    pub fn fit<'a>(&'a self, linears: &[LinearInfo]) -> Result<Vec<(Adapted, &'a Factor)>> {
        let matcher = Matcher::new(&self.config.lora)?;
        let adapted = target::matched(&matcher, linears);
        let unknown = |factor: &&Factor| {
            let known = adapted.iter().any(|module| module.path == factor.path);
            !known && !self.is_tied_copy(&factor.path)
        };
        if let Some(factor) = self.factors.iter().find(unknown) {
            return Err(Error::invalid(format!(
                "the adapter is for another model: it has weights for `{}`, which is no linear layer here",
                factor.path
            ))
            .with_hint(self.other_base(linears)));
        }
        let pair = |module: Adapted| {
            let Some(factor) = self.factors.iter().find(|factor| factor.path == module.path) else {
                return Err(Error::invalid(format!(
                    "the adapter is for another model: it has no weights for `{}`, which its settings name",
                    module.path
                ))
                .with_hint(self.other_base(linears)));
            };
            if (factor.d_in, factor.d_out) != (module.d_in, module.d_out) {
                return Err(Error::invalid(format!(
                    "the adapter is for another model: its `{}` is {} × {}, the model's {} × {}",
                    module.path, factor.d_in, factor.d_out, module.d_in, module.d_out
                ))
                .with_hint(self.other_base(linears)));
            }
            Ok((module, factor))
        };
        adapted.into_iter().map(pair).collect()
    }

    fn other_base(&self, linears: &[LinearInfo]) -> String {
        match &self.config.base_model {
            Some(name) => format!("it was trained on `{name}`"),
            None => target::candidates(linears),
        }
    }

    /// Whether settings and weights belong together and both can be used.
    fn check(&self) -> std::result::Result<(), String> {
        let lora = &self.config.lora;
        let matcher = Matcher::new(lora).map_err(|error| error.to_string())?;
        if self.factors.is_empty() {
            return Err("there are no low-rank weights (`….lora_A.weight`)".to_owned());
        }
        let mut paths: Vec<&str> = self.factors.iter().map(|factor| factor.path.as_str()).collect();
        paths.sort_unstable();
        if let Some(twice) = paths.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("`{}` is there twice", twice[0]));
        }
        for factor in &self.factors {
            let Factor { path, d_in, d_out, rank, a, b } = factor;
            if !matcher.matches(path) && !self.is_tied_copy(path) {
                return Err(format!(
                    "tensor `{}` is unexpected: `target_modules` of {CONFIG_FILE} does not name its \
                     module",
                    tensors::key_of_a(path)
                ));
            }
            let expected = matcher.rank(path);
            if *rank != expected && !self.is_tied_copy(path) {
                return Err(format!(
                    "tensor `{}` has rank {rank}, but {CONFIG_FILE} says {expected}",
                    tensors::key_of_a(path)
                ));
            }
            if a.len() != d_in * rank || b.len() != rank * d_out {
                return Err(format!(
                    "`{path}` has {} and {} values, not those of a {d_in} × {rank} and a {rank} × {d_out} matrix",
                    a.len(),
                    b.len()
                ));
            }
            finite(&tensors::key_of_a(path), a)?;
            finite(&tensors::key_of_b(path), b)?;
        }
        extra::check(lora, &self.factors, &self.extra)?;
        self.check_saved()
    }

    /// With `bias` all, a bias of a module that is not saved whole was trained by itself.
    fn sort_biases(&mut self) {
        let lora = &self.config.lora;
        if lora.bias == Bias::All {
            let of_module = |tensor: &NamedTensor| {
                lora.modules_to_save.iter().any(|entry| lies_in(&tensor.name, entry))
            };
            let alone =
                |tensor: &mut NamedTensor| tensor.name.ends_with(".bias") && !of_module(tensor);
            self.extra.extend(self.saved.extract_if(.., alone));
        }
    }

    fn check_saved(&self) -> std::result::Result<(), String> {
        let entries = &self.config.lora.modules_to_save;
        for tensor in &self.saved {
            whole(tensor)?;
            let named = entries.iter().any(|entry| lies_in(&tensor.name, entry));
            if !named && !self.is_tied_copy(&tensor.name) {
                return Err(format!(
                    "tensor `{}` is unexpected: it is no low-rank weight, and `modules_to_save` of \
                     {CONFIG_FILE} does not name its module",
                    tensors::key_of_saved(&tensor.name)
                ));
            }
        }
        let absent = entries.iter().find(|entry| {
            let stored = self.saved.iter().any(|tensor| lies_in(&tensor.name, entry));
            !stored && !self.is_optional(entry)
        });
        absent.map_or(Ok(()), |entry| {
            Err(format!("the weights of `{entry}`, which `modules_to_save` names, are missing"))
        })
    }

    /// PEFT names both usual heads of a classifier, whichever the model has.
    fn is_optional(&self, entry: &str) -> bool {
        let classifies = matches!(self.config.task_type.as_deref(), Some("SEQ_CLS" | "TOKEN_CLS"));
        classifies && matches!(entry, "classifier" | "score") && !self.saved.is_empty()
    }
}

/// Whether a tensor has the values of its shape, all finite.
fn whole(tensor: &NamedTensor) -> std::result::Result<(), String> {
    if tensor.data.len() != tensor.shape.iter().product::<usize>() {
        return Err(format!(
            "`{}` has {} values, not those of shape {:?}",
            tensor.name,
            tensor.data.len(),
            tensor.shape
        ));
    }
    finite(&tensors::key_of_saved(&tensor.name), &tensor.data)
}

/// Whether a tensor belongs to a module that ends so, or to one inside of it.
fn lies_in(tensor: &str, entry: &str) -> bool {
    tensor.match_indices('.').any(|(dot, _)| tensor[..dot].ends_with(entry))
}

fn finite(name: &str, values: &[f32]) -> std::result::Result<(), String> {
    let bad = values.iter().find(|value| !value.is_finite());
    bad.map_or(Ok(()), |value| Err(format!("tensor `{name}` holds {value}")))
}

#[cfg(test)]
pub(crate) mod tests;
