//! Tests of the safetensors reader, on files written here byte by byte.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn open(bytes: Vec<u8>) -> Result<SafetensorsCheckpoint> {
    SafetensorsCheckpoint::from_bytes(bytes, Path::new("m.safetensors"))
}

fn error(bytes: Vec<u8>) -> String {
    open(bytes).unwrap_err().to_string()
}

/// Two tensors of f32 as a shard of a checkpoint.
fn shard(first: &str, second: &str) -> Vec<u8> {
    let header = format!(
        r#"{{"{first}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},
            "{second}":{{"dtype":"F32","shape":[1,1],"data_offsets":[8,12]}}}}"#
    );
    file(&header, &[1.0f32, 2.0, 3.0].map(f32::to_le_bytes).concat())
}

#[test]
fn floats_of_every_size() {
    let mut data = 1.5f64.to_le_bytes().to_vec();
    data.extend((-2.25f32).to_le_bytes());
    data.extend(f16::from_f32(0.5).to_le_bytes());
    data.extend(bf16::from_f32(-4.0).to_le_bytes());
    data.extend(7i64.to_le_bytes());
    let header = r#"{"__metadata__":{"format":"pt"},
        "d":{"dtype":"BF16","shape":[],"data_offsets":[14,16]},
        "a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},
        "b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},
        "c":{"dtype":"F16","shape":[1],"data_offsets":[12,14]},
        "e":{"dtype":"I64","shape":[1],"data_offsets":[16,24]}}   "#;
    let checkpoint = open(file(header, &data)).unwrap();
    assert_eq!(checkpoint.metadata()["format"], "pt");
    for (name, value) in [("a", 1.5), ("b", -2.25), ("c", 0.5), ("d", -4.0)] {
        assert_eq!(checkpoint.read_f32(name).unwrap(), [value], "{name}");
    }
    let names: Vec<&str> = checkpoint.tensors().map(|tensor| tensor.name).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert_eq!(
        checkpoint.read_f32("e").unwrap_err().to_string(),
        "`m.safetensors`: tensor `e` holds I64, which can't be read as floats"
    );
    assert_eq!(
        checkpoint.read_f32("f").unwrap_err().to_string(),
        "`m.safetensors`: there is no tensor `f`"
    );
}

#[test]
fn metadata_may_be_null() {
    let header = r#"{"__metadata__":null,"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let checkpoint = open(file(header, &[0; 4])).unwrap();
    assert!(checkpoint.metadata().is_empty());
    assert_eq!(checkpoint.read_f32("a").unwrap(), [0.0]);
}

#[test]
fn headers_that_are_none() {
    assert_eq!(error(vec![1, 2]), "`m.safetensors`: not a safetensors file: it has 2 bytes");
    assert_eq!(
        error(file("{}", &[])[..9].to_vec()),
        "`m.safetensors`: cut off: the header takes 2 bytes, the file has 9 in all"
    );
    let mut bytes = file("{}", &[]);
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(error(bytes).contains("header of 18446744073709551615 bytes is larger than"));
    assert!(error(file("[]", &[])).contains("the header is not a JSON object"));
    assert!(
        error(file("{\"a\":", &[]))
            .contains("not valid: `a`: EOF while parsing a value at line 1 column 5")
    );
    let mut not_utf8 = file("{\"aa\":1}", &[]);
    not_utf8[10] = 0xff;
    assert!(error(not_utf8).contains("the header is not valid: invalid unicode"));
    assert!(open(file("{}", &[])).is_ok());
}

