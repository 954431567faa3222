//! The one decoder: embedding, blocks of attention and feed-forward, norm, output head. An encoder is the same
//! stack with its norms elsewhere and another head (`encoder.rs`).
//!
//! Training, evaluation and generation run this forward pass and no other. Families differ by
//! [`DecoderConfig`] alone. Activations are `[n, d]` with n = rows × columns; only attention looks at
//! rows and columns.

use burn::tensor::{Device, Tensor};
use lora_core::embedding::EmbeddingAdapters;
use lora_core::linear::LoraLinear;
use lora_core::ops::{self, Activation, cast};
use lora_core::parameter::{Parameter, ParameterMut};
use lora_core::placement::Placement;
use lora_core::table::{Part, Table};

use crate::attention::{Attention, Context};
use crate::decoder_adapters::AttachedAdapter;
use crate::decoder_config::DecoderConfig;
use crate::encoder::pooled;
use crate::kv_cache::KvCache;
use crate::norm::Norm;

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
    /// Segment of each token, `[b, t]`, for encoders; empty is the first segment everywhere.
    pub segments: Vec<i32>,
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
            segments: Vec::new(),
        }
    }
}

/// A decoder-only language model, or an encoder with a classifier, with its adapters.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub(crate) config: DecoderConfig,
    pub(crate) placement: Placement,
    pub(crate) embed_tokens: Table,
    /// A vector for each position, `[positions, d]`, where they are learned.
    pub(crate) embed_positions: Option<Table>,
    /// A vector for each segment, `[segments, d]`, in an encoder.
    pub(crate) embed_segments: Option<Table>,
    /// What adapters change of the embedding.
    pub(crate) embedding_adapters: EmbeddingAdapters,
    pub(crate) layers: Vec<Block>,
    /// After the last block; in an encoder, after the embeddings.
    pub(crate) norm: Norm,
    /// The layer before an encoder's classifier.
    pub(crate) pooler: Option<LoraLinear>,
    /// The output head or an encoder's classifier; `None` while the head is the embedding, transposed, or in
    /// parts.
    pub(crate) lm_head: Option<LoraLinear>,
    /// A head of its own that the device does not take in one buffer: frozen.
    pub(crate) head_parts: Option<Table>,
    pub(crate) adapters: Vec<AttachedAdapter>,
}

/// One block: attention and feed-forward, each on a normed input and added to the stream, normed once
/// more where the model does.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) attention_norm: Norm,
    pub(crate) attention: Attention,
    pub(crate) attention_output_norm: Option<Norm>,
    pub(crate) mlp_norm: Norm,
    pub(crate) mlp: Mlp,
    pub(crate) mlp_output_norm: Option<Norm>,
}

