//! What varies between the decoders we run: modules, sizes, biases, positions, windows, caps.
//!
//! A model family (`families/`) turns a `config.json` into this; the decoder reads nothing else.

use lora_core::ops::{Activation, Scores};

use crate::decoder_layout::tensor_layout;
use crate::encoder::EncoderConfig;
use crate::modules::Modules;

/// Shape and variations of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// `model_type` of the checkpoint.
    pub model_type: String,
    /// What the decoder is made of.
    pub modules: &'static Modules,
    /// Number of tokens in the vocabulary, as rows of the embedding.
    pub vocab_size: usize,
    /// Model width d.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves a group of query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// ε of the norms.
    pub norm_epsilon: f64,
    /// Rotary position embedding, where the positions are not learned.
    pub rope: RopeConfig,
    /// Another one for the blocks with a window.
    pub local_rope: Option<RopeConfig>,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Factor of the embeddings.
    pub embedding_scale: f64,
    /// Factor of a query with a key, where it is not 1/√head_dim.
    pub query_scale: Option<f64>,
    /// Soft cap on the attention's scores.
    pub score_cap: Option<f64>,
    /// Soft cap on the logits.
    pub logit_cap: Option<f64>,
    /// The output head is the embedding, transposed.
    pub tie_word_embeddings: bool,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub output_bias: bool,
    /// Biases on the feed-forward projections.
    pub mlp_bias: bool,
    /// Per block: how many tokens back attention reaches, the token itself included; `None` is all.
    pub windows: Vec<Option<usize>>,
    /// What an encoder has more.
    pub encoder: Option<EncoderConfig>,
}

/// Rotary position embedding (Su et al. 2021, <https://arxiv.org/abs/2104.09864>).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
}

/// Changes of the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Every frequency divided by a factor (position interpolation).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided, high ones kept, a smooth passage between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above original / this are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below original / this are high frequencies.
        high_freq_factor: f64,
        /// Context length before scaling.
        original_max_position_embeddings: f64,
    },
    /// A divisor for every frequency, as GGUF files carry them.
    Factors(Vec<f64>),
}

impl DecoderConfig {
    /// Number of parameters of the base model.
    pub fn parameter_count(&self) -> u64 {
        let count = |shape: &[usize]| shape.iter().map(|side| *side as u64).product::<u64>();
        tensor_layout(self).iter().map(|(_, shape)| count(shape)).sum()
    }

    /// How a query and a key become a score.
    pub fn scores(&self) -> Scores {
        let scale = self.query_scale.unwrap_or_else(|| 1.0 / (self.head_dim as f64).sqrt());
        Scores { scale, cap: self.score_cap }
    }

    /// The longest sequence that the model can read at all, where its positions are learned.
    pub fn position_limit(&self) -> Option<usize> {
        let unused = self.encoder.as_ref().map_or(0, |encoder| encoder.first_position);
        self.modules.positions.map(|_| self.max_position_embeddings.saturating_sub(unused))
    }
}

impl RopeConfig {
    /// Inverse frequencies, one per pair of dimensions, in f32 as the reference computes them.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let base = (0..head_dim / 2).map(|index| {
            let exponent = (2 * index) as f32 / head_dim as f32;
            1.0 / (self.theta as f32).powf(exponent)
        });
        match &self.scaling {
            RopeScaling::Default => base.collect(),
            RopeScaling::Linear { factor } => base.map(|f| f / *factor as f32).collect(),
            RopeScaling::Factors(factors) => {
                base.zip(factors).map(|(f, divisor)| f / *divisor as f32).collect()
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            } => base
                .map(|frequency| {
                    let wavelength = std::f64::consts::TAU / f64::from(frequency);
                    if wavelength < original / high_freq_factor {
                        frequency
                    } else if wavelength > original / low_freq_factor {
                        frequency / *factor as f32
                    } else {
                        let smooth = (original / wavelength - low_freq_factor)
                            / (high_freq_factor - low_freq_factor);
                        let scaled = f64::from(frequency) / factor;
                        ((1.0 - smooth) * scaled + smooth * f64::from(frequency)) as f32
                    }
                })
                .collect(),
        }
    }
}
