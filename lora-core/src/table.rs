//! A table with a row for each token, `[v, d]`: the embedding, and the output head's transpose.
//!
//! It is one matrix where the device takes it in one buffer, and frozen parts of whole rows where not.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::ops::{Layer, Weight, lora_linear};
use crate::packed::Packed;
use crate::parameter::{Parameter, read_f32};

/// A table in one or several parts.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "a model has two at most")]
pub enum Table {
    /// In one buffer; it can be trained.
    Whole(Parameter<2>),
    /// Rows one after another; all parts but the last have as many.
    Parts(Vec<Tensor<2>>),
}

/// A part of a table: the rows from `start` on.
#[derive(Debug, Clone)]
pub struct Part {
    /// Its first row.
    pub start: usize,
    /// `[rows, d]`
    pub rows: Tensor<2>,
}

impl Table {
    /// The table of `numbers`, row-major, cut where it is larger than `buffer_limit` bytes. A number
    /// counts four bytes in every format, since its gradient has as many.
    ///
    /// # Shapes
    /// - numbers: `[v, d]`
    pub fn new(
        numbers: Vec<f32>,
        [v, d]: [usize; 2],
        (device, dtype): (&Device, DType),
        buffer_limit: Option<usize>,
    ) -> Self {
        let rows_at_once =
            buffer_limit.map_or(v, |limit| (limit / (d * size_of::<f32>())).max(1)).max(1);
        let tensor = |numbers: Vec<f32>| {
            let rows = numbers.len() / d;
            Tensor::from_data(TensorData::new(numbers, [rows, d]), (device, dtype))
        };
        if rows_at_once >= v {
            return Self::Whole(Parameter::new(tensor(numbers)));
        }
        let parts = numbers.chunks(rows_at_once * d);
        Self::Parts(parts.map(|part| tensor(part.to_vec())).collect())
    }

    /// The table whose rows are packed.
    pub fn packed(packed: Packed) -> Self {
        Self::Whole(Parameter::packed_table(packed))
    }

    /// Its parts in order, as the forward pass uses them, in bf16 where they rest so; a packed table is unpacked by
    /// every call.
    pub fn parts(&self) -> Vec<Part> {
        match self {
            Self::Whole(parameter) => vec![Part { start: 0, rows: parameter.at_rest() }],
            Self::Parts(parts) => {
                let starts = parts.iter().scan(0, |next, part| {
                    let start = *next;
                    *next += part.dims()[0];
                    Some(start)
                });
                starts.zip(parts).map(|(start, rows)| Part { start, rows: rows.clone() }).collect()
            }
        }
    }

    /// The one matrix, unless it is in parts.
    pub fn whole(&self) -> Option<&Parameter<2>> {
        match self {
            Self::Whole(parameter) => Some(parameter),
            Self::Parts(_) => None,
        }
    }

    /// As [`Self::whole`], to replace or to train.
    pub fn whole_mut(&mut self) -> Option<&mut Parameter<2>> {
        match self {
            Self::Whole(parameter) => Some(parameter),
            Self::Parts(_) => None,
        }
    }

    /// Replaces every part by what `change` makes of its first row's number and its rows.
    pub fn map(&mut self, mut change: impl FnMut(usize, Tensor<2>) -> Tensor<2>) {
        match self {
            Self::Whole(parameter) => {
                let rows = parameter.value().inner();
                parameter.set(change(0, rows));
            }
            Self::Parts(parts) => {
                let mut start = 0;
                for part in parts {
                    let rows = part.dims()[0];
                    *part = change(start, part.clone());
                    start += rows;
                }
            }
        }
    }

    /// Whether training changes it now.
    pub fn is_tracked(&self) -> bool {
        self.whole().is_some_and(Parameter::is_tracked)
    }

    /// Number of rows and columns.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Whole(parameter) => parameter.dims(),
            Self::Parts(parts) => {
                let d = parts.first().map_or(0, |part| part.dims()[1]);
                [parts.iter().map(|part| part.dims()[0]).sum(), d]
            }
        }
    }

    /// Bytes that it takes as it rests.
    pub fn resident_bytes(&self) -> usize {
        match self {
            Self::Whole(parameter) => parameter.resident_bytes(),
            Self::Parts(parts) => {
                parts.iter().map(|part| part.shape().num_elements() * part.dtype().size()).sum()
            }
        }
    }

    /// Reads all of it back, row-major.
    pub fn read(&self) -> Vec<f32> {
        self.parts().into_iter().flat_map(|part| read_f32(part.rows)).collect()
    }

    /// The rows of `tokens`, `[n, d]`, in bf16 where they rest so.
    pub fn select(&self, tokens: &[i32], device: &Device) -> Tensor<2> {
        match self {
            Self::Whole(parameter) => match parameter.packed() {
                Some(packed) => packed.select(tokens),
                None => parameter.at_rest().select(0, indices(tokens, device)),
            },
            Self::Parts(_) => select_from(&self.parts(), tokens, device),
        }
    }

    /// `hidden·tableᵀ`, `[n, d]` to `[n, v]`.
    pub fn logits(&self, hidden: &Tensor<2>) -> Tensor<2> {
        let layer = |weight: Weight| Layer { weight, bias: None, low_rank: Vec::new() };
        if let Some(packed) = self.whole().and_then(Parameter::packed) {
            return lora_linear(hidden.clone(), &[layer(Weight::Packed(packed.clone()))]);
        }
        let parts = self.parts().into_iter();
        let layers = parts.map(|part| layer(Weight::Dense(part.rows.transpose())));
        lora_linear(hidden.clone(), &layers.collect::<Vec<_>>())
    }
}

/// The rows of `tokens`, `[n, d]`, of a table in parts.
pub(crate) fn select_from(parts: &[Part], tokens: &[i32], device: &Device) -> Tensor<2> {
    gathered(parts, tokens, device, |at, local, _| {
        parts[at].rows.clone().select(0, indices(&local, device))
    })
}

/// Asks each part for what it has of `tokens`, and puts the answers, `[count, ..]` each, into the order of
/// the tokens. `answer` gets the part's number, its rows, and which tokens they are of.
pub(crate) fn gathered(
    parts: &[Part],
    tokens: &[i32],
    device: &Device,
    mut answer: impl FnMut(usize, Vec<i32>, Vec<i32>) -> Tensor<2>,
) -> Tensor<2> {
    let mut found = Vec::new();
    let mut order = vec![0; tokens.len()];
    let mut taken = 0;
    for (number, part) in parts.iter().enumerate() {
        let rows = part.start..part.start + part.rows.dims()[0];
        let (mut local, mut positions) = (Vec::new(), Vec::new());
        for (at, token) in tokens.iter().enumerate() {
            if rows.contains(&(*token as usize)) {
                local.push(token - part.start as i32);
                positions.push(at as i32);
                order[at] = taken;
                taken += 1;
            }
        }
        if !local.is_empty() {
            found.push(answer(number, local, positions));
        }
    }
    Tensor::cat(found, 0).select(0, indices(&order, device))
}

pub(crate) fn indices(of: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(of.to_vec(), [of.len()]), device)
}
