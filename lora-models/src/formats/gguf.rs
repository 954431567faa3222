//! GGUF files, versions 2 and 3: metadata and tensors, memory-mapped. What the names and the metadata
//! mean for a model is in `gguf_model` and `gguf_config`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use lora_core::packed::Blocks;

use super::gguf_blocks::format;
use super::gguf_value::{Array, Cursor, Value};
use super::mapped::FileBytes;
use super::stored::{StoredType, read_all, read_rows};
use super::{TensorInfo, no_tensor, not_floats};
use crate::{Error, Result};

/// An open GGUF file whose header has been checked against the file.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    bytes: FileBytes,
    version: u32,
    metadata: Vec<(String, Value)>,
    metadata_index: HashMap<String, usize>,
    tensors: Vec<Tensor>,
    tensor_index: HashMap<String, usize>,
}

#[derive(Debug)]
struct Tensor {
    name: String,
    stored: StoredType,
    /// Slowest dimension first, as Hugging Face and PyTorch have it (GGUF lists the fastest first).
    shape: Vec<usize>,
    start: usize,
    bytes: usize,
}

impl GgufFile {
    /// Opens and checks a file; no tensor is read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(FileBytes::open(path)?, path)
    }

    /// The same for bytes that are in memory; `origin` names them in messages.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, origin: &Path) -> Result<Self> {
        Self::parse(FileBytes::Held(bytes.into()), origin)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata, in the file's order.
    pub fn all_metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// One metadata value.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.metadata_index.get(key).map(|&index| &self.metadata[index].1)
    }

    /// An integer, where the key is there.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>> {
        self.get(key, "a 32-bit integer", |value| value.as_u64()?.try_into().ok())
    }

    /// A float, where the key is there.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        self.get(key, "a float", |value| value.as_f64().map(|number| number as f32))
    }

    /// A truth value, where the key is there.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "a bool", Value::as_bool)
    }

    /// A string, where the key is there.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "a string", Value::as_str)
    }

    /// An array, where the key is there.
    pub fn get_array(&self, key: &str) -> Result<Option<&Array>> {
        self.get(key, "an array", |value| match value {
            Value::Array(array) => Some(array),
            _ => None,
        })
    }

    /// An array of strings, where the key is there.
    pub fn get_strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.get(key, "an array of strings", |value| match value {
            Value::Array(Array::String(strings)) => Some(strings.as_slice()),
            _ => None,
        })
    }

    /// An array of 32-bit floats, where the key is there.
    pub fn get_f32s(&self, key: &str) -> Result<Option<&[f32]>> {
        self.get(key, "an array of f32", |value| match value {
            Value::Array(Array::F32(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// All tensors, in the file's order, under their GGUF names. Shapes are in PyTorch's order.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(Tensor::info)
    }

    /// One tensor by its GGUF name.
    pub fn find(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.tensor_index.get(name).map(|&index| self.tensors[index].info())
    }

    /// The numbers of a tensor as f32, row-major in the order of its shape.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (tensor, bytes) = self.readable(name)?;
        Ok(read_all(tensor.stored, bytes))
    }

    /// The same with the rows (first dimension) in another order: output row `r` is the file's row
    /// `source_row(r)`.
    pub(crate) fn read_f32_rows(
        &self,
        name: &str,
        source_row: impl Fn(usize) -> usize + Sync,
    ) -> Result<Vec<f32>> {
        let (tensor, bytes) = self.readable(name)?;
        let rows = tensor.shape.first().copied().unwrap_or(1);
        let row_length = tensor.shape.iter().skip(1).product();
        if tensor.shape.len() < 2 && tensor.stored.is_quantised() {
            let reason = format!("vector `{name}` is stored in blocks ({})", tensor.stored);
            return Err(Error::malformed(&self.path, reason));
        }
        Ok(read_rows(tensor.stored, bytes, rows, row_length, source_row))
    }

    /// The blocks of a matrix as they are, its rows in another order as in [`Self::read_f32_rows`]; `None`
    /// where it is not in blocks.
    pub(crate) fn read_blocks(
        &self,
        name: &str,
        source_row: impl Fn(usize) -> usize,
    ) -> Result<Option<Blocks>> {
        let (tensor, bytes) = self.readable(name)?;
        let (Some(format), [rows, columns]) = (format(tensor.stored), &tensor.shape[..]) else {
            return Ok(None);
        };
        let row_bytes = bytes.len() / (*rows).max(1);
        let mut ordered = Vec::with_capacity(bytes.len());
        for row in 0..*rows {
            ordered.extend_from_slice(&bytes[source_row(row) * row_bytes..][..row_bytes]);
        }
        Ok(Blocks::gguf(format, [*rows, *columns], ordered))
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata(key) else {
            return Ok(None);
        };
        convert(value).map(Some).ok_or_else(|| {
            let found = value.describe();
            let shown = match value {
                Value::String(_) | Value::Array(_) => String::new(),
                scalar => format!(" ({scalar})"),
            };
            Error::malformed(
                &self.path,
                format!("metadata `{key}` is {found}{shown}, not {wanted}"),
            )
        })
    }

    fn readable(&self, name: &str) -> Result<(&Tensor, &[u8])> {
        let Some(&index) = self.tensor_index.get(name) else {
            return Err(no_tensor(&self.path, name));
        };
        let tensor = &self.tensors[index];
        if !tensor.stored.is_readable() {
            return Err(not_floats(&self.path, name, tensor.stored));
        }
        Ok((tensor, &self.bytes[tensor.start..tensor.start + tensor.bytes]))
    }

    fn parse(bytes: FileBytes, path: &Path) -> Result<Self> {
        let header = Header::read(&bytes).map_err(|(reason, hint)| {
            match (Error::malformed(path, reason), hint) {
                (error, Some(hint)) => error.with_hint(hint),
                (error, None) => error,
            }
        })?;
        let metadata_index = index_by_name(header.metadata.iter().map(|(key, _)| key));
        let tensor_index = index_by_name(header.tensors.iter().map(|tensor| &tensor.name));
        Ok(Self {
            path: path.to_path_buf(),
            bytes,
            version: header.version,
            metadata: header.metadata,
            metadata_index,
            tensors: header.tensors,
            tensor_index,
        })
    }
}

impl Tensor {
    fn info(&self) -> TensorInfo<'_> {
        TensorInfo { name: &self.name, dtype: self.stored, shape: &self.shape, bytes: self.bytes }
    }
}

fn index_by_name<'a>(names: impl Iterator<Item = &'a String>) -> HashMap<String, usize> {
    names.enumerate().map(|(index, name)| (name.clone(), index)).collect()
}

