//! Any bytes as the two files of a PEFT adapter: an error or an adapter, never a panic. The first line
//! is the configuration, the rest the weights.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use lora_core::peft::PeftAdapter;

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (config, weights) = bytes.split_at(end);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    fs::write(folder.path().join("adapter_model.safetensors"), weights.get(1..).unwrap_or(&[]))
        .unwrap();
    let _ = PeftAdapter::load(folder.path());
});
