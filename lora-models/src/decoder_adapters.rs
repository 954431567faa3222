//! The adapters of a decoder: attach, read and write, switch, merge, and what training may change.

use burn::tensor::DType;
use lora_core::config::LoraConfig;
use lora_core::linear::LoraLinear;
use lora_core::ops::cast;
use lora_core::parameter::{ParameterMut, read_f32};
use lora_core::peft::{NamedTensor, PeftAdapter, PeftConfig};
use lora_core::report::ParameterReport;
use lora_core::target::{LinearInfo, resolve_saved, resolve_targets};

use crate::decoder::{Block, Decoder};
use crate::decoder_layout::linear_infos;
use crate::decoder_load::stored_way_round;
use crate::error::{Error, Result};
use crate::modules::HEAD;

/// An adapter that is attached to a decoder.
#[derive(Debug, Clone)]
pub(crate) struct AttachedAdapter {
    pub(crate) name: String,
    pub(crate) config: LoraConfig,
    /// Modules of which the adapter has a full copy.
    pub(crate) saved: Vec<String>,
}

/// What training changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trainable {
    /// Nothing: inference.
    Nothing,
    /// The factors and saved modules of one adapter.
    Adapter(String),
    /// W0 itself.
    Base,
}

impl Decoder {
    /// Path and size of every linear layer, the head included, tied or not.
    pub fn linear_infos(&self) -> Vec<LinearInfo> {
        linear_infos(&self.config)
    }

    /// Attaches a fresh adapter that leaves the output as it is (B = 0), and makes it the active one.
    ///
    /// # Errors
    /// Settings that can't be, a target that matches nothing, a name that is taken.
    pub fn attach(&mut self, name: &str, config: &LoraConfig, seed: u64) -> Result<()> {
        config.validate()?;
        self.check_name(name)?;
        let targets = resolve_targets(config, &self.linear_infos())?;
        let saved = resolve_saved(config, &self.module_paths())?;
        if targets.iter().any(|target| target.path == HEAD) {
            self.untie_head()?;
        }
        let device = self.device().clone();
        for target in &targets {
            if let Some(linear) = self.linear_mut(&target.path) {
                linear.attach(name, target, config.dropout, config.init, seed, &device);
            }
        }
        for path in &saved {
            self.add_saved(name, path, None)?;
        }
        self.adapters.push(AttachedAdapter { name: name.into(), config: config.clone(), saved });
        self.set_active(&[(name.to_owned(), 1.0)])
    }

    /// Attaches an adapter read from PEFT's files, and makes it the active one.
    ///
    /// # Errors
    /// A factor or saved module that has no place in this model or another size: the adapter belongs to
    /// another base. A module that the configuration targets and the file has no factors for.
    pub fn attach_peft(&mut self, name: &str, adapter: &PeftAdapter) -> Result<()> {
        self.check_name(name)?;
        let config = &adapter.config.lora;
        let pairs = adapter.fit(&self.linear_infos())?;
        let other_base = |reason: String| {
            Error::invalid(reason).with_hint(match &adapter.config.base_model {
                Some(base) => format!("this adapter was trained on `{base}`; open that model"),
                None => "open the model that this adapter was trained on".to_owned(),
            })
        };
        let paths = self.module_paths();
        for tensor in &adapter.saved {
            let path = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
            if !paths.iter().any(|known| known == path) {
                let reason =
                    format!("the adapter replaces `{path}`, which this model does not have");
                return Err(other_base(reason));
            }
        }
        if pairs.iter().any(|(target, _)| target.path == HEAD) {
            self.untie_head()?;
        }
        let device = self.device().clone();
        for (target, factor) in pairs {
            if let Some(linear) = self.linear_mut(&target.path) {
                linear.attach_factor(name, factor, target.scaling, config.dropout, &device);
            }
        }
        let mut saved = Vec::new();
        for tensor in &adapter.saved {
            let path = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
            self.add_saved(name, path, Some(tensor))?;
            saved.push(path.to_owned());
        }
        self.adapters.push(AttachedAdapter { name: name.into(), config: config.clone(), saved });
        self.set_active(&[(name.to_owned(), 1.0)])
    }

    /// The adapter `name` as PEFT stores it.
    ///
    /// # Errors
    /// No adapter of that name.
    pub fn export(&self, name: &str, base_model: Option<&str>) -> Result<PeftAdapter> {
        let attached = self.attached(name)?;
        let factors: Vec<_> =
            self.linears().into_iter().filter_map(|linear| linear.factor(name)).collect();
        let saved =
            attached.saved.iter().filter_map(|path| self.saved_tensor(name, path)).collect();
        Ok(PeftAdapter {
            config: PeftConfig {
                lora: attached.config.clone(),
                base_model: base_model.map(str::to_owned),
                fan_in_fan_out: self.config.modules.fan_in_fan_out,
                task_type: Some("CAUSAL_LM".into()),
                warnings: Vec::new(),
            },
            factors,
            saved,
        })
    }

    /// Names of the attached adapters, in order.
    pub fn adapter_names(&self) -> Vec<String> {
        self.adapters.iter().map(|adapter| adapter.name.clone()).collect()
    }

