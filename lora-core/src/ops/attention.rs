//! Attention of grouped query heads over keys that a mask allows.

use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::cast;

/// Which keys each query may look at: 0 where it may, −∞ where not, `[b, 1, t, s]` in f32.
#[derive(Debug, Clone)]
pub struct AttentionMask(Tensor<4>);

impl AttentionMask {
    /// The mask of `allowed`, row-major.
    ///
    /// # Shapes
    /// - allowed: `[b, t, s]`, at least one true for each query
    pub fn new(allowed: &[bool], [b, t, s]: [usize; 3], device: &Device) -> Self {
        let numbers: Vec<f32> =
            allowed.iter().map(|allowed| if *allowed { 0.0 } else { f32::NEG_INFINITY }).collect();
        Self(Tensor::from_data(TensorData::new(numbers, [b, 1, t, s]), device))
    }
}

/// `softmax(q·kᵀ/√width + mask)·v` (Vaswani et al. 2017, <https://arxiv.org/abs/1706.03762>, equation 1),
/// with `heads / groups` query heads on each key head (Ainslie et al. 2023,
/// <https://arxiv.org/abs/2305.13245>). The softmax is f32.
///
/// The scores of all rows are one buffer; where that is above `buffer_limit` bytes, rows, and if need
/// be key heads, are computed one after another.
///
/// # Shapes
/// - q, output: `[b, heads, t, width]`
/// - k, v: `[b, groups, s, width]`
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<&AttentionMask>,
    buffer_limit: Option<usize>,
) -> Tensor<4> {
    let ([b, heads, t, width], [_, groups, s, _]) = (q.dims(), k.dims());
    let shared = heads / groups; // query heads on one key head
    // Query heads that share a key head lie one after another.
    let q = q.reshape([b, groups, shared * t, width]);
    let one = shared * t * s * size_of::<f32>(); // scores of one row and key head
    let at_once = buffer_limit.map_or(usize::MAX, |limit| (limit / one).max(1));
    let mixed = if b * groups <= at_once {
        whole(q, k, v, mask.map(|mask| mask.0.clone()), heads)
    } else {
        let groups_at_once = at_once.min(groups);
        let rows = (0..b).map(|row| {
            let row_of = |x: &Tensor<4>| x.clone().narrow(0, row, 1);
            let mask = mask.map(|mask| row_of(&mask.0));
            let (q, k, v) = (row_of(&q), row_of(&k), row_of(&v));
            let parts = (0..groups).step_by(groups_at_once).map(|start| {
                let count = groups_at_once.min(groups - start);
                let part_of = |x: &Tensor<4>| x.clone().narrow(1, start, count);
                whole(part_of(&q), part_of(&k), part_of(&v), mask.clone(), shared * count)
            });
            Tensor::cat(parts.collect(), 1)
        });
        Tensor::cat(rows.collect(), 0)
    };
    mixed.reshape([b, heads, t, width])
}

/// q is `[b, groups, shared·t, width]`; `heads` is their number in this part.
fn whole(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<Tensor<4>>,
    heads: usize,
) -> Tensor<4> {
    let dtype = q.dtype();
    let ([b, groups, queries, width], [_, _, s, _]) = (q.dims(), k.dims());
    let t = queries * groups / heads;
    let scale = 1.0 / (width as f64).sqrt();
    let scores = cast((q * scale).matmul(k.swap_dims(2, 3)), DType::F32);
    let scores = match mask {
        Some(mask) => (scores.reshape([b, heads, t, s]) + mask).reshape([b, groups, queries, s]),
        None => scores,
    };
    cast(softmax(scores, 3), dtype).matmul(v)
}
