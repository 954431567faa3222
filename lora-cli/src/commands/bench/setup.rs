//! What `lora bench` works on: SmolLM2-135M's shape with random weights, an adapter, random tokens.

use lora_core::config::{LoraConfig, TargetModules};
use lora_core::ops::Activation;
use lora_core::placement::Placement;
use lora_models::Decoder;
use lora_models::decoder_config::{DecoderConfig, RopeConfig, RopeScaling};
use lora_models::modules::LLAMA;
use lora_train::data::Batch;

use crate::args::bench::{BenchShapeArguments, BenchTargets, BenchVariant, BenchWeights};
use crate::commands::open::ADAPTER;

/// Seed of weights, adapter and tokens.
pub(super) const SEED: u64 = 1;
const RANK: usize = 8;
const ALPHA: f64 = 16.0;

/// SmolLM2-135M, or as much of it as `blocks` says.
fn smollm2(blocks: usize) -> DecoderConfig {
    DecoderConfig {
        model_type: "llama".to_owned(),
        modules: &LLAMA,
        vocab_size: 49_152,
        hidden_size: 576,
        intermediate_size: 1_536,
        num_hidden_layers: blocks,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        max_position_embeddings: 8_192,
        norm_epsilon: 1e-5,
        rope: RopeConfig { theta: 100_000.0, scaling: RopeScaling::Default },
        local_rope: None,
        activation: Activation::Silu,
        embedding_scale: 1.0,
        query_scale: None,
        score_cap: None,
        logit_cap: None,
        tie_word_embeddings: true,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        encoder: None,
        windows: vec![None; blocks],
    }
}

/// A model of this shape with random weights.
pub(super) fn random_decoder(
    shape: &BenchShapeArguments,
    placement: &Placement,
) -> lora_models::Result<Decoder> {
    let config = smollm2(shape.blocks);
    match shape.weights {
        BenchWeights::Bf16 => Decoder::random_in_bf16(&config, SEED, placement),
        BenchWeights::F32 => Decoder::random(&config, SEED, placement),
    }
}

pub(super) fn adapter(targets: BenchTargets) -> LoraConfig {
    let mut config = LoraConfig::new(RANK, ALPHA);
    if targets == BenchTargets::Qv {
        config.target = TargetModules::Suffixes(vec!["q_proj".to_owned(), "v_proj".to_owned()]);
    }
    config
}

/// A decoder of its own for each variant: what merging does to one can't reach another.
pub(super) fn with_adapter(
    base: &Decoder,
    variant: BenchVariant,
    targets: BenchTargets,
) -> anyhow::Result<Decoder> {
    let mut decoder = base.clone();
    if variant == BenchVariant::Base {
        return Ok(decoder);
    }
    decoder.attach(ADAPTER, &adapter(targets), SEED)?;
    let device = decoder.device().clone();
    let mut random = Random(SEED);
    for linear in decoder.linears_mut() {
        for (key, mut factor) in linear.factors_mut(ADAPTER) {
            // A fresh B is zero, which would make the merged weights those of the base.
            if key.ends_with("lora_B.weight") {
                let numbers = (0..factor.count()).map(|_| random.small()).collect();
                factor.write(numbers, &device);
            }
        }
    }
    if variant == BenchVariant::Merged {
        decoder.merge();
    }
    Ok(decoder)
}

/// Random tokens, each of which is learned; the last of a row predicts nothing.
pub(super) fn random_batch(
    random: &mut Random,
    vocabulary: usize,
    rows: usize,
    columns: usize,
) -> Batch {
    let tokens: Vec<i32> = (0..rows * columns).map(|_| random.below(vocabulary) as i32).collect();
    let mut targets = Vec::new();
    let mut positions = Vec::new();
    for row in tokens.chunks(columns) {
        targets.extend_from_slice(&row[1..]);
        targets.push(-1);
        positions.extend(0..columns as i32);
    }
    let documents = vec![0; tokens.len()];
    let learned_tokens = rows * (columns - 1);
    Batch {
        rows,
        columns,
        tokens,
        targets,
        positions,
        documents,
        learned_tokens,
        ..Batch::default()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same tokens on every machine.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Uniform below `limit`.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    /// Uniform in ±0.02.
    fn small(&mut self) -> f32 {
        (self.below(1 << 24) as f32 / (1 << 24) as f32 - 0.5) * 0.04
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_last_of_a_row_predicts_the_next() {
        let batch = random_batch(&mut Random(SEED), 49_152, 2, 3);
        assert_eq!(batch, random_batch(&mut Random(SEED), 49_152, 2, 3));
        let [a, b, c, d, e, f] = batch.tokens[..] else { panic!("six tokens") };
        assert_eq!(batch.targets, [b, c, -1, e, f, -1]);
        assert_eq!((a != d, batch.learned_tokens), (true, 4));
        assert_eq!(batch.positions, [0, 1, 2, 0, 1, 2]);
        assert!(batch.tokens.iter().all(|token| (0..49_152).contains(token)));
    }

    #[test]
    fn the_shape_is_that_of_smollm2_135m() {
        assert_eq!(smollm2(30).parameter_count(), 134_515_008);
    }
}
