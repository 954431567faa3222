//! Attention with rotary positions, grouped heads, document masks and sliding windows.

use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};
use lora_core::linear::LoraLinear;

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
    masks: Vec<(Option<usize>, Option<Tensor<4>>)>,
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
        let shared = heads / groups; // query heads on one key head

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
        let [_, _, seen, _] = k.dims();

        // Query heads that share a key head lie one after another: [b, groups, shared·t, width].
        let q = q.swap_dims(1, 2).reshape([b, groups, shared * t, width]);
        let scale = 1.0 / (width as f64).sqrt();
        let scores = (q * scale).matmul(k.swap_dims(2, 3)); // [b, groups, shared·t, seen]
        let scores = match context.mask(window) {
            Some(mask) => {
                let scores = scores.reshape([b, heads, t, seen]);
                (scores + mask).reshape([b, groups, shared * t, seen])
            }
            None => scores,
        };
        let mixed = softmax(scores, 3).matmul(v); // [b, groups, shared·t, width]
        let mixed = mixed.reshape([b, heads, t, width]).swap_dims(1, 2);
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
    pub(crate) fn new(config: &DecoderConfig, input: &Input, past: usize, device: &Device) -> Self {
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
            Tensor::<4>::from_data(data, device)
        };
        let mut windows = config.windows.clone();
        windows.sort_unstable();
        windows.dedup();
        let masks = windows
            .into_iter()
            .map(|window| (window, mask_tensor(input, past, window, device)))
            .collect();
        Self { rows: b, columns: t, cosine: table(f32::cos), sine: table(f32::sin), masks }
    }

    /// Rotates each pair (i, i + width/2) of `[b, t, h, width]` by its position's angle.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, _, _, width] = x.dims();
        let half = width / 2;
        let first = x.clone().narrow(3, 0, half);
        let second = x.narrow(3, half, half);
        let (cosine, sine) = (self.cosine.clone(), self.sine.clone());
        Tensor::cat(
            vec![
                first.clone() * cosine.clone() - second.clone() * sine.clone(),
                second * cosine + first * sine,
            ],
            3,
        )
    }

    fn mask(&self, window: Option<usize>) -> Option<Tensor<4>> {
        let found = self.masks.iter().find(|(of, _)| *of == window);
        found.and_then(|(_, mask)| mask.clone())
    }
}

/// `[b, 1, t, past + t]`: 0 where a query may look, -∞ where not: later tokens, other documents, tokens
/// out of the window. A token always sees itself, so no row of the softmax is empty.
fn mask_tensor(
    input: &Input,
    past: usize,
    window: Option<usize>,
    device: &Device,
) -> Option<Tensor<4>> {
    let (b, t) = (input.rows, input.columns);
    let seen = past + t;
    if t == 1 && window.is_none_or(|window| seen <= window) {
        return None;
    }
    let mut numbers = vec![f32::NEG_INFINITY; b * t * seen];
    for (row, numbers) in numbers.chunks_exact_mut(t * seen).enumerate() {
        let documents = &input.documents[row * t..(row + 1) * t];
        for (query, numbers) in numbers.chunks_exact_mut(seen).enumerate() {
            let last = past + query;
            let first = window.map_or(0, |window| (last + 1).saturating_sub(window));
            for (key, number) in numbers.iter_mut().enumerate().take(last + 1).skip(first) {
                if key < past || documents[key - past] == documents[query] {
                    *number = 0.0;
                }
            }
        }
    }
    Some(Tensor::from_data(TensorData::new(numbers, [b, 1, t, seen]), device))
}
