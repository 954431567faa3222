//! The adapted linear layer, the one place where the method lives.
//!
//! `y = x·W + s·(x·A)·B` (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>, equation 3), computed in
//! activation space: no tensor of W's shape is formed for ΔW = s·A·B, neither forward nor backward. The
//! backward pass is `dX = dY·Wᵀ + s·(dY·Bᵀ)·Aᵀ`, `dB = s·(x·A)ᵀ·dY`, `dA = s·xᵀ·(dY·Bᵀ)`.

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::config::Init;
use crate::init::init_pair;
use crate::ops::{self, cast};
use crate::parameter::{Parameter, ParameterMut, read_f32};
use crate::peft::Factor;
use crate::target::{Adapted, LinearInfo};

/// A linear layer with a base weight and any number of named low-rank adapters.
#[derive(Debug, Clone)]
pub struct LoraLinear {
    path: String,
    is_output_head: bool,
    /// `[d_in, d_out]`; on disk and in memory the rows of the transpose come one after another.
    weight: Parameter<2>,
    bias: Option<Parameter<1>>,
    adapters: Vec<Adapter>,
}

/// One low-rank update of one layer.
#[derive(Debug, Clone)]
struct Adapter {
    name: String,
    /// `[d_in, rank]`
    a: Parameter<2>,
    /// `[rank, d_out]`
    b: Parameter<2>,
    /// s: α/r or α/√r.
    scaling: f64,
    dropout: f64,
    /// Whether the update is being trained: inputs are dropped only then.
    training: bool,
    /// How much of this update the forward pass adds; 0 switches it off.
    share: f64,
    /// How much of this update stands in the weight itself.
    merged: f64,
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
        Self {
            path: path.into(),
            is_output_head: false,
            weight: Parameter::new(weight),
            bias: bias.map(Parameter::new),
            adapters: Vec::new(),
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
        let [d_in, d_out] = self.weight.value().dims();
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

    /// Whether the forward pass adds a low-rank branch or anything here is being trained.
    pub fn is_plain(&self) -> bool {
        self.bias.is_none()
            && !self.weight.is_tracked()
            && self.adapters.iter().all(|adapter| adapter.share == 0.0)
    }

    /// `y = x·W + b + Σ share·s·(dropout(x)·A)·B` over the active adapters.
    ///
    /// Dropout acts on the low-rank branch alone, and only while that branch is trained. It draws from
    /// the device's generator: seed the device to repeat it.
    ///
    /// # Shapes
    /// - x: `[n, d_in]`, in the compute format
    /// - output: `[n, d_out]`, in the same
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::lora_linear(x, &[self.layer()])
    }

    /// The outputs of several layers on one input, side by side: as [`Self::forward`] of each, in one pass.
    ///
    /// # Shapes
    /// - x: `[n, d_in]`, in the compute format
    /// - output: `[n, d_out of all layers]`, in the same
    pub fn forward_together(layers: &[&Self], x: Tensor<2>) -> Tensor<2> {
        let layers: Vec<ops::Layer> = layers.iter().map(|layer| layer.layer()).collect();
        ops::lora_linear(x, &layers)
    }

    fn layer(&self) -> ops::Layer {
        let low_rank = self.adapters.iter().filter_map(|adapter| {
            let share = adapter.share - adapter.merged;
            (share != 0.0).then(|| ops::LowRank {
                a: adapter.a.value(),
                b: adapter.b.value(),
                scale: share * adapter.scaling,
                dropout: if adapter.training { adapter.dropout } else { 0.0 },
            })
        });
        ops::Layer {
            weight: self.weight.value(),
            bias: self.bias.as_ref().map(Parameter::value),
            low_rank: low_rank.collect(),
        }
    }

    /// Adds the adapter `name`, freshly initialised so that the output does not change.
    pub fn attach(
        &mut self,
        name: &str,
        adapted: &Adapted,
        dropout: f64,
        init: Init,
        seed: u64,
        device: &Device,
    ) {
        let Adapted { d_in, d_out, rank, .. } = *adapted;
        let (a, b) = init_pair(init, d_in, d_out, rank, seed, &self.path);
        let factor = Factor { path: self.path.clone(), d_in, d_out, rank, a, b };
        self.attach_factor(name, &factor, adapted.scaling, dropout, device);
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
        let b = TensorData::new(factor.b.clone(), [factor.rank, factor.d_out]);
        self.adapters.push(Adapter {
            name: name.to_owned(),
            a: Parameter::new(Tensor::from_data(a, device)),
            b: Parameter::new(Tensor::from_data(b, device)),
            scaling,
            dropout,
            training: false,
            share: 1.0,
            merged: 0.0,
        });
    }

