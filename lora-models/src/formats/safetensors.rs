//! Safetensors checkpoints, memory-mapped: one file, or a folder with `model.safetensors` or with
//! shards and their index. Writing is in `safetensors_write`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::mapped::FileBytes;
use super::safetensors_header::{Header, ShardIndex};
use super::stored::{StoredType, read_all};
use super::{TensorInfo, no_tensor, not_floats};
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const FETCH_AGAIN: &str = "the file may be incomplete: fetch it again and compare its size";

/// An open checkpoint whose headers have been checked against their files.
#[derive(Debug)]
pub struct SafetensorsCheckpoint {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: FileBytes,
}

#[derive(Debug)]
struct Tensor {
    name: String,
    stored: StoredType,
    shape: Vec<usize>,
    shard: usize,
    start: usize,
    bytes: usize,
}

impl SafetensorsCheckpoint {
    /// Opens a safetensors file, an index of shards (`*.index.json`), or a folder that has
    /// `model.safetensors` or `model.safetensors.index.json`. No tensor is read.
    ///
    /// # Errors
    /// A file missing or unreadable; a header that contradicts itself, its file or the index.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let single = path.join(SINGLE);
            if single.is_file() {
                return Self::open_single(path, &single);
            }
            let index = path.join(INDEX);
            if index.is_file() {
                return Self::open_sharded(path, &index);
            }
            return Err(no_weights(path));
        }
        if path.to_string_lossy().ends_with(".index.json") {
            return Self::open_sharded(path, path);
        }
        Self::open_single(path, path)
    }

    /// A file that is in memory; `origin` names it in messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, origin: &Path) -> Result<Self> {
        let mut checkpoint = Self::empty(origin);
        checkpoint.add_shard(origin, FileBytes::Held(bytes.into()))?;
        Ok(checkpoint)
    }

    /// A file that is part of the program; `origin` names it in messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_static(bytes: &'static [u8], origin: &Path) -> Result<Self> {
        Self::from_bytes(bytes, origin)
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The free text that the files carry.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors, shard after shard, in the order of their data.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(Tensor::info)
    }

    /// One tensor.
    pub fn find(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.index.get(name).map(|&index| self.tensors[index].info())
    }

    /// A tensor's numbers as f32, row-major.
    ///
    /// # Errors
    /// No such tensor, or one that does not hold floats.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let Some(&index) = self.index.get(name) else {
            return Err(no_tensor(&self.path, name));
        };
        let tensor = &self.tensors[index];
        let shard = &self.shards[tensor.shard];
        if !tensor.stored.is_readable() {
            return Err(not_floats(&shard.path, name, tensor.stored));
        }
        let bytes = &shard.bytes[tensor.start..tensor.start + tensor.bytes];
        Ok(read_all(tensor.stored, bytes))
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            shards: vec![],
            tensors: vec![],
            index: HashMap::new(),
            metadata: BTreeMap::new(),
        }
    }

    fn open_single(path: &Path, file: &Path) -> Result<Self> {
        let mut checkpoint = Self::empty(path);
        checkpoint.add_shard(file, FileBytes::open(file)?)?;
        Ok(checkpoint)
    }

    fn open_sharded(path: &Path, index: &Path) -> Result<Self> {
        let text = lora_core::files::read_text(index)?;
        let places = ShardIndex::read(&text).map_err(|reason| Error::malformed(index, reason))?;
        let folder = index.parent().unwrap_or(Path::new(""));
        let shards: BTreeSet<&str> = places.iter().map(|(_, shard)| shard.as_str()).collect();
        let missing: Vec<String> = shards
            .iter()
            .filter(|shard| !folder.join(shard).is_file())
            .map(|shard| format!("`{shard}`"))
            .collect();
        if !missing.is_empty() {
            let reason = match missing.len() {
                1 => format!("shard {} is missing", missing[0]),
                count => format!("{count} shards are missing: {}", missing.join(", ")),
            };
            return Err(Error::malformed(index, reason)
                .with_hint("fetch the missing files into the same folder"));
        }
        let mut checkpoint = Self::empty(path);
        let mut numbers = HashMap::new();
        for (number, shard) in shards.into_iter().enumerate() {
            let file = folder.join(shard);
            checkpoint.add_shard(&file, FileBytes::open(&file)?)?;
            numbers.insert(shard, number);
        }
        checkpoint.check_places(index, &places, &numbers)?;
        Ok(checkpoint)
    }

    /// Adds the tensors of one file.
    fn add_shard(&mut self, path: &Path, bytes: FileBytes) -> Result<()> {
        let header = Header::read(&bytes)
            .map_err(|reason| Error::malformed(path, reason).with_hint(FETCH_AGAIN))?;
        let shard = self.shards.len();
        for tensor in header.tensors {
            let number = self.tensors.len();
            if let Some(first) = self.index.insert(tensor.name.clone(), number) {
                let other = self.shards[self.tensors[first].shard].path.display();
                let reason = format!("tensor `{}` is in `{other}` as well", tensor.name);
                return Err(Error::malformed(path, reason)
                    .with_hint("remove the shards that are left over from another checkpoint"));
            }
            self.tensors.push(Tensor {
                name: tensor.name,
                stored: tensor.stored,
                shape: tensor.shape,
                shard,
                start: tensor.start,
                bytes: tensor.bytes,
            });
        }
        self.metadata.extend(header.metadata);
        self.shards.push(Shard { path: path.to_path_buf(), bytes });
        Ok(())
    }

    /// The index and the shards must name the same tensors.
    fn check_places(
        &self,
        index: &Path,
        places: &[(String, String)],
        numbers: &HashMap<&str, usize>,
    ) -> Result<()> {
        let hint = "index and shards are of different checkpoints: fetch the folder again";
        for (name, shard) in places {
            let found = self.index.get(name).map(|&number| self.tensors[number].shard);
            if found != numbers.get(shard.as_str()).copied() {
                let reason = format!("tensor `{name}` is not in `{shard}`, where the index has it");
                return Err(Error::malformed(index, reason).with_hint(hint));
            }
        }
        if places.len() < self.tensors.len() {
            let listed: BTreeSet<&str> = places.iter().map(|(name, _)| name.as_str()).collect();
            if let Some(extra) = self.tensors.iter().find(|t| !listed.contains(t.name.as_str())) {
                let shard = self.shards[extra.shard].path.display();
                let reason = format!("tensor `{}` of `{shard}` is not in the index", extra.name);
                return Err(Error::malformed(index, reason).with_hint(hint));
            }
        }
        Ok(())
    }
}

impl Tensor {
    fn info(&self) -> TensorInfo<'_> {
        TensorInfo { name: &self.name, dtype: self.stored, shape: &self.shape, bytes: self.bytes }
    }
}

/// A folder without safetensors: say what is there instead.
fn no_weights(folder: &Path) -> Error {
    let error = Error::malformed(folder, format!("there is neither `{SINGLE}` nor `{INDEX}`"));
    let names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let other = |suffix: &str| names.iter().filter(|name| name.ends_with(suffix)).min();
    if let Some(gguf) = other(".gguf") {
        return error
            .with_hint(format!("name the GGUF file itself: `{}`", folder.join(gguf).display()));
    }
    if other(".bin").or(other(".pt")).or(other(".pth")).is_some() {
        return error.with_hint(
            "PyTorch files are not read because they can run code: convert them to safetensors, or \
             take a version of the model that has them",
        );
    }
    error.with_hint("name a folder with the weights of a Hugging Face model")
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