/// `output(activation(gate(x)) · up(x))` (Shazeer 2020, <https://arxiv.org/abs/2002.05202>), or
/// `output(activation(input(x)))` without a gate.
#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    /// Gate and up, as two layers or one; the one projection where there is no gate.
    pub(crate) inputs: Vec<LoraLinear>,
    pub(crate) output: LoraLinear,
    pub(crate) gated: bool,
    pub(crate) activation: Activation,
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

    /// Embeddings of the tokens and of their positions where these are learned, `[b·t, d]`, in the compute
    /// format.
    pub fn embed(&self, input: &Input) -> Tensor<2> {
        let compute = self.placement.compute;
        let embedded = self.embed_tokens.select(&input.tokens, self.device());
        let embedded = self.embedding_adapters.change(embedded, &input.tokens, self.device());
        let embedded = cast(embedded, compute);
        let scaled = match self.config.embedding_scale {
            1.0 => embedded,
            scale => embedded * scale,
        };
        let placed = match &self.embed_positions {
            Some(table) => {
                let positions = self.positions_of(input);
                scaled + cast(table.select(&positions, self.device()), compute)
            }
            None => scaled,
        };
        match &self.embed_segments {
            Some(table) => {
                let segments = self.segments_of(input);
                self.norm.forward(placed + cast(table.select(&segments, self.device()), compute))
            }
            None => placed,
        }
    }

    /// Bytes that the base model's weights take as they rest.
    pub fn resident_bytes(&self) -> usize {
        let dense = |parameter: &Parameter<1>| {
            let value = parameter.value();
            value.dims()[0] * value.dtype().size()
        };
        let linears = self
            .linears()
            .into_iter()
            .map(|linear| linear.weight().resident_bytes() + linear.bias().map_or(0, dense));
        let tables =
            [Some(&self.embed_tokens), self.embed_positions.as_ref(), self.head_parts.as_ref()];
        let tables = tables.into_iter().flatten().map(Table::resident_bytes);
        let norms = self.layers.iter().flat_map(Block::norms).chain([&self.norm]);
        let norms = norms.map(|norm| dense(&norm.weight) + norm.bias.as_ref().map_or(0, dense));
        linears.chain(tables).chain(norms).sum()
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
        let window = self.config.windows[index];
        if self.config.encoder.is_some() {
            let mixed = block.attention.forward(x.clone(), context, window, index, cache);
            let x = block.attention_norm.forward(x + mixed);
            return block.mlp_norm.forward(x.clone() + block.mlp.forward(x));
        }
        let (normed, stream) = block.attention_norm.before(x);
        let mixed = block.attention.forward(normed, context, window, index, cache);
        let x = stream.sum(normed_by(block.attention_output_norm.as_ref(), mixed));
        let (normed, stream) = block.mlp_norm.before(x);
        stream.sum(normed_by(block.mlp_output_norm.as_ref(), block.mlp.forward(normed)))
    }

    /// The norm after the last block; an encoder has none there.
    pub fn last_norm(&self, x: Tensor<2>) -> Tensor<2> {
        if self.config.encoder.is_some() { x } else { self.norm.forward(x) }
    }

    /// Logits, `[n, d]` to `[n, v]`; of an encoder those of the labels, from the hidden states of first tokens.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let hidden = match &self.pooler {
            Some(pooler) => pooled(pooler, hidden),
            None => hidden,
        };
        let logits = match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => {
                let logits = self.table_of_head().logits(&hidden);
                self.embedding_adapters.change_logits(&hidden, logits)
            }
        };
        match self.config.logit_cap {
            Some(cap) => ops::soft_cap(logits, cap),
            None => logits,
        }
    }

    /// The head's rows `[v, d]`, in parts, where nothing on it is adapted or trained. The logits are their
    /// products with the hidden state, capped as the configuration says.
    pub fn frozen_head(&self) -> Option<Vec<Part>> {
        if self.pooler.is_some() {
            return None;
        }
        match &self.lm_head {
            Some(head) => head.is_plain().then(|| {
                let rows = head.weight().at_rest().transpose();
                vec![Part { start: 0, rows }]
            }),
            None if self.embedding_adapters.changes_head() => None,
            None if self.table_of_head().is_tracked() => None,
            None => Some(self.table_of_head().parts()),
        }
    }

    /// The head's rows `[v, d]` in the graph, where they are trained whole and nothing else changes the logits.
    pub fn trained_head(&self) -> Option<Tensor<2>> {
        if self.pooler.is_some() {
            return None;
        }
        match &self.lm_head {
            Some(head) => {
                let whole = head.weight().is_tracked() && head.is_unadapted();
                whole.then(|| head.weight().value().transpose())
            }
            None if self.embedding_adapters.changes_head() => None,
            None => {
                let whole = self.table_of_head().whole()?;
                whole.is_tracked().then(|| whole.value())
            }
        }
    }

    /// The head where it is no layer of its own.
    fn table_of_head(&self) -> &Table {
        self.head_parts.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// The adaptable linear layers, in the order of the model; the head comes last.
    pub fn linears_mut(&mut self) -> Vec<&mut LoraLinear> {
        let blocks = self.layers.iter_mut().flat_map(Block::linears_mut);
        blocks.chain(self.pooler.as_mut()).chain(self.lm_head.as_mut()).collect()
    }

    /// As [`Self::linears_mut`], to look at.
    pub fn linears(&self) -> Vec<&LoraLinear> {
        let blocks = self.layers.iter().flat_map(Block::linears);
        blocks.chain(self.pooler.as_ref()).chain(self.lm_head.as_ref()).collect()
    }

    /// Every weight of the base model that can be trained, with its checkpoint key; matrices are
    /// `[d_in, d_out]`, the embedding is `[v, d]`, learned positions are `[positions, d]`.
    pub fn base_parameters_mut(&mut self) -> Vec<(String, ParameterMut<'_>)> {
        let modules = self.config.modules;
        let tables = [
            (Some(modules.embedding), Some(&mut self.embed_tokens)),
            (modules.positions, self.embed_positions.as_mut()),
            (modules.encoder.map(|more| more.segments), self.embed_segments.as_mut()),
        ];
        let whole = tables.into_iter().filter_map(|(path, table)| {
            Some((format!("{}.weight", path?), ParameterMut::Matrix(table?.whole_mut()?)))
        });
        let mut all: Vec<_> = whole.collect();
        for block in &mut self.layers {
            all.extend(block.attention_norm.parameters_mut());
            let attention = &mut block.attention;
            all.extend(attention.inputs.iter_mut().flat_map(LoraLinear::base_mut));
            all.extend(attention.output.base_mut());
            let of_heads = attention.query_norm.iter_mut().chain(&mut attention.key_norm);
            let outer = block.attention_output_norm.iter_mut().chain([&mut block.mlp_norm]);
            all.extend(of_heads.chain(outer).flat_map(Norm::parameters_mut));
            all.extend(block.mlp.inputs.iter_mut().flat_map(LoraLinear::base_mut));
            all.extend(block.mlp.output.base_mut());
            all.extend(block.mlp_output_norm.iter_mut().flat_map(Norm::parameters_mut));
        }
        all.extend(self.norm.parameters_mut());
        let head = self.pooler.iter_mut().chain(&mut self.lm_head);
        all.extend(head.flat_map(LoraLinear::base_mut));
        all
    }
}

