//! Tests of the GGUF reader, on files written here byte by byte.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::formats::gguf_testing::{Builder, Entry};

fn open(bytes: Vec<u8>) -> Result<GgufFile> {
    GgufFile::from_bytes(bytes, Path::new("model.gguf"))
}

fn error(bytes: Vec<u8>) -> String {
    open(bytes).unwrap_err().to_string()
}

fn small() -> Builder {
    Builder::new()
        .metadata("general.architecture", Value::String("llama".to_owned()))
        .metadata("llama.block_count", Value::U32(2))
        .metadata("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.5, 1.5])))
        .f32("one", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .f32("two", &[2], &[-1.0, -2.0])
}

#[test]
fn metadata_and_tensors() {
    let file = open(small().build()).unwrap();
    assert_eq!(file.version(), 3);
    assert_eq!(file.get_str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(file.get_u32("llama.block_count").unwrap(), Some(2));
    assert_eq!(file.get_u32("llama.none").unwrap(), None);
    assert_eq!(file.get_f32s("tokenizer.ggml.scores").unwrap(), Some([0.5, 1.5].as_slice()));
    let one = file.find("one").unwrap();
    assert_eq!((one.shape, one.dtype, one.bytes), ([2usize, 3].as_slice(), StoredType::F32, 24));
    assert_eq!(file.read_f32("one").unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(file.read_f32("two").unwrap(), [-1.0, -2.0]);
    let swapped = file.read_f32_rows("one", |row| 1 - row).unwrap();
    assert_eq!(swapped, [4.0, 5.0, 6.0, 1.0, 2.0, 3.0]);
    let error = file.read_f32("three").unwrap_err().to_string();
    assert_eq!(error, "`model.gguf`: there is no tensor `three`");
}

#[test]
fn metadata_of_the_wrong_type_is_named() {
    let file = open(small().build()).unwrap();
    let error = file.get_u32("general.architecture").unwrap_err().to_string();
    assert_eq!(
        error,
        "`model.gguf`: metadata `general.architecture` is a string, not a 32-bit integer"
    );
    let error = file.get_str("llama.block_count").unwrap_err().to_string();
    assert_eq!(error, "`model.gguf`: metadata `llama.block_count` is a u32 (2), not a string");
}

#[test]
fn version_2_is_read_and_others_are_refused() {
    let mut bytes = small().build();
    bytes[4] = 2;
    assert_eq!(open(bytes.clone()).unwrap().version(), 2);
    bytes[4] = 1;
    assert_eq!(error(bytes.clone()), "`model.gguf`: GGUF version 1 is not supported");
    bytes[4] = 9;
    assert_eq!(error(bytes.clone()), "`model.gguf`: GGUF version 9 is not supported");
    bytes[4..8].copy_from_slice(&[0, 0, 0, 3]);
    assert_eq!(error(bytes), "`model.gguf`: big-endian GGUF files are not supported");
}

#[test]
fn another_magic() {
    assert_eq!(
        error(b"PK\x03\x04....".to_vec()),
        "`model.gguf`: not a GGUF file: it starts with `PK\\x03\\x04`"
    );
    assert_eq!(error(vec![]), "`model.gguf`: not a GGUF file: it has 0 bytes");
}

#[test]
fn absurd_counts() {
    let mut bytes = small().build();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(error(bytes.clone()).contains("tensors: 18446744073709551615 of them are announced"));
    bytes[8..16].copy_from_slice(&1u64.to_le_bytes());
    bytes[16..24].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert!(error(bytes).contains("metadata entries: 1099511627776 of them are announced"));
}

#[test]
fn an_absurd_string_and_an_absurd_array() {
    let mut bytes = small().build();
    bytes[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(error(bytes).contains("key of metadata entry 0: 18446744073709551615 of them"));
    let file = Builder::new().metadata("a", Value::Array(Array::U64(vec![1]))).build();
    let mut bytes = file;
    let count = 24 + 8 + 1 + 4 + 4;
    bytes[count..count + 8].copy_from_slice(&(u64::MAX / 8).to_le_bytes());
    assert!(error(bytes).contains("metadata `a`: 2305843009213693951 of them"));
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = small().build();
    for length in 0..bytes.len() {
        let error = open(bytes[..length].to_vec()).unwrap_err();
        assert!(error.hint().is_some(), "{length}: {error}");
    }
    assert!(open(bytes).is_ok());
}

#[test]
fn tensor_types() {
    let entry = |kind| Entry { name: "x".to_owned(), kind, shape: vec![32], offset: 0 };
    let with = |kind| Builder::new().raw(entry(kind), vec![0; 128]).build();
    let file = open(with(26)).unwrap();
    assert_eq!(
        file.read_f32("x").unwrap_err().to_string(),
        "`model.gguf`: tensor `x` holds I32, which can't be read as floats"
    );
    let unsupported = open(with(19)).unwrap_err();
    assert_eq!(
        unsupported.to_string(),
        "`model.gguf`: tensor `x` is stored as IQ1_S, which is not supported"
    );
    assert!(unsupported.hint().unwrap().contains("llama-quantize"));
    assert_eq!(error(with(77)), "`model.gguf`: tensor `x` has the unknown tensor type 77");
    let entry = Entry { name: "x".to_owned(), kind: 12, shape: vec![8, 32], offset: 0 };
    assert_eq!(
        error(Builder::new().raw(entry, vec![0; 999]).build()),
        "`model.gguf`: tensor `x` has shape [8, 32], which can't be rows of Q4_K (blocks of 256)"
    );
}

#[test]
fn offsets() {
    let at = |offset| Entry { name: "x".to_owned(), kind: 0, shape: vec![8], offset };
    let file = |offset| Builder::new().raw(at(offset), vec![0; 32]).build();
    assert!(open(file(0)).is_ok());
    assert_eq!(
        error(file(4)),
        "`model.gguf`: tensor `x` starts at byte 4 of the data, not a multiple of the alignment 32"
    );
    assert!(error(file(64)).contains("tensor `x` (32 bytes at byte 64 of the data) reaches past"));
    assert!(error(file(u64::MAX - 31)).contains("reaches past the end of the file"));
    let y = Entry { name: "y".to_owned(), kind: 0, shape: vec![16], offset: 0 };
    let overlapping = Builder::new().raw(at(32), vec![0; 32]).raw(y, vec![0; 64]).build();
    assert_eq!(error(overlapping), "`model.gguf`: tensors `y` and `x` overlap");
    let twice = Builder::new().f32("x", &[1], &[0.0]).f32("x", &[1], &[0.0]).build();
    assert_eq!(error(twice), "`model.gguf`: tensor `x` is there twice");
}

#[test]
fn alignment_of_the_file() {
    let file = |alignment| {
        small().metadata("general.alignment", Value::U32(alignment)).aligned(alignment as usize)
    };
    assert_eq!(open(file(64).build()).unwrap().read_f32("two").unwrap(), [-1.0, -2.0]);
    assert_eq!(open(file(8).build()).unwrap().read_f32("two").unwrap(), [-1.0, -2.0]);
    let bytes = small().metadata("general.alignment", Value::U32(24)).build();
    assert_eq!(
        error(bytes),
        "`model.gguf`: metadata `general.alignment` is 24, not a power of two"
    );
    let bytes = small().metadata("general.alignment", Value::U64(1 << 63)).build();
    assert!(open(bytes).is_err());
}

#[test]
fn dimensions() {
    let entry = Entry { name: "x".to_owned(), kind: 0, shape: vec![1; 5], offset: 0 };
    assert_eq!(
        error(Builder::new().raw(entry, vec![0; 4]).build()),
        "`model.gguf`: tensor `x` has 5 dimensions; GGUF allows 4"
    );
    let entry = Entry { name: "x".to_owned(), kind: 0, shape: vec![1 << 40, 1 << 40], offset: 0 };
    assert!(error(Builder::new().raw(entry, vec![0; 4]).build()).contains("can't be rows of F32"));
}

/// Opens, and reads all there is; must not panic.
fn exercise(bytes: Vec<u8>) {
    if let Ok(file) = open(bytes) {
        for tensor in file.tensors() {
            let numbers: usize = tensor.shape.iter().product();
            if let Ok(read) = file.read_f32(tensor.name) {
                assert_eq!(read.len(), numbers);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        exercise(bytes.clone());
        let mut with_magic = b"GGUF\x03\0\0\0".to_vec();
        with_magic.extend(bytes);
        exercise(with_magic);
    }

    #[test]
    fn a_damaged_file_never_panics(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = small().build();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        exercise(bytes.clone());
        bytes.truncate(length.index(bytes.len()));
        exercise(bytes);
    }
}
