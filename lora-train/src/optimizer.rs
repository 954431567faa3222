//! AdamW with decoupled weight decay (Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>,
//! algorithm 2), in one fused pass over all trainable tensors, and LoRA+ (Hayou et al. 2024,
//! <https://arxiv.org/abs/2402.12354>): B learns λ times as fast as A. Where A is frozen (LoRA-FA, Zhang et al.
//! 2023, <https://arxiv.org/abs/2308.03303>), the gradient of B becomes `(AᵀA)⁻¹·g/s²`, of all steps of B the one
//! that changes W most like W's own gradient would.
//!
//! State and arithmetic are f32 on the host, so that a run gives the same adapter on every machine that
//! gives the same gradients.

use lora_core::adamw::{Update, sum_of_squares};
use lora_models::{Decoder, Trainable};

use crate::recipe::TrainSettings;

/// First and second moment of one tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments {
    /// Key of the tensor.
    pub key: String,
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

/// The optimizer and its state.
#[derive(Debug, Clone)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    decay_vectors: bool,
    clip_norm: Option<f64>,
    lora_plus_ratio: f64,
    /// `(AᵀA)⁻¹/s²` of each B whose A is frozen, by B's key.
    pub(crate) metrics: Vec<(String, Vec<f32>)>,
    /// Updates done.
    pub steps: usize,
    /// In the decoder's order of trainable tensors; empty before the first update.
    pub moments: Vec<Moments>,
}

impl AdamW {
    /// A fresh optimizer.
    pub fn new(settings: &TrainSettings) -> Self {
        Self {
            beta1: settings.beta1,
            beta2: settings.beta2,
            epsilon: settings.epsilon,
            weight_decay: settings.weight_decay,
            decay_vectors: settings.decay_vectors,
            clip_norm: settings.clip_norm,
            lora_plus_ratio: settings.lora_plus_ratio,
            metrics: Vec::new(),
            steps: 0,
            moments: Vec::new(),
        }
    }

    /// Changes every trainable tensor by its gradient; `norm` is that of all of them, [`global_norm`], by which they
    /// are clipped.
    ///
    /// Norm weights, biases and magnitudes are not decayed unless the settings say so. LoRA+ is about B and,
    /// as PEFT groups them, about vectors.
    pub fn update(
        &mut self,
        decoder: &mut Decoder,
        trainable: &Trainable,
        gradients: &[Option<Vec<f32>>],
        norm: f64,
        learning_rate: f64,
    ) {
        // As torch.nn.utils.clip_grad_norm_ does it, its 1e-6 included.
        let clip = self.clip_norm.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0));
        self.steps += 1;
        let device = decoder.device().clone();
        let mut parameters = decoder.trainable_mut(trainable);
        if self.moments.len() != parameters.len() {
            let fresh = |(key, parameter): &(String, lora_core::parameter::ParameterMut<'_>)| {
                let zeros = vec![0.0; parameter.count()];
                Moments { key: key.clone(), first: zeros.clone(), second: zeros }
            };
            self.moments = parameters.iter().map(fresh).collect();
        }
        let correction1 = 1.0 - self.beta1.powi(self.steps as i32);
        let correction2 = 1.0 - self.beta2.powi(self.steps as i32);
        for (((key, parameter), moments), gradient) in
            parameters.iter_mut().zip(&mut self.moments).zip(gradients)
        {
            let zeros;
            let gradient = match gradient {
                Some(gradient) => gradient,
                None => {
                    zeros = vec![0.0; parameter.count()];
                    &zeros
                }
            };
            let metric = self.metrics.iter().find(|(of, _)| of == key);
            let turned = metric.map(|(_, metric)| turned(metric, gradient));
            let gradient = turned.as_ref().unwrap_or(gradient);
            let is_vector = parameter.shape().len() == 1;
            let is_faster = is_vector || key.ends_with("lora_B.weight");
            let rate = learning_rate * if is_faster { self.lora_plus_ratio } else { 1.0 };
            let is_kept = is_vector && !self.decay_vectors;
            let decay = if is_kept { 0.0 } else { self.weight_decay };
            let update = Update {
                keep: (1.0 - rate * decay) as f32,
                clip: clip as f32,
                betas: [self.beta1 as f32, self.beta2 as f32],
                one_minus_betas: [(1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32],
                step_size: (rate / correction1) as f32,
                bias_correction2_sqrt: correction2.sqrt() as f32,
                epsilon: self.epsilon as f32,
            };
            let mut numbers = parameter.read();
            update.apply(&mut numbers, [&mut moments.first, &mut moments.second], gradient);
            parameter.write(numbers, &device);
        }
    }
}

/// `M·g` for M `[r, r]` and g `[r, d_out]`.
fn turned(metric: &[f32], gradient: &[f32]) -> Vec<f32> {
    let rank = (metric.len() as f64).sqrt().round() as usize;
    let width = gradient.len() / rank.max(1);
    let mut out = vec![0.0; gradient.len()];
    for (out, row) in out.chunks_exact_mut(width).zip(metric.chunks_exact(rank)) {
        for (factor, gradient) in row.iter().zip(gradient.chunks_exact(width)) {
            out.iter_mut().zip(gradient).for_each(|(out, gradient)| *out += factor * gradient);
        }
    }
    out
}

/// √Σg² over all tensors, summed in f64.
pub fn global_norm(gradients: &[Option<Vec<f32>>]) -> f64 {
    gradients.iter().flatten().map(|gradient| sum_of_squares(gradient)).sum::<f64>().sqrt()
}
