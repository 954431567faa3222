//! Writes a safetensors file tensor by tensor, so that never more than one of them is in memory.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Map, Value, json};

use super::StoredType;
use crate::{Error, Result};

/// Writes a safetensors file whole: beside its destination, synced, then renamed over it.
///
/// `layout` is the names and shapes in the order of the data; `read` is asked for the numbers of each,
/// once and in that order. The numbers are stored as `dtype`: F32, BF16 or F16, rounded to nearest.
///
/// # Errors
/// Those of `read` and of the operating system; a dtype other than these; a name that is there twice;
/// numbers that do not fill their shape, or that are finite and too large for F16. The destination is
/// then as it was.
pub fn write_safetensors(
    path: &Path,
    layout: &[(String, Vec<usize>)],
    dtype: StoredType,
    metadata: &[(&str, &str)],
    mut read: impl FnMut(&str) -> Result<Vec<f32>>,
) -> Result<()> {
    let header = header(layout, dtype, metadata)?;
    // `write_whole_with` knows errors of the operating system only; ours go around it.
    let mut failure = None;
    let written = lora_core::files::write_whole_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (name, shape) in layout {
            let numbers = read(name).and_then(|numbers| {
                check(name, shape, &numbers, dtype)?;
                Ok(numbers)
            });
            match numbers {
                Ok(numbers) => write_numbers(file, &numbers, dtype)?,
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

/// The JSON, padded with spaces so that the data starts at a multiple of eight.
fn header(
    layout: &[(String, Vec<usize>)],
    dtype: StoredType,
    metadata: &[(&str, &str)],
) -> Result<Vec<u8>> {
    if !matches!(dtype, StoredType::F32 | StoredType::BF16 | StoredType::F16) {
        return Err(Error::invalid(format!("tensors can't be written as {dtype}"))
            .with_hint("F32, BF16 and F16 can"));
    }
    let mut object = Map::new();
    if !metadata.is_empty() {
        let metadata = metadata.iter().map(|&(key, text)| (key.to_owned(), Value::from(text)));
        object.insert("__metadata__".to_owned(), Value::Object(metadata.collect()));
    }
    let mut seen = HashSet::from(["__metadata__"]);
    let mut start = 0usize;
    for (name, shape) in layout {
        if !seen.insert(name) {
            return Err(Error::invalid(format!("tensor `{name}` would be written twice")));
        }
        let end = dtype.bytes_of(shape).and_then(|bytes| start.checked_add(bytes));
        let Some(end) = end else {
            return Err(Error::invalid(format!("tensor `{name}` of shape {shape:?} is too large")));
        };
        object.insert(
            name.clone(),
            json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [start, end]}),
        );
        start = end;
    }
    let mut header = Value::Object(object).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

fn check(name: &str, shape: &[usize], numbers: &[f32], dtype: StoredType) -> Result<()> {
    let expected: usize = shape.iter().product();
    if numbers.len() != expected {
        return Err(Error::invalid(format!(
            "tensor `{name}` of shape {shape:?} was given {} numbers instead of {expected}",
            numbers.len()
        )));
    }
    if dtype == StoredType::F16
        && let Some(large) = numbers
            .iter()
            .find(|&&number| number.is_finite() && f16::from_f32(number).is_infinite())
    {
        return Err(Error::invalid(format!("tensor `{name}` holds {large}, too large for F16"))
            .with_hint("write BF16 or F32"));
    }
    Ok(())
}

fn write_numbers(file: &mut dyn Write, numbers: &[f32], dtype: StoredType) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(4 * 4096);
    for chunk in numbers.chunks(4096) {
        buffer.clear();
        match dtype {
            StoredType::BF16 => {
                buffer.extend(chunk.iter().flat_map(|&n| bf16::from_f32(n).to_le_bytes()));
            }
            StoredType::F16 => {
                buffer.extend(chunk.iter().flat_map(|&n| f16::from_f32(n).to_le_bytes()));
            }
            _ => buffer.extend(chunk.iter().flat_map(|n| n.to_le_bytes())),
        }
        file.write_all(&buffer)?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::formats::SafetensorsCheckpoint;

    fn layout() -> Vec<(String, Vec<usize>)> {
        vec![("b".to_owned(), vec![2, 2]), ("a".to_owned(), vec![1]), ("empty".to_owned(), vec![0])]
    }

    fn numbers(name: &str) -> Result<Vec<f32>> {
        Ok(match name {
            "b" => vec![1.0, -2.5, 1e-3, 70000.0],
            "a" => vec![0.1],
            _ => vec![],
        })
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let metadata = [("format", "pt")];
        write_safetensors(&path, &layout(), StoredType::F32, &metadata, numbers).unwrap();
        let checkpoint = SafetensorsCheckpoint::open(&path).unwrap();
        assert_eq!(checkpoint.metadata()["format"], "pt");
        assert_eq!(checkpoint.find("b").unwrap().shape, [2, 2]);
        for name in ["b", "a", "empty"] {
            assert_eq!(checkpoint.read_f32(name).unwrap(), numbers(name).unwrap());
        }
        // And by the reference implementation.
        let bytes = std::fs::read(&path).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(reference.tensor("b").unwrap().shape(), [2, 2]);
        assert_eq!(reference.tensor("a").unwrap().data(), 0.1f32.to_le_bytes());
    }

    #[test]
    fn sixteen_bits_round_to_nearest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let layout = [("x".to_owned(), vec![3])];
        // Between 1 and the next bf16 (1 + 2⁻⁷): a tie goes to even, more than half goes up.
        let given = vec![1.0 + 0.003_906_25, 1.0 + 0.004, 3.0e38f32];
        let read = |_: &str| Ok(given.clone());
        write_safetensors(&path, &layout, StoredType::BF16, &[], read).unwrap();
        let stored = SafetensorsCheckpoint::open(&path).unwrap().read_f32("x").unwrap();
        assert_eq!(stored[..2], [1.0, 1.0 + 0.007_812_5]);
        assert!(stored[2].is_finite());
    }

    #[test]
    fn a_failure_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, "before").unwrap();
        let fail = |reason: &str, layout: &[(String, Vec<usize>)], dtype| {
            let error = write_safetensors(&path, layout, dtype, &[], numbers).unwrap_err();
            assert_eq!(error.to_string(), reason);
            assert_eq!(std::fs::read(&path).unwrap(), b"before");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        };
        let mut wrong = layout();
        wrong[1].1 = vec![2];
        fail("tensor `a` of shape [2] was given 1 numbers instead of 2", &wrong, StoredType::F32);
        let mut twice = layout();
        twice[1].0 = "b".to_owned();
        fail("tensor `b` would be written twice", &twice, StoredType::F32);
        fail("tensor `b` holds 70000, too large for F16", &layout(), StoredType::F16);
        fail("tensors can't be written as Q8_0", &layout(), StoredType::Q8_0);
        let error = write_safetensors(&path, &layout(), StoredType::F32, &[], |name| {
            Err(Error::invalid(format!("no `{name}`")))
        });
        assert_eq!(error.unwrap_err().to_string(), "no `b`");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