#[test]
fn entries_that_cannot_be() {
    let with = |entry: &str, data: usize| error(file(&format!("{{{entry}}}"), &vec![0; data]));
    let cases = [
        (
            r#""a":{"dtype":"F12","shape":[1],"data_offsets":[0,4]}"#,
            4,
            "tensor `a` has the unknown dtype `F12`",
        ),
        (
            r#""a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#,
            8,
            "tensor `a` of shape [3] in F32 needs 12 bytes, but has 8",
        ),
        (
            r#""a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,8]}"#,
            8,
            "in F32 needs too many bytes, but has 8",
        ),
        (
            r#""a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}"#,
            8,
            "tensor `a` ends at byte 4, before its start 8",
        ),
        (
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#,
            4,
            "cut off: tensor `a` takes bytes 0 to 8 of the data, of which there are 4",
        ),
        (
            r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#,
            7,
            "the last 3 bytes belong to no tensor",
        ),
        (
            r#""a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#,
            8,
            "4 bytes in front of tensor `a` belong to none",
        ),
        (
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
               "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#,
            8,
            "tensors `a` and `b` overlap",
        ),
        (
            r#""a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},
               "a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#,
            0,
            "`a` is there twice",
        ),
        (r#""a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}"#, 0, "`a`: invalid value"),
        (r#""a":{"dtype":"F32","shape":[1]}"#, 0, "`a`: missing field `data_offsets`"),
        (r#""a":3"#, 0, "`a`: invalid type: integer `3`"),
        (
            r#""a":{"dtype":"F32","shape":[0],"data_offsets":[18446744073709551615,18446744073709551615]}"#,
            0,
            "cut off: tensor `a`",
        ),
    ];
    for (entry, data, expected) in cases {
        let found = with(entry, data);
        assert!(found.starts_with("`m.safetensors`: "), "{found}");
        assert!(found.contains(expected), "{entry}: {found}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = shard("a", "b");
    for length in 0..bytes.len() {
        assert!(open(bytes[..length].to_vec()).is_err(), "{length}");
    }
}

#[test]
fn shards_and_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("one.safetensors"), shard("a", "b")).unwrap();
    fs::write(path.join("two.safetensors"), shard("c", "d")).unwrap();
    let index = |pairs: &str| {
        fs::write(path.join(INDEX), format!(r#"{{"metadata":{{}},"weight_map":{{{pairs}}}}}"#))
            .unwrap();
        SafetensorsCheckpoint::open(path)
    };
    let good = r#""a":"one.safetensors","b":"one.safetensors",
        "c":"two.safetensors","d":"two.safetensors""#;
    let checkpoint = index(good).unwrap();
    assert_eq!(checkpoint.tensors().count(), 4);
    assert_eq!(checkpoint.read_f32("d").unwrap(), [3.0]);
    assert_eq!(checkpoint.find("d").unwrap().shape, [1, 1]);
    assert_eq!(SafetensorsCheckpoint::open(&path.join(INDEX)).unwrap().tensors().count(), 4);

    let fails = |pairs: &str, expected: &str| {
        let found = index(pairs).unwrap_err();
        assert!(found.to_string().contains(expected), "{found}");
        assert!(found.to_string().contains(INDEX), "{found}");
    };
    fails(&good.replace("two", "three"), "shard `three.safetensors` is missing");
    fails(
        &good.replace("one", "four").replace("two", "three"),
        "2 shards are missing: `four.safetensors`, `three.safetensors`",
    );
    fails(
        &format!(r#"{good},"e":"two.safetensors""#),
        "tensor `e` is not in `two.safetensors`, where the index has it",
    );
    fails(
        &good.replace(r#""a":"one"#, r#""a":"two"#),
        "tensor `a` is not in `two.safetensors`, where the index has it",
    );
    fails(&good.replace(r#""a":"one.safetensors","#, ""), "tensor `a` of `");
    fails(&format!(r#"{good},"a":"one.safetensors""#), "`a` is there twice");
    fails(r#""a":"../one.safetensors""#, "tensor `a`: `../one.safetensors` is not a file of this");
    fails(r#""a":1"#, "`a`: invalid type: integer `1`");

    fs::write(path.join("two.safetensors"), shard("a", "d")).unwrap();
    let found = index(good).unwrap_err().to_string();
    assert!(found.contains("two.safetensors`: tensor `a` is in `"), "{found}");
}

#[test]
fn folders_without_safetensors_say_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let open = || SafetensorsCheckpoint::open(folder.path()).unwrap_err();
    assert!(open().to_string().contains("there is neither `model.safetensors` nor"));
    fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    assert!(open().hint().unwrap().contains("convert them to safetensors"));
    fs::write(folder.path().join("model.gguf"), "").unwrap();
    assert!(open().hint().unwrap().contains("model.gguf`"));
    let missing = SafetensorsCheckpoint::open(&folder.path().join("x.safetensors")).unwrap_err();
    assert!(matches!(missing, Error::Read { .. }));
    fs::write(folder.path().join(SINGLE), "").unwrap();
    assert!(open().to_string().contains("not a safetensors file: it has 0 bytes"));
}

fn exercise(bytes: Vec<u8>) {
    if let Ok(checkpoint) = open(bytes) {
        for tensor in checkpoint.tensors() {
            let numbers: usize = tensor.shape.iter().product();
            if let Ok(read) = checkpoint.read_f32(tensor.name) {
                assert_eq!(read.len(), numbers);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        exercise(bytes);
    }

    #[test]
    fn any_header_never_panics(header in ".{0,200}", data in 0usize..32) {
        exercise(file(&header, &vec![0; data]));
    }

    #[test]
    fn any_entry_never_panics(
        dtype in prop::sample::select(vec!["F32", "F16", "I64", "BOOL", "F8_E4M3", "X"]),
        shape in proptest::collection::vec(prop_oneof![0usize..5, any::<usize>()], 0..4),
        offsets in prop_oneof![(0usize..40, 0usize..40), any::<(usize, usize)>()],
        data in 0usize..40,
    ) {
        let (start, end) = offsets;
        let header = format!(
            r#"{{"a":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}}}"#
        );
        exercise(file(&header, &vec![0; data]));
    }

    #[test]
    fn a_damaged_file_never_panics(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = shard("a", "b");
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        exercise(bytes.clone());
        bytes.truncate(length.index(bytes.len()));
        exercise(bytes);
    }
}
