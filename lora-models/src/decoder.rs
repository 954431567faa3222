//! The one decoder: embedding, blocks of attention and gated feed-forward, norm, output head.
//!
//! Training, evaluation and generation run this forward pass and no other. Families differ by
//! [`DecoderConfig`] alone. Activations are `[n, d]` with n = rows × columns; only attention looks at
//! rows and columns.

use burn::tensor::{Device, Tensor};
use lora_core::linear::LoraLinear;
use lora_core::ops::{self, Stream, cast};
use lora_core::parameter::{Parameter, ParameterMut};
use lora_core::placement::Placement;
use lora_core::table::{Part, Table};

use crate::attention::{Attention, Context};
use crate::decoder_adapters::AttachedAdapter;
use crate::decoder_config::DecoderConfig;
use crate::kv_cache::KvCache;

/// Path of the embedding in a checkpoint.
pub(crate) const EMBEDDING: &str = "model.embed_tokens";
/// Path of the last norm in a checkpoint.
pub(crate) const LAST_NORM: &str = "model.norm";
/// Path of the output head in a checkpoint.
pub(crate) const HEAD: &str = "lm_head";

/// A batch of token sequences, one after another.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Input {
    /// Number of sequences b.
    pub rows: usize,
    /// Length of each t.
    pub columns: usize,
    /// Token numbers, `[b, t]`.
    pub tokens: Vec<i32>,
    /// Position of each token in its document, `[b, t]`.
    pub positions: Vec<i32>,
    /// Document of each token, `[b, t]`; attention never crosses documents. The tokens of one lie next to
    /// each other.
    pub documents: Vec<i32>,
}

impl Input {
    /// One sequence of one document, its first token at position `start`.
    pub fn single(tokens: &[u32], start: usize) -> Self {
        Self {
            rows: 1,
            columns: tokens.len(),
            tokens: tokens.iter().map(|token| *token as i32).collect(),
            positions: (start..start + tokens.len()).map(|position| position as i32).collect(),
            documents: vec![0; tokens.len()],
        }
    }
}

/// A decoder-only language model with its adapters.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub(crate) config: DecoderConfig,
    pub(crate) placement: Placement,
    pub(crate) embed_tokens: Table,
    pub(crate) layers: Vec<Block>,
    pub(crate) norm: RmsNorm,
    /// `None` while the head is the embedding, transposed, or in parts.
    pub(crate) lm_head: Option<LoraLinear>,
    /// A head of its own that the device does not take in one buffer: frozen.
    pub(crate) head_parts: Option<Table>,
    pub(crate) adapters: Vec<AttachedAdapter>,
}

/// One block: attention and feed-forward, each on a normed input and added to the stream.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) input_layernorm: RmsNorm,
    pub(crate) self_attn: Attention,
    pub(crate) post_attention_layernorm: RmsNorm,
    pub(crate) mlp: Mlp,
}

/// `down(silu(gate(x)) · up(x))` (Shazeer 2020, <https://arxiv.org/abs/2002.05202>).
#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    pub(crate) gate_proj: LoraLinear,
    pub(crate) up_proj: LoraLinear,
    pub(crate) down_proj: LoraLinear,
}

/// `x / √(mean(x²) + ε) · w` (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>).
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    pub(crate) path: String,
    pub(crate) weight: Parameter<1>,
    pub(crate) epsilon: f64,
}

impl Decoder {
    /// Shape and variations.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The device the weights are on.
    pub fn device(&self) -> &Device {
        &self.placement.device
    }

    /// Device, number formats and limits.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Hidden states after the last norm.
    ///
    /// With a cache, `input` continues the one row that the cache holds.
    ///
    /// # Shapes
    /// - output: `[b·t, d]`
    pub fn forward(&self, input: &Input, mut cache: Option<&mut KvCache>) -> Tensor<2> {
        let context = self.context(input, cache.as_deref());
        let mut x = self.embed(input);
        for index in 0..self.layers.len() {
            x = self.forward_block(index, x, &context, cache.as_deref_mut());
        }
        if let Some(cache) = cache {
            cache.advance(input.columns);
        }
        self.last_norm(x)
    }

    /// What all blocks share for this input: rotary tables and attention masks.
    pub fn context(&self, input: &Input, cache: Option<&KvCache>) -> Context {
        Context::new(&self.config, input, cache.map_or(0, KvCache::len), &self.placement)
    }

    /// Embeddings of the tokens, `[b·t, d]`, in the compute format.
    pub fn embed(&self, input: &Input) -> Tensor<2> {
        let embedded = self.embed_tokens.select(&input.tokens, self.device());
        cast(embedded, self.placement.compute)
    }

    /// Number of blocks.
    pub fn block_count(&self) -> usize {
        self.layers.len()
    }

