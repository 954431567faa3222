//! `adapter_model.safetensors`: PEFT's key names and PyTorch's shapes on disk, ours in memory.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{TensorView, View};
use safetensors::{Dtype, SafeTensors};

use super::{Factor, NamedTensor, extra};
use crate::error::{Error, Result};
use crate::target::is_embedding;

/// Before every path: PEFT's wrapper and its tuner.
const PREFIX: &str = "base_model.model.";
const A_END: &str = ".lora_A.weight";
const B_END: &str = ".lora_B.weight";
/// An embedding's factors are bare parameters of their module.
const EMBEDDING_A_END: &str = ".lora_embedding_A";
const EMBEDDING_B_END: &str = ".lora_embedding_B";

/// What the file holds.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) factors: Vec<Factor>,
    pub(super) saved: Vec<NamedTensor>,
    pub(super) extra: Vec<NamedTensor>,
}

pub(super) fn key_of_a(path: &str) -> String {
    format!("{PREFIX}{path}{}", if is_embedding(path) { EMBEDDING_A_END } else { A_END })
}

pub(super) fn key_of_b(path: &str) -> String {
    format!("{PREFIX}{path}{}", if is_embedding(path) { EMBEDDING_B_END } else { B_END })
}

pub(super) fn key_of_saved(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// Reads the file's content; `path` is for messages.
pub(super) fn read(bytes: &[u8], path: &Path) -> Result<Stored> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| {
        Error::malformed(path, format!("not a whole safetensors file: {error}"))
            .with_hint("copy or download the adapter again")
    })?;
    let mut pairs: BTreeMap<&str, (Option<TensorView>, Option<TensorView>)> = BTreeMap::new();
    let (mut saved, mut more) = (BTreeMap::new(), BTreeMap::new());
    for (key, view) in file.iter() {
        let name = key.strip_prefix(PREFIX).ok_or_else(|| {
            Error::malformed(
                path,
                format!("tensor `{key}` is unexpected: no `{PREFIX}` before its name"),
            )
            .with_hint("save the adapter with PEFT's `save_pretrained`")
        })?;
        if let Some(module) = pair_of(name, A_END, EMBEDDING_A_END) {
            pairs.entry(module).or_default().0 = Some(view);
        } else if let Some(module) = pair_of(name, B_END, EMBEDDING_B_END) {
            pairs.entry(module).or_default().1 = Some(view);
        } else if extra::kind_of(name).is_some() {
            more.insert(name, view);
        } else if let Some((reason, way_out)) = unsupported(name) {
            return Err(
                Error::malformed(path, format!("tensor `{key}` {reason}")).with_hint(way_out)
            );
        } else {
            saved.insert(name, view);
        }
    }
    let factors = pairs.into_iter().map(|(module, pair)| factor(module, pair, path));
    let whole = |(name, view): (&str, TensorView)| {
        let data = values(&key_of_saved(name), &view, path)?;
        Ok(NamedTensor { name: name.to_owned(), shape: view.shape().to_vec(), data })
    };
    Ok(Stored {
        factors: factors.collect::<Result<_>>()?,
        saved: saved.into_iter().map(whole).collect::<Result<_>>()?,
        extra: more.into_iter().map(whole).collect::<Result<_>>()?,
    })
}

/// The module whose factor this is.
fn pair_of<'a>(name: &'a str, end: &str, of_embedding: &str) -> Option<&'a str> {
    let usual = name.strip_suffix(end).filter(|path| !is_embedding(path));
    usual.or_else(|| name.strip_suffix(of_embedding).filter(|path| is_embedding(path)))
}

/// The file's content, as PEFT would write it: f32, in the order of the names.
pub(super) fn serialize(
    factors: &[Factor],
    saved: &[NamedTensor],
    extra: &[NamedTensor],
) -> Vec<u8> {
    let mut tensors = Vec::with_capacity(2 * factors.len() + saved.len());
    for Factor { path, d_in, d_out, rank, a, b } in factors {
        tensors.push((key_of_a(path), Output::transposed(a, *d_in, *rank)));
        tensors.push((key_of_b(path), Output::transposed(b, *rank, *d_out)));
    }
    for tensor in saved.iter().chain(extra) {
        tensors.push((key_of_saved(&tensor.name), Output::as_is(tensor)));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    #[expect(
        clippy::expect_used,
        reason = "fails only for lengths other than the shapes', checked before"
    )]
    safetensors::serialize(tensors, Some(metadata)).expect("lengths are those of the shapes")
}

