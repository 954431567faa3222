//! An analysis as JSON: every number, layer by layer.

use lora_core::algebra::spectrum::{effective_rank, energy, stable_rank};
use lora_core::algebra::subspace::Amplification;
use serde_json::{Value, json};

use super::{Analysis, Base, Layer, Similarity, Update};

/// The whole analysis.
pub(super) fn json(analysis: &Analysis) -> Value {
    json!({
        "model": analysis.model,
        "adapters": analysis.adapters,
        "layers": analysis.layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

fn layer(layer: &Layer) -> Value {
    json!({
        "layer": layer.path,
        "d_in": layer.d_in,
        "d_out": layer.d_out,
        "base": layer.base.as_ref().map(base),
        "updates": layer.updates.iter().map(|it| it.as_ref().map(update)).collect::<Vec<_>>(),
        "similarity": layer.similarity.as_ref().map(similarity),
    })
}

fn base(base: &Base) -> Value {
    let values = base.values.as_deref();
    json!({
        "norm": base.norm,
        "effective_rank": values.map(effective_rank),
        "stable_rank": values.map(stable_rank),
        "singular_values": values,
    })
}

fn update(update: &Update) -> Value {
    json!({
        "rank": update.rank,
        "norm": energy(&update.values).sqrt(),
        "effective_rank": effective_rank(&update.values),
        "stable_rank": stable_rank(&update.values),
        "singular_values": update.values,
        "amplification": update.amplification.as_ref().map(amplification),
    })
}

fn amplification(found: &Amplification) -> Value {
    json!({
        "directions": found.rank,
        "base_in_update": found.base_in_update,
        "base_in_base": found.base_in_base,
        "base_in_random": found.base_in_random,
        "factor": (found.rank > 0).then(|| found.factor()),
    })
}

/// Rows of φ(i, j): i from top to bottom, j from left to right.
fn similarity(found: &Similarity) -> Value {
    let rows =
        |values: &[f64]| values.chunks(found.ranks[1]).map(<[f64]>::to_vec).collect::<Vec<_>>();
    json!({ "ranks": found.ranks, "a": rows(&found.inputs), "b": rows(&found.outputs) })
}
