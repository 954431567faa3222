//! Attention by the kernel that keeps no scores.

use burn::tensor::{DType, Tensor};
use half::bf16;
use lora_kernels::attention::{Heads, Look, Shape, Upper, attention as attend, attention_backward};
use lora_kernels::filled;

use super::{Flat, Format, Parents, by_format, dense, flat, numbers, tensor};
use crate::ops::{AttentionMask, HeadLayout, Scores};

/// As [`crate::ops::attention`], without a cap.
pub(in crate::ops) fn attention(
    rows: &Tensor<2>,
    layout: HeadLayout,
    size: [usize; 2],
    scores: Scores,
    mask: Option<&AttentionMask>,
) -> Option<Tensor<2>> {
    if scores.cap.is_some() {
        return None;
    }
    by_format!(rows.dtype(), joined, rows, layout, size, scores.scale as f32, mask)
}

fn joined<T: Format>(
    rows: &Tensor<2>,
    layout: HeadLayout,
    [b, t]: [usize; 2],
    scale: f32,
    mask: Option<&AttentionMask>,
) -> Option<Tensor<2>> {
    let mut parents = Parents::default();
    parents.add(rows);
    let input = dense::<T>(flat(rows)?);
    let HeadLayout { heads, groups, width } = layout;
    let shape = Shape { rows: b, heads, groups, queries: t, keys: t, width };
    let visible = visible(mask, shape);
    let row = layout.row();
    let steps = [t * row, row, width];
    let starts = [0, heads * width, (heads + groups) * width];
    let mut sums = vec![0.0; b * heads * t];
    let out: Vec<T> = filled(b * t * heads * width, |out| {
        let sides = starts.map(|start| Heads { numbers: &numbers::<T>(&input)[start..], steps });
        attend(sides, shape, Look { visible: &visible, scale }, out, &mut sums);
    });
    let output = tensor(out, &[b * t, heads * width]);
    let kept = output.clone();
    Some(parents.node("attention, backward", output, move |upper| {
        let upper = dense::<T>(upper);
        let sides = starts.map(|start| Heads { numbers: &numbers::<T>(&input)[start..], steps });
        let given = Upper { out: numbers::<T>(&kept), sums: &sums, gradient: numbers::<T>(&upper) };
        let gradient: Vec<T> = filled(b * t * row, |gradient| {
            let look = Look { visible: &visible, scale };
            attention_backward(sides, shape, look, given, starts, gradient);
        });
        vec![tensor(gradient, &[b * t, row])]
    }))
}

/// As [`crate::ops::attention_over`], without a graph and without a cap.
pub(in crate::ops) fn attention_over(
    [q, k, v]: [&Tensor<4>; 3],
    scores: Scores,
    mask: Option<&AttentionMask>,
) -> Option<Tensor<4>> {
    if scores.cap.is_some() || [q, k, v].into_iter().any(Tensor::is_tracked) {
        return None;
    }
    by_format!(q.dtype(), apart, q, k, v, scores.scale as f32, mask)
}

fn apart<T: Format>(
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    scale: f32,
    mask: Option<&AttentionMask>,
) -> Option<Tensor<4>> {
    let ([rows, heads, queries, width], [_, groups, keys, _]) = (q.dims(), k.dims());
    let shape = Shape { rows, heads, groups, queries, keys, width };
    let visible = visible(mask, shape);
    let [q, k, v] = [readable::<T>(flat(q)?), readable::<T>(flat(k)?), readable::<T>(flat(v)?)];
    let sides = [&q, &k, &v].map(|side| {
        let strides = side.layout().strides();
        let steps = [strides[0] as usize, strides[2] as usize, strides[1] as usize];
        Heads { numbers: &side.storage::<T>()[side.layout().start_offset()..], steps }
    });
    let mut sums = vec![0.0; rows * heads * queries];
    let out: Vec<T> = filled(rows * queries * heads * width, |out| {
        attend(sides, shape, Look { visible: &visible, scale }, out, &mut sums);
    });
    let out = Tensor::<4>::from_primitive::<burn::backend::Flex>(tensor(
        out,
        &[rows, queries, heads, width],
    ));
    Some(out.swap_dims(1, 2))
}

/// The vectors of heads dense, whatever the steps between them.
fn readable<T: Format>(x: Flat) -> Flat {
    let strides = x.layout().strides();
    let fits = strides[3] == 1 && strides.iter().all(|stride| *stride >= 0);
    if fits && x.dtype() == T::dtype() { x } else { dense::<T>(x) }
}

/// The keys of each query, first and one after the last.
fn visible(mask: Option<&AttentionMask>, shape: Shape) -> Vec<[u32; 2]> {
    match mask {
        Some(mask) => mask.visible().to_vec(),
        None => vec![[0, shape.keys as u32]; shape.rows * shape.queries],
    }
}