fn factor(
    module: &str,
    pair: (Option<TensorView>, Option<TensorView>),
    path: &Path,
) -> Result<Factor> {
    let (key_a, key_b) = (key_of_a(module), key_of_b(module));
    let (a, b) = match pair {
        (Some(a), Some(b)) => (a, b),
        (Some(_), None) => return Err(alone(path, &key_a, &key_b)),
        (None, _) => return Err(alone(path, &key_b, &key_a)),
    };
    let &[rank, d_in] = a.shape() else {
        return Err(not_a_matrix(path, &key_a, a.shape(), "[rank, inputs]"));
    };
    let &[d_out, rank_of_b] = b.shape() else {
        return Err(not_a_matrix(path, &key_b, b.shape(), "[outputs, rank]"));
    };
    if rank != rank_of_b {
        return Err(Error::malformed(
            path,
            format!(
                "`{key_a}` has rank {rank} (shape {:?}) but `{key_b}` has {rank_of_b} (shape {:?})",
                a.shape(),
                b.shape()
            ),
        ));
    }
    if rank == 0 || d_in == 0 || d_out == 0 {
        let reason = format!("`{module}` has an empty weight: {:?}, {:?}", a.shape(), b.shape());
        return Err(Error::malformed(path, reason));
    }
    Ok(Factor {
        path: module.to_owned(),
        d_in,
        d_out,
        rank,
        a: transpose(&values(&key_a, &a, path)?, rank, d_in),
        b: transpose(&values(&key_b, &b, path)?, d_out, rank),
    })
}

fn alone(path: &Path, present: &str, absent: &str) -> Error {
    Error::malformed(path, format!("tensor `{absent}` is missing, the partner of `{present}`"))
        .with_hint("the adapter is incomplete: save or download it again")
}

fn not_a_matrix(path: &Path, key: &str, shape: &[usize], expected: &str) -> Error {
    let reason = format!("tensor `{key}` has shape {shape:?}, not {expected}");
    Error::malformed(path, reason).with_hint("only linear layers are supported, not convolutions")
}

/// Tensors of PEFT that say something we would have to leave out: what they are and the way out.
fn unsupported(name: &str) -> Option<(&'static str, &'static str)> {
    const MERGE: &str =
        "merge the adapter into its base with PEFT (`merge_and_unload`) and use that";
    if name.contains(".lora_magnitude_vector.") {
        Some((
            "is unexpected: it has a name that only PEFT's memory has",
            "save the adapter with PEFT's `save_pretrained`",
        ))
    } else if name.contains(".lora_embedding_") {
        Some(("adapts an embedding of a name that is not known here", MERGE))
    } else if name.contains(".lora_A.") || name.contains(".lora_B.") {
        Some((
            "is unexpected: the name of the adapter is still in it",
            "save the adapter with PEFT's `save_pretrained`, which takes the name out",
        ))
    } else if name.contains(".lora_") {
        Some(("belongs to a variant of LoRA that is not supported", MERGE))
    } else {
        None
    }
}

/// A tensor's numbers, whatever floats it is stored in.
pub(crate) fn values(key: &str, view: &TensorView, path: &Path) -> Result<Vec<f32>> {
    let bytes = view.data();
    Ok(match view.dtype() {
        Dtype::F32 => numbers(bytes, f32::from_le_bytes),
        Dtype::F16 => numbers(bytes, |pair| f16::from_le_bytes(pair).to_f32()),
        Dtype::BF16 => numbers(bytes, |pair| bf16::from_le_bytes(pair).to_f32()),
        Dtype::F64 => numbers(bytes, |eight| f64::from_le_bytes(eight) as f32),
        other => {
            let reason = format!("tensor `{key}` is stored as {other:?}");
            return Err(Error::malformed(path, reason)
                .with_hint("adapters are read in F32, F16, BF16 and F64"));
        }
    })
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| number(*chunk)).collect()
}

/// `[rows, columns]` to `[columns, rows]`.
pub(super) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for column in 0..columns {
        out.extend((0..rows).map(|row| values[row * columns + column]));
    }
    out
}

/// A tensor on its way to disk.
struct Output<'a> {
    shape: Vec<usize>,
    data: &'a [f32],
    /// Rows and columns in memory, where disk has it the other way round.
    turned: Option<(usize, usize)>,
}

impl<'a> Output<'a> {
    fn transposed(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { shape: vec![columns, rows], data, turned: Some((rows, columns)) }
    }

    fn as_is(tensor: &'a NamedTensor) -> Self {
        Self { shape: tensor.shape.clone(), data: &tensor.data, turned: None }
    }
}

impl View for Output<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let turned = self.turned.map(|(rows, columns)| transpose(self.data, rows, columns));
        let values = turned.as_deref().unwrap_or(self.data);
        let mut bytes = Vec::with_capacity(self.data_len());
        for value in values {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        4 * self.data.len()
    }
}