    /// Takes an adapter off.
    ///
    /// # Errors
    /// No adapter of that name.
    pub fn detach(&mut self, name: &str) -> Result<()> {
        self.attached(name)?;
        self.adapters.retain(|adapter| adapter.name != name);
        if let Some(embedding) = self.embed_tokens.whole_mut() {
            embedding.remove_copy(name);
        }
        for linear in self.linears_mut() {
            linear.detach(name);
        }
        Ok(())
    }

    /// Chooses the adapters that act: none, one, or a weighted sum.
    ///
    /// # Errors
    /// A name that is not attached; a sum in which an adapter has whole modules of its own, since those
    /// can't be added.
    pub fn set_active(&mut self, shares: &[(String, f64)]) -> Result<()> {
        let mut with_modules = None;
        for (name, share) in shares {
            let attached = self.attached(name)?;
            if attached.saved.is_empty() {
                continue;
            }
            if shares.len() > 1 || *share != 1.0 {
                return Err(Error::invalid(format!(
                    "adapter `{name}` replaces whole modules ({}), so it can't be part of a sum",
                    attached.saved.join(", ")
                ))
                .with_hint("activate it alone, with weight 1"));
            }
            with_modules = Some(name.clone());
        }
        let with_modules = with_modules.as_deref();
        if let Some(embedding) = self.embed_tokens.whole_mut() {
            embedding.activate(with_modules);
        }
        for linear in self.linears_mut() {
            linear.set_active(shares);
            linear.weight_mut().activate(with_modules);
            if let Some(bias) = linear.bias_mut() {
                bias.activate(with_modules);
            }
        }
        Ok(())
    }

    /// Adds the active adapters to the weights: generation then costs what the base costs.
    pub fn merge(&mut self) {
        for linear in self.linears_mut() {
            linear.merge();
        }
    }

    /// Takes merged adapters out of the weights again.
    pub fn unmerge(&mut self) {
        for linear in self.linears_mut() {
            linear.unmerge();
        }
    }

    /// Chooses what training changes; everything else becomes plain data.
    ///
    /// # Errors
    /// No adapter of that name.
    pub fn set_trainable(&mut self, trainable: &Trainable) -> Result<()> {
        if *trainable == Trainable::Base && self.embed_tokens.whole().is_none() {
            return Err(self.in_parts("training W0 itself"));
        }
        for (_, mut parameter) in self.base_parameters_mut() {
            parameter.track(*trainable == Trainable::Base);
        }
        for name in self.adapter_names() {
            let trained = *trainable == Trainable::Adapter(name.clone());
            for linear in self.linears_mut() {
                linear.set_training(&name, trained);
                for (_, mut factor) in linear.factors_mut(&name) {
                    factor.track(trained);
                }
            }
        }
        if let Trainable::Adapter(name) = trainable {
            let saved = self.attached(name)?.saved.clone();
            for path in saved {
                for (key, mut parameter) in self.base_parameters_mut() {
                    if is_of_module(&key, &path) {
                        parameter.track(true);
                    }
                }
            }
        }
        Ok(())
    }

    /// The same decoder, on the same tensors, with no graph kept of what it computes; dropout acts as
    /// it does here.
    #[must_use]
    pub fn untracked(&self) -> Self {
        let mut untracked = self.clone();
        for (_, mut parameter) in untracked.base_parameters_mut() {
            parameter.track(false);
        }
        for name in self.adapter_names() {
            for linear in untracked.linears_mut() {
                for (_, mut factor) in linear.factors_mut(&name) {
                    factor.track(false);
                }
            }
        }
        untracked
    }

    /// The tensors that training changes, with their keys, always in the same order.
    pub fn trainable_mut(&mut self, trainable: &Trainable) -> Vec<(String, ParameterMut<'_>)> {
        let name = match trainable {
            Trainable::Nothing => return Vec::new(),
            Trainable::Base => return self.base_parameters_mut(),
            Trainable::Adapter(name) => name.clone(),
        };
        let saved = self.attached(&name).map(|found| found.saved.clone()).unwrap_or_default();
        let is_saved = |path: &str| saved.iter().any(|module| module == path);
        let mut all = Vec::new();
        let path = self.config.modules.embedding;
        if let Some(embedding) = self.embed_tokens.whole_mut().filter(|_| is_saved(path)) {
            all.push((format!("{path}.weight"), ParameterMut::Matrix(embedding)));
        }
        let blocks = self.layers.iter_mut().flat_map(Block::linears_mut);
        for linear in blocks.chain(self.lm_head.as_mut()) {
            if is_saved(linear.path()) {
                all.extend(linear.base_mut());
            } else {
                all.extend(linear.factors_mut(&name));
            }
        }
        all
    }

    /// Table of what is trained, by kind of module.
    pub fn report(&mut self, trainable: &Trainable) -> ParameterReport {
        let total_base = self.config.parameter_count();
        let tensors: Vec<(String, Vec<usize>)> = self
            .trainable_mut(trainable)
            .into_iter()
            .map(|(key, parameter)| (key, parameter.shape()))
            .collect();
        ParameterReport::new(total_base, *trainable == Trainable::Base, &tensors)
    }

