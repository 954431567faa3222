//! The adapted linear layer, the one place where the method lives; `forward.rs` has its weight-decomposed form.
//!
//! `y = x·W + s·(x·A)·B` (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>, equation 3), computed in
//! activation space: no tensor of W's shape is formed for ΔW = s·A·B, neither forward nor backward. The
//! backward pass is `dX = dY·Wᵀ + s·(dY·Bᵀ)·Aᵀ`, `dB = s·(x·A)ᵀ·dY`, `dA = s·xᵀ·(dY·Bᵀ)`.

mod adapter;
mod forward;
mod inputs;
mod merge;

use std::sync::OnceLock;

use burn::tensor::{Device, Tensor, TensorData};

use crate::config::LoraConfig;
use crate::decompose::transposed;
use crate::init::{closest_pair, init_pair, part_of_weight};
use crate::ops::Weight;
use crate::packed::Packed;
use crate::parameter::{Parameter, ParameterMut, read_f32};
use crate::peft::Factor;
use crate::target::{Adapted, LinearInfo};
use adapter::{Adapter, Magnitude, column_squares, vector};
pub use inputs::InputDirections;
use inputs::InputSums;

/// A linear layer with a base weight and any number of named low-rank adapters.
#[derive(Debug, Clone)]
pub struct LoraLinear {
    path: String,
    is_output_head: bool,
    /// `[d_in, d_out]`; on disk and in memory the rows of the transpose come one after another.
    weight: Parameter<2>,
    bias: Option<Parameter<1>>,
    adapters: Vec<Adapter>,
    /// ‖wⱼ‖² of the weight's columns, `[1, d_out]`, kept until the weight may have changed.
    squares: OnceLock<Tensor<2>>,
    /// Where the inputs are being looked at.
    watched: Option<InputSums>,
    /// The packed weight, while updates are merged into a dense one in its place.
    at_rest: Option<Packed>,
}

impl LoraLinear {
    /// A layer without adapters.
    ///
    /// `path` is the module path of the checkpoint, such as `model.layers.0.self_attn.q_proj`.
    ///
    /// # Shapes
    /// - weight: `[d_in, d_out]`
    /// - bias: `[d_out]`
    pub fn new(path: impl Into<String>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self::of(path, Parameter::new(weight), bias)
    }

    /// A layer without adapters over a weight `[d_in, d_out]` as it rests.
    ///
    /// # Shapes
    /// - bias: `[d_out]`
    pub fn of(path: impl Into<String>, weight: Parameter<2>, bias: Option<Tensor<1>>) -> Self {
        Self {
            path: path.into(),
            is_output_head: false,
            weight,
            bias: bias.map(Parameter::new),
            adapters: Vec::new(),
            squares: OnceLock::new(),
            watched: None,
            at_rest: None,
        }
    }

    /// The same layer, marked as the model's output head: `all-linear` passes it by.
    #[must_use]
    pub fn output_head(mut self) -> Self {
        self.is_output_head = true;
        self
    }

    /// Path and size, for target resolution.
    pub fn info(&self) -> LinearInfo {
        let [d_in, d_out] = self.weight.dims();
        LinearInfo { path: self.path.clone(), d_in, d_out, is_output_head: self.is_output_head }
    }

    /// The module path of the checkpoint.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The base weight or, where an adapter saved the module, the active copy.
    pub fn weight(&self) -> &Parameter<2> {
        &self.weight
    }

    /// The base weight, to replace or to train.
    pub fn weight_mut(&mut self) -> &mut Parameter<2> {
        self.forget();
        &mut self.weight
    }

    /// The bias, where the layer has one.
    pub fn bias(&self) -> Option<&Parameter<1>> {
        self.bias.as_ref()
    }

    /// The bias, to replace or to train.
    pub fn bias_mut(&mut self) -> Option<&mut Parameter<1>> {
        self.bias.as_mut()
    }

    /// Whether the output is the product with the weight alone, and nothing here is trained.
    pub fn is_plain(&self) -> bool {
        !self.weight.is_tracked() && self.is_unadapted()
    }

    /// Whether the output is the product with the weight alone, be it trained or not.
    pub fn is_unadapted(&self) -> bool {
        self.bias.is_none() && self.adapters.iter().all(|adapter| adapter.share == 0.0)
    }

