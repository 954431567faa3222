//! The adapters of a decoder: attach, read and write, switch, merge, and what training may change.

use burn::tensor::DType;
use lora_core::config::{Bias, Init, LoraConfig};
use lora_core::linear::LoraLinear;
use lora_core::ops::cast;
use lora_core::parameter::{ParameterMut, read_f32};
use lora_core::peft::{NamedTensor, PeftAdapter, PeftConfig};
use lora_core::placement::Quantize;
use lora_core::report::ParameterReport;
use lora_core::target::{LinearInfo, resolve_targets};

use crate::decoder::{Block, Decoder};
use crate::decoder_load::stored_way_round;
use crate::decoder_methods::adaptable;
use crate::encoder::{saved_modules, with_classifier};
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

impl AttachedAdapter {
    /// What keeps the adapter from being one of several that are added.
    fn stands_alone(&self) -> Option<String> {
        if !self.saved.is_empty() {
            return Some(format!("replaces whole modules ({})", self.saved.join(", ")));
        }
        let reasons = [
            (self.config.use_dora, "is a weight-decomposed one (DoRA)"),
            (self.config.bias != Bias::None, "replaces biases of the base"),
            (!self.config.trainable_tokens.is_empty(), "replaces rows of the embedding"),
        ];
        reasons.into_iter().find_map(|(is, reason)| is.then(|| reason.to_owned()))
    }
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
    /// Path and size of every module that can have an adapter: the embedding, every linear layer, and the
    /// head, tied or not.
    pub fn linear_infos(&self) -> Vec<LinearInfo> {
        adaptable(&self.config)
    }

    /// Attaches a fresh adapter that leaves the output as it is, and makes it the active one.
    ///
    /// # Errors
    /// Settings that can't be, a target that matches nothing, a name that is taken; a start that is found in
    /// data or in the checkpoint, which are for [`Self::attach_explained`] and [`Self::attach_lost`].
    pub fn attach(&mut self, name: &str, config: &LoraConfig, seed: u64) -> Result<()> {
        if config.init == Init::Eva {
            return Err(Error::invalid("init `eva` starts from data, which there is none of here")
                .with_hint("call `attach_explained` with a pass over data"));
        }
        if config.init == Init::Loftq {
            return Err(Error::invalid(
                "init `loftq` starts from what quantising lost, which needs the weights",
            )
            .with_hint("call `attach_lost` with the weights of the checkpoint"));
        }
        self.attach_fresh(name, config, seed)
    }

    pub(crate) fn attach_fresh(
        &mut self,
        name: &str,
        config: &LoraConfig,
        seed: u64,
    ) -> Result<()> {
        config.validate()?;
        self.check_name(name)?;
        let added = self.add_fresh(name, config, seed);
        self.unless_failed(name, added)
    }

    fn add_fresh(&mut self, name: &str, config: &LoraConfig, seed: u64) -> Result<()> {
        let config: &LoraConfig = &with_classifier(&self.config, config);
        let targets = resolve_targets(config, &self.linear_infos())?;
        let saved = saved_modules(&self.config, config)?;
        if targets.iter().any(|target| target.path == HEAD) {
            self.untie_head()?;
        }
        let device = self.device().clone();
        for target in &targets {
            if target.path == self.config.modules.embedding {
                self.adapt_embedding(name, config, target, None, seed)?;
            } else if let Some(linear) = self.linear_mut(&target.path) {
                linear.attach(name, target, config, seed, &device);
            }
        }
        for path in &saved {
            self.add_saved(name, path, None, config)?;
        }
        self.add_biases(name, config.bias, &targets)?;
        self.add_token_rows(name, config, None)?;
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
        let added = self.add_peft(name, adapter);
        self.unless_failed(name, added)
    }

    /// Takes off what an adapter that could not be attached has left.
    fn unless_failed(&mut self, name: &str, added: Result<()>) -> Result<()> {
        if added.is_err() {
            self.take_off(name);
        }
        added
    }

