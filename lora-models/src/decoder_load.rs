//! Weights into a decoder and out of it: every key accounted for, every shape checked.

use std::collections::BTreeSet;

use burn::tensor::{Tensor, TensorData};
use half::bf16;
use lora_core::embedding::EmbeddingAdapters;
use lora_core::linear::LoraLinear;
use lora_core::ops::HeadLayout;
use lora_core::packed::{Blocks, Packed};
use lora_core::parameter::{Parameter, exact_bf16, read_f32};
use lora_core::placement::{DType, Placement, Quantize};
use lora_core::table::Table;
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::attention::Attention;
use crate::decoder::{Block, Decoder, Mlp};
use crate::decoder_config::DecoderConfig;
use crate::decoder_layout::{BlockLinears, LinearShape, expected_tensors, tensor_layout};
use crate::encoder::CLASSIFIER;
use crate::encoder_load::{fresh_tensor, is_of_other_head, spelled_today, stored_spelling};
use crate::error::{Error, Result};
use crate::formats::{Weights, transposed};
use crate::modules::{HEAD, Modules, NormKind};
use crate::norm::Norm;

/// Standard deviation of freshly drawn weights, as in GPT-2 and its successors.
const INITIAL_DEVIATION: f32 = 0.02;

impl Decoder {
    /// Reads a decoder from a checkpoint's weights, one tensor at a time.
    ///
    /// # Errors
    /// A missing or unexpected tensor, a tensor of the wrong shape, a file that can't be read.
    pub fn load(config: &DecoderConfig, weights: &Weights, placement: &Placement) -> Result<Self> {
        let expected: BTreeSet<String> = expected_tensors(config).into_iter().collect();
        let names = weights.names();
        let prefix = absent_prefix(config, &names).unwrap_or_default();
        let found: BTreeSet<String> =
            names.iter().map(|name| format!("{prefix}{}", spelled_today(name))).collect();
        let missing = || expected.difference(&found).filter(|name| !config.may_start_fresh(name));
        if let Some(missing_one) = missing().next() {
            let count = missing().count();
            let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            return Err(Error::malformed(
                weights.path(),
                format!("tensor `{missing_one}`{more} is missing"),
            )
            .with_hint(
                "config.json and the weights do not belong together, or a shard is missing",
            ));
        }
        let unexpected = found.difference(&expected).find(|name| !is_harmless(name, config));
        if let Some(unexpected) = unexpected {
            return Err(Error::malformed(
                weights.path(),
                format!("unexpected tensor `{unexpected}`"),
            )
            .with_hint("config.json and the weights do not belong together"));
        }
        let mut any_packed = false;
        let decoder = build(config, placement, &mut |name, shape, way| {
            if !found.contains(name) {
                return Ok(Numbers::Dense(fresh_tensor(name, shape)));
            }
            let name = name.strip_prefix(prefix).unwrap_or(name);
            let name = &stored_spelling(name, &names);
            let found = weights.shape(name).unwrap_or_default();
            if found != shape {
                return Err(Error::malformed(
                    weights.path(),
                    format!("tensor `{name}` has shape {found:?}, config.json asks for {shape:?}"),
                ));
            }
            if way == Way::InBlocks
                && let Some(blocks) = weights.read_blocks(name)?
            {
                any_packed = true;
                return Ok(Numbers::Packed(blocks));
            }
            weights.read_f32(name).map(Numbers::Dense)
        })?;
        if placement.quantize == Quantize::Keep && !any_packed {
            let reason = "quantize = \"keep\": no weight in this file is in blocks";
            return Err(Error::malformed(weights.path(), reason).with_hint(
                "use \"nf4\" or \"int8\" to quantise them, or \"none\"; GGUF files can be in blocks",
            ));
        }
        Ok(decoder)
    }

    /// Draws a fresh decoder: N(0, 0.02²), norms at their identity, biases at 0, and the projections that write
    /// into the stream divided by √(2·blocks) (Radford et al. 2019).
    ///
    /// # Errors
    /// A base that is to rest as a file has it.
    pub fn random(config: &DecoderConfig, seed: u64, placement: &Placement) -> Result<Self> {
        Self::drawn(config, seed, placement, |number| number)
    }

    /// The same, each number rounded to bf16, as most published checkpoints have theirs.
    ///
    /// # Errors
    /// As of [`Self::random`].
    pub fn random_in_bf16(
        config: &DecoderConfig,
        seed: u64,
        placement: &Placement,
    ) -> Result<Self> {
        Self::drawn(config, seed, placement, |number| bf16::from_f32(number).to_f32())
    }

