//! Any bytes as a data file, through reading, encoding and marking: an error or examples whose learned
//! tokens are counted, never a panic. The first byte chooses the layout.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use lora_models::{Checkpoint, OpenOptions};
use lora_train::data;
use lora_train::recipe::{DataFile, DataSettings};

static CHECKPOINT: LazyLock<Checkpoint> =
    LazyLock::new(|| Checkpoint::open("builtin:", &OpenOptions::default()).unwrap());

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rows)) = bytes.split_first() else { return };
    let folder = tempfile::tempdir().unwrap();
    let name = ["rows.jsonl", "rows.json", "rows.txt"][usize::from(*first) % 3];
    let path = folder.path().join(name);
    fs::write(&path, rows).unwrap();
    let settings = DataSettings { train: vec![DataFile::new(path)], ..DataSettings::default() };
    let Ok((train, _)) = data::load(&settings, &CHECKPOINT.tokenizer, None) else { return };
    for example in &train.examples {
        assert_eq!(example.tokens.len(), example.learned.len());
        assert!(!example.learned.first().is_some_and(|learned| *learned));
    }
});