/// Everything in front of the tensors' data.
struct Header {
    version: u32,
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

/// What is wrong, and a way out where there is one.
type HeaderError = (String, Option<&'static str>);

const TRUNCATED: &str = "the file may be incomplete: fetch it again and compare its size";
const REQUANTISE: &str =
    "convert it with llama.cpp's `llama-quantize` to Q8_0, Q6_K, Q5_K_M, Q4_K_M or F16";

impl Header {
    fn read(bytes: &[u8]) -> std::result::Result<Self, HeaderError> {
        let mut cursor = Cursor::new(bytes);
        let version = read_version(bytes, &mut cursor)?;
        let truncated = |reason: String| (reason, Some(TRUNCATED));
        let tensor_count = cursor.u64("number of tensors").map_err(truncated)?;
        let metadata_count = cursor.u64("number of metadata entries").map_err(truncated)?;
        // The least a metadata entry can take: length of the key, type, one byte of value.
        let metadata_count =
            cursor.check_count(metadata_count, 8 + 4 + 1, "metadata entries").map_err(truncated)?;
        // And a tensor: length of the name, number of dimensions, type, offset.
        let tensor_count =
            cursor.check_count(tensor_count, 8 + 4 + 4 + 8, "tensors").map_err(truncated)?;

        let metadata = read_metadata(&mut cursor, metadata_count).map_err(truncated)?;
        let alignment = alignment(&metadata).map_err(|reason| (reason, None))?;
        let mut tensors = (0..tensor_count)
            .map(|index| read_tensor(&mut cursor, index))
            .collect::<std::result::Result<Vec<_>, HeaderError>>()?;
        let data_start = cursor
            .position()
            .checked_next_multiple_of(alignment)
            .ok_or_else(|| (format!("`general.alignment` is {alignment}"), None))?;
        place(&mut tensors, data_start, alignment, bytes.len())?;
        Ok(Self { version, metadata, tensors })
    }
}

fn read_version(bytes: &[u8], cursor: &mut Cursor<'_>) -> std::result::Result<u32, HeaderError> {
    if !bytes.starts_with(b"GGUF") {
        let reason = if bytes.len() < 4 {
            format!("not a GGUF file: it has {} bytes", bytes.len())
        } else {
            format!("not a GGUF file: it starts with `{}`", bytes[..4].escape_ascii())
        };
        return Err((reason, Some("a GGUF file starts with the four letters `GGUF`")));
    }
    let truncated = |reason| (reason, Some(TRUNCATED));
    cursor.u32("magic").map_err(truncated)?;
    match cursor.u32("version").map_err(truncated)? {
        version @ 2..=3 => Ok(version),
        1 => Err((
            "GGUF version 1 is not supported".to_owned(),
            Some("convert the model again with a llama.cpp of 2024 or later"),
        )),
        version if version.swap_bytes() <= 3 => {
            Err(("big-endian GGUF files are not supported".to_owned(), None))
        }
        version => Err((
            format!("GGUF version {version} is not supported"),
            Some("versions 2 and 3 are read"),
        )),
    }
}

fn read_metadata(
    cursor: &mut Cursor<'_>,
    count: usize,
) -> std::result::Result<Vec<(String, Value)>, String> {
    let mut metadata = Vec::with_capacity(count);
    let mut seen = HashSet::with_capacity(count);
    for index in 0..count {
        let key = cursor.string(&format!("key of metadata entry {index}"))?;
        let value = cursor.value(&format!("metadata `{key}`"))?;
        if !seen.insert(key.clone()) {
            return Err(format!("metadata `{key}` is there twice"));
        }
        metadata.push((key, value));
    }
    Ok(metadata)
}

fn alignment(metadata: &[(String, Value)]) -> std::result::Result<usize, String> {
    let Some((_, value)) = metadata.iter().find(|(key, _)| key == "general.alignment") else {
        return Ok(32);
    };
    value
        .as_u64()
        .and_then(|alignment| usize::try_from(alignment).ok())
        .filter(|alignment| alignment.is_power_of_two())
        .ok_or_else(|| format!("metadata `general.alignment` is {value}, not a power of two"))
}

/// One entry of the tensor table; `start` is still relative to the data section.
fn read_tensor(cursor: &mut Cursor<'_>, index: usize) -> std::result::Result<Tensor, HeaderError> {
    let truncated = |reason| (reason, Some(TRUNCATED));
    let name = cursor.string(&format!("name of tensor {index}")).map_err(truncated)?;
    let what = format!("tensor `{name}`");
    let dimensions = cursor.u32(&what).map_err(truncated)?;
    if dimensions > 4 {
        return Err((format!("{what} has {dimensions} dimensions; GGUF allows 4"), None));
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        let side = cursor.u64(&what).map_err(truncated)?;
        let side = usize::try_from(side)
            .map_err(|_| (format!("{what} has a dimension of {side}"), None))?;
        shape.push(side);
    }
    shape.reverse();
    let kind = cursor.u32(&what).map_err(truncated)?;
    let stored = StoredType::from_gguf(kind)
        .map_err(|reason| (format!("{what} {reason}"), Some(REQUANTISE)))?;
    let bytes = stored.bytes_of(&shape).ok_or_else(|| {
        let block = stored.block().0;
        let reason = format!(
            "{what} has shape {shape:?}, which can't be rows of {stored} (blocks of {block})"
        );
        (reason, None)
    })?;
    let start = cursor.u64(&what).map_err(truncated)?;
    let start = usize::try_from(start)
        .map_err(|_| (format!("{what} starts at byte {start} of the data"), None))?;
    Ok(Tensor { name, stored, shape, start, bytes })
}

/// Makes the starts relative to the file, after checking that the tensors are aligned, inside the
/// file, apart from one another, and of different names.
fn place(
    tensors: &mut [Tensor],
    data_start: usize,
    alignment: usize,
    file_bytes: usize,
) -> std::result::Result<(), HeaderError> {
    for tensor in tensors.iter_mut() {
        let name = &tensor.name;
        if !tensor.start.is_multiple_of(alignment) {
            return Err((
                format!(
                    "tensor `{name}` starts at byte {} of the data, not a multiple of the \
                     alignment {alignment}",
                    tensor.start
                ),
                None,
            ));
        }
        let end = data_start
            .checked_add(tensor.start)
            .and_then(|start| start.checked_add(tensor.bytes))
            .filter(|&end| end <= file_bytes);
        let Some(end) = end else {
            return Err((
                format!(
                    "tensor `{name}` ({} bytes at byte {} of the data) reaches past the end of the \
                     file ({file_bytes} bytes)",
                    tensor.bytes, tensor.start
                ),
                Some(TRUNCATED),
            ));
        };
        tensor.start = end - tensor.bytes;
    }
    let mut order: Vec<&Tensor> = tensors.iter().filter(|tensor| tensor.bytes > 0).collect();
    order.sort_by_key(|tensor| tensor.start);
    for pair in order.windows(2) {
        if pair[0].start + pair[0].bytes > pair[1].start {
            return Err((
                format!("tensors `{}` and `{}` overlap", pair[0].name, pair[1].name),
                None,
            ));
        }
    }
    let mut seen = HashSet::with_capacity(tensors.len());
    match tensors.iter().find(|tensor| !seen.insert(&tensor.name)) {
        Some(twice) => Err((format!("tensor `{}` is there twice", twice.name), None)),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
