//! One adapter of one layer: its factors, and what methods beyond plain LoRA put beside them.

use std::sync::OnceLock;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::decompose::{Svd, product, svd, transposed};
use crate::ops::{Layer, LowRank, Weight, cast, lora_linear};
use crate::parameter::{Parameter, read_f32};

/// An update of one layer.
#[derive(Debug, Clone)]
pub(super) struct Adapter {
    pub(super) name: String,
    /// `[d_in, rank]`
    pub(super) a: Parameter<2>,
    /// `[rank, d_out]`
    pub(super) b: Parameter<2>,
    /// Whether A is trained with B (LoRA-FA, Zhang et al. 2023, <https://arxiv.org/abs/2308.03303>, keeps it
    /// as it starts).
    pub(super) trains_a: bool,
    /// s: α/r or α/√r.
    pub(super) scaling: f64,
    pub(super) dropout: f64,
    /// Whether the update is being trained: inputs are dropped only then.
    pub(super) training: bool,
    /// How much of this update the forward pass adds; 0 switches it off.
    pub(super) share: f64,
    /// How much of this update stands in the weight itself.
    pub(super) merged: f64,
    /// A₀ and B₀ of a start that is a part of W: the base gives up s·A₀·B₀.
    pub(super) origin: Option<[Tensor<2>; 2]>,
    /// `[d_out]`, added to (x·A)·B before the scale.
    pub(super) branch_bias: Option<Parameter<1>>,
    pub(super) magnitude: Option<Magnitude>,
}

/// The magnitudes of a weight-decomposed adapter.
#[derive(Debug, Clone)]
pub(super) struct Magnitude {
    /// m, `[d_out]`.
    pub(super) value: Parameter<1>,
    /// ‖W + ΔW‖ of each column, kept until a factor or the weight may have changed.
    pub(super) norm: OnceLock<Tensor<1>>,
    /// m/‖W + ΔW‖ as it stands in the weight while the update is merged.
    pub(super) merged: Option<Tensor<1>>,
}

impl Adapter {
    pub(super) fn new(name: &str, [a, b]: [Parameter<2>; 2], scaling: f64, dropout: f64) -> Self {
        Self {
            name: name.to_owned(),
            a,
            b,
            trains_a: true,
            scaling,
            dropout,
            training: false,
            share: 1.0,
            merged: 0.0,
            origin: None,
            branch_bias: None,
            magnitude: None,
        }
    }

    /// The dropout that acts now.
    pub(super) fn dropout_now(&self) -> f64 {
        if self.training { self.dropout } else { 0.0 }
    }

    /// Whether the forward pass has something to do for this adapter.
    pub(super) fn acts(&self) -> bool {
        self.share != self.merged
    }

    /// `share` parts of the adapter's own pair.
    pub(super) fn own(&self, share: f64, dropout: f64) -> LowRank {
        let (a, b) = (self.a.value(), self.b.value());
        LowRank { a, b, scale: share * self.scaling, dropout }
    }

    /// `share` parts of the update, as what is added to x·W.
    pub(super) fn updates(&self, share: f64, dropout: f64) -> Vec<LowRank> {
        [self.own(share, dropout)].into_iter().chain(self.given_up(share)).collect()
    }

    /// What `share` parts of the update take out of the base.
    pub(super) fn given_up(&self, share: f64) -> Option<LowRank> {
        let [a, b] = self.origin.clone()?;
        Some(LowRank { a, b, scale: -share * self.scaling, dropout: 0.0 })
    }

    /// `share` parts of the update as one matrix, transposed: `[d_out, d_in]`.
    pub(super) fn delta(&self, share: f64) -> Tensor<2> {
        let matrix = |update: LowRank| {
            let (a, b) = (update.a.inner(), update.b.inner());
            b.transpose().matmul(a.transpose()) * update.scale
        };
        let own = matrix(self.own(share, 0.0));
        match self.given_up(share) {
            Some(given_up) => own + matrix(given_up),
            None => own,
        }
    }

