//! Any bytes as a safetensors file: an error or tensors that can be read, never a panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use lora_models::formats::SafetensorsCheckpoint;

fuzz_target!(|bytes: &[u8]| {
    let origin = Path::new("fuzz.safetensors");
    let Ok(checkpoint) = SafetensorsCheckpoint::from_bytes(bytes.to_vec(), origin) else {
        return;
    };
    for tensor in checkpoint.tensors() {
        if let Ok(numbers) = checkpoint.read_f32(tensor.name) {
            assert_eq!(numbers.len(), tensor.shape.iter().product::<usize>());
        }
    }
});