    fn drawn(
        config: &DecoderConfig,
        seed: u64,
        placement: &Placement,
        round: fn(f32) -> f32,
    ) -> Result<Self> {
        if placement.quantize == Quantize::Keep {
            return Err(Error::invalid("quantize = \"keep\": random weights are in no blocks")
                .with_hint("use \"nf4\" or \"int8\""));
        }
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let depth = (2.0 * config.num_hidden_layers as f32).sqrt();
        let modules = config.modules;
        build(config, placement, &mut |name, shape, _| {
            let count = shape.iter().product();
            if name.ends_with(".bias") {
                return Ok(Numbers::Dense(vec![0.0; count]));
            }
            if modules.is_of_norm(name) {
                let identity = if modules.norm == NormKind::RmsPlusOne { 0.0 } else { 1.0 };
                return Ok(Numbers::Dense(vec![identity; count]));
            }
            let path = name.strip_suffix(".weight").unwrap_or(name);
            let writes =
                path.ends_with(modules.attention_output) || path.ends_with(modules.mlp_output);
            let deviation = if writes { INITIAL_DEVIATION / depth } else { INITIAL_DEVIATION };
            let drawn = (0..count).map(|_| round(gaussian(&mut random) * deviation));
            Ok(Numbers::Dense(drawn.collect()))
        })
    }

    /// Every weight of the base model under its checkpoint key and in its checkpoint shape, merged
    /// adapters and the active adapter's own modules included. One tensor is read back at a time.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>, Vec<f32>)> + '_ {
        expected_tensors(&self.config_with_own_head()).into_iter().map(|name| {
            let (shape, numbers) = self.read_tensor(&name);
            (name, shape, numbers)
        })
    }

    /// Keys and shapes of [`Self::tensors`].
    pub fn tensor_layout(&self) -> Vec<(String, Vec<usize>)> {
        tensor_layout(&self.config_with_own_head())
    }

    /// One weight of [`Self::tensors`], row-major.
    pub fn tensor(&self, name: &str) -> Vec<f32> {
        self.read_tensor(name).1
    }

    /// The configuration, with `tie_word_embeddings` off where the head has become another matrix.
    pub fn config_with_own_head(&self) -> DecoderConfig {
        let tied = self.config.tie_word_embeddings && self.lm_head.is_none();
        DecoderConfig { tie_word_embeddings: tied, ..self.config.clone() }
    }

    fn read_tensor(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (path, kind) = name.rsplit_once('.').unwrap_or((name, "weight"));
        let vector = |parameter: &Parameter<1>| {
            let value = parameter.value();
            (value.dims().to_vec(), read_f32(value))
        };
        let matrix = |value: Tensor<2>| (value.dims().to_vec(), read_f32(value));
        let modules = self.config.modules;
        let table = match path {
            _ if path == modules.embedding => Some(&self.embed_tokens),
            _ if Some(path) == modules.positions => self.embed_positions.as_ref(),
            _ if modules.encoder.is_some_and(|more| more.segments == path) => {
                self.embed_segments.as_ref()
            }
            HEAD => self.head_parts.as_ref(),
            _ => None,
        };
        if let Some(table) = table {
            return (table.dims().to_vec(), table.read());
        }
        let mut norms = self.layers.iter().flat_map(Block::norms).chain([&self.norm]);
        if let Some(norm) = norms.find(|norm| norm.path == path) {
            let bias = norm.bias.as_ref().filter(|_| kind == "bias");
            return vector(bias.unwrap_or(&norm.weight));
        }
        let linears = self.linears();
        match linears.into_iter().find(|linear| linear.path() == path) {
            Some(linear) if kind == "bias" => linear.bias().map(vector).unwrap_or_default(),
            Some(linear) => {
                matrix(stored_way_round(self.config.modules, path, linear.weight().value()))
            }
            None => (Vec::new(), Vec::new()),
        }
    }
}

/// The weight `[d_in, d_out]` of the linear layer at `path` as its checkpoint has it; or back.
pub(crate) fn stored_way_round(modules: &Modules, path: &str, weight: Tensor<2>) -> Tensor<2> {
    let straight = modules.fan_in_fan_out && path != HEAD;
    if straight { weight } else { weight.transpose() }
}

/// One number of N(0, 1), by Box and Muller.
pub(crate) fn gaussian(random: &mut ChaCha8Rng) -> f32 {
    let first: f64 = 1.0 - random.random::<f64>();
    let second: f64 = random.random();
    ((-2.0 * first.ln()).sqrt() * (std::f64::consts::TAU * second).cos()) as f32
}