impl Block {
    /// Its linear layers, in the order of the model.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut LoraLinear> {
        let attention = self.attention.inputs.iter_mut().chain([&mut self.attention.output]);
        attention.chain(&mut self.mlp.inputs).chain([&mut self.mlp.output])
    }

    fn linears(&self) -> impl Iterator<Item = &LoraLinear> {
        let attention = self.attention.inputs.iter().chain([&self.attention.output]);
        attention.chain(&self.mlp.inputs).chain([&self.mlp.output])
    }

    /// Its linear layers and its norms, each in the order of the model.
    pub(crate) fn parts_mut(&mut self) -> (Vec<&mut LoraLinear>, Vec<&mut Norm>) {
        let (attention, mlp) = (&mut self.attention, &mut self.mlp);
        let linears = attention.inputs.iter_mut().chain([&mut attention.output]);
        let of_heads = attention.query_norm.iter_mut().chain(&mut attention.key_norm);
        let norms = [&mut self.attention_norm].into_iter().chain(of_heads);
        let norms = norms.chain(&mut self.attention_output_norm).chain([&mut self.mlp_norm]);
        let linears = linears.chain(&mut mlp.inputs).chain([&mut mlp.output]);
        (linears.collect(), norms.chain(&mut self.mlp_output_norm).collect())
    }

    /// Its norms, those on heads included.
    pub(crate) fn norms(&self) -> impl Iterator<Item = &Norm> {
        let always = [&self.attention_norm, &self.mlp_norm].into_iter();
        let of_heads = self.attention.query_norm.iter().chain(&self.attention.key_norm);
        let outer = self.attention_output_norm.iter().chain(&self.mlp_output_norm);
        always.chain(of_heads).chain(outer)
    }
}

/// x through the norm, where there is one.
fn normed_by(norm: Option<&Norm>, x: Tensor<2>) -> Tensor<2> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let inputs: Vec<&LoraLinear> = self.inputs.iter().collect();
        let wide = LoraLinear::forward_together(&inputs, x); // [n, 2·wide], or [n, wide]
        let activated = match self.gated {
            true => ops::gated(self.activation, wide),
            false => ops::activate(self.activation, wide),
        };
        self.output.forward(activated)
    }
}