    /// The weight `[d_out, d_in]` with a weight-decomposed update in it, or out of it again where `share` is 0:
    /// `m/‖W + ΔW‖·(W + ΔW)` row by row. A row of magnitude zero is lost.
    pub(super) fn normed(&mut self, weight: Tensor<2>, share: f64) -> Tensor<2> {
        let delta = self.delta(1.0);
        let Some(magnitude) = &mut self.magnitude else { return weight };
        if share == 0.0 {
            return match magnitude.merged.take() {
                Some(gain) => weight / gain.unsqueeze_dim(1) - delta,
                None => weight,
            };
        }
        let sum = weight + delta;
        let norm = root(column_squares(sum.clone().transpose()));
        let gain = magnitude.value.value().inner() / norm;
        magnitude.merged = Some(gain.clone());
        sum * gain.unsqueeze_dim(1)
    }

    /// `(AᵀA)⁻¹/s²`, `[rank, rank]`.
    pub(super) fn metric(&self) -> Vec<f32> {
        let [d_in, rank] = self.a.value().dims();
        let a: Vec<f64> = read_f32(self.a.value()).into_iter().map(f64::from).collect();
        let turned = transposed(&a, d_in, rank);
        let mut gram = product(&turned, &a, rank, d_in, rank);
        // As PEFT does it: directions that A hardly has would otherwise get a step without bounds.
        gram.iter_mut().step_by(rank + 1).for_each(|value| *value += 1e-8);
        let Svd { u, s, vt } = svd(&gram, rank, rank);
        let square = self.scaling * self.scaling;
        let scaled = vt.iter().enumerate().map(|(at, value)| value / (s[at / rank] * square));
        let scaled: Vec<f64> = scaled.collect();
        let inverse = product(
            &transposed(&scaled, rank, rank),
            &transposed(&u, rank, rank),
            rank,
            rank,
            rank,
        );
        inverse.into_iter().map(|value| value as f32).collect()
    }

    /// Forgets what was computed from numbers that may now change.
    pub(super) fn forget(&mut self) {
        if let Some(magnitude) = &mut self.magnitude {
            magnitude.norm.take();
        }
    }

    /// ‖W + ΔW‖ of each column, `[d_out]`, without forming ΔW:
    /// ‖wⱼ + Δⱼ‖² = ‖wⱼ‖² + 2·wⱼ·Δⱼ + ‖Δⱼ‖² with wⱼ·Δⱼ = bⱼ·(Aᵀ·W)ⱼ and ‖Δⱼ‖² = bⱼ·(AᵀA·b)ⱼ.
    ///
    /// # Shapes
    /// - weight: `[d_in, d_out]`
    /// - squares: ‖wⱼ‖², `[1, d_out]`, f32
    pub(super) fn norm(&self, weight: &Weight, squares: &Tensor<2>) -> Tensor<1> {
        let updates = self.updates(1.0, 0.0);
        let a = Tensor::cat(updates.iter().map(|it| it.a.clone().inner()).collect(), 1);
        let b = Tensor::cat(updates.iter().map(|it| it.b.clone().inner() * it.scale).collect(), 0);
        let plain = Layer { weight: weight.inner(), bias: None, low_rank: Vec::new() };
        let along = lora_linear(a.clone().transpose(), &[plain]); // [r, d_out]
        let gram = a.clone().transpose().matmul(a); // [r, r]
        let more = (b.clone() * (along * 2.0 + gram.matmul(b))).sum_dim(0);
        root(squares.clone() + more)
    }
}

/// ‖wⱼ‖² of each column of `[d_in, d_out]`, `[1, d_out]`, f32.
pub(super) fn column_squares(weight: Tensor<2>) -> Tensor<2> {
    let weight = cast(weight.inner(), DType::F32);
    (weight.clone() * weight).sum_dim(0)
}

/// √ of `[1, d_out]`, as `[d_out]`; a column of zeros has a length that can be divided by.
pub(super) fn root(squares: Tensor<2>) -> Tensor<1> {
    let count = squares.dims()[1];
    squares.clamp_min(1e-36).sqrt().reshape([count])
}

/// A tensor of these numbers.
pub(super) fn vector(numbers: Vec<f32>, device: &Device) -> Tensor<1> {
    let count = numbers.len();
    Tensor::from_data(TensorData::new(numbers, [count]), device)
}
