//! The JSON at the head of a safetensors file and the index of a sharded checkpoint: parsed, and
//! checked so far that reading a tensor can't fail afterwards.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::StoredType;

/// The header may take this much, as in the reference implementation.
const LARGEST_HEADER_BYTES: u64 = 100_000_000;

/// A checked header.
#[derive(Debug)]
pub(crate) struct Header {
    /// Free text about the file.
    pub(crate) metadata: BTreeMap<String, String>,
    /// In the order of their data.
    pub(crate) tensors: Vec<HeaderTensor>,
}

#[derive(Debug)]
pub(crate) struct HeaderTensor {
    pub(crate) name: String,
    pub(crate) stored: StoredType,
    pub(crate) shape: Vec<usize>,
    /// First byte in the file.
    pub(crate) start: usize,
    pub(crate) bytes: usize,
}

impl Header {
    /// Parses and checks; the error is a reason without the path.
    pub(crate) fn read(file: &[u8]) -> Result<Self, String> {
        let Some(length) = file.first_chunk::<8>() else {
            return Err(format!("not a safetensors file: it has {} bytes", file.len()));
        };
        let length = u64::from_le_bytes(*length);
        if length > LARGEST_HEADER_BYTES {
            return Err(format!(
                "header of {length} bytes is larger than the {LARGEST_HEADER_BYTES} allowed: not a \
                 safetensors file?"
            ));
        }
        let data_start = 8 + length as usize;
        let Some(json) = file.get(8..data_start) else {
            return Err(format!(
                "cut off: the header takes {length} bytes, the file has {} in all",
                file.len()
            ));
        };
        if json.first() != Some(&b'{') {
            return Err("the header is not a JSON object: not a safetensors file?".to_owned());
        }
        let parsed: ParsedHeader = serde_json::from_slice(json)
            .map_err(|error| format!("the header is not valid: {error}"))?;
        let mut tensors = parsed
            .tensors
            .into_iter()
            .map(|(name, entry)| entry.check(name))
            .collect::<Result<Vec<_>, _>>()?;
        tensors.sort_by_key(|tensor| (tensor.start, tensor.bytes));
        check_layout(&tensors, file.len() - data_start)?;
        for tensor in &mut tensors {
            tensor.start += data_start;
        }
        Ok(Self { metadata: parsed.metadata, tensors })
    }
}

/// The data is the tensors one after the other, with nothing between, before or behind them.
fn check_layout(tensors: &[HeaderTensor], data_bytes: usize) -> Result<(), String> {
    let mut end = 0;
    let mut previous: Option<&HeaderTensor> = None;
    for tensor in tensors {
        let name = &tensor.name;
        if tensor.start + tensor.bytes > data_bytes {
            return Err(format!(
                "cut off: tensor `{name}` takes bytes {} to {} of the data, of which there are \
                 {data_bytes}",
                tensor.start,
                tensor.start + tensor.bytes
            ));
        }
        if tensor.start < end {
            let before = previous.map_or("", |tensor| &tensor.name);
            return Err(format!("tensors `{before}` and `{name}` overlap"));
        }
        if tensor.start > end {
            return Err(format!(
                "{} bytes in front of tensor `{name}` belong to none",
                tensor.start - end
            ));
        }
        end = tensor.start + tensor.bytes;
        previous = Some(tensor);
    }
    match data_bytes - end {
        0 => Ok(()),
        left => Err(format!("the last {left} bytes belong to no tensor")),
    }
}

/// One entry as it stands in the JSON.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl Entry {
    fn check(self, name: String) -> Result<HeaderTensor, String> {
        let Some(stored) = StoredType::from_safetensors(&self.dtype) else {
            return Err(format!("tensor `{name}` has the unknown dtype `{}`", self.dtype));
        };
        let (start, end) = self.data_offsets;
        let Some(bytes) = end.checked_sub(start) else {
            return Err(format!("tensor `{name}` ends at byte {end}, before its start {start}"));
        };
        match stored.bytes_of(&self.shape) {
            Some(needed) if needed == bytes => {
                Ok(HeaderTensor { name, stored, shape: self.shape, start, bytes })
            }
            needed => Err(format!(
                "tensor `{name}` of shape {:?} in {stored} needs {} bytes, but has {bytes}",
                self.shape,
                needed.map_or("too many".to_owned(), |bytes| bytes.to_string())
            )),
        }
    }
}

struct ParsedHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, Entry)>,
}

impl<'de> Deserialize<'de> for ParsedHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = ParsedHeader;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ParsedHeader, A::Error> {
                let mut header = ParsedHeader { metadata: BTreeMap::new(), tensors: vec![] };
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{name}` is there twice")));
                    }
                    let place = |error| A::Error::custom(format!("`{name}`: {error}"));
                    if name == "__metadata__" {
                        // mlx writes null where it has none.
                        let told: Option<_> = map.next_value().map_err(place)?;
                        header.metadata = told.unwrap_or_default();
                    } else {
                        let entry = map.next_value().map_err(place)?;
                        header.tensors.push((name, entry));
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// `model.safetensors.index.json`: which shard holds which tensor.
#[derive(Deserialize)]
pub(crate) struct ShardIndex {
    weight_map: UniqueMap<String>,
}

impl ShardIndex {
    /// Parses; the error is a reason without the path.
    pub(crate) fn read(json: &str) -> Result<Vec<(String, String)>, String> {
        let index: Self = serde_json::from_str(json)
            .map_err(|error| format!("not a valid index of shards: {error}"))?;
        for (name, shard) in &index.weight_map.entries {
            if shard.is_empty() || shard == ".." || shard.contains(['/', '\\', ':', '\0']) {
                return Err(format!("tensor `{name}`: `{shard}` is not a file of this folder"));
            }
        }
        Ok(index.weight_map.entries)
    }
}

/// A JSON object in which a key that is there twice is an error.
struct UniqueMap<V> {
    entries: Vec<(String, V)>,
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for MapVisitor<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap<V>, A::Error> {
                let mut entries = vec![];
                let mut seen = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!("`{key}` is there twice")));
                    }
                    let value = map
                        .next_value()
                        .map_err(|error| A::Error::custom(format!("`{key}`: {error}")))?;
                    entries.push((key, value));
                }
                Ok(UniqueMap { entries })
            }
        }

        deserializer.deserialize_map(MapVisitor(PhantomData))
    }
}
