//! What adapters change of the embedding: a low-rank update of all its rows, or some rows trained whole.
//!
//! Row t of the table becomes `W[t] + s·A[t]·B` (Hu et al. 2021 on a layer whose input is one-hot), or, for
//! a trained token, a row of the adapter's own. Where the output head is the same table (tied), the head
//! can follow: logits then are `h·(W + s·A·B)ᵀ`.

use std::collections::HashMap;

use burn::tensor::{DType, Device, IndexingUpdateOp, Tensor, TensorData};

use crate::ops::{LowRank, cast};
use crate::parameter::{Parameter, ParameterMut, read_f32};
use crate::peft::Factor;
use crate::table::{Table, indices};

/// The adapters on a table with a row for each token, `[v, d]`.
#[derive(Debug, Clone, Default)]
pub struct EmbeddingAdapters(Vec<Adapter>);

#[derive(Debug, Clone)]
struct Adapter {
    name: String,
    change: Change,
    /// Whether the head, which is the same table, follows.
    tied: bool,
    share: f64,
    merged: f64,
}

#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "an adapter has one at most")]
enum Change {
    /// A `[v, r]` and B `[r, d]`.
    LowRank { a: Parameter<2>, b: Parameter<2>, scaling: f64 },
    /// The rows of these tokens, `[n, d]`, and those of the table while the others are in their place.
    Rows { tokens: Vec<i32>, rows: Parameter<2>, before: Option<Tensor<2>> },
}

impl EmbeddingAdapters {
    /// Adds the low-rank adapter `name`. With `tied` the head follows.
    ///
    /// # Shapes
    /// - factor: d_in = v, d_out = d
    pub fn attach_low_rank(
        &mut self,
        name: &str,
        factor: &Factor,
        scaling: f64,
        tied: bool,
        device: &Device,
    ) {
        let a = TensorData::new(factor.a.clone(), [factor.d_in, factor.rank]);
        let b = TensorData::new(factor.b.clone(), [factor.rank, factor.d_out]);
        let a = Parameter::new(Tensor::from_data(a, device));
        let b = Parameter::new(Tensor::from_data(b, device));
        self.push(name, Change::LowRank { a, b, scaling }, tied);
    }

    /// Adds adapter `name` with rows of its own for these tokens; `None` starts with the table's. With `tied`
    /// the head follows.
    ///
    /// # Shapes
    /// - rows: `[n, d]`, row-major
    ///
    /// # Panics
    /// For a token that the table does not have.
    pub fn attach_rows(
        &mut self,
        name: &str,
        tokens: &[u32],
        rows: Option<Vec<f32>>,
        table: &Table,
        tied: bool,
        device: &Device,
    ) {
        let tokens: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
        let rows = match rows {
            Some(rows) => {
                let shape = [tokens.len(), table.dims()[1]];
                Tensor::from_data(TensorData::new(rows, shape), device)
            }
            None => cast(table.select(&tokens, device).inner(), DType::F32),
        };
        let rows = Parameter::new(rows);
        self.push(name, Change::Rows { tokens, rows, before: None }, tied);
    }

    fn push(&mut self, name: &str, change: Change, tied: bool) {
        self.0.push(Adapter { name: name.to_owned(), change, tied, share: 1.0, merged: 0.0 });
    }

    /// The rows `[n, d]` that the table gave for `tokens`, as the active adapters change them.
    pub fn change(&self, rows: Tensor<2>, tokens: &[i32], device: &Device) -> Tensor<2> {
        self.0.iter().filter(|adapter| adapter.acts()).fold(rows, |rows, adapter| {
            let share = adapter.share - adapter.merged;
            match &adapter.change {
                Change::LowRank { a, b, scaling } => {
                    let narrow = a.value().select(0, indices(tokens, device)); // [n, r]
                    cast(rows, DType::F32) + narrow.matmul(b.value()) * (share * scaling)
                }
                Change::Rows { tokens: trained, rows: own, before } => {
                    let put = adapter.rows_now(own, before);
                    replaced(rows, tokens, trained, &put, device)
                }
            }
        })
    }

    /// Whether the logits of a head that is the table are others than the table's.
    pub fn changes_head(&self) -> bool {
        self.0.iter().any(|adapter| adapter.tied && adapter.acts())
    }

    /// Logits `[n, v]` of a head that is the table, as the active adapters change them.
    ///
    /// # Shapes
    /// - hidden: `[n, d]`
    pub fn change_logits(&self, hidden: &Tensor<2>, logits: Tensor<2>) -> Tensor<2> {
        let tied = self.0.iter().filter(|adapter| adapter.tied && adapter.acts());
        tied.fold(logits, |logits, adapter| {
            let share = adapter.share - adapter.merged;
            match &adapter.change {
                Change::LowRank { a, b, scaling } => {
                    let (a, b) = (b.value().transpose(), a.value().transpose());
                    let turned = LowRank { a, b, scale: share * scaling, dropout: 0.0 };
                    logits + turned.forward(hidden.clone())
                }
                Change::Rows { tokens, rows, before } => {
                    let dtype = logits.dtype();
                    let put = adapter.rows_now(rows, before).transpose();
                    let own = cast(hidden.clone(), DType::F32).matmul(put);
                    let at = indices(tokens, &hidden.device().inner());
                    let logits = cast(logits, DType::F32);
                    let more = own - logits.clone().select(1, at.clone());
                    cast(logits.select_assign(1, at, more, IndexingUpdateOp::Add), dtype)
                }
            }
        })
    }

