//! Which tensors a decoder has: keys and shapes, from the configuration alone.

use lora_core::target::LinearInfo;

use crate::decoder_config::DecoderConfig;
use crate::modules::{HEAD, NormKind};

/// A linear layer of a block.
pub(crate) struct LinearShape {
    pub(crate) name: &'static str,
    pub(crate) d_in: usize,
    pub(crate) d_out: usize,
    pub(crate) bias: bool,
}

/// The linear layers of a block.
pub(crate) struct BlockLinears {
    pub(crate) attention_inputs: Vec<LinearShape>,
    pub(crate) attention_output: LinearShape,
    pub(crate) mlp_inputs: Vec<LinearShape>,
    pub(crate) mlp_output: LinearShape,
}

impl BlockLinears {
    pub(crate) fn new(config: &DecoderConfig) -> Self {
        let (modules, d) = (config.modules, config.hidden_size);
        let query = config.num_attention_heads * config.head_dim;
        let key = config.num_key_value_heads * config.head_dim;
        let wide = config.intermediate_size;
        let heads = match modules.attention_inputs {
            [_] => vec![query + 2 * key],
            _ => vec![query, key, key],
        };
        let sides = match modules.mlp_inputs {
            [_] if modules.mlp_gated => vec![2 * wide],
            _ => vec![wide; modules.mlp_inputs.len()],
        };
        let inputs = |names: &'static [&'static str], widths: Vec<usize>, bias: bool| {
            let each = names.iter().zip(widths);
            each.map(|(&name, d_out)| LinearShape { name, d_in: d, d_out, bias }).collect()
        };
        let output = |name, d_in, bias| LinearShape { name, d_in, d_out: d, bias };
        Self {
            attention_inputs: inputs(modules.attention_inputs, heads, config.qkv_bias),
            attention_output: output(modules.attention_output, query, config.output_bias),
            mlp_inputs: inputs(modules.mlp_inputs, sides, config.mlp_bias),
            mlp_output: output(modules.mlp_output, wide, config.mlp_bias),
        }
    }

    /// All of them, in the order of the model.
    pub(crate) fn all(&self) -> impl Iterator<Item = &LinearShape> {
        let attention = self.attention_inputs.iter().chain([&self.attention_output]);
        attention.chain(&self.mlp_inputs).chain([&self.mlp_output])
    }
}

/// The keys of a checkpoint with this configuration, in the order of the model.
pub fn expected_tensors(config: &DecoderConfig) -> Vec<String> {
    tensor_layout(config).into_iter().map(|(name, _)| name).collect()
}

/// Every tensor of a checkpoint with its shape, in the order of the model.
pub(crate) fn tensor_layout(config: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
    let (modules, d) = (config.modules, config.hidden_size);
    let mut layout = Vec::new();
    let mut add = |name: String, shape: &[usize]| layout.push((name, shape.to_vec()));
    let norm = |add: &mut dyn FnMut(String, &[usize]), path: String, width: usize| {
        add(format!("{path}.weight"), &[width]);
        if modules.norm == NormKind::Layer {
            add(format!("{path}.bias"), &[width]);
        }
    };
    add(format!("{}.weight", modules.embedding), &[config.vocab_size, d]);
    if let Some(positions) = modules.positions {
        add(format!("{positions}.weight"), &[config.max_position_embeddings, d]);
    }
    let linears = BlockLinears::new(config);
    for layer in 0..config.num_hidden_layers {
        let block = modules.block(layer);
        norm(&mut add, format!("{block}.{}", modules.attention_norm), d);
        for LinearShape { name, d_in, d_out, bias } in linears.all() {
            let shape = if modules.fan_in_fan_out { [*d_in, *d_out] } else { [*d_out, *d_in] };
            add(format!("{block}.{name}.weight"), &shape);
            if *bias {
                add(format!("{block}.{name}.bias"), &[*d_out]);
            }
        }
        for name in modules.query_key_norms.into_iter().flatten() {
            norm(&mut add, format!("{block}.{name}"), config.head_dim);
        }
        for name in modules.block_norms().skip(1) {
            norm(&mut add, format!("{block}.{name}"), d);
        }
    }
    if let (Some(more), Some(encoder)) = (modules.encoder, &config.encoder) {
        add(format!("{}.weight", more.segments), &[encoder.segments, d]);
    }
    norm(&mut add, modules.last_norm.to_owned(), d);
    for (path, d_out) in config.head_layers() {
        add(format!("{path}.weight"), &[d_out, d]);
        add(format!("{path}.bias"), &[d_out]);
    }
    if !config.tie_word_embeddings && config.encoder.is_none() {
        add(format!("{HEAD}.weight"), &[config.vocab_size, d]);
    }
    layout
}

/// Every linear layer of a decoder with this configuration, the head last; no weight is needed.
pub fn linear_infos(config: &DecoderConfig) -> Vec<LinearInfo> {
    let linears = BlockLinears::new(config);
    let mut infos = Vec::new();
    for layer in 0..config.num_hidden_layers {
        let block = config.modules.block(layer);
        infos.extend(linears.all().map(|linear| LinearInfo {
            path: format!("{block}.{}", linear.name),
            d_in: linear.d_in,
            d_out: linear.d_out,
            is_output_head: false,
        }));
    }
    let head = config.head_layers();
    if !head.is_empty() {
        infos.extend(head.into_iter().enumerate().map(|(index, (path, d_out))| LinearInfo {
            path: path.into(),
            d_in: config.hidden_size,
            d_out,
            is_output_head: index == 1,
        }));
        return infos;
    }
    infos.push(LinearInfo {
        path: HEAD.into(),
        d_in: config.hidden_size,
        d_out: config.vocab_size,
        is_output_head: true,
    });
    infos
}
