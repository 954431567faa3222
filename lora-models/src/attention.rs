//! Attention with rotary positions, grouped heads, document masks and sliding windows.

use burn::tensor::{Tensor, TensorData};
use lora_core::linear::LoraLinear;
use lora_core::ops::{self, AttentionMask, HeadLayout};
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
    /// `[b·t, head_dim / 2]`
    cosine: Tensor<2>,
    sine: Tensor<2>,
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

        let layout = HeadLayout { heads, groups, width };

        let rows = LoraLinear::forward_together(&[&self.q_proj, &self.k_proj, &self.v_proj], x);
        let rows = self.norm_heads(rows, layout);
        let rows = ops::rotary(rows, heads + groups, &context.cosine, &context.sine);
        let mask = context.mask(window);
        let limit = context.buffer_limit;
        let mixed = match cache {
            None => ops::attention(rows, layout, [b, t], mask, limit),
            Some(cache) => {
                let [q, k, v] = layout.split(rows, [b, t]);
                let (k, v) = cache.append(layer, k, v);
                let mixed = ops::attention_over(q, k, v, mask, limit);
                mixed.swap_dims(1, 2).reshape([b * t, heads * width]) // [b·t, heads·width]
            }
        };
        self.o_proj.forward(mixed)
    }

    /// Norms each query and key head by itself, where the model does.
    fn norm_heads(&self, rows: Tensor<2>, layout: HeadLayout) -> Tensor<2> {
        let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) else { return rows };
        let HeadLayout { heads, groups, width } = layout;
        let n = rows.dims()[0];
        let part =
            |start: usize, count: usize| rows.clone().narrow(1, start * width, count * width);
        let normed = |norm: &RmsNorm, start: usize, count: usize| {
            let heads = part(start, count).reshape([n, count, width]); // [n, h, w]
            norm.forward(heads).reshape([n, count * width])
        };
        let parts = vec![
            normed(q_norm, 0, heads),
            normed(k_norm, heads, groups),
            part(heads + groups, groups),
        ];
        Tensor::cat(parts, 1)
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
            let data = TensorData::new(values, [b * t, config.head_dim / 2]);
            Tensor::<2>::from_data(data, &placement.device)
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
    let mut visible = Vec::with_capacity(b * t);
    for documents in input.documents.chunks_exact(t) {
        let mut document_start = 0;
        for query in 0..t {
            if query > 0 && documents[query] != documents[query - 1] {
                document_start = past + query;
            }
            let last = past + query;
            let of_window = window.map_or(0, |window| (last + 1).saturating_sub(window));
            visible.push([document_start.max(of_window) as u32, last as u32 + 1]);
        }
    }
    Some(AttentionMask::new(visible, [b, t, seen], &placement.device))
}