    /// The factors of adapter `name`, read back from the device.
    pub fn factor(&self, name: &str) -> Option<Factor> {
        let adapter = self.adapters.iter().find(|adapter| adapter.name == name)?;
        let LinearInfo { d_in, d_out, .. } = self.info();
        let [_, rank] = adapter.a.value().dims();
        Some(Factor {
            path: self.path.clone(),
            d_in,
            d_out,
            rank,
            a: read_f32(adapter.a.value()),
            b: read_f32(adapter.b.value()),
        })
    }

    /// Takes adapter `name` off the layer; a merged one is unmerged first.
    pub fn detach(&mut self, name: &str) {
        if let Some(index) = self.adapters.iter().position(|adapter| adapter.name == name) {
            self.merge_share(index, 0.0);
            self.adapters.remove(index);
        }
        self.weight.remove_copy(name);
        if let Some(bias) = &mut self.bias {
            bias.remove_copy(name);
        }
    }

    /// Sets how much of each adapter the layer adds; adapters that are not named are switched off.
    pub fn set_active(&mut self, shares: &[(String, f64)]) {
        for adapter in &mut self.adapters {
            let found = shares.iter().find(|(name, _)| *name == adapter.name);
            adapter.share = found.map_or(0.0, |(_, share)| *share);
        }
    }

    /// Says whether adapter `name` is being trained, which is when its dropout acts.
    pub fn set_training(&mut self, name: &str, on: bool) {
        for adapter in self.adapters.iter_mut().filter(|adapter| adapter.name == name) {
            adapter.training = on;
        }
    }

    /// Adds the active updates to the weight itself: `W ← W + share·s·A·B`. The forward pass then costs
    /// what the base costs.
    pub fn merge(&mut self) {
        for index in 0..self.adapters.len() {
            self.merge_share(index, self.adapters[index].share);
        }
    }

    /// Takes merged updates out of the weight again, up to rounding.
    pub fn unmerge(&mut self) {
        for index in 0..self.adapters.len() {
            self.merge_share(index, 0.0);
        }
    }

    /// The factors of adapter `name` with their keys, for the optimizer; empty where it has none here.
    pub fn factors_mut(&mut self, name: &str) -> Vec<(String, ParameterMut<'_>)> {
        let path = &self.path;
        let mut factors = Vec::new();
        for adapter in self.adapters.iter_mut().filter(|adapter| adapter.name == name) {
            factors.push((format!("{path}.lora_A.weight"), ParameterMut::Matrix(&mut adapter.a)));
            factors.push((format!("{path}.lora_B.weight"), ParameterMut::Matrix(&mut adapter.b)));
        }
        factors
    }

    /// Weight and bias with their keys, for training the base itself.
    pub fn base_mut(&mut self) -> Vec<(String, ParameterMut<'_>)> {
        let mut base =
            vec![(format!("{}.weight", self.path), ParameterMut::Matrix(&mut self.weight))];
        if let Some(bias) = &mut self.bias {
            base.push((format!("{}.bias", self.path), ParameterMut::Vector(bias)));
        }
        base
    }

    fn merge_share(&mut self, index: usize, share: f64) {
        let adapter = &mut self.adapters[index];
        let change = share - adapter.merged;
        if change == 0.0 {
            return;
        }
        // The transposed sum keeps the weight's rows where the matmul reads them fastest.
        let (a, b) = (adapter.a.value().inner(), adapter.b.value().inner());
        let delta = b.transpose().matmul(a.transpose()) * (change * adapter.scaling);
        adapter.merged = share;
        let weight = self.weight.value().inner();
        let dtype = weight.dtype();
        let merged = cast(weight, DType::F32).transpose() + delta;
        self.weight.set(cast(merged, dtype).transpose());
    }
}
