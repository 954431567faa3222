//! The numbers of an adapter at a glance, layer by layer.

use super::low_rank::update_of;
use crate::peft::PeftAdapter;

/// The norms of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Norms {
    /// Path of the layer.
    pub path: String,
    /// Inputs of the layer.
    pub d_in: usize,
    /// Outputs of the layer.
    pub d_out: usize,
    /// Rank of the pair.
    pub rank: usize,
    /// Factor before A·B.
    pub scaling: f64,
    /// ‖A‖.
    pub a: f64,
    /// ‖B‖.
    pub b: f64,
    /// ‖ΔW‖ = ‖s·A·B‖.
    pub update: f64,
    /// Largest magnitude of a number of A or B.
    pub largest: f32,
}

/// The norms of every layer, in the order of the pairs. That keys, shapes and values are right is for
/// [`PeftAdapter::load`] to say, and that they are those of a model for [`PeftAdapter::fit`].
pub fn verify(adapter: &PeftAdapter) -> Vec<Norms> {
    let lora = &adapter.config.lora;
    let norm = |values: &[f32]| {
        values.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
    };
    let row = |factor: &crate::peft::Factor| Norms {
        path: factor.path.clone(),
        d_in: factor.d_in,
        d_out: factor.d_out,
        rank: factor.rank,
        scaling: lora.scaling_for(&factor.path),
        a: norm(&factor.a),
        b: norm(&factor.b),
        update: update_of(lora, factor).norm(),
        largest: factor
            .a
            .iter()
            .chain(&factor.b)
            .fold(0.0, |most: f32, value| most.max(value.abs())),
    };
    adapter.factors.iter().map(row).collect()
}