/// Tensors that some checkpoints carry and nobody needs.
fn is_harmless(name: &str, config: &DecoderConfig) -> bool {
    config.modules.harmless.iter().any(|ending| name.ends_with(ending))
        || (config.tie_word_embeddings && name.ends_with("lm_head.weight"))
        || config.modules.encoder.is_some_and(|more| is_of_other_head(more, name))
}

/// What stands before the keys of a whole model and is absent in those of a model saved without its head:
/// `transformer.`, as in the first GPT-2 checkpoints.
pub(crate) fn absent_prefix(config: &DecoderConfig, names: &[String]) -> Option<&'static str> {
    let embedding = config.modules.embedding;
    let (prefix, bare) = embedding.split_at(embedding.find('.')? + 1);
    let is_there = |path: &str| names.iter().any(|name| name.strip_suffix(".weight") == Some(path));
    (is_there(bare) && !is_there(embedding)).then_some(prefix)
}

/// Where a tensor's numbers come from, by checkpoint key and shape.
type Source<'a> = dyn FnMut(&str, &[usize], Way) -> Result<Numbers> + 'a;

/// How a tensor is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Number by number.
    Dense,
    /// In the file's blocks, where it is in blocks.
    InBlocks,
}

impl Way {
    fn of(placement: &Placement) -> Self {
        if placement.quantize == Quantize::Keep { Self::InBlocks } else { Self::Dense }
    }
}

/// The numbers of a tensor.
enum Numbers {
    /// In its checkpoint shape.
    Dense(Vec<f32>),
    /// `[d_out, d_in]`.
    Packed(Blocks),
}

/// The numbers of a tensor that was not asked for in blocks.
fn dense(name: &str, shape: &[usize], source: &mut Source<'_>) -> Result<Vec<f32>> {
    match source(name, shape, Way::Dense)? {
        Numbers::Dense(numbers) => Ok(numbers),
        Numbers::Packed(blocks) => Ok(unpacked(&blocks)),
    }
}

fn unpacked(blocks: &Blocks) -> Vec<f32> {
    let [rows, columns] = blocks.shape();
    let mut numbers = vec![0.0; rows * columns];
    blocks.unpack(&mut numbers);
    numbers
}

fn build(
    config: &DecoderConfig,
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<Decoder> {
    let (modules, d) = (config.modules, config.hidden_size);
    let embed_tokens = table(modules.embedding, [config.vocab_size, d], placement, source)?;
    let embed_positions = match modules.positions {
        Some(path) => {
            let shape = [config.max_position_embeddings, d];
            Some(table(path, shape, placement, source)?)
        }
        None => None,
    };
    let mut layers = Vec::with_capacity(config.num_hidden_layers);
    for layer in 0..config.num_hidden_layers {
        layers.push(build_block(config, &modules.block(layer), placement, source)?);
    }
    let norm = build_norm(config, modules.last_norm.to_owned(), d, placement, source)?;
    let (mut lm_head, mut head_parts) = (None, None);
    let mut pooler = None;
    let mut embed_segments = None;
    if let (Some(more), Some(encoder)) = (modules.encoder, &config.encoder) {
        embed_segments = Some(table(more.segments, [encoder.segments, d], placement, source)?);
        // What an adapter saves whole is never in few bits.
        pooler = Some(match more.pooler.rsplit_once('.') {
            Some((block, name)) if block != CLASSIFIER => {
                let shape = LinearShape { name, d_in: d, d_out: d, bias: true };
                build_linear(block, &shape, false, placement, source)?
            }
            _ => head_layer(more.pooler, [d, d], placement, source)?,
        });
        let shape = [d, encoder.labels.len()];
        lm_head = Some(head_layer(more.classifier, shape, placement, source)?.output_head());
    } else if !config.tie_word_embeddings {
        match table(HEAD, [config.vocab_size, d], placement, source)? {
            Table::Whole(rows) => {
                lm_head = Some(LoraLinear::of(HEAD, rows.as_weight(), None).output_head());
            }
            parts @ Table::Parts(_) => head_parts = Some(parts),
        }
    }
    Ok(Decoder {
        config: config.clone(),
        placement: placement.clone(),
        embed_tokens,
        embedding_adapters: EmbeddingAdapters::default(),
        embed_positions,
        embed_segments,
        layers,
        norm,
        pooler,
        lm_head,
        head_parts,
        adapters: Vec::new(),
    })
}

fn build_block(
    config: &DecoderConfig,
    path: &str,
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<Block> {
    let (modules, d) = (config.modules, config.hidden_size);
    let norm = |name: &str, width: usize, source: &mut Source<'_>| {
        build_norm(config, format!("{path}.{name}"), width, placement, source)
    };
    let maybe = |name: Option<&str>, width: usize, source: &mut Source<'_>| match name {
        Some(name) => norm(name, width, source).map(Some),
        None => Ok(None),
    };
    let attention_norm = norm(modules.attention_norm, d, source)?;
    let attention_output_norm = maybe(modules.attention_output_norm, d, source)?;
    let mlp_norm = norm(modules.mlp_norm, d, source)?;
    let mlp_output_norm = maybe(modules.mlp_output_norm, d, source)?;
    let [of_queries, of_keys] = match modules.query_key_norms {
        Some(names) => names.map(Some),
        None => [None, None],
    };
    let query_norm = maybe(of_queries, config.head_dim, source)?;
    let key_norm = maybe(of_keys, config.head_dim, source)?;
    let mut linear =
        |shape: &LinearShape| build_linear(path, shape, modules.fan_in_fan_out, placement, source);
    let shapes = BlockLinears::new(config);
    let attention = Attention {
        inputs: shapes.attention_inputs.iter().map(&mut linear).collect::<Result<_>>()?,
        query_norm,
        key_norm,
        output: linear(&shapes.attention_output)?,
        layout: HeadLayout {
            heads: config.num_attention_heads,
            groups: config.num_key_value_heads,
            width: config.head_dim,
        },
        scores: config.scores(),
    };
    let mlp = Mlp {
        inputs: shapes.mlp_inputs.iter().map(&mut linear).collect::<Result<_>>()?,
        output: linear(&shapes.mlp_output)?,
        gated: modules.mlp_gated,
        activation: config.activation,
    };
    Ok(Block { attention_norm, attention, attention_output_norm, mlp_norm, mlp, mlp_output_norm })
}

