//! Attention of grouped query heads over keys that a mask allows.

use std::sync::{Arc, OnceLock};

use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{cast, soft_cap};
#[cfg(feature = "cpu")]
use crate::profile::timed;

/// Which keys each query may look at: those from a first one to a last one.
#[derive(Debug, Clone)]
pub struct AttentionMask {
    /// First key, and the one after the last, `[b, t]`.
    visible: Arc<Vec<[u32; 2]>>,
    /// b, t, s.
    size: [usize; 3],
    device: Device,
    /// 0 where a query may look, −∞ where not, `[b, 1, t, s]` in f32; made when it is first wanted.
    additive: Arc<OnceLock<Tensor<4>>>,
}

impl AttentionMask {
    /// The mask of `visible`: the first key, and the one after the last, of each query.
    ///
    /// # Shapes
    /// - visible: `[b, t]`, of s keys at least one for each query
    pub fn new(visible: Vec<[u32; 2]>, size: [usize; 3], device: &Device) -> Self {
        debug_assert_eq!(visible.len(), size[0] * size[1], "mask of {size:?}");
        Self { visible: visible.into(), size, device: device.clone(), additive: Arc::default() }
    }

    /// First key, and the one after the last, of each query, `[b, t]`.
    #[cfg(feature = "cpu")]
    pub(super) fn visible(&self) -> &[[u32; 2]] {
        &self.visible
    }

    fn additive(&self) -> Tensor<4> {
        let make = || {
            let [b, t, s] = self.size;
            let mut numbers = vec![f32::NEG_INFINITY; b * t * s];
            for (row, [first, end]) in numbers.chunks_exact_mut(s.max(1)).zip(self.visible.iter()) {
                row[*first as usize..*end as usize].fill(0.0);
            }
            Tensor::from_data(TensorData::new(numbers, [b, 1, t, s]), &self.device)
        };
        self.additive.get_or_init(make).clone()
    }
}

/// Queries, keys and values of one token, one after another in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads.
    pub heads: usize,
    /// Key heads, and as many of values.
    pub groups: usize,
    /// Width of a head.
    pub width: usize,
}

impl HeadLayout {
    /// Length of a row.
    pub fn row(&self) -> usize {
        (self.heads + 2 * self.groups) * self.width
    }

    /// Queries `[b, heads, t, width]`, keys and values `[b, groups, t, width]` of rows `[b·t, row]`.
    pub fn split(&self, rows: Tensor<2>, [b, t]: [usize; 2]) -> [Tensor<4>; 3] {
        let rows = rows.reshape([b, t, self.heads + 2 * self.groups, self.width]); // [b, t, h, w]
        let part = |start: usize, count: usize| {
            rows.clone().narrow(2, start, count).swap_dims(1, 2) // [b, h, t, w]
        };
        [
            part(0, self.heads),
            part(self.heads, self.groups),
            part(self.heads + self.groups, self.groups),
        ]
    }
}

/// How a query and a key become a score: `scale·q·k`, softly capped where a cap is set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Factor of the product; 1/√width in most models.
    pub scale: f64,
    /// c of `c·tanh(score / c)`.
    pub cap: Option<f64>,
}

/// Self-attention of whole sequences: [`attention_over`] the keys and values of the rows themselves.
///
/// # Shapes
/// - rows: `[b·t, row]`, laid out as `layout` says
/// - output: `[b·t, heads·width]`
pub fn attention(
    rows: Tensor<2>,
    layout: HeadLayout,
    [b, t]: [usize; 2],
    scores: Scores,
    mask: Option<&AttentionMask>,
    buffer_limit: Option<usize>,
) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if let Some(mixed) =
        timed("attention", || super::processor::attention(&rows, layout, [b, t], scores, mask))
    {
        return mixed;
    }
    let sides = layout.split(rows, [b, t]);
    let mixed = attention_over(sides, scores, mask, buffer_limit).swap_dims(1, 2); // [b, t, heads, width]
    mixed.reshape([b * t, layout.heads * layout.width])
}

/// `softmax(scores(q, k) + mask)·v` (Vaswani et al. 2017, <https://arxiv.org/abs/1706.03762>, equation 1),
/// with `heads / groups` query heads on each key head (Ainslie et al. 2023,
/// <https://arxiv.org/abs/2305.13245>). The softmax is f32.
///
/// By Burn's operations the scores of all rows are one buffer; where that is above `buffer_limit` bytes,
/// rows, and if need be key heads, are computed one after another.
///
/// # Shapes
/// - q, output: `[b, heads, t, width]`
/// - k, v: `[b, groups, s, width]`
pub fn attention_over(
    [q, k, v]: [Tensor<4>; 3],
    scores: Scores,
    mask: Option<&AttentionMask>,
    buffer_limit: Option<usize>,
) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    if let Some(mixed) =
        timed("attention", || super::processor::attention_over([&q, &k, &v], scores, mask))
    {
        return mixed;
    }
    let ([b, heads, t, width], [_, groups, s, _]) = (q.dims(), k.dims());
    let mask = mask.map(AttentionMask::additive);
    let shared = heads / groups; // query heads on one key head
    // Query heads that share a key head lie one after another.
    let q = q.reshape([b, groups, shared * t, width]);
    let one = shared * t * s * size_of::<f32>(); // scores of one row and key head
    let at_once = buffer_limit.map_or(usize::MAX, |limit| (limit / one).max(1));
    let mixed = if b * groups <= at_once {
        whole([q, k, v], scores, mask, heads)
    } else {
        let groups_at_once = at_once.min(groups);
        let rows = (0..b).map(|row| {
            let row_of = |x: &Tensor<4>| x.clone().narrow(0, row, 1);
            let mask = mask.as_ref().map(&row_of);
            let (q, k, v) = (row_of(&q), row_of(&k), row_of(&v));
            let parts = (0..groups).step_by(groups_at_once).map(|start| {
                let count = groups_at_once.min(groups - start);
                let part_of = |x: &Tensor<4>| x.clone().narrow(1, start, count);
                whole([&q, &k, &v].map(part_of), scores, mask.clone(), shared * count)
            });
            Tensor::cat(parts.collect(), 1)
        });
        Tensor::cat(rows.collect(), 0)
    };
    mixed.reshape([b, heads, t, width])
}

/// q is `[b, groups, shared·t, width]`; `heads` is their number in this part.
fn whole(
    [q, k, v]: [Tensor<4>; 3],
    scores: Scores,
    mask: Option<Tensor<4>>,
    heads: usize,
) -> Tensor<4> {
    let dtype = q.dtype();
    let ([b, groups, queries, _], [_, _, s, _]) = (q.dims(), k.dims());
    let t = queries * groups / heads;
    let products = cast((q * scores.scale).matmul(k.swap_dims(2, 3)), DType::F32);
    let capped = match scores.cap {
        Some(cap) => soft_cap(products, cap),
        None => products,
    };
    let masked = match mask {
        Some(mask) => (capped.reshape([b, heads, t, s]) + mask).reshape([b, groups, queries, s]),
        None => capped,
    };
    cast(softmax(masked, 3), dtype).matmul(v)
}