    /// Block `index` on the stream, `[b·t, d]` to `[b·t, d]`.
    pub fn forward_block(
        &self,
        index: usize,
        x: Tensor<2>,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let block = &self.layers[index];
        let (normed, stream) = block.input_layernorm.before(x);
        let window = self.config.windows[index];
        let x = stream.sum(block.self_attn.forward(normed, context, window, index, cache));
        let (normed, stream) = block.post_attention_layernorm.before(x);
        stream.sum(block.mlp.forward(normed))
    }

    /// The norm after the last block.
    pub fn last_norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.norm.forward(x)
    }

    /// Logits, `[n, d]` to `[n, v]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => self.table_of_head().logits(&hidden),
        }
    }

    /// The head's rows `[v, d]`, in parts, where nothing on it is adapted or trained.
    pub fn frozen_head(&self) -> Option<Vec<Part>> {
        match &self.lm_head {
            Some(head) => head.is_plain().then(|| {
                let rows = head.weight().value().transpose();
                vec![Part { start: 0, rows }]
            }),
            None if self.table_of_head().is_tracked() => None,
            None => Some(self.table_of_head().parts()),
        }
    }

    /// The head where it is no layer of its own.
    fn table_of_head(&self) -> &Table {
        self.head_parts.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// The adaptable linear layers, in the order of the model; the head comes last.
    pub fn linears_mut(&mut self) -> Vec<&mut LoraLinear> {
        let mut linears = Vec::new();
        for block in &mut self.layers {
            let attention = &mut block.self_attn;
            linears.push(&mut attention.q_proj);
            linears.push(&mut attention.k_proj);
            linears.push(&mut attention.v_proj);
            linears.push(&mut attention.o_proj);
            linears.push(&mut block.mlp.gate_proj);
            linears.push(&mut block.mlp.up_proj);
            linears.push(&mut block.mlp.down_proj);
        }
        linears.extend(self.lm_head.as_mut());
        linears
    }

    /// As [`Self::linears_mut`], to look at.
    pub fn linears(&self) -> Vec<&LoraLinear> {
        let mut linears = Vec::new();
        for block in &self.layers {
            let (attention, mlp) = (&block.self_attn, &block.mlp);
            linears.extend([
                &attention.q_proj,
                &attention.k_proj,
                &attention.v_proj,
                &attention.o_proj,
                &mlp.gate_proj,
                &mlp.up_proj,
                &mlp.down_proj,
            ]);
        }
        linears.extend(self.lm_head.as_ref());
        linears
    }

    /// Every weight of the base model that can be trained, with its checkpoint key; matrices are `[d_in, d_out]`, the
    /// embedding is `[v, d]`.
    pub fn base_parameters_mut(&mut self) -> Vec<(String, ParameterMut<'_>)> {
        let embedding = self.embed_tokens.whole_mut().map(ParameterMut::Matrix);
        let mut all: Vec<_> =
            embedding.map(|table| (format!("{EMBEDDING}.weight"), table)).into_iter().collect();
        for block in &mut self.layers {
            all.push(block.input_layernorm.parameter_mut());
            let attention = &mut block.self_attn;
            all.extend(attention.q_proj.base_mut());
            all.extend(attention.k_proj.base_mut());
            all.extend(attention.v_proj.base_mut());
            all.extend(attention.o_proj.base_mut());
            all.extend(attention.q_norm.as_mut().map(RmsNorm::parameter_mut));
            all.extend(attention.k_norm.as_mut().map(RmsNorm::parameter_mut));
            all.push(block.post_attention_layernorm.parameter_mut());
            all.extend(block.mlp.gate_proj.base_mut());
            all.extend(block.mlp.up_proj.base_mut());
            all.extend(block.mlp.down_proj.base_mut());
        }
        all.push(self.norm.parameter_mut());
        if let Some(head) = &mut self.lm_head {
            all.extend(head.base_mut());
        }
        all
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let gate_up = LoraLinear::forward_together(&[&self.gate_proj, &self.up_proj], x);
        self.down_proj.forward(ops::swiglu(gate_up))
    }
}

impl RmsNorm {
    pub(crate) fn new(path: String, weight: Tensor<1>, epsilon: f64) -> Self {
        Self { path, weight: Parameter::new(weight), epsilon }
    }

    /// Normalises the last dimension, `[.., d]`.
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::rms_norm(x, self.weight.value(), self.epsilon)
    }

    /// Normalises a stream, `[n, d]`, before a part of a block; gives the stream too.
    fn before(&self, x: Tensor<2>) -> (Tensor<2>, Stream) {
        ops::norm_stream(x, self.weight.value(), self.epsilon)
    }

    fn parameter_mut(&mut self) -> (String, ParameterMut<'_>) {
        (format!("{}.weight", self.path), ParameterMut::Vector(&mut self.weight))
    }
}