    /// Adds the adapter `name`, freshly started as `config` says, so that the output does not change.
    pub fn attach(
        &mut self,
        name: &str,
        adapted: &Adapted,
        config: &LoraConfig,
        seed: u64,
        device: &Device,
    ) {
        let Adapted { d_in, d_out, rank, .. } = *adapted;
        let (a, b) = if config.init.takes_from_base() {
            self.part_of_base(adapted, config, seed)
        } else {
            init_pair(config.init, d_in, d_out, rank, seed, &self.path)
        };
        let factor = Factor { path: self.path.clone(), d_in, d_out, rank, a, b };
        self.attach_factor(name, &factor, adapted.scaling, config.dropout, device);
        if config.init.takes_from_base()
            && let Some(adapter) = self.adapters.last_mut()
        {
            adapter.origin = Some([adapter.a.value(), adapter.b.value()]);
        }
        if config.lora_bias {
            self.set_branch_bias(name, vec![0.0; d_out], device);
        }
        if config.use_dora {
            self.set_magnitude(name, None, device);
        }
    }

    /// Adds the adapter `name` with the factors of a file.
    pub fn attach_factor(
        &mut self,
        name: &str,
        factor: &Factor,
        scaling: f64,
        dropout: f64,
        device: &Device,
    ) {
        let a = TensorData::new(factor.a.clone(), [factor.d_in, factor.rank]);
        // As files and W have it: what a single token needs of B for some outputs lies together.
        let b = transposed(&factor.b, factor.rank, factor.d_out);
        let b = Tensor::from_data(TensorData::new(b, [factor.d_out, factor.rank]), device);
        let pair = [Parameter::new(Tensor::from_data(a, device)), Parameter::by_columns(b)];
        self.adapters.push(Adapter::new(name, pair, scaling, dropout));
    }

    /// Lets adapter `name`, whose factors are those of a file, have started as `config` says: as a part of
    /// W, found again, which the base gives up. For other starts nothing happens.
    pub fn set_origin(
        &mut self,
        name: &str,
        adapted: &Adapted,
        config: &LoraConfig,
        device: &Device,
    ) {
        if !config.init.takes_from_base() {
            return;
        }
        let Adapted { d_in, d_out, rank, .. } = *adapted;
        let (a, b) = self.part_of_base(adapted, config, 0);
        let a = Tensor::from_data(TensorData::new(a, [d_in, rank]), device);
        let b = Tensor::from_data(TensorData::new(b, [rank, d_out]), device);
        for adapter in self.adapters.iter_mut().filter(|adapter| adapter.name == name) {
            adapter.origin = Some([a.clone(), b.clone()]);
        }
    }

    /// Gives the low-rank branch of adapter `name` a bias (`lora_bias`).
    ///
    /// # Shapes
    /// - numbers: `[d_out]`
    pub fn set_branch_bias(&mut self, name: &str, numbers: Vec<f32>, device: &Device) {
        let value = vector(numbers, device);
        for adapter in self.adapters.iter_mut().filter(|adapter| adapter.name == name) {
            adapter.branch_bias = Some(Parameter::new(value.clone()));
        }
    }

    /// Makes adapter `name` a weight-decomposed one (DoRA). `None` starts with the lengths that the
    /// columns of W + ΔW have, so that the output does not change.
    ///
    /// # Shapes
    /// - numbers: `[d_out]`
    pub fn set_magnitude(&mut self, name: &str, numbers: Option<Vec<f32>>, device: &Device) {
        let weight = Weight::Dense(self.weight.base_value());
        for adapter in self.adapters.iter_mut().filter(|adapter| adapter.name == name) {
            let value = match &numbers {
                Some(numbers) => vector(numbers.clone(), device),
                None => adapter.norm(&weight, &column_squares(weight.dense())),
            };
            let value = Parameter::new(value);
            adapter.magnitude = Some(Magnitude { value, norm: OnceLock::new(), merged: None });
        }
    }

    /// Begins to sum up the inputs that the forward pass gives this layer, or stops it.
    pub fn watch_inputs(&mut self, on: bool) {
        self.watched = on.then(InputSums::default);
    }

    /// Whether inputs are being summed up.
    pub fn is_watched(&self) -> bool {
        self.watched.is_some()
    }

    /// The first `count` directions along which the watched inputs vary; `None` where none were met, since
    /// an earlier layer with the same input met them.
    pub fn input_directions(&self, count: usize) -> Option<InputDirections> {
        self.watched.as_ref()?.directions(count)
    }

