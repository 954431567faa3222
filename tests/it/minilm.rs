//! A real encoder: all-MiniLM-L6-v2, against an independent float32 forward pass (`fixtures/minilm`).
//!
//! The weights are fetched (`cargo xtask fetch minilm`), not committed. Without them the test says so and passes;
//! where `LORA_REQUIRE_ASSETS` is set, it fails.

use std::path::Path;

use lora_core::parameter::read_f32;
use lora_models::Input;
use serde_json::Value;

use crate::smollm2::{asset, load, open};

/// An embedding has length 1; another order of summation over six blocks moves it by 1e-6.
const EMBEDDING: f32 = 1e-5;

#[test]
fn tokens_and_mean_embedding_agree_with_the_independent_reference() {
    let Some(model) = asset("minilm/model.safetensors") else { return };
    let checkpoint = open(model.parent().unwrap());
    assert_eq!(checkpoint.absent_head(), ["classifier"]);
    let decoder = load(&checkpoint);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/minilm/minilm_golden.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();

    let texts = checkpoint.tokenizer.text_encoder(512).unwrap();
    let encoded = texts.encode(golden["text"].as_str().unwrap(), None).unwrap();
    assert_eq!(Value::from(encoded.tokens.clone()), golden["ids"]);
    let hidden = decoder.forward(&Input::single(&encoded.tokens, 0), None);
    let mut mean = read_f32(hidden.mean_dim(0));
    let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
    mean.iter_mut().for_each(|x| *x /= length);
    let expected = golden["embedding_l2norm_meanpool"].as_array().unwrap();
    assert_eq!(mean.len(), expected.len());
    let differences =
        mean.iter().zip(expected).map(|(a, b)| (a - b.as_f64().unwrap() as f32).abs());
    let largest = differences.fold(0.0, f32::max);
    println!("largest difference of {} numbers: {largest:.1e}", mean.len());
    assert!(largest < EMBEDDING, "{largest}");

    // Its tokenizer.json cuts and pads to 128.
    let long = texts.encode(&"word ".repeat(300), None).unwrap();
    assert_eq!((long.tokens.len(), long.truncated), (302, 0));
    let pair = texts.encode("one text", Some("another")).unwrap();
    assert_eq!(pair.segments, [0, 0, 0, 0, 1, 1]);
    assert_eq!(pair.tokens[..1], [101]);
    assert_eq!(pair.tokens.iter().filter(|token| **token == 102).count(), 2);
}
