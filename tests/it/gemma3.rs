//! Gemma 3 270M, quantised in a GGUF file, against transformers in float32 over the same dequantised
//! weights (`fixtures/gemma3`, written by `fixtures/make_gemma3.py`).
//!
//! The weights are fetched by hand (`cargo xtask fetch gemma3`), never in CI. Without them the test says so
//! and passes.

use std::path::Path;

use crate::smollm2::{agrees_with_golden, load, open};

#[test]
fn logits_and_greedy_tokens_agree_with_transformers() {
    let name = "data/gemma3/gemma-3-270m-q4_k_m.gguf";
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    if !model.is_file() {
        println!("skipped: no {name}; `cargo xtask fetch gemma3` brings it");
        return;
    }
    let checkpoint = open(&model);
    assert_eq!(checkpoint.config.parameter_count(), 268_098_176);
    let decoder = load(&checkpoint);
    for name in ["gemma3/gemma3_golden_6.json", "gemma3/gemma3_golden_12.json"] {
        agrees_with_golden(&checkpoint, &decoder, name);
    }
}
