//! Which modules the decoders of a family are made of, and what their checkpoints call them.
//!
//! Key names are the ones of transformers, so that a PEFT path is a module path. A family whose decoder
//! is a variation says here what it has more, less or in one piece; no code asks which family it is.

/// Path of the output head in every checkpoint.
pub const HEAD: &str = "lm_head";

/// The modules of a decoder. Those of a block are without the block's own path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modules {
    /// The embedding.
    pub embedding: &'static str,
    /// The learned positions; `None` where queries and keys are rotated instead.
    pub positions: Option<&'static str>,
    /// Path of the blocks, before their numbers.
    pub blocks: &'static str,
    /// The norm after the last block; in an encoder, the one after the embeddings.
    pub last_norm: &'static str,
    /// What the norms compute.
    pub norm: NormKind,
    /// The norm on the attention's input.
    pub attention_norm: &'static str,
    /// The projections to queries, keys and values: three layers, or all three in one.
    pub attention_inputs: &'static [&'static str],
    /// The norms on each head's queries and keys.
    pub query_key_norms: Option<[&'static str; 2]>,
    /// The attention's output projection.
    pub attention_output: &'static str,
    /// A norm on the attention's output, before it is added to the stream.
    pub attention_output_norm: Option<&'static str>,
    /// The norm on the feed-forward part's input.
    pub mlp_norm: &'static str,
    /// The projections to gate and up, in two layers or both in one; or the one projection where there is
    /// no gate.
    pub mlp_inputs: &'static [&'static str],
    /// Whether the feed-forward part has a gate.
    pub mlp_gated: bool,
    /// The feed-forward part's output projection.
    pub mlp_output: &'static str,
    /// A norm on the feed-forward part's output, before it is added to the stream.
    pub mlp_output_norm: Option<&'static str>,
    /// The weights of a block's linear layers are stored `[d_in, d_out]` (`Conv1D` of GPT-2, PEFT's
    /// `fan_in_fan_out`), not `[d_out, d_in]`.
    pub fan_in_fan_out: bool,
    /// Endings of tensors that checkpoints carry and nobody needs.
    pub harmless: &'static [&'static str],
    /// What an encoder has more; its norms stand after the parts of a block, and every token sees every other.
    pub encoder: Option<EncoderModules>,
}

/// What an encoder has beside blocks and tables, and how its positions are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderModules {
    /// The table that tells the second text of a pair from the first.
    pub segments: &'static str,
    /// The layer between the first token's hidden state and the classifier.
    pub pooler: &'static str,
    /// The output layer: a number for each label.
    pub classifier: &'static str,
    /// Positions begin after the number of the padding token, and padding is not counted (RoBERTa).
    pub counts_from_padding: bool,
    /// Beginnings of tensors that are other heads or of no use to this one; they stay in the file.
    pub other_heads: &'static [&'static str],
}

/// What a norm computes, with ε in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / √mean(x²) · w`.
    Rms,
    /// `x / √mean(x²) · (1 + w)`.
    RmsPlusOne,
    /// `(x − mean(x)) / √var(x) · w + b`.
    Layer,
}

/// The modules of Llama.
pub const LLAMA: Modules = Modules {
    embedding: "model.embed_tokens",
    positions: None,
    blocks: "model.layers",
    last_norm: "model.norm",
    norm: NormKind::Rms,
    attention_norm: "input_layernorm",
    attention_inputs: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    query_key_norms: None,
    attention_output: "self_attn.o_proj",
    attention_output_norm: None,
    mlp_norm: "post_attention_layernorm",
    mlp_inputs: &["mlp.gate_proj", "mlp.up_proj"],
    mlp_gated: true,
    mlp_output: "mlp.down_proj",
    mlp_output_norm: None,
    fan_in_fan_out: false,
    harmless: &[".rotary_emb.inv_freq"],
    encoder: None,
};

impl Modules {
    /// Path of a block.
    pub fn block(&self, index: usize) -> String {
        format!("{}.{index}", self.blocks)
    }

    /// The norms of a block, without those on heads, in the order of the model.
    pub(crate) fn block_norms(&self) -> impl Iterator<Item = &'static str> {
        [
            Some(self.attention_norm),
            self.attention_output_norm,
            Some(self.mlp_norm),
            self.mlp_output_norm,
        ]
        .into_iter()
        .flatten()
    }

    /// Whether the tensor belongs to a norm.
    pub(crate) fn is_of_norm(&self, tensor: &str) -> bool {
        let path = tensor.rsplit_once('.').map_or(tensor, |(path, _)| path);
        let within = |name: &str| path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
        path == self.last_norm
            || self.block_norms().any(within)
            || self.query_key_norms.into_iter().flatten().any(within)
    }

    /// Depth of a tensor: 0 before the first block, 1 in it, …, `blocks` + 1 after the last.
    pub fn depth(&self, tensor: &str, blocks: usize) -> usize {
        let lies_in =
            |path: &str| tensor.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
        if lies_in(self.embedding) || self.positions.is_some_and(lies_in) {
            return 0;
        }
        if self.encoder.is_some_and(|more| lies_in(more.segments) || lies_in(self.last_norm)) {
            return 0;
        }
        let block = tensor.strip_prefix(self.blocks).and_then(|rest| rest.split('.').nth(1));
        block.and_then(|index| index.parse::<usize>().ok()).map_or(blocks + 1, |index| index + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_and_norms_are_told_by_path() {
        let depth = |name: &str| LLAMA.depth(name, 2);
        assert_eq!(depth("model.embed_tokens.weight"), 0);
        assert_eq!(depth("model.layers.0.self_attn.q_proj.lora_A.weight"), 1);
        assert_eq!(depth("model.layers.1.input_layernorm.weight"), 2);
        assert_eq!(depth("model.norm.weight"), 3);
        assert_eq!(depth("lm_head.lora_A.weight"), 3);
        assert!(LLAMA.is_of_norm("model.norm.weight"));
        assert!(LLAMA.is_of_norm("model.layers.1.input_layernorm.bias"));
        assert!(!LLAMA.is_of_norm("model.layers.1.mlp.up_proj.weight"));
    }
}
