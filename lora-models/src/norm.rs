//! The norms of a decoder.

use burn::tensor::{DType, Tensor};
use lora_core::ops::{self, Stream, cast};
use lora_core::parameter::{Parameter, ParameterMut};

use crate::modules::NormKind;

/// One norm: by root mean square (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>) or by mean
/// and variance (Ba et al. 2016, <https://arxiv.org/abs/1607.06450>).
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    pub(crate) path: String,
    pub(crate) kind: NormKind,
    /// As the checkpoint has it, `[d]`.
    pub(crate) weight: Parameter<1>,
    pub(crate) bias: Option<Parameter<1>>,
    pub(crate) epsilon: f64,
}

impl Norm {
    /// Normalises the last dimension, `[.., d]`.
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.factor() {
            Some(factor) => ops::rms_norm(x, factor, self.epsilon),
            None => {
                let bias = self.bias.as_ref().map(Parameter::value);
                ops::layer_norm(x, self.weight.value(), bias, self.epsilon)
            }
        }
    }

    /// Normalises a stream, `[n, d]`, before a part of a block; gives the stream too.
    pub(crate) fn before(&self, x: Tensor<2>) -> (Tensor<2>, Stream) {
        match self.factor() {
            Some(factor) => ops::norm_stream(x, factor, self.epsilon),
            None => (self.forward(x.clone()), Stream::new(x)),
        }
    }

    /// What a norm by root mean square multiplies by, `[d]`.
    fn factor(&self) -> Option<Tensor<1>> {
        let weight = self.weight.value();
        match self.kind {
            NormKind::Rms => Some(weight),
            // The sum is f32: bf16 would round 1 + w to three digits.
            NormKind::RmsPlusOne => Some(cast(weight, DType::F32) + 1.0),
            NormKind::Layer => None,
        }
    }

    /// The bias with its key, while it is the copy of this adapter.
    pub(crate) fn bias_of_mut(&mut self, adapter: &str) -> Option<(String, ParameterMut<'_>)> {
        let bias = self.bias.as_mut().filter(|bias| bias.is_active(adapter))?;
        Some((format!("{}.bias", self.path), ParameterMut::Vector(bias)))
    }

    /// Weight and bias with their keys.
    pub(crate) fn parameters_mut(&mut self) -> Vec<(String, ParameterMut<'_>)> {
        let weight = ParameterMut::Vector(&mut self.weight);
        let mut all = vec![(format!("{}.weight", self.path), weight)];
        if let Some(bias) = &mut self.bias {
            all.push((format!("{}.bias", self.path), ParameterMut::Vector(bias)));
        }
        all
    }
}
