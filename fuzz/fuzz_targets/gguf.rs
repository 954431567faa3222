//! Any bytes as a GGUF file, its tensors, its configuration and its tokenizer: errors or results, never
//! a panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use lora_models::formats::gguf_tokenizer::tokenizer_from_gguf;
use lora_models::formats::{GgufFile, GgufWeights};

fuzz_target!(|bytes: &[u8]| {
    let origin = Path::new("fuzz.gguf");
    let Ok(file) = GgufFile::from_bytes(bytes.to_vec(), origin) else {
        return;
    };
    for tensor in file.tensors() {
        if let Ok(numbers) = file.read_f32(tensor.name) {
            assert_eq!(numbers.len(), tensor.shape.iter().product::<usize>());
        }
    }
    if let Ok(found) = tokenizer_from_gguf(&file) {
        let _ = found.tokenizer.encode("Some text, 12 of it.\n");
    }
    let Ok(weights) = GgufWeights::new(file) else {
        return;
    };
    for tensor in weights.tensors() {
        let _ = weights.read_f32(tensor.name);
    }
});