    /// Replaces A of adapter `name`.
    ///
    /// # Shapes
    /// - directions: `[rank, d_in]`, row-major; A gets them as its columns
    ///
    /// # Panics
    /// If there are fewer numbers than A has.
    pub fn set_a(&mut self, name: &str, directions: &[f32], device: &Device) {
        for adapter in self.adapters.iter_mut().filter(|adapter| adapter.name == name) {
            let [d_in, rank] = adapter.a.value().dims();
            let rows = TensorData::new(directions[..rank * d_in].to_vec(), [rank, d_in]);
            adapter.a.set(Tensor::<2>::from_data(rows, device).transpose());
            adapter.forget();
        }
    }

    /// Lets adapter `name` begin as what is closest to what the base, Q, has lost of `weight`, W − Q.
    ///
    /// # Shapes
    /// - weight: `[d_in, d_out]`, row-major
    ///
    /// # Panics
    /// If the slice is not as long as the shape says.
    pub fn start_as_loss(&mut self, name: &str, weight: &[f32], device: &Device) {
        let [d_in, d_out] = self.weight.dims();
        let kept = read_f32(self.weight.value());
        assert_eq!(weight.len(), kept.len(), "{}: {d_in} x {d_out} numbers", self.path);
        let pairs = weight.iter().zip(&kept);
        let lost: Vec<f64> = pairs.map(|(w, q)| f64::from(*w) - f64::from(*q)).collect();
        for adapter in self.adapters.iter_mut().filter(|adapter| adapter.name == name) {
            let [_, rank] = adapter.a.value().dims();
            let (a, b) = closest_pair(&lost, [d_in, d_out], rank, adapter.scaling);
            adapter.a.write(a, device);
            adapter.b.write(b, device);
            adapter.forget();
        }
        let decomposed = |adapter: &Adapter| adapter.name == name && adapter.magnitude.is_some();
        if self.adapters.iter().any(decomposed) {
            self.set_magnitude(name, None, device);
        }
    }

    /// Trains B alone and keeps A of adapter `name` as it is (LoRA-FA).
    pub fn freeze_a(&mut self, name: &str) {
        for adapter in self.adapters.iter_mut().filter(|adapter| adapter.name == name) {
            adapter.a.track(false);
            adapter.trains_a = false;
        }
    }

    /// `(AᵀA)⁻¹/s²` `[rank, rank]`, by B's key, where A of adapter `name` is frozen: what turns the gradient of
    /// B into the step of B that changes W most like W's own gradient would (LoRA-FA, proposition 1).
    pub fn frozen_metric(&self, name: &str) -> Option<(String, Vec<f32>)> {
        let frozen = |adapter: &&Adapter| adapter.name == name && !adapter.trains_a;
        let adapter = self.adapters.iter().find(frozen)?;
        Some((format!("{}.lora_B.weight", self.path), adapter.metric()))
    }

    /// The factors of adapter `name`, read back from the device; of one that started as a part of the base,
    /// those of twice the rank that change the base as it was: [A | A₀] and [B; −B₀].
    pub fn factor(&self, name: &str) -> Option<Factor> {
        let adapter = self.adapters.iter().find(|adapter| adapter.name == name)?;
        let LinearInfo { d_in, d_out, .. } = self.info();
        let (mut a, mut b) = (adapter.a.value().inner(), adapter.b.value().inner());
        if let Some([origin_a, origin_b]) = &adapter.origin {
            a = Tensor::cat(vec![a, origin_a.clone()], 1);
            b = Tensor::cat(vec![b, origin_b.clone().neg()], 0);
        }
        let [_, rank] = a.dims();
        let (a, b) = (read_f32(a), read_f32(b));
        Some(Factor { path: self.path.clone(), d_in, d_out, rank, a, b })
    }

    /// What adapter `name` stores beside its factors, by PEFT's names: magnitudes and biases.
    pub fn vectors(&self, name: &str) -> Vec<(String, Vec<f32>)> {
        let mut vectors = Vec::new();
        let adapter = self.adapters.iter().find(|adapter| adapter.name == name);
        if let Some(adapter) = adapter {
            if let Some(bias) = &adapter.branch_bias {
                vectors.push((format!("{}.lora_B.bias", self.path), read_f32(bias.value())));
            }
            if let Some(magnitude) = &adapter.magnitude {
                let key = format!("{}.lora_magnitude_vector", self.path);
                vectors.push((key, read_f32(magnitude.value.value())));
            }
        }
        if let Some(copy) = self.bias.as_ref().and_then(|bias| bias.copy_of(name)) {
            vectors.push((self.bias_key(adapter.is_some()), read_f32(copy)));
        }
        vectors
    }

