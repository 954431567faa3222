//! Writes small GGUF files for tests.

use std::path::{Path, PathBuf};

use super::gguf_value::Value;
use super::gguf_write::{put_string, put_value};

/// An entry of the tensor table; shape slowest dimension first.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) kind: u32,
    pub(crate) shape: Vec<u64>,
    pub(crate) offset: u64,
}

/// A GGUF file in the making.
pub(crate) struct Builder {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(Entry, Vec<u8>, bool)>,
    alignment: usize,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self { metadata: vec![], tensors: vec![], alignment: 32 }
    }

    pub(crate) fn metadata(mut self, key: &str, value: Value) -> Self {
        self.metadata.push((key.to_owned(), value));
        self
    }

    pub(crate) fn aligned(mut self, alignment: usize) -> Self {
        self.alignment = alignment;
        self
    }

    /// A tensor of f32, placed behind the ones before it.
    pub(crate) fn f32(self, name: &str, shape: &[usize], numbers: &[f32]) -> Self {
        self.tensor(name, 0, shape, numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
    }

    /// A tensor of any type, placed behind the ones before it.
    pub(crate) fn tensor(mut self, name: &str, kind: u32, shape: &[usize], data: Vec<u8>) -> Self {
        let shape = shape.iter().map(|&side| side as u64).collect();
        self.tensors.push((Entry { name: name.to_owned(), kind, shape, offset: 0 }, data, true));
        self
    }

    /// An entry as given, whatever it says, and bytes appended to the data.
    pub(crate) fn raw(mut self, entry: Entry, data: Vec<u8>) -> Self {
        self.tensors.push((entry, data, false));
        self
    }

    pub(crate) fn build(mut self) -> Vec<u8> {
        let mut data = vec![];
        for (entry, bytes, placed) in &mut self.tensors {
            if *placed {
                data.resize(data.len().next_multiple_of(self.alignment), 0);
                entry.offset = data.len() as u64;
            }
            data.extend_from_slice(bytes);
        }
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(&mut file, key);
            put_value(&mut file, value);
        }
        for (entry, _, _) in &self.tensors {
            put_string(&mut file, &entry.name);
            file.extend((entry.shape.len() as u32).to_le_bytes());
            for side in entry.shape.iter().rev() {
                file.extend(side.to_le_bytes());
            }
            file.extend(entry.kind.to_le_bytes());
            file.extend(entry.offset.to_le_bytes());
        }
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(data);
        file
    }
}

/// The real file that `cargo xtask fetch smollm2` brings; `None`, said on the terminal, without it.
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
pub(crate) fn fetched_smollm2() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.is_file() {
        return Some(path);
    }
    assert!(std::env::var_os("LORA_REQUIRE_ASSETS").is_none(), "no {}", path.display());
    println!("skipped: `cargo xtask fetch smollm2` brings the model");
    None
}
