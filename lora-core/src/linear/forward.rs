//! The forward pass of adapted layers, in activation space.

use burn::tensor::{DType, Tensor};

use super::LoraLinear;
use super::adapter::{Adapter, Magnitude, column_squares};
use crate::ops::{self, cast};
use crate::parameter::Parameter;

impl LoraLinear {
    /// `y = x·W + b + Σ share·s·(dropout(x)·A)·B` over the active adapters; of a weight-decomposed one
    /// `y = b + m/‖W + s·A·B‖·(x·W + s·(x·A)·B)`, where the norm of each column is a constant of the
    /// backward pass.
    ///
    /// Dropout acts on the low-rank branch alone, and only while that branch is trained. It draws from
    /// the device's generator: seed the device to repeat it.
    ///
    /// # Shapes
    /// - x: `[n, d_in]`, in the compute format
    /// - output: `[n, d_out]`, in the same
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        Self::forward_together(&[self], x)
    }

    /// The outputs of several layers on one input, side by side: as [`Self::forward`] of each, in one pass.
    ///
    /// # Shapes
    /// - x: `[n, d_in]`, in the compute format
    /// - output: `[n, d_out of all layers]`, in the same
    pub fn forward_together(layers: &[&Self], x: Tensor<2>) -> Tensor<2> {
        // They share the input, and the first of them remembers it for all.
        if let Some(watched) = layers.iter().find_map(|layer| layer.watched.as_ref()) {
            watched.add(&x);
        }
        if layers.iter().all(|layer| layer.decomposed().is_none()) {
            let layers: Vec<ops::Layer> = layers.iter().map(|layer| layer.layer()).collect();
            return ops::lora_linear(x, &layers);
        }
        let outputs = layers.iter().map(|layer| match layer.decomposed() {
            Some((adapter, magnitude)) => layer.forward_decomposed(adapter, magnitude, x.clone()),
            None => ops::lora_linear(x.clone(), &[layer.layer()]),
        });
        let mut outputs: Vec<Tensor<2>> = outputs.collect();
        match outputs.len() {
            1 => outputs.remove(0),
            _ => Tensor::cat(outputs, 1),
        }
    }

    /// The weight-decomposed adapter that acts, if one does.
    fn decomposed(&self) -> Option<(&Adapter, &Magnitude)> {
        let adapter = self.adapters.iter().find(|it| it.magnitude.is_some() && it.acts())?;
        Some((adapter, adapter.magnitude.as_ref()?))
    }

    fn forward_decomposed(
        &self,
        adapter: &Adapter,
        magnitude: &Magnitude,
        x: Tensor<2>,
    ) -> Tensor<2> {
        let dtype = x.dtype();
        let norm = magnitude.norm.get_or_init(|| {
            let squares = self.squares.get_or_init(|| column_squares(self.weight.value()));
            adapter.norm(&self.weight.weight(), squares)
        });
        let gain = magnitude.value.value() / norm.clone(); // [d_out]
        let bias = self.bias.as_ref().map(Parameter::value);
        let layer = |low_rank| ops::Layer { weight: self.weight.weight(), bias: None, low_rank };
        if adapter.dropout_now() == 0.0 {
            let y = ops::lora_linear(x, &[layer(adapter.updates(1.0, 0.0))]);
            let y = y * cast(gain, dtype).unsqueeze();
            return match bias {
                Some(bias) => y + cast(bias, dtype).unsqueeze(),
                None => y,
            };
        }
        // What the base computes is that of the whole input; what the adapter adds to it, that of the
        // dropped one: y = W(x) + (g − 1)·W(x') + g·s·(x'·A)·B, with W the base less what it gave up.
        let base = |bias| ops::Layer { bias, ..layer(adapter.given_up(1.0).into_iter().collect()) };
        let rest = cast(ops::dropped(cast(x.clone(), DType::F32), adapter.dropout_now()), dtype);
        let low_rank = adapter.own(1.0, 0.0).forward(rest.clone());
        let of_rest = ops::lora_linear(rest, &[base(None)]);
        let gain = cast(gain, dtype).unsqueeze();
        let added = (of_rest.clone() + low_rank) * gain - of_rest;
        ops::lora_linear(x, &[base(bias)]) + added
    }

    fn layer(&self) -> ops::Layer {
        let mut bias = self.bias.as_ref().map(Parameter::value);
        let mut low_rank = Vec::new();
        for adapter in &self.adapters {
            if adapter.acts() {
                let share = adapter.share - adapter.merged;
                low_rank.extend(adapter.updates(share, adapter.dropout_now()));
            }
            // Where the layer has no bias of its own, there is nothing to merge the branch's into.
            let merged = if self.bias.is_some() { adapter.merged } else { 0.0 };
            let share = adapter.share - merged;
            if let Some(branch) = adapter.branch_bias.as_ref().filter(|_| share != 0.0) {
                let more = branch.value() * (share * adapter.scaling);
                bias = Some(match bias {
                    Some(bias) => cast(bias, DType::F32) + more,
                    None => more,
                });
            }
        }
        ops::Layer { weight: self.weight.weight(), bias, low_rank }
    }
}
