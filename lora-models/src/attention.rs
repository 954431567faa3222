//! Attention with rotary positions, grouped heads, document masks and sliding windows.

use burn::tensor::{Tensor, TensorData};
use lora_core::linear::LoraLinear;
use lora_core::ops::{self, AttentionMask, HeadLayout, Scores};
use lora_core::placement::Placement;

use crate::decoder::Input;
use crate::decoder_config::{DecoderConfig, RopeConfig};
use crate::kv_cache::KvCache;
use crate::norm::Norm;

/// Self-attention of one block (Vaswani et al. 2017, equation 1; grouped heads: Ainslie et al. 2023).
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    /// To queries, keys and values, as three layers or one.
    pub(crate) inputs: Vec<LoraLinear>,
    pub(crate) query_norm: Option<Norm>,
    pub(crate) key_norm: Option<Norm>,
    pub(crate) output: LoraLinear,
    pub(crate) layout: HeadLayout,
    pub(crate) scores: Scores,
}

/// What all blocks share for one input.
#[derive(Debug, Clone)]
pub struct Context {
    rows: usize,
    columns: usize,
    /// Rotations of the blocks without a window, and of those with one where they have their own; none where
    /// positions are learned.
    rotations: Vec<Rotation>,
    /// One mask for each window that occurs; `None` where every key may be seen.
    masks: Vec<(Option<usize>, Option<AttentionMask>)>,
    buffer_limit: Option<usize>,
}

/// Cosine and sine of each position's angles, `[b·t, head_dim / 2]` each.
#[derive(Debug, Clone)]
struct Rotation {
    cosine: Tensor<2>,
    sine: Tensor<2>,
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
        let (b, t, layout) = (context.rows, context.columns, self.layout);
        let HeadLayout { heads, groups, width } = layout;

        let inputs: Vec<&LoraLinear> = self.inputs.iter().collect();
        let rows = LoraLinear::forward_together(&inputs, x); // [b·t, (heads + 2·groups)·width]
        let rows = self.norm_heads(rows);
        let rows = match context.rotation(window) {
            Some(by) => ops::rotary(rows, heads + groups, &by.cosine, &by.sine),
            None => rows,
        };
        let mask = context.mask(window);
        let limit = context.buffer_limit;
        let mixed = match cache {
            None => ops::attention(rows, layout, [b, t], self.scores, mask, limit),
            Some(cache) => {
                let [q, k, v] = layout.split(rows, [b, t]);
                let (k, v) = cache.append(layer, k, v);
                let mixed = ops::attention_over([q, k, v], self.scores, mask, limit);
                mixed.swap_dims(1, 2).reshape([b * t, heads * width]) // [b·t, heads·width]
            }
        };
        self.output.forward(mixed)
    }

    /// Norms each query and key head by itself, where the model does.
    fn norm_heads(&self, rows: Tensor<2>) -> Tensor<2> {
        let (Some(query_norm), Some(key_norm)) = (&self.query_norm, &self.key_norm) else {
            return rows;
        };
        let HeadLayout { heads, groups, width } = self.layout;
        let n = rows.dims()[0];
        let part =
            |start: usize, count: usize| rows.clone().narrow(1, start * width, count * width);
        let normed = |norm: &Norm, start: usize, count: usize| {
            let heads = part(start, count).reshape([n, count, width]); // [n, h, w]
            norm.forward(heads).reshape([n, count * width])
        };
        let parts = vec![
            normed(query_norm, 0, heads),
            normed(key_norm, heads, groups),
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
        let rotations = match config.modules.positions {
            Some(_) => Vec::new(),
            None => [Some(&config.rope), config.local_rope.as_ref()]
                .into_iter()
                .flatten()
                .map(|rope| Rotation::new(rope, config.head_dim, input, placement))
                .collect(),
        };
        let mut windows = config.windows.clone();
        windows.sort_unstable();
        windows.dedup();
        let masks = windows
            .into_iter()
            .map(|window| match config.encoder {
                None => (window, mask_of(input, past, window, placement)),
                Some(_) => (window, mask_of_whole(input, placement)),
            })
            .collect();
        Self {
            rows: input.rows,
            columns: input.columns,
            rotations,
            masks,
            buffer_limit: placement.buffer_limit,
        }
    }

    fn rotation(&self, window: Option<usize>) -> Option<&Rotation> {
        let local = window.and_then(|_| self.rotations.get(1));
        local.or(self.rotations.first())
    }

    fn mask(&self, window: Option<usize>) -> Option<&AttentionMask> {
        let found = self.masks.iter().find(|(of, _)| *of == window);
        found.and_then(|(_, mask)| mask.as_ref())
    }
}

impl Rotation {
    fn new(rope: &RopeConfig, width: usize, input: &Input, placement: &Placement) -> Self {
        let frequencies = rope.inverse_frequencies(width);
        let angles = input.positions.iter().flat_map(|position| {
            let position = *position as f32;
            frequencies.iter().map(move |frequency| position * frequency)
        });
        let angles: Vec<f32> = angles.collect();
        let table = |function: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|angle| function(*angle)).collect();
            let data = TensorData::new(values, [input.positions.len(), width / 2]);
            Tensor::<2>::from_data(data, &placement.device)
        };
        Self { cosine: table(f32::cos), sine: table(f32::sin) }
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

/// What a query of an encoder may look at: its whole document, before and behind. Padding is a document of its
/// own. `None` where every key may be seen.
fn mask_of_whole(input: &Input, placement: &Placement) -> Option<AttentionMask> {
    let (b, t) = (input.rows, input.columns);
    let mut visible = Vec::with_capacity(b * t);
    for documents in input.documents.chunks_exact(t.max(1)) {
        let mut start = 0;
        for document in documents.chunk_by(|one, next| one == next) {
            let end = start + document.len();
            visible.extend(std::iter::repeat_n([start as u32, end as u32], document.len()));
            start = end;
        }
    }
    let all = visible.iter().all(|keys| *keys == [0, t as u32]);
    (!all).then(|| AttentionMask::new(visible, [b, t, t], &placement.device))
}