    fn check_name(&self, name: &str) -> Result<()> {
        if self.adapters.iter().any(|adapter| adapter.name == name) {
            return Err(Error::invalid(format!("an adapter named `{name}` is attached already")));
        }
        Ok(())
    }

    fn attached(&self, name: &str) -> Result<&AttachedAdapter> {
        self.adapters.iter().find(|adapter| adapter.name == name).ok_or_else(|| {
            Error::invalid(format!("no adapter named `{name}`"))
                .with_hint(format!("attached: {}", self.adapter_names().join(", ")))
        })
    }

    fn linear_mut(&mut self, path: &str) -> Option<&mut LoraLinear> {
        self.linears_mut().into_iter().find(|linear| linear.path() == path)
    }

    /// Every module that `modules_to_save` can name.
    fn module_paths(&self) -> Vec<String> {
        let mut paths = vec![self.config.modules.embedding.to_owned()];
        paths.extend(self.linear_infos().into_iter().map(|info| info.path));
        paths
    }

    /// Gives a tied model a head of its own, with the embedding's numbers.
    fn untie_head(&mut self) -> Result<()> {
        if self.lm_head.is_none() {
            let head = self.head_parts.as_ref().unwrap_or(&self.embed_tokens);
            let Some(rows) = head.whole() else {
                return Err(self.in_parts("an adapter on the output head"));
            };
            let weight = rows.base_value().transpose();
            self.lm_head = Some(LoraLinear::new(HEAD, weight, None).output_head());
        }
        Ok(())
    }

    /// What can't be done with a vocabulary that is in several buffers.
    fn in_parts(&self, what: &str) -> Error {
        let [v, d] = self.embed_tokens.dims();
        let limit = self.placement().buffer_limit.unwrap_or_default();
        Error::invalid(format!(
            "{what} needs the vocabulary's {v} × {d} numbers in one buffer of {} bytes; this device \
             takes {limit}",
            v * d * size_of::<f32>()
        ))
        .with_hint("use `--device cpu` or `cuda`, or leave embedding and head as they are")
    }

    fn add_saved(&mut self, name: &str, path: &str, tensor: Option<&NamedTensor>) -> Result<()> {
        let (device, modules) = (self.device().clone(), self.config.modules);
        if path == modules.embedding {
            if self.config.tie_word_embeddings {
                return Err(Error::invalid(
                    "`modules_to_save` names the embedding of a model whose head is the embedding",
                )
                .with_hint("leave it out, or train with `method = \"full\"`"));
            }
            let Some(embedding) = self.embed_tokens.whole_mut() else {
                return Err(self.in_parts("`modules_to_save` with the embedding"));
            };
            let base = embedding.base_value();
            let copy = match tensor {
                Some(tensor) => matrix(tensor, base.dims(), &device)?,
                None => cast(base, DType::F32),
            };
            embedding.add_copy(name, copy);
            return Ok(());
        }
        if path == HEAD {
            self.untie_head()?;
        }
        let Some(linear) = self.linear_mut(path) else {
            return Err(Error::invalid(format!("`modules_to_save`: no module `{path}`")));
        };
        if let Some(bias) = linear.bias_mut() {
            if tensor.is_some() {
                return Err(Error::invalid(format!(
                    "`modules_to_save`: `{path}` has a bias, which the file does not carry"
                )));
            }
            let value = cast(bias.base_value(), DType::F32);
            bias.add_copy(name, value);
        }
        let base = linear.weight().base_value();
        let copy = match tensor {
            Some(tensor) => {
                let stored = stored_way_round(modules, path, base.clone()).dims();
                stored_way_round(modules, path, matrix(tensor, stored, &device)?)
            }
            None => cast(base, DType::F32),
        };
        linear.weight_mut().add_copy(name, copy);
        Ok(())
    }

    fn saved_tensor(&self, name: &str, path: &str) -> Option<NamedTensor> {
        let value = if path == self.config.modules.embedding {
            self.embed_tokens.whole()?.copy_of(name)?
        } else {
            let linears = self.linears();
            let linear = linears.into_iter().find(|linear| linear.path() == path)?;
            stored_way_round(self.config.modules, path, linear.weight().copy_of(name)?)
        };
        let shape = value.dims().to_vec();
        Some(NamedTensor { name: format!("{path}.weight"), shape, data: read_f32(value) })
    }
}

fn is_of_module(key: &str, path: &str) -> bool {
    key.strip_prefix(path).is_some_and(|rest| rest == ".weight" || rest == ".bias")
}

fn matrix(
    tensor: &NamedTensor,
    shape: [usize; 2],
    device: &burn::tensor::Device,
) -> Result<burn::tensor::Tensor<2>> {
    if tensor.shape != shape {
        return Err(Error::invalid(format!(
            "the adapter's `{}` has shape {:?}, the model's {shape:?}",
            tensor.name, tensor.shape
        )));
    }
    let data = burn::tensor::TensorData::new(tensor.data.clone(), shape);
    Ok(burn::tensor::Tensor::from_data(data, device))
}
