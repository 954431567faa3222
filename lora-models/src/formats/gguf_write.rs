//! Writes a GGUF file (version 3) tensor by tensor, so that never more than one of them is in memory.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use super::gguf_quantise::{WRITABLE, quantise};
use super::gguf_value::{Array, Value};
use super::{StoredType, TensorInfo};
use crate::{Error, Result};

/// Where data starts in the file and in each tensor: a multiple of this.
const ALIGNMENT: usize = 32;

/// Writes a GGUF file whole: beside its destination, synced, then renamed over it.
///
/// `tensors` are names, shapes (slowest dimension first, as PyTorch has them) and number formats in the
/// order of the data; `read` is asked for the numbers of each, once and in that order.
///
/// # Errors
/// Those of `read` and of the operating system; a format that is not written, or whose blocks the rows
/// do not fill; a name that is there twice; numbers that do not fill their shape, are not finite, or are
/// too large for F16. The destination is then as it was.
pub fn write_gguf(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[TensorInfo<'_>],
    mut read: impl FnMut(&str) -> Result<Vec<f32>>,
) -> Result<()> {
    let header = header(metadata, tensors)?;
    // `write_whole_with` knows errors of the operating system only; ours go around it.
    let mut failure = None;
    let written = lora_core::files::write_whole_with(path, |file| {
        file.write_all(&header)?;
        for tensor in tensors {
            let numbers = read(tensor.name).and_then(|numbers| {
                check(tensor, &numbers)?;
                Ok(numbers)
            });
            match numbers {
                Ok(numbers) => write_padded(file, &quantise(tensor.dtype, &numbers))?,
                Err(error) => {
                    failure = Some(error);
                    return Err(io::Error::other("the tensors could not be read"));
                }
            }
        }
        Ok(())
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}

/// A tensor to be written; its bytes follow from format and shape.
///
/// # Errors
/// A format that is not written, or whose blocks the rows do not fill.
pub fn tensor_to_write<'a>(
    name: &'a str,
    shape: &'a [usize],
    dtype: StoredType,
) -> Result<TensorInfo<'a>> {
    if !WRITABLE.contains(&dtype) {
        let names = WRITABLE.map(|stored| stored.to_string()).join(", ");
        return Err(Error::invalid(format!("tensors can't be written as {dtype}"))
            .with_hint(format!("{names} can")));
    }
    let Some(bytes) = dtype.bytes_of(shape) else {
        let block = dtype.block().0;
        return Err(Error::invalid(format!(
            "tensor `{name}` of shape {shape:?} can't be rows of {dtype} (blocks of {block})"
        )));
    };
    Ok(TensorInfo { name, dtype, shape, bytes })
}

/// Everything in front of the data, padded.
fn header(metadata: &[(String, Value)], tensors: &[TensorInfo<'_>]) -> Result<Vec<u8>> {
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    let mut seen = HashSet::new();
    for (key, value) in metadata {
        if !seen.insert(key.as_str()) {
            return Err(Error::invalid(format!("metadata `{key}` would be written twice")));
        }
        put_string(&mut header, key);
        put_value(&mut header, value);
    }
    let mut seen = HashSet::new();
    let mut start = 0usize;
    for tensor in tensors {
        let name = tensor.name;
        if !seen.insert(name) {
            return Err(Error::invalid(format!("tensor `{name}` would be written twice")));
        }
        put_string(&mut header, name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        for side in tensor.shape.iter().rev() {
            header.extend((*side as u64).to_le_bytes());
        }
        header.extend(gguf_number(tensor.dtype).to_le_bytes());
        header.extend((start as u64).to_le_bytes());
        let next = start.checked_add(tensor.bytes.next_multiple_of(ALIGNMENT));
        let Some(next) = next else {
            return Err(Error::invalid(format!("tensor `{name}` is too large")));
        };
        start = next;
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    Ok(header)
}

/// The inverse of `StoredType::from_gguf`, for the formats that are written.
fn gguf_number(stored: StoredType) -> u32 {
    match stored {
        StoredType::F32 => 0,
        StoredType::F16 => 1,
        StoredType::Q4_0 => 2,
        StoredType::Q8_0 => 8,
        StoredType::Q4K => 12,
        StoredType::BF16 => 30,
        other => unreachable!("{other} is not written"),
    }
}

fn check(tensor: &TensorInfo<'_>, numbers: &[f32]) -> Result<()> {
    let TensorInfo { name, dtype, shape, .. } = *tensor;
    let expected: usize = shape.iter().product();
    if numbers.len() != expected {
        return Err(Error::invalid(format!(
            "tensor `{name}` of shape {shape:?} was given {} numbers instead of {expected}",
            numbers.len()
        )));
    }
    if let Some(number) = numbers.iter().find(|number| !number.is_finite()) {
        return Err(Error::invalid(format!("tensor `{name}` holds {number}")));
    }
    // The scales of blocks are f16; a number is its scale times as many steps at most.
    let half = half::f16::MAX.to_f32();
    let largest = match dtype {
        StoredType::F16 => half,
        StoredType::Q8_0 => 127.0 * half,
        StoredType::Q4_0 => 8.0 * half,
        StoredType::Q4K => 63.0 * half,
        _ => f32::MAX,
    };
    if let Some(number) = numbers.iter().find(|number| number.abs() > largest) {
        return Err(Error::invalid(format!(
            "tensor `{name}` holds {number}, too large for {dtype}"
        ))
        .with_hint("BF16 has the range of F32"));
    }
    Ok(())
}

fn write_padded(file: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
    file.write_all(&[0; ALIGNMENT][..padding])
}

pub(super) fn put_string(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

pub(super) fn put_value(file: &mut Vec<u8>, value: &Value) {
    let mut bytes = Vec::new();
    let kind: u32 = match value {
        Value::U8(number) => put(&mut bytes, 0, number.to_le_bytes()),
        Value::I8(number) => put(&mut bytes, 1, number.to_le_bytes()),
        Value::U16(number) => put(&mut bytes, 2, number.to_le_bytes()),
        Value::I16(number) => put(&mut bytes, 3, number.to_le_bytes()),
        Value::U32(number) => put(&mut bytes, 4, number.to_le_bytes()),
        Value::I32(number) => put(&mut bytes, 5, number.to_le_bytes()),
        Value::F32(number) => put(&mut bytes, 6, number.to_le_bytes()),
        Value::Bool(value) => put(&mut bytes, 7, [u8::from(*value)]),
        Value::String(text) => {
            put_string(&mut bytes, text);
            8
        }
        Value::Array(array) => {
            put_array(&mut bytes, array);
            9
        }
        Value::U64(number) => put(&mut bytes, 10, number.to_le_bytes()),
        Value::I64(number) => put(&mut bytes, 11, number.to_le_bytes()),
        Value::F64(number) => put(&mut bytes, 12, number.to_le_bytes()),
    };
    file.extend(kind.to_le_bytes());
    file.extend(bytes);
}

fn put<const SIZE: usize>(bytes: &mut Vec<u8>, kind: u32, number: [u8; SIZE]) -> u32 {
    bytes.extend(number);
    kind
}

fn put_array(file: &mut Vec<u8>, array: &Array) {
    let mut bytes = Vec::new();
    let kind: u32 = match array {
        Array::U8(values) => put_all(&mut bytes, 0, values, u8::to_le_bytes),
        Array::I8(values) => put_all(&mut bytes, 1, values, i8::to_le_bytes),
        Array::U16(values) => put_all(&mut bytes, 2, values, u16::to_le_bytes),
        Array::I16(values) => put_all(&mut bytes, 3, values, i16::to_le_bytes),
        Array::U32(values) => put_all(&mut bytes, 4, values, u32::to_le_bytes),
        Array::I32(values) => put_all(&mut bytes, 5, values, i32::to_le_bytes),
        Array::F32(values) => put_all(&mut bytes, 6, values, f32::to_le_bytes),
        Array::Bool(values) => put_all(&mut bytes, 7, values, |value| [u8::from(value)]),
        Array::String(values) => {
            values.iter().for_each(|text| put_string(&mut bytes, text));
            8
        }
        Array::Array(values) => {
            values.iter().for_each(|array| put_array(&mut bytes, array));
            9
        }
        Array::U64(values) => put_all(&mut bytes, 10, values, u64::to_le_bytes),
        Array::I64(values) => put_all(&mut bytes, 11, values, i64::to_le_bytes),
        Array::F64(values) => put_all(&mut bytes, 12, values, f64::to_le_bytes),
    };
    file.extend(kind.to_le_bytes());
    file.extend((array.len() as u64).to_le_bytes());
    file.extend(bytes);
}

fn put_all<T: Copy, const SIZE: usize>(
    bytes: &mut Vec<u8>,
    kind: u32,
    values: &[T],
    convert: impl Fn(T) -> [u8; SIZE],
) -> u32 {
    bytes.extend(values.iter().flat_map(|&value| convert(value)));
    kind
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::formats::GgufFile;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.7).sin()).collect()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let metadata = [
            ("u8", Value::U8(1)),
            ("i8", Value::I8(-1)),
            ("u16", Value::U16(2)),
            ("i16", Value::I16(-2)),
            ("u32", Value::U32(3)),
            ("i32", Value::I32(-3)),
            ("f32", Value::F32(0.5)),
            ("bool", Value::Bool(true)),
            ("string", Value::String("grüß".to_owned())),
            ("u64", Value::U64(4)),
            ("i64", Value::I64(-4)),
            ("f64", Value::F64(0.25)),
            ("strings", Value::Array(Array::String(vec!["a".to_owned(), String::new()]))),
            ("arrays", Value::Array(Array::Array(vec![Array::U8(vec![7]), Array::F64(vec![])]))),
            ("bools", Value::Array(Array::Bool(vec![true, false]))),
            ("i16s", Value::Array(Array::I16(vec![-9, 9]))),
        ]
        .map(|(key, value)| (key.to_owned(), value));
        let tensors = [
            tensor_to_write("vector", &[3], StoredType::F32).unwrap(),
            tensor_to_write("bf16", &[2, 5], StoredType::BF16).unwrap(),
            tensor_to_write("q8", &[3, 32], StoredType::Q8_0).unwrap(),
            tensor_to_write("q4k", &[2, 256], StoredType::Q4K).unwrap(),
        ];
        let read = |name: &str| {
            let tensor = tensors.iter().find(|tensor| tensor.name == name).unwrap();
            Ok(numbers(tensor.shape.iter().product()))
        };
        write_gguf(&path, &metadata, &tensors, read).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let found: Vec<_> = file.all_metadata().map(|(k, v)| (k.to_owned(), v.clone())).collect();
        assert_eq!(found, metadata);
        assert_eq!(file.tensors().collect::<Vec<_>>(), tensors);
        assert_eq!(file.read_f32("vector").unwrap(), numbers(3));
        for name in ["bf16", "q8", "q4k"] {
            let found = file.read_f32(name).unwrap();
            for (found, expected) in found.iter().zip(numbers(found.len())) {
                assert!((found - expected).abs() < 0.1, "{name}: {found} {expected}");
            }
        }
    }

    #[test]
    fn a_failure_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        std::fs::write(&path, "before").unwrap();
        let one = tensor_to_write("a", &[2], StoredType::F16).unwrap();
        let fails = |tensors: &[TensorInfo<'_>], given: Vec<f32>| {
            let error = write_gguf(&path, &[], tensors, |_| Ok(given.clone())).unwrap_err();
            assert_eq!(std::fs::read(&path).unwrap(), b"before");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
            error.to_string()
        };
        insta::assert_snapshot!(
            [
                fails(&[one], vec![1.0]),
                fails(&[one], vec![1.0, f32::NAN]),
                fails(&[one], vec![1.0, 70_000.0]),
                fails(&[one, one], vec![1.0, 1.0]),
            ]
            .join("\n"),
            @r"
        tensor `a` of shape [2] was given 1 numbers instead of 2
        tensor `a` holds NaN
        tensor `a` holds 70000, too large for F16
        tensor `a` would be written twice
        "
        );
        let refused = [
            tensor_to_write("a", &[4, 48], StoredType::Q8_0).unwrap_err().to_string(),
            tensor_to_write("a", &[4, 256], StoredType::Q6K).unwrap_err().to_string(),
        ];
        insta::assert_snapshot!(refused.join("\n"), @r"
        tensor `a` of shape [4, 48] can't be rows of Q8_0 (blocks of 32)
        tensors can't be written as Q6_K
        ");
    }
}