    /// Sets how much of each adapter acts; those that are not named are switched off.
    pub fn set_active(&mut self, shares: &[(String, f64)]) {
        for adapter in &mut self.0 {
            let found = shares.iter().find(|(name, _)| *name == adapter.name);
            adapter.share = found.map_or(0.0, |(_, share)| *share);
        }
    }

    /// Puts the active adapters into the table itself.
    pub fn merge(&mut self, table: &mut Table) {
        self.0.iter_mut().for_each(|adapter| adapter.merge(adapter.share, table));
    }

    /// Takes merged adapters out of the table again.
    pub fn unmerge(&mut self, table: &mut Table) {
        self.0.iter_mut().for_each(|adapter| adapter.merge(0.0, table));
    }

    /// Takes adapter `name` off; a merged one is unmerged first.
    pub fn detach(&mut self, name: &str, table: &mut Table) {
        let named = self.0.iter_mut().filter(|adapter| adapter.name == name);
        named.for_each(|adapter| adapter.merge(0.0, table));
        self.0.retain(|adapter| adapter.name != name);
    }

    /// What is trained with adapter `name`, each with the end of its key.
    pub fn parameters_mut(&mut self, name: &str) -> Vec<(&'static str, ParameterMut<'_>)> {
        let mut all = Vec::new();
        for adapter in self.0.iter_mut().filter(|adapter| adapter.name == name) {
            match &mut adapter.change {
                Change::LowRank { a, b, .. } => {
                    all.push((".lora_embedding_A", ParameterMut::Matrix(a)));
                    all.push((".lora_embedding_B", ParameterMut::Matrix(b)));
                }
                Change::Rows { rows, .. } => {
                    all.push((".token_adapter.trainable_tokens_delta", ParameterMut::Matrix(rows)));
                }
            }
        }
        all
    }

    /// The factors of adapter `name`, read back, under this path.
    pub fn factor(&self, name: &str, path: &str) -> Option<Factor> {
        self.0.iter().filter(|adapter| adapter.name == name).find_map(|adapter| {
            let Change::LowRank { a, b, .. } = &adapter.change else { return None };
            let ([d_in, rank], [_, d_out]) = (a.value().dims(), b.value().dims());
            let (a, b) = (read_f32(a.value()), read_f32(b.value()));
            Some(Factor { path: path.to_owned(), d_in, d_out, rank, a, b })
        })
    }

    /// The trained rows of adapter `name`, read back, `[n, d]`.
    pub fn rows(&self, name: &str) -> Option<([usize; 2], Vec<f32>)> {
        self.0.iter().filter(|adapter| adapter.name == name).find_map(|adapter| {
            let Change::Rows { rows, .. } = &adapter.change else { return None };
            Some((rows.value().dims(), read_f32(rows.value())))
        })
    }
}

impl Adapter {
    /// The rows that belong in the table now: the adapter's, or, where those are merged and it is switched
    /// off, the table's as they were.
    fn rows_now(&self, own: &Parameter<2>, before: &Option<Tensor<2>>) -> Tensor<2> {
        let kept = before.clone().filter(|_| self.share == 0.0);
        kept.unwrap_or_else(|| own.value())
    }

    fn acts(&self) -> bool {
        self.share != self.merged
    }

    fn merge(&mut self, share: f64, table: &mut Table) {
        let change = share - self.merged;
        if change == 0.0 {
            return;
        }
        self.merged = share;
        match &mut self.change {
            Change::LowRank { a, b, scaling } => {
                let (a, b) = (a.value().inner(), b.value().inner() * (change * *scaling));
                table.map(|start, part| {
                    let (dtype, count) = (part.dtype(), part.dims()[0]);
                    let more = a.clone().narrow(0, start, count).matmul(b.clone());
                    cast(cast(part, DType::F32) + more, dtype)
                });
            }
            Change::Rows { tokens, rows, before } => {
                let device = rows.value().device().inner();
                let put = match before.take() {
                    Some(rows) => rows,
                    None => {
                        *before = Some(cast(table.select(tokens, &device).inner(), DType::F32));
                        rows.value().inner()
                    }
                };
                table.map(|start, part| {
                    let (dtype, count) = (part.dtype(), part.dims()[0]);
                    let here: Vec<i32> = (start..start + count).map(|row| row as i32).collect();
                    cast(replaced(part, &here, tokens, &put, &device), dtype)
                });
            }
        }
    }
}

/// `rows` `[n, d]` of `tokens`, in which those of the `trained` tokens are from `own` `[k, d]`.
fn replaced(
    rows: Tensor<2>,
    tokens: &[i32],
    trained: &[i32],
    own: &Tensor<2>,
    device: &Device,
) -> Tensor<2> {
    let places: HashMap<i32, i32> =
        trained.iter().enumerate().map(|(at, token)| (*token, at as i32)).collect();
    let found: Vec<Option<i32>> = tokens.iter().map(|token| places.get(token).copied()).collect();
    if found.iter().all(Option::is_none) {
        return rows;
    }
    let from: Vec<i32> = found.iter().map(|place| place.unwrap_or(0)).collect();
    let is_own = |place: &Option<i32>| if place.is_some() { 1.0f32 } else { 0.0 };
    let mask: Vec<f32> = found.iter().map(is_own).collect();
    let mask = TensorData::new(mask, [tokens.len(), 1]);
    let mask = Tensor::<2>::from_data(mask, device);
    let own = own.clone().select(0, indices(&from, device)) * mask.clone();
    cast(rows, DType::F32) * (mask.neg() + 1.0) + own
}
