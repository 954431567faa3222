//! What varies between the decoders we run: sizes, norms, biases, positions, windows.
//!
//! A model family (`families/`) turns a `config.json` into this; the decoder reads nothing else.

/// Shape and variations of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// `model_type` of the checkpoint.
    pub model_type: String,
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
    /// ε of the RMS norms.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// The output head is the embedding, transposed.
    pub tie_word_embeddings: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub output_bias: bool,
    /// Biases on the feed-forward projections.
    pub mlp_bias: bool,
    /// RMS norms on each head's queries and keys.
    pub query_key_norm: bool,
    /// Per block: how many tokens back attention reaches, the token itself included; `None` is all.
    pub windows: Vec<Option<usize>>,
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
        let d = self.hidden_size as u64;
        let query = (self.num_attention_heads * self.head_dim) as u64;
        let key = (self.num_key_value_heads * self.head_dim) as u64;
        let intermediate = self.intermediate_size as u64;
        let mut block = d * query * 2 + d * key * 2 + 3 * d * intermediate + 2 * d;
        if self.qkv_bias {
            block += query + 2 * key;
        }
        if self.output_bias {
            block += d;
        }
        if self.mlp_bias {
            block += 2 * intermediate + d;
        }
        if self.query_key_norm {
            block += 2 * self.head_dim as u64;
        }
        let embedding = self.vocab_size as u64 * d;
        let head = if self.tie_word_embeddings { 0 } else { embedding };
        embedding + head + d + block * self.num_hidden_layers as u64
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
