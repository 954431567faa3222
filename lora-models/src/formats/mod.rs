//! Weights on disk: safetensors (one file or shards with an index) and GGUF, memory-mapped and read
//! tensor by tensor. What is not here: which tensors a model needs; that is the decoder's to say.

pub mod gguf;
pub mod gguf_adapter;
mod gguf_blocks;
mod gguf_config;
pub(crate) mod gguf_metadata;
pub mod gguf_model;
mod gguf_quantise;
#[cfg(test)]
mod gguf_testing;
pub mod gguf_tokenizer;
pub(crate) mod gguf_tokenizer_write;
mod gguf_value;
mod gguf_write;
mod mapped;
pub mod safetensors;
mod safetensors_header;
mod safetensors_write;
mod stored;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use gguf::GgufFile;
pub use gguf_model::GgufWeights;
pub use gguf_value::{Array, Value};
pub use gguf_write::{tensor_to_write, write_gguf};
use lora_core::packed::Blocks;
pub use safetensors::SafetensorsCheckpoint;
pub use safetensors_write::write_safetensors;
pub use stored::StoredType;

use crate::{Error, Result};

/// A tensor as its file describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// Its key.
    pub name: &'a str,
    /// How its numbers are stored.
    pub dtype: StoredType,
    /// Its shape, slowest dimension first.
    pub shape: &'a [usize],
    /// Bytes it takes in the file.
    pub bytes: usize,
}

/// The weights of a checkpoint under their Hugging Face keys, whatever the file format. Opening reads
/// headers only; [`Weights::read_f32`] converts one tensor.
#[derive(Debug)]
pub enum Weights {
    /// One safetensors file, or shards with an index.
    Safetensors(SafetensorsCheckpoint),
    /// A GGUF file.
    Gguf(GgufWeights),
    /// Numbers that are in memory.
    Memory(MemoryWeights),
}

/// Weights that are in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryWeights {
    /// What messages call them.
    pub origin: PathBuf,
    /// Shape and numbers (row-major) under each key.
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Weights {
    /// All Hugging Face keys.
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Safetensors(checkpoint) => {
                checkpoint.tensors().map(|tensor| tensor.name.to_owned()).collect()
            }
            Self::Gguf(weights) => weights.tensors().map(|tensor| tensor.name.to_owned()).collect(),
            Self::Memory(weights) => weights.tensors.keys().cloned().collect(),
        }
    }

    /// A tensor's shape; `None` where there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self {
            Self::Safetensors(checkpoint) => checkpoint.find(name).map(|info| info.shape.to_vec()),
            Self::Gguf(weights) => weights.find(name).map(|info| info.shape.to_vec()),
            Self::Memory(weights) => weights.tensors.get(name).map(|(shape, _)| shape.clone()),
        }
    }

    /// How a tensor is stored; `None` where there is no such tensor.
    pub fn stored_type(&self, name: &str) -> Option<StoredType> {
        match self {
            Self::Safetensors(checkpoint) => checkpoint.find(name).map(|info| info.dtype),
            Self::Gguf(weights) => weights.find(name).map(|info| info.dtype),
            Self::Memory(weights) => weights.tensors.get(name).map(|_| StoredType::F32),
        }
    }

    /// A matrix in the blocks that its file has, `[d_out, d_in]`; `None` where it is not in blocks.
    ///
    /// # Errors
    /// No such tensor.
    pub fn read_blocks(&self, name: &str) -> Result<Option<Blocks>> {
        match self {
            Self::Gguf(weights) => weights.read_blocks(name),
            Self::Safetensors(_) | Self::Memory(_) => Ok(None),
        }
    }

    /// A tensor's numbers, row-major.
    ///
    /// # Errors
    /// No such tensor, or one that does not hold floats.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        match self {
            Self::Safetensors(checkpoint) => checkpoint.read_f32(name),
            Self::Gguf(weights) => weights.read_f32(name),
            Self::Memory(weights) => match weights.tensors.get(name) {
                Some((_, numbers)) => Ok(numbers.clone()),
                None => Err(no_tensor(&weights.origin, name)),
            },
        }
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        match self {
            Self::Safetensors(checkpoint) => checkpoint.path(),
            Self::Gguf(weights) => weights.file().path(),
            Self::Memory(weights) => &weights.origin,
        }
    }
}

/// `[rows, columns]` to `[columns, rows]`.
pub(crate) fn transposed(numbers: &[f32], rows: usize) -> Vec<f32> {
    let columns = numbers.len().checked_div(rows).unwrap_or_default();
    let all = (0..columns).flat_map(|column| (0..rows).map(move |row| row * columns + column));
    all.map(|place| numbers[place]).collect()
}

fn no_tensor(path: &Path, name: &str) -> Error {
    Error::malformed(path, format!("there is no tensor `{name}`"))
}

fn not_floats(path: &Path, name: &str, stored: StoredType) -> Error {
    let error = Error::malformed(
        path,
        format!("tensor `{name}` holds {stored}, which can't be read as floats"),
    );
    match stored {
        StoredType::F8E4M3 | StoredType::F8E5M2 => {
            error.with_hint("use a bf16 version of this model; its scales for 8 bits are not read")
        }
        _ => error,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn weights_in_memory() {
        let tensors = BTreeMap::from([("norm.weight".to_owned(), (vec![2, 1], vec![1.0f32, 2.0]))]);
        let weights = Weights::Memory(MemoryWeights { origin: PathBuf::from("test:"), tensors });
        assert_eq!(weights.names(), ["norm.weight"]);
        assert_eq!(weights.shape("norm.weight"), Some(vec![2, 1]));
        assert_eq!(weights.stored_type("norm.weight"), Some(StoredType::F32));
        assert_eq!(weights.read_f32("norm.weight").unwrap(), [1.0, 2.0]);
        let error = weights.read_f32("other").unwrap_err().to_string();
        assert_eq!(error, "`test:`: there is no tensor `other`");
    }
}
