//! A real model: SmolLM2-135M-Instruct, quantised in a GGUF file, against an independent float32
//! forward pass over the same dequantised weights (`fixtures/smollm2`).
//!
//! The weights are fetched (`cargo xtask fetch smollm2`, which `cargo xtask ci` tries), not committed.
//! Without them the tests say so and pass; where `LORA_REQUIRE_ASSETS` is set, they fail.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use lora_models::chat_template::Conversation;
use lora_models::generate::{GenerateOptions, all_logits, generate_tokens};
use lora_models::sampling::SamplingConfig;
use lora_models::{Checkpoint, Decoder, OpenOptions};
use lora_train::data;
use lora_train::recipe::{DataFile, DataSettings};
use lora_train::{evaluate, recipe::Run};
use serde_json::{Value, json};

/// Logits lie between -20 and 25; another order of summation over 30 blocks moves them by 1e-4.
const LOGITS: f32 = 2e-3;

#[test]
fn logits_and_greedy_tokens_agree_with_the_independent_reference() {
    let Some(model) = asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let checkpoint = open(&model);
    let decoder = load(&checkpoint);
    for name in ["smollm2/smollm2_golden_5.json", "smollm2/smollm2_golden_37.json"] {
        agrees_with_golden(&checkpoint, &decoder, name);
    }
}

/// Tokens of the prompt, logits of its last position, and greedy tokens are those of the file.
pub(crate) fn agrees_with_golden(checkpoint: &Checkpoint, decoder: &Decoder, name: &str) {
    let golden = golden(name);
    let prompt = golden["prompt"].as_str().unwrap();
    let special = checkpoint.tokenizer.special();
    let mut tokens: Vec<u32> = special.bos.filter(|_| special.add_bos).into_iter().collect();
    tokens.extend(checkpoint.tokenizer.encode(prompt).unwrap());
    assert_eq!(tokens, list(&golden["ids"]), "{name}");
    let logits = all_logits(decoder, &tokens).unwrap();
    let last = &logits[logits.len() - decoder.config().vocab_size..];
    for (index, expected) in golden["first8_logits"].as_array().unwrap().iter().enumerate() {
        close(last[index], expected, &format!("{name}: logit {index}"));
    }
    for pair in golden["last_logits_top5"].as_array().unwrap() {
        let token = pair[0].as_u64().unwrap() as usize;
        close(last[token], &pair[1], &format!("{name}: logit {token}"));
    }
    let expected = list(&golden["greedy"]);
    let options = GenerateOptions {
        max_tokens: expected.len(),
        sampling: SamplingConfig::greedy(),
        stop: Vec::new(),
        eos: Vec::new(),
    };
    let mut go_on = |_| Ok(ControlFlow::Continue(()));
    let found = generate_tokens(decoder, &tokens, &options, &mut go_on).unwrap();
    assert_eq!(found.tokens, expected, "{name}");
}

#[test]
fn the_chat_template_of_the_file_gives_the_reference_prompt() {
    let Some(model) = asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let checkpoint = open(&model);
    let template = checkpoint.chat_template.as_ref().expect("the file has a chat template");
    let question = json!({"role": "user", "content": "What is the capital of France?"});
    let messages = vec![question.as_object().unwrap().clone()];
    let conversation = Conversation { messages, tools: None };
    let text = template.render(&conversation, true).unwrap();
    assert_eq!(text, golden("smollm2/smollm2_golden_37.json")["prompt"].as_str().unwrap());
}

#[test]
fn the_untuned_loss_on_held_out_responses_is_that_of_the_reference() {
    let Some(model) = asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let Some(rows) = asset("alpaca/alpaca_en_demo.json") else { return };
    let checkpoint = open(&model);
    let settings = DataSettings {
        train: vec![DataFile::new(&rows)],
        validation_rows: 30,
        max_tokens: 384,
        ..DataSettings::default()
    };
    let template = checkpoint.chat_template.as_ref();
    let (_, held_out) = data::load(&settings, &checkpoint.tokenizer, template).unwrap();
    assert_eq!(held_out.report.learned(), 3405);
    let mut run = Run::new("", &rows);
    run.data = settings;
    let batches = lora_train::batches::evaluation_batches(&held_out, &run.data, &run.train, 0);
    let found = evaluate(&load(&checkpoint), &batches, 512);
    assert!((found.loss - 1.588).abs() < 1e-3, "{found:?}");
}

/// A fetched file, where it is there.
pub(crate) fn asset(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data").join(name);
    if path.is_file() {
        return Some(path);
    }
    assert!(std::env::var_os("LORA_REQUIRE_ASSETS").is_none(), "no {}", path.display());
    let set = name.split('/').next().unwrap();
    println!("skipped: no data/{name}; `cargo xtask fetch {set}` brings it");
    None
}

pub(crate) fn open(model: &Path) -> Checkpoint {
    Checkpoint::open(model.to_str().unwrap(), &OpenOptions::default()).unwrap()
}

pub(crate) fn load(checkpoint: &Checkpoint) -> Decoder {
    checkpoint.load(&lora_tests::placement()).unwrap()
}

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn close(found: f32, expected: &Value, what: &str) {
    let expected = expected.as_f64().unwrap() as f32;
    println!("{what}: {found} {expected}");
    assert!((found - expected).abs() < LOGITS, "{what}: {found}, expected {expected}");
}