    fn add_peft(&mut self, name: &str, adapter: &PeftAdapter) -> Result<()> {
        let config = &adapter.config.lora;
        let pairs = adapter.fit(&self.linear_infos())?;
        let other_base = |reason: String| {
            Error::invalid(reason).with_hint(match &adapter.config.base_model {
                Some(base) => format!("this adapter was trained on `{base}`; open that model"),
                None => "open the model that this adapter was trained on".to_owned(),
            })
        };
        let paths: Vec<String> = self.linear_infos().into_iter().map(|info| info.path).collect();
        let saved_tensors: Vec<&NamedTensor> =
            adapter.saved.iter().filter(|tensor| !adapter.is_tied_copy(&tensor.name)).collect();
        for tensor in &saved_tensors {
            let path = module_of(&tensor.name);
            let known = paths.iter().any(|known| known == path);
            let placed = !tensor.name.ends_with(".bias") || {
                let weight = format!("{path}.weight");
                let linears = self.linears();
                linears.iter().any(|linear| linear.path() == path && linear.bias().is_some())
                    && saved_tensors.iter().any(|other| other.name == weight)
            };
            if !known || !placed {
                let what = if known { &tensor.name } else { path };
                let reason =
                    format!("the adapter replaces `{what}`, which this model does not have");
                return Err(other_base(reason));
            }
        }
        if pairs.iter().any(|(target, _)| target.path == HEAD) {
            self.untie_head()?;
        }
        let device = self.device().clone();
        for (target, factor) in pairs {
            if target.path == self.config.modules.embedding {
                self.adapt_embedding(name, config, &target, Some(factor), 0)?;
            } else if let Some(linear) = self.linear_mut(&target.path) {
                linear.attach_factor(name, factor, target.scaling, config.dropout, &device);
                linear.set_origin(name, &target, config, &device);
            }
        }
        self.fit_classifier(adapter);
        let mut saved = Vec::new();
        for tensor in saved_tensors.iter().filter(|tensor| !tensor.name.ends_with(".bias")) {
            let path = module_of(&tensor.name);
            let bias = saved_tensors.iter().find(|it| it.name == format!("{path}.bias"));
            self.add_saved(name, path, Some((*tensor, bias.copied())), config)?;
            saved.push(path.to_owned());
        }
        self.add_extra(name, adapter).map_err(|error| other_base(error.to_string()))?;
        self.adapters.push(AttachedAdapter { name: name.into(), config: config.clone(), saved });
        self.set_active(&[(name.to_owned(), 1.0)])
    }

