//! Weights into a decoder and out of it: every key accounted for, every shape checked.

use std::collections::BTreeSet;

use burn::tensor::{Tensor, TensorData};
use lora_core::linear::LoraLinear;
use lora_core::parameter::{Parameter, read_f32};
use lora_core::placement::Placement;
use lora_core::table::Table;
use lora_core::target::LinearInfo;
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::attention::Attention;
use crate::decoder::{Block, Decoder, EMBEDDING, HEAD, LAST_NORM, Mlp, RmsNorm};
use crate::decoder_config::DecoderConfig;
use crate::error::{Error, Result};
use crate::formats::Weights;

/// Standard deviation of freshly drawn weights, as in GPT-2 and its successors.
const INITIAL_DEVIATION: f32 = 0.02;

impl Decoder {
    /// Reads a decoder from a checkpoint's weights, one tensor at a time.
    ///
    /// # Errors
    /// A missing or unexpected tensor, a tensor of the wrong shape, a file that can't be read.
    pub fn load(config: &DecoderConfig, weights: &Weights, placement: &Placement) -> Result<Self> {
        let expected: BTreeSet<String> = expected_tensors(config).into_iter().collect();
        let found: BTreeSet<String> = weights.names().into_iter().collect();
        if let Some(missing) = expected.difference(&found).next() {
            let count = expected.difference(&found).count();
            let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            return Err(Error::malformed(
                weights.path(),
                format!("tensor `{missing}`{more} is missing"),
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
        build(config, placement, &mut |name, shape| {
            let found = weights.shape(name).unwrap_or_default();
            if found != shape {
                return Err(Error::malformed(
                    weights.path(),
                    format!("tensor `{name}` has shape {found:?}, config.json asks for {shape:?}"),
                ));
            }
            weights.read_f32(name)
        })
    }

    /// Draws a fresh decoder: N(0, 0.02²), norms at 1, biases at 0, and the projections that write
    /// into the stream divided by √(2·blocks) (Radford et al. 2019).
    ///
    /// # Errors
    /// Never; the signature is that of [`Self::load`].
    pub fn random(config: &DecoderConfig, seed: u64, placement: &Placement) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let depth = (2.0 * config.num_hidden_layers as f32).sqrt();
        build(config, placement, &mut |name, shape| {
            let count = shape.iter().product();
            if name.ends_with("norm.weight") {
                return Ok(vec![1.0; count]);
            }
            if name.ends_with(".bias") {
                return Ok(vec![0.0; count]);
            }
            let writes = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
            let deviation = if writes { INITIAL_DEVIATION / depth } else { INITIAL_DEVIATION };
            Ok((0..count).map(|_| gaussian(&mut random) * deviation).collect())
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
        if path == EMBEDDING {
            return (self.embed_tokens.dims().to_vec(), self.embed_tokens.read());
        }
        if let Some(head) = self.head_parts.as_ref().filter(|_| path == HEAD) {
            return (head.dims().to_vec(), head.read());
        }
        if let Some(norm) = self.norms().into_iter().find(|norm| norm.path == path) {
            return vector(&norm.weight);
        }
        let linears = self.linears();
        match linears.into_iter().find(|linear| linear.path() == path) {
            Some(linear) if kind == "bias" => linear.bias().map(vector).unwrap_or_default(),
            Some(linear) => matrix(linear.weight().value().transpose()),
            None => (Vec::new(), Vec::new()),
        }
    }

    fn norms(&self) -> Vec<&RmsNorm> {
        let mut norms = vec![&self.norm];
        for block in &self.layers {
            norms.extend([&block.input_layernorm, &block.post_attention_layernorm]);
            norms.extend(block.self_attn.q_norm.iter().chain(&block.self_attn.k_norm));
        }
        norms
    }
}

/// One number of N(0, 1), by Box and Muller.
fn gaussian(random: &mut ChaCha8Rng) -> f32 {
    let first: f64 = 1.0 - random.random::<f64>();
    let second: f64 = random.random();
    ((-2.0 * first.ln()).sqrt() * (std::f64::consts::TAU * second).cos()) as f32
}

/// Tensors that some checkpoints carry and nobody needs.
fn is_harmless(name: &str, config: &DecoderConfig) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
        || (config.tie_word_embeddings && name == "lm_head.weight")
}

/// The keys of a checkpoint with this configuration, in the order of the model.
pub fn expected_tensors(config: &DecoderConfig) -> Vec<String> {
    tensor_layout(config).into_iter().map(|(name, _)| name).collect()
}

/// Every tensor of a checkpoint with its shape, in the order of the model.
fn tensor_layout(config: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
    let d = config.hidden_size;
    let mut layout = Vec::new();
    let mut add = |name: String, shape: &[usize]| layout.push((name, shape.to_vec()));
    add(format!("{EMBEDDING}.weight"), &[config.vocab_size, d]);
    for layer in 0..config.num_hidden_layers {
        let block = format!("model.layers.{layer}");
        add(format!("{block}.input_layernorm.weight"), &[d]);
        for (name, d_out, d_in, bias) in linears_of(config) {
            add(format!("{block}.{name}.weight"), &[d_out, d_in]);
            if bias {
                add(format!("{block}.{name}.bias"), &[d_out]);
            }
        }
        if config.query_key_norm {
            add(format!("{block}.self_attn.q_norm.weight"), &[config.head_dim]);
            add(format!("{block}.self_attn.k_norm.weight"), &[config.head_dim]);
        }
        add(format!("{block}.post_attention_layernorm.weight"), &[d]);
    }
    add(format!("{LAST_NORM}.weight"), &[d]);
    if !config.tie_word_embeddings {
        add(format!("{HEAD}.weight"), &[config.vocab_size, d]);
    }
    layout
}

/// Every linear layer of a decoder with this configuration, the head last; no weight is needed.
pub fn linear_infos(config: &DecoderConfig) -> Vec<LinearInfo> {
    let mut infos = Vec::new();
    for layer in 0..config.num_hidden_layers {
        for (name, d_out, d_in, _) in linears_of(config) {
            let path = format!("model.layers.{layer}.{name}");
            infos.push(LinearInfo { path, d_in, d_out, is_output_head: false });
        }
    }
    infos.push(LinearInfo {
        path: HEAD.into(),
        d_in: config.hidden_size,
        d_out: config.vocab_size,
        is_output_head: true,
    });
    infos
}

/// The linear layers of a block: name, d_out, d_in, whether there is a bias.
fn linears_of(config: &DecoderConfig) -> [(&'static str, usize, usize, bool); 7] {
    let d = config.hidden_size;
    let query = config.num_attention_heads * config.head_dim;
    let key = config.num_key_value_heads * config.head_dim;
    let wide = config.intermediate_size;
    [
        ("self_attn.q_proj", query, d, config.qkv_bias),
        ("self_attn.k_proj", key, d, config.qkv_bias),
        ("self_attn.v_proj", key, d, config.qkv_bias),
        ("self_attn.o_proj", d, query, config.output_bias),
        ("mlp.gate_proj", wide, d, config.mlp_bias),
        ("mlp.up_proj", wide, d, config.mlp_bias),
        ("mlp.down_proj", d, wide, config.mlp_bias),
    ]
}

/// Where a tensor's numbers come from, by checkpoint key and shape.
type Source<'a> = dyn FnMut(&str, &[usize]) -> Result<Vec<f32>> + 'a;

fn build(
    config: &DecoderConfig,
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<Decoder> {
    let d = config.hidden_size;
    let embedding = table(EMBEDDING, [config.vocab_size, d], placement, source)?;
    let mut layers = Vec::with_capacity(config.num_hidden_layers);
    for layer in 0..config.num_hidden_layers {
        layers.push(build_block(config, &format!("model.layers.{layer}"), placement, source)?);
    }
    let last = build_norm(config, LAST_NORM, d, placement, source)?;
    let (mut lm_head, mut head_parts) = (None, None);
    if !config.tie_word_embeddings {
        match table(HEAD, [config.vocab_size, d], placement, source)? {
            Table::Whole(rows) => {
                let weight = rows.value().transpose();
                lm_head = Some(LoraLinear::new(HEAD, weight, None).output_head());
            }
            parts @ Table::Parts(_) => head_parts = Some(parts),
        }
    }
    Ok(Decoder {
        config: config.clone(),
        placement: placement.clone(),
        embed_tokens: embedding,
        layers,
        norm: last,
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
    let d = config.hidden_size;
    let norm = |name: &str, width: usize, source: &mut Source<'_>| {
        build_norm(config, &format!("{path}.{name}"), width, placement, source)
    };
    let input_layernorm = norm("input_layernorm", d, source)?;
    let post_attention_layernorm = norm("post_attention_layernorm", d, source)?;
    let head_norms = if config.query_key_norm {
        let q_norm = norm("self_attn.q_norm", config.head_dim, source)?;
        (Some(q_norm), Some(norm("self_attn.k_norm", config.head_dim, source)?))
    } else {
        (None, None)
    };
    let mut linears = Vec::with_capacity(7);
    for (name, d_out, d_in, bias) in linears_of(config) {
        let linear = build_linear(&format!("{path}.{name}"), d_out, d_in, bias, placement, source)?;
        linears.push(linear);
    }
    let linears: [LoraLinear; 7] = match linears.try_into() {
        Ok(linears) => linears,
        Err(_) => return Err(Error::invalid("a block has seven linear layers")),
    };
    let [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] = linears;
    Ok(Block {
        input_layernorm,
        self_attn: Attention {
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            q_norm: head_norms.0,
            k_norm: head_norms.1,
            head_dim: config.head_dim,
        },
        post_attention_layernorm,
        mlp: Mlp { gate_proj, up_proj, down_proj },
    })
}

fn build_norm(
    config: &DecoderConfig,
    path: &str,
    width: usize,
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<RmsNorm> {
    let weight = vector(&format!("{path}.weight"), width, placement, source)?;
    Ok(RmsNorm::new(path.to_owned(), weight, config.rms_norm_eps))
}

fn build_linear(
    path: &str,
    d_out: usize,
    d_in: usize,
    bias: bool,
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<LoraLinear> {
    let weight = matrix(&format!("{path}.weight"), [d_out, d_in], placement, source)?.transpose();
    let bias = match bias {
        true => Some(vector(&format!("{path}.bias"), d_out, placement, source)?),
        false => None,
    };
    Ok(LoraLinear::new(path, weight, bias))
}

/// A matrix with a row for each token, in as many buffers as the device needs.
fn table(
    path: &str,
    shape: [usize; 2],
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<Table> {
    let numbers = source(&format!("{path}.weight"), &shape)?;
    let place = (&placement.device, placement.weights);
    Ok(Table::new(numbers, shape, place, placement.buffer_limit))
}

fn matrix(
    name: &str,
    shape: [usize; 2],
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<Tensor<2>> {
    let numbers = source(name, &shape)?;
    Ok(on_device(TensorData::new(numbers, shape), placement))
}

fn vector(
    name: &str,
    width: usize,
    placement: &Placement,
    source: &mut Source<'_>,
) -> Result<Tensor<1>> {
    let numbers = source(name, &[width])?;
    Ok(on_device(TensorData::new(numbers, [width]), placement))
}

/// In the format of the weights from the start: the device never holds the f32 numbers beside them.
fn on_device<const D: usize>(data: TensorData, placement: &Placement) -> Tensor<D> {
    Tensor::from_data(data, (&placement.device, placement.weights))
}
