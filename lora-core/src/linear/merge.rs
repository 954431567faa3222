//! Updates into the weight itself and out of it: the one place where ΔW is formed.

use burn::tensor::DType;

use super::LoraLinear;
use super::adapter::Adapter;
use crate::ops::cast;

impl LoraLinear {
    /// Adds the active updates to the weight itself: `W ← W + share·s·A·B`, or of a weight-decomposed one
    /// `W ← m/‖W + s·A·B‖·(W + s·A·B)`. The forward pass then costs what the base costs.
    pub fn merge(&mut self) {
        for index in 0..self.adapters.len() {
            self.merge_share(index, self.adapters[index].share);
        }
    }

    /// Whether merging leaves something beside the weights: a branch's bias on a layer that has none.
    pub fn adds_bias(&self) -> bool {
        let adds = |adapter: &Adapter| adapter.branch_bias.is_some() && adapter.share != 0.0;
        self.bias.is_none() && self.adapters.iter().any(adds)
    }

    /// Takes merged updates out of the weight again, up to rounding.
    pub fn unmerge(&mut self) {
        for index in 0..self.adapters.len() {
            self.merge_share(index, 0.0);
        }
    }

    pub(super) fn merge_share(&mut self, index: usize, share: f64) {
        let adapter = &mut self.adapters[index];
        let change = share - adapter.merged;
        if change == 0.0 {
            return;
        }
        adapter.merged = share;
        // The transposed sum keeps the weight's rows where the matmul reads them fastest.
        if let Some(packed) = self.weight.packed() {
            self.at_rest = Some(packed.clone());
        }
        let weight = self.weight.value().inner();
        let dtype = weight.dtype();
        let weight = cast(weight, DType::F32).transpose();
        let merged = match adapter.magnitude {
            None => weight + adapter.delta(change),
            Some(_) => adapter.normed(weight, share),
        };
        if let (Some(bias), Some(branch)) = (&mut self.bias, &adapter.branch_bias) {
            let value = bias.value().inner();
            let dtype = value.dtype();
            let more = branch.value().inner() * (change * adapter.scaling);
            bias.set(cast(cast(value, DType::F32) + more, dtype));
        }
        self.weight.set(cast(merged, dtype).transpose());
        // What rested in few bits rests so again, to the bit, once nothing is merged.
        if self.adapters.iter().all(|adapter| adapter.merged == 0.0)
            && let Some(packed) = self.at_rest.take()
        {
            self.weight.put_back(packed);
        }
        self.forget();
    }
}