    /// The adapter `name` as PEFT stores it. One that started as a part of the base (PiSSA, OLoRA) becomes an
    /// ordinary one of twice the rank that changes the base as it was.
    ///
    /// # Errors
    /// No adapter of that name.
    pub fn export(&self, name: &str, base_model: Option<&str>) -> Result<PeftAdapter> {
        let attached = self.attached(name)?;
        let linears = self.linears();
        let of_linears = linears.iter().filter_map(|linear| linear.factor(name));
        let factors = self
            .embedding_adapters
            .factor(name, self.config.modules.embedding)
            .into_iter()
            .chain(of_linears);
        let saved = attached.saved.iter().flat_map(|path| self.saved_tensors(name, path));
        let lora = match attached.config.init.takes_from_base() {
            true => attached.config.converted(),
            false => attached.config.clone(),
        };
        let adapter = PeftAdapter {
            config: PeftConfig {
                lora,
                base_model: base_model.map(str::to_owned),
                fan_in_fan_out: self.config.modules.fan_in_fan_out,
                task_type: Some(self.config.task_type().into()),
                warnings: Vec::new(),
            },
            factors: factors.collect(),
            saved: saved.collect(),
            extra: self.extra_tensors(name),
        };
        let tied = self.is_tied() && attached.config.ensure_weight_tying;
        Ok(if tied {
            adapter.with_tied_copies(self.config.modules.embedding, HEAD)
        } else {
            adapter
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
        self.take_off(name);
        Ok(())
    }

    pub(crate) fn take_off(&mut self, name: &str) {
        self.adapters.retain(|adapter| adapter.name != name);
        self.embedding_adapters.detach(name, &mut self.embed_tokens);
        for linear in self.linears_mut() {
            linear.detach(name);
        }
        for (_, mut parameter) in self.base_parameters_mut() {
            parameter.remove_copy(name);
        }
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
            let Some(reason) = attached.stands_alone() else { continue };
            if shares.len() > 1 || *share != 1.0 {
                return Err(Error::invalid(format!(
                    "adapter `{name}` {reason}, so it can't be part of a sum"
                ))
                .with_hint("activate it alone, with weight 1"));
            }
            with_modules = Some(name.clone());
        }
        // A branch's bias that is merged into a copy must not stay behind in it.
        let into_copies =
            |it: &AttachedAdapter| it.config.lora_bias && it.config.bias != Bias::None;
        if self.adapters.iter().any(into_copies) {
            self.unmerge();
        }
        let with_modules = with_modules.as_deref();
        for (_, mut parameter) in self.base_parameters_mut() {
            parameter.activate(with_modules);
        }
        self.embedding_adapters.set_active(shares);
        for linear in self.linears_mut() {
            linear.set_active(shares);
        }
        Ok(())
    }

    /// Adds the active adapters to the weights: generation then costs what the base costs.
    pub fn merge(&mut self) {
        self.embedding_adapters.merge(&mut self.embed_tokens);
        for linear in self.linears_mut() {
            linear.merge();
        }
    }

    /// Takes merged adapters out of the weights again.
    pub fn unmerge(&mut self) {
        self.embedding_adapters.unmerge(&mut self.embed_tokens);
        for linear in self.linears_mut() {
            linear.unmerge();
        }
    }

    /// Chooses what training changes; everything else becomes plain data.
    ///
    /// # Errors
    /// No adapter of that name; W0 itself, where it rests in few bits.
    pub fn set_trainable(&mut self, trainable: &Trainable) -> Result<()> {
        if *trainable == Trainable::Base && self.embed_tokens.whole().is_none() {
            return Err(self.in_parts("training W0 itself"));
        }
        if *trainable == Trainable::Base && self.placement.quantize != Quantize::None {
            let reason = "W0 rests in few bits, and what is trained can't";
            return Err(Error::invalid(reason)
                .with_hint("load it with `Quantize::None`, or train an adapter"));
        }
        for (_, mut parameter) in self.base_parameters_mut() {
            parameter.track(*trainable == Trainable::Base);
        }
        for name in self.adapter_names() {
            let trained = *trainable == Trainable::Adapter(name.clone());
            for (_, mut parameter) in self.embedding_adapters.parameters_mut(&name) {
                parameter.track(trained);
            }
            for linear in self.linears_mut() {
                linear.set_training(&name, trained);
                for (_, mut factor) in linear.factors_mut(&name) {
                    factor.track(trained);
                }
            }
        }
        if let Trainable::Adapter(name) = trainable {
            self.attached(name)?;
            for (_, mut parameter) in self.trainable_mut(trainable) {
                parameter.track(true);
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
            for (_, mut parameter) in untracked.embedding_adapters.parameters_mut(&name) {
                parameter.track(false);
            }
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
        let of_embedding = self.embedding_adapters.parameters_mut(&name).into_iter();
        all.extend(of_embedding.map(|(end, parameter)| (format!("{path}{end}"), parameter)));
        let parts = self.layers.iter_mut().map(Block::parts_mut);
        let (linears, norms): (Vec<_>, Vec<_>) = parts.unzip();
        let head = self.pooler.iter_mut().chain(&mut self.lm_head);
        for linear in linears.into_iter().flatten().chain(head) {
            if is_saved(linear.path()) {
                all.extend(linear.base_mut());
            } else {
                all.extend(linear.factors_mut(&name));
            }
        }
        let norms = norms.into_iter().flatten().chain([&mut self.norm]);
        all.extend(norms.filter_map(|norm| norm.bias_of_mut(&name)));
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

    pub(crate) fn attached(&self, name: &str) -> Result<&AttachedAdapter> {
        self.adapters.iter().find(|adapter| adapter.name == name).ok_or_else(|| {
            Error::invalid(format!("no adapter named `{name}`"))
                .with_hint(format!("attached: {}", self.adapter_names().join(", ")))
        })
    }

    pub(crate) fn linear_mut(&mut self, path: &str) -> Option<&mut LoraLinear> {
        self.linears_mut().into_iter().find(|linear| linear.path() == path)
    }

    /// Whether the head is the embedding still.
    pub(crate) fn is_tied(&self) -> bool {
        self.config.tie_word_embeddings && self.lm_head.is_none()
    }

    /// Gives a tied model a head of its own, with the embedding's numbers.
    pub(crate) fn untie_head(&mut self) -> Result<()> {
        if self.lm_head.is_none() {
            let head = self.head_parts.as_ref().unwrap_or(&self.embed_tokens);
            let Some(rows) = head.whole() else {
                return Err(self.in_parts("an adapter on the output head"));
            };
            let head = LoraLinear::of(HEAD, rows.as_weight(), None);
            self.lm_head = Some(head.output_head());
        }
        Ok(())
    }

    /// What can't be done with a vocabulary that is in several buffers.
    pub(crate) fn in_parts(&self, what: &str) -> Error {
        let [v, d] = self.embed_tokens.dims();
        let limit = self.placement().buffer_limit.unwrap_or_default();
        Error::invalid(format!(
            "{what} needs the vocabulary's {v} × {d} numbers in one buffer of {} bytes; this device \
             takes {limit}",
            v * d * size_of::<f32>()
        ))
        .with_hint("use `--device cpu` or `cuda`, or leave embedding and head as they are")
    }

    fn add_saved(
        &mut self,
        name: &str,
        path: &str,
        tensors: Option<(&NamedTensor, Option<&NamedTensor>)>,
        config: &LoraConfig,
    ) -> Result<()> {
        let tensor = tensors.map(|(weight, _)| weight);
        let (device, modules) = (self.device().clone(), self.config.modules);
        if path == modules.embedding {
            // As in PEFT the head stays what the embedding was, unless it is asked to follow.
            if self.is_tied() && !config.ensure_weight_tying {
                self.untie_head()?;
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
            let copy = match tensors {
                None => cast(bias.base_value(), DType::F32),
                Some((_, Some(tensor))) if tensor.shape == bias.value().dims() => {
                    let data =
                        burn::tensor::TensorData::new(tensor.data.clone(), tensor.shape.clone());
                    burn::tensor::Tensor::from_data(data, &device)
                }
                Some(_) => {
                    return Err(Error::invalid(format!(
                        "`modules_to_save`: `{path}` has a bias, which the file does not carry"
                    )));
                }
            };
            bias.add_copy(name, copy);
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

    /// The adapter's copy of a whole module, weight and bias.
    fn saved_tensors(&self, name: &str, path: &str) -> Vec<NamedTensor> {
        let tensor = |end: &str, shape: Vec<usize>, data: Vec<f32>| NamedTensor {
            name: format!("{path}.{end}"),
            shape,
            data,
        };
        let matrix = |value: burn::tensor::Tensor<2>| {
            tensor("weight", value.dims().to_vec(), read_f32(value))
        };
        let modules = self.config.modules;
        if path == modules.embedding {
            let copy = self.embed_tokens.whole().and_then(|table| table.copy_of(name));
            return copy.map(matrix).into_iter().collect();
        }
        let linears = self.linears();
        let Some(linear) = linears.into_iter().find(|linear| linear.path() == path) else {
            return Vec::new();
        };
        let weight = linear.weight().copy_of(name);
        let weight = weight.map(|copy| matrix(stored_way_round(modules, path, copy)));
        let bias = linear.bias().and_then(|bias| bias.copy_of(name));
        let bias = bias.map(|copy| tensor("bias", copy.dims().to_vec(), read_f32(copy)));
        weight.into_iter().chain(bias).collect()
    }
}

/// The module that a weight or a bias belongs to.
fn module_of(key: &str) -> &str {
    key.strip_suffix(".weight").or_else(|| key.strip_suffix(".bias")).unwrap_or(key)
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
