//! Attention with rotary positions, grouped heads, document masks and sliding windows.

use burn::tensor::{Tensor, TensorData};
use lora_core::linear::LoraLinear;
use lora_core::ops::{self, AttentionMask};
use lora_core::placement::Placement;

use crate::decoder::{Input, RmsNorm};
use crate::decoder_config::DecoderConfig;
use crate::kv_cache::KvCache;

/// Self-attention of one block (Vaswani et al. 2017, equation 1; grouped heads: Ainslie et al. 2023).
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) q_proj: LoraLinear,
    pub(crate) k_proj: LoraLinear,
    pub(crate) v_proj: LoraLinear,
    pub(crate) o_proj: LoraLinear,
    pub(crate) q_norm: Option<RmsNorm>,
    pub(crate) k_norm: Option<RmsNorm>,
    pub(crate) head_dim: usize,
}

/// What all blocks share for one input.
#[derive(Debug, Clone)]
pub struct Context {
    rows: usize,
    columns: usize,
    /// `[b, t, 1, head_dim / 2]`
    cosine: Tensor<4>,
    sine: Tensor<4>,
    /// One mask for each window that occurs; `None` where every key may be seen.
    masks: Vec<(Option<usize>, Option<AttentionMask>)>,
    buffer_limit: Option<usize>,
}

impl Attention {
    /// # Shapes
    /// - x, output: `[b·t, d]`
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        context: &Context,
        window: Option<usize>,
        layer: usize,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let (b, t, width) = (context.rows, context.columns, self.head_dim);
        let [_, query_width] = self.q_proj.weight().value().dims();
        let [_, key_width] = self.k_proj.weight().value().dims();
        let (heads, groups) = (query_width / width, key_width / width);

        let q = self.q_proj.forward(x.clone()).reshape([b, t, heads, width]);
        let k = self.k_proj.forward(x.clone()).reshape([b, t, groups, width]);
        let v = self.v_proj.forward(x).reshape([b, t, groups, width]);
        let q = norm_heads(q, self.q_norm.as_ref());
        let k = norm_heads(k, self.k_norm.as_ref());
        let q = context.rotate(q);
        let k = context.rotate(k).swap_dims(1, 2); // [b, groups, t, width]
        let v = v.swap_dims(1, 2); // [b, groups, t, width]
        let (k, v) = match cache {
            Some(cache) => cache.append(layer, k, v),
            None => (k, v),
        };
        let mask = context.mask(window);
        let mixed = ops::attention(q.swap_dims(1, 2), k, v, mask, context.buffer_limit);
        let mixed = mixed.swap_dims(1, 2); // [b, t, heads, width]
        self.o_proj.forward(mixed.reshape([b * t, heads * width]))
    }
}

fn norm_heads(x: Tensor<4>, norm: Option<&RmsNorm>) -> Tensor<4> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}

impl Context {
    /// Tables and masks for `input`, of which `past` tokens are in a cache already.
    pub(crate) fn new(
        config: &DecoderConfig,
        input: &Input,
        past: usize,
        placement: &Placement,
    ) -> Self {
        let (b, t) = (input.rows, input.columns);
        let frequencies = config.rope.inverse_frequencies(config.head_dim);
        let angles = input.positions.iter().flat_map(|position| {
            let position = *position as f32;
            frequencies.iter().map(move |frequency| position * frequency)
        });
        let angles: Vec<f32> = angles.collect();
        let table = |function: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|angle| function(*angle)).collect();
            let data = TensorData::new(values, [b, t, 1, config.head_dim / 2]);
            Tensor::<4>::from_data(data, &placement.device)
        };
        let mut windows = config.windows.clone();
        windows.sort_unstable();
        windows.dedup();
        let masks = windows
            .into_iter()
            .map(|window| (window, mask_of(input, past, window, placement)))
            .collect();
        Self {
            rows: b,
            columns: t,
            cosine: table(f32::cos),
            sine: table(f32::sin),
            masks,
            buffer_limit: placement.buffer_limit,
        }
    }

    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        ops::rotary(x, &self.cosine, &self.sine)
    }

    fn mask(&self, window: Option<usize>) -> Option<&AttentionMask> {
        let found = self.masks.iter().find(|(of, _)| *of == window);
        found.and_then(|(_, mask)| mask.as_ref())
    }
}

/// What a query may look at: no later token, no other document, nothing out of the window. A token
/// always sees itself. `None` where every key may be seen.
fn mask_of(
    input: &Input,
    past: usize,
    window: Option<usize>,
    placement: &Placement,
) -> Option<AttentionMask> {
    let (b, t) = (input.rows, input.columns);
    let seen = past + t;
    if t == 1 && window.is_none_or(|window| seen <= window) {
        return None;
    }
    let mut allowed = vec![false; b * t * seen];
    for (row, allowed) in allowed.chunks_exact_mut(t * seen).enumerate() {
        let documents = &input.documents[row * t..(row + 1) * t];
        for (query, allowed) in allowed.chunks_exact_mut(seen).enumerate() {
            let last = past + query;
            let first = window.map_or(0, |window| (last + 1).saturating_sub(window));
            for (key, allowed) in allowed.iter_mut().enumerate().take(last + 1).skip(first) {
                *allowed = key < past || documents[key - past] == documents[query];
            }
        }
    }
    Some(AttentionMask::new(&allowed, [b, t, seen], &placement.device))
}