    /// Takes adapter `name` off the layer; a merged one is unmerged first.
    pub fn detach(&mut self, name: &str) {
        if let Some(index) = self.adapters.iter().position(|adapter| adapter.name == name) {
            self.merge_share(index, 0.0);
            self.adapters.remove(index);
        }
        self.weight_mut().remove_copy(name);
        if let Some(bias) = &mut self.bias {
            bias.remove_copy(name);
        }
    }

    /// Sets how much of each adapter the layer adds; adapters that are not named are switched off. A
    /// weight-decomposed one is there as a whole or not at all, and alone.
    pub fn set_active(&mut self, shares: &[(String, f64)]) {
        for adapter in &mut self.adapters {
            let found = shares.iter().find(|(name, _)| *name == adapter.name);
            adapter.share = found.map_or(0.0, |(_, share)| *share);
        }
        // A norm is that of the weight without other updates, and no update is added to a normed one.
        let normed = |adapter: &Adapter| adapter.magnitude.is_some();
        if self.adapters.iter().any(|it| normed(it) && (it.share != 0.0 || it.merged != 0.0)) {
            for index in 0..self.adapters.len() {
                if self.adapters[index].acts() {
                    self.merge_share(index, 0.0);
                }
            }
        }
    }

    /// Says whether adapter `name` is being trained, which is when its dropout acts.
    pub fn set_training(&mut self, name: &str, on: bool) {
        for adapter in self.adapters.iter_mut().filter(|adapter| adapter.name == name) {
            adapter.training = on;
        }
    }

    /// What is trained with adapter `name`, with PEFT's keys, for the optimizer; empty where it has nothing
    /// here. Saved modules are not among it.
    pub fn factors_mut(&mut self, name: &str) -> Vec<(String, ParameterMut<'_>)> {
        let bias_key = self.bias_key(self.adapters.iter().any(|adapter| adapter.name == name));
        let path = &self.path;
        let mut factors = Vec::new();
        for adapter in self.adapters.iter_mut().filter(|adapter| adapter.name == name) {
            adapter.forget();
            if adapter.trains_a {
                let a = ParameterMut::Matrix(&mut adapter.a);
                factors.push((format!("{path}.lora_A.weight"), a));
            }
            factors.push((format!("{path}.lora_B.weight"), ParameterMut::Matrix(&mut adapter.b)));
            if let Some(bias) = &mut adapter.branch_bias {
                factors.push((format!("{path}.lora_B.bias"), ParameterMut::Vector(bias)));
            }
            if let Some(magnitude) = &mut adapter.magnitude {
                let key = format!("{path}.lora_magnitude_vector");
                factors.push((key, ParameterMut::Vector(&mut magnitude.value)));
            }
        }
        if let Some(bias) = self.bias.as_mut().filter(|bias| bias.is_active(name)) {
            factors.push((bias_key, ParameterMut::Vector(bias)));
        }
        factors
    }

    /// Weight and bias with their keys, for training the base itself.
    pub fn base_mut(&mut self) -> Vec<(String, ParameterMut<'_>)> {
        self.forget();
        let mut base =
            vec![(format!("{}.weight", self.path), ParameterMut::Matrix(&mut self.weight))];
        if let Some(bias) = &mut self.bias {
            base.push((format!("{}.bias", self.path), ParameterMut::Vector(bias)));
        }
        base
    }

    /// What PEFT calls the layer's own bias.
    fn bias_key(&self, adapted: bool) -> String {
        let inner = if adapted { ".base_layer" } else { "" };
        format!("{}{inner}.bias", self.path)
    }

    fn part_of_base(
        &self,
        adapted: &Adapted,
        config: &LoraConfig,
        seed: u64,
    ) -> (Vec<f32>, Vec<f32>) {
        let Adapted { d_in, d_out, rank, scaling, .. } = *adapted;
        let weight = read_f32(self.weight.base_value());
        part_of_weight(config.init, &weight, [d_in, d_out], rank, scaling, seed, &self.path)
    }

    /// Forgets what was computed from the weight.
    fn forget(&mut self) {
        self.squares.take();
        self.adapters.iter_mut().for_each(Adapter::forget);
    }
}