fn build_norm(
    config: &DecoderConfig,
    path: String,
    width: usize,
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<Norm> {
    let mut part = |kind: &str| {
        let numbers = vector(&format!("{path}.{kind}"), width, placement, source)?;
        Ok::<_, Error>(Parameter::new(numbers))
    };
    let kind = config.modules.norm;
    let weight = part("weight")?;
    let bias = if kind == NormKind::Layer { Some(part("bias")?) } else { None };
    Ok(Norm { path, kind, weight, bias, epsilon: config.norm_epsilon })
}

fn build_linear(
    block: &str,
    shape: &LinearShape,
    fan_in_fan_out: bool,
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<LoraLinear> {
    let LinearShape { name, d_in, d_out, bias } = *shape;
    let path = format!("{block}.{name}");
    let key = format!("{path}.weight");
    let stored = if fan_in_fan_out { [d_in, d_out] } else { [d_out, d_in] };
    let numbers = source(&key, &stored, Way::of(placement))?;
    let bias = match bias {
        true => Some(vector(&format!("{path}.bias"), d_out, placement, source)?),
        false => None,
    };
    // In memory the inputs of one output lie next to each other, whichever way the file has them.
    let rows = match numbers {
        Numbers::Dense(numbers) if fan_in_fan_out => Numbers::Dense(transposed(&numbers, d_in)),
        as_stored => as_stored,
    };
    let rows = match quantised(rows, &key, [d_out, d_in], placement.quantize)? {
        Numbers::Dense(rows) => rows,
        Numbers::Packed(blocks) => match packed(blocks, placement) {
            Ok(packed) => {
                return Ok(LoraLinear::of(path, Parameter::packed_weight(packed), bias));
            }
            Err(blocks) => unpacked(&blocks),
        },
    };
    Ok(LoraLinear::of(path, at_rest(rows, [d_out, d_in], placement).as_weight(), bias))
}

/// The rows in few bits, where they are not and shall be.
fn quantised(rows: Numbers, key: &str, shape: [usize; 2], quantize: Quantize) -> Result<Numbers> {
    let (Numbers::Dense(numbers), Quantize::Nf4 | Quantize::Int8) = (&rows, quantize) else {
        return Ok(rows);
    };
    if numbers.iter().any(|number| !number.is_finite()) {
        let reason = format!("tensor `{key}` holds a number that is not finite");
        return Err(Error::invalid(reason).with_hint(
            "it can't be quantised, and the model would compute nothing: get it again",
        ));
    }
    let blocks = match quantize {
        Quantize::Int8 => Blocks::int8(numbers, shape),
        _ => Blocks::nf4(numbers, shape),
    };
    Ok(Numbers::Packed(blocks))
}

/// Blocks on the model's device, where that takes them, and all of their numbers in one buffer.
fn packed(blocks: Blocks, placement: &Placement) -> std::result::Result<Packed, Blocks> {
    let [rows, columns] = blocks.shape();
    if placement.buffer_limit.is_some_and(|limit| rows * columns * size_of::<f32>() > limit) {
        return Err(blocks);
    }
    Packed::new(blocks, &placement.device, placement.weights)
}

/// A layer of an encoder's head.
fn head_layer(
    path: &str,
    [d_in, d_out]: [usize; 2],
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<LoraLinear> {
    let numbers = dense(&format!("{path}.weight"), &[d_out, d_in], source)?;
    let rows: Tensor<2> = on_device(TensorData::new(numbers, [d_out, d_in]), placement);
    let bias = vector(&format!("{path}.bias"), d_out, placement, source)?;
    Ok(LoraLinear::new(path, rows.transpose(), Some(bias)))
}

/// A matrix with a row for each token, in as many buffers as the device needs.
fn table(
    path: &str,
    shape: [usize; 2],
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<Table> {
    let numbers = match source(&format!("{path}.weight"), &shape, Way::of(placement))? {
        Numbers::Dense(numbers) => numbers,
        Numbers::Packed(blocks) => match packed(blocks, placement) {
            Ok(packed) => return Ok(Table::packed(packed)),
            Err(blocks) => unpacked(&blocks),
        },
    };
    if placement.bf16_where_exact {
        return Ok(Table::Whole(at_rest(numbers, shape, placement)));
    }
    let place = (&placement.device, placement.weights);
    Ok(Table::new(numbers, shape, place, placement.buffer_limit))
}

fn vector(
    name: &str,
    width: usize,
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<Tensor<1>> {
    let numbers = dense(name, &[width], source)?;
    Ok(on_device(TensorData::new(numbers, [width]), placement))
}

/// A frozen matrix, in bf16 where it shall be and loses nothing.
fn at_rest(numbers: Vec<f32>, shape: [usize; 2], placement: &Placement) -> Parameter<2> {
    let exact = placement.bf16_where_exact.then(|| exact_bf16(&numbers)).flatten();
    match exact {
        Some(exact) => {
            let exact = TensorData::new(exact, shape);
            Parameter::in_bf16(Tensor::from_data(exact, (&placement.device, DType::BF16)))
        }
        None => Parameter::new(on_device(TensorData::new(numbers, shape), placement)),
    }
}

/// In the format of the weights from the start: the device never holds the f32 numbers beside them.
pub(crate) fn on_device<const D: usize>(data: TensorData, placement: &Placement) -> Tensor<D> {
    Tensor::from_data(data, (&placement.device, placement.weights))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::families::decoder_config;
    use crate::formats::MemoryWeights;

    /// As the first GPT-2 checkpoints are: without the prefix, and with the masks.
    #[test]
    fn a_checkpoint_without_its_prefix_is_the_same_model() {
        let json = json!({
            "model_type": "gpt2", "vocab_size": 5, "n_embd": 8, "n_head": 2, "n_layer": 1,
            "n_positions": 16,
        });
        let config = decoder_config(&json, Path::new("config.json")).unwrap();
        let placement = Placement::f32(Device::flex());
        let drawn = Decoder::random(&config, 1, &placement).unwrap();
        let bare = |(name, shape, numbers): (String, Vec<usize>, Vec<f32>)| {
            (name.strip_prefix("transformer.").unwrap().to_owned(), (shape, numbers))
        };
        let mut tensors: BTreeMap<_, _> = drawn.tensors().map(bare).collect();
        assert_eq!(tensors["h.0.attn.c_attn.weight"].0, [8, 24], "stored the other way round");
        tensors.insert("h.0.attn.bias".to_owned(), (vec![1], vec![1.0]));
        let weights = Weights::Memory(MemoryWeights { tensors, ..MemoryWeights::default() });
        let loaded = Decoder::load(&config, &weights, &placement).unwrap();
        assert!(loaded.tensors().eq(drawn.tensors()));
        let linear = loaded.linears()[0].weight().value();
        assert_eq!(linear.dims(), [8, 24], "[d_in, d_out] in memory");
    }
}
