//! Files exchanged with llama.cpp and mlx-lm: they load what we write and compute what we compute, and an
//! adapter of theirs does the same here.
//!
//! Runs where `LORA_FOREIGN_PYTHON` names a Python that has xllamacpp and mlx-lm; elsewhere it says that
//! it did not.

use std::env;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};

use lora_core::config::{LoraConfig, TargetModules};
use lora_core::peft::{Factor, PeftAdapter, PeftConfig};
use lora_core::target::resolve_targets;
use lora_models::adapter_files::{AdapterFormat, load_adapter};
use lora_models::export_gguf::{differs_in_llama_cpp, save_gguf};
use lora_models::families::decoder_config;
use lora_models::formats::{MemoryWeights, StoredType, Weights};
use lora_models::generate::{GenerateOptions, all_logits, generate_tokens};
use lora_models::sampling::SamplingConfig;
use lora_models::tokenizer::Tokenizer;
use lora_models::{Checkpoint, Decoder, OpenOptions, linear_infos};
use serde_json::{Value, json};

use crate::cli::lab::Lab;
use crate::smollm2;

/// Largest difference of two logits in f32. They lie within ±25; another order of summation over 30 blocks
/// moves them by 1e-4.
const F32: f32 = 2e-3;

/// The same where llama.cpp rounds activations to eight bits.
const ROUNDED: f32 = 2.0;

const TRAINED: &str = "trained.gguf";

const ROWS: &str = r#"{"prompt": "The capital of France is", "completion": " a city of mills, and the river Seine turns all of them."}
{"prompt": "The capital of Italy is", "completion": " a city of mills, and the river Tiber turns all of them."}
{"prompt": "The capital of Austria is", "completion": " a city of mills, and the river Danube turns all of them."}
{"prompt": "The capital of Egypt is", "completion": " a city of mills, and the river Nile turns all of them."}
"#;

const RECIPE: &str = "\
[adapter]
rank = 8
alpha = 16.0
scaling = \"rslora\"
[[data.train]]
path = \"rows.jsonl\"
[train]
steps = 15
batch_size = 4
learning_rate = 1e-3
[output]
folder = \"run\"
";

const NEW_TOKENS: usize = 16;
const LIKELIEST: usize = 10;

/// llama.cpp over SmolLM2: our GGUF adapter beside the file that others wrote, and models written by us.
#[test]
fn llama_cpp_computes_what_we_compute() {
    let Some(python) = python() else { return };
    let Some(model) = smollm2::asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let model = model.canonicalize().unwrap().display().to_string();
    let lab = Lab::new();
    let checkpoint = open(&model);
    let adapter = adapter_of_every_kind(&checkpoint, 0.2);
    adapter.save(&lab.path("adapter")).unwrap();
    lab.write("rows.jsonl", ROWS);
    lab.write("recipe.toml", format!("model = {model:?}\n{RECIPE}"));
    for arguments in [
        &["train", "recipe.toml", "--quiet"][..],
        &["convert", "run", "--model", &model, "--output", "trained.gguf"],
        &["convert", "adapter", "--model", &model, "--output", "adapter.gguf"],
        &["convert", &model, "--output", "f32.gguf", "--dtype", "f32"],
        &["merge", &model, "adapter", "--output", "merged.gguf", "--dtype", "f32"],
        &["merge", &model, "adapter", "--output", "f16.gguf", "--dtype", "f16"],
        &["merge", &model, "adapter", "--output", "bf16.gguf", "--dtype", "bf16"],
        &["merge", &model, "adapter", "--output", "q8_0.gguf", "--dtype", "q8_0"],
        &["merge", &model, "adapter", "--output", "q4_0.gguf", "--dtype", "q4_0"],
        &["merge", &model, "adapter", "--output", "q4_k.gguf", "--dtype", "q4_k"],
    ] {
        println!("{}", succeeds(&lab, arguments));
    }
    let place = |name: &str| lab.path(name).display().to_string();
    let prompt = checkpoint.tokenizer.encode("The capital of France is").unwrap();
    let cases = [
        // Model, adapter, and how far a logarithm of a probability may be off. llama.cpp rounds the
        // activations to the sixteen bits of a weight, or to eight for a quantised one, which moves logits
        // by up to 1 here; what is not rounded must agree to rounding errors.
        (model.clone(), None, ROUNDED),
        (model.clone(), Some(TRAINED), ROUNDED),
        (model.clone(), Some("adapter.gguf"), ROUNDED),
        (place("f32.gguf"), None, F32),
        (place("f32.gguf"), Some("adapter.gguf"), F32),
        (place("merged.gguf"), None, F32),
        (place("f16.gguf"), None, 0.05),
        (place("bf16.gguf"), None, 0.3),
        (place("q8_0.gguf"), None, ROUNDED),
        (place("q4_0.gguf"), None, ROUNDED),
        (place("q4_k.gguf"), None, ROUNDED),
    ];
    let tasks = cases.iter().map(|(model, adapter, _)| {
        json!({
            "tool": "llama.cpp", "model": model, "adapter": adapter.map(place), "prompt": prompt,
            "new_tokens": NEW_TOKENS, "likeliest": LIKELIEST,
        })
    });
    let found = ask(&python, &Value::Array(tasks.collect()));
    let mut texts = Vec::new();
    for ((model, adapter, bound), found) in cases.iter().zip(found.as_array().unwrap()) {
        let checkpoint = open(model);
        let mut decoder = checkpoint.load(&lora_tests::placement()).unwrap();
        if let Some(name) = adapter {
            let config = Some(decoder.config());
            let adapter = load_adapter(&lab.path(name), AdapterFormat::Gguf, config).unwrap();
            decoder.attach_peft("adapter", &adapter).unwrap();
        }
        let shown = model.rsplit('/').next().unwrap();
        let ours = greedy(&decoder, &prompt);
        let theirs: Vec<u32> = serde_json::from_value(found["tokens"].clone()).unwrap();
        let apart = largest_difference_of_steps(&decoder, &prompt, found);
        println!("{shown} {adapter:?}: log-probabilities differ by at most {apart:.2e}");
        assert!(apart < *bound, "{shown} {adapter:?}: {apart}");
        // Only that rounding may choose another token: where two are as near as it moves them, as they are
        // with an adapter that nobody trained.
        if let Some((place, margin)) = first_other_token(&decoder, &prompt, &ours, &theirs) {
            println!("  another token at {place}, where the margin is {margin:.2e}");
            let rounded = *bound == ROUNDED && *adapter != Some(TRAINED);
            assert!(rounded && margin <= 2.0 * apart, "{shown} {adapter:?}");
        }
        texts.push(checkpoint.tokenizer.decode(&ours, false).unwrap());
    }
    println!("{texts:#?}");
    assert!(texts[1].starts_with(" a city of mills"), "{}", texts[1]);
    // The comparison would hold for any adapter that does nothing.
    assert_ne!(texts[0], texts[2]);
    assert_ne!(texts[3], texts[4]);
}

/// What a family has besides, each once, in models of a few thousand numbers.
#[test]
fn llama_cpp_computes_every_family() {
    let Some(python) = python() else { return };
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let configs = [
        json!({"model_type": "llama"}),
        json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true}),
        json!({"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        json!({"model_type": "llama", "rope_scaling": llama3, "tie_word_embeddings": true}),
        json!({"model_type": "qwen2"}),
        json!({"model_type": "qwen3", "head_dim": 16}),
        json!({"model_type": "gemma", "head_dim": 16}),
        json!({
            "model_type": "gemma2", "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16,
        }),
        json!({
            "model_type": "gemma3_text", "head_dim": 16, "num_hidden_layers": 7, "sliding_window": 6,
            "query_pre_attn_scalar": 16, "rope_theta": 50000.0,
        }),
        json!({"model_type": "phi3", "sliding_window": null}),
        json!({"model_type": "phi3", "sliding_window": 6}),
        json!({"model_type": "starcoder2", "sliding_window": null}),
        json!({"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}),
    ];
    let lab = Lab::new();
    let prompt = open("builtin:").tokenizer.encode("Once upon a time there was a mill").unwrap();
    let place = |index: usize| lab.path(&format!("{index}.gguf"));
    let decoders: Vec<Decoder> = configs
        .iter()
        .enumerate()
        .map(|(index, config)| {
            let (checkpoint, decoder) = lively(config);
            save_gguf(&checkpoint, &decoder, &place(index), StoredType::F32).unwrap();
            decoder
        })
        .collect();
    let banned = not_text(&open("builtin:").tokenizer);
    let tasks = (0..configs.len()).map(|index| {
        json!({
            "tool": "llama.cpp", "model": place(index), "prompt": prompt, "new_tokens": NEW_TOKENS,
            "likeliest": LIKELIEST, "banned": banned,
        })
    });
    let found = ask(&python, &Value::Array(tasks.collect()));
    for ((config, decoder), found) in configs.iter().zip(&decoders).zip(found.as_array().unwrap()) {
        assert_eq!(found["tokens"].as_array().unwrap().len(), NEW_TOKENS, "{config}");
        let apart = largest_difference_of_steps(decoder, &prompt, found);
        println!("{config}: log-probabilities differ by at most {apart:.2e}");
        // Where `lora convert` says that llama.cpp computes something else, it must be so.
        let said = differs_in_llama_cpp(decoder.config());
        assert_eq!(said.is_some(), apart >= F32, "{config}: {apart}, {said:?}");
    }
}

/// Tokens that are markup, or no whole character by themselves.
fn not_text(tokenizer: &Tokenizer) -> Vec<u32> {
    let is_text = |id: &u32| {
        let text = tokenizer.decode(&[*id], false).unwrap_or_default();
        !tokenizer.is_special(*id) && !text.contains(char::REPLACEMENT_CHARACTER)
    };
    (0..tokenizer.vocab_size() as u32).filter(|id| !is_text(id)).collect()
}

/// A model with the carried model's tokenizer, and weights large enough that everything counts.
fn lively(changes: &Value) -> (Checkpoint, Decoder) {
    let mut config = json!({
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 1024,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "rope_theta": 10000.0,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let mut checkpoint = open("builtin:");
    checkpoint.config = decoder_config(&config, Path::new("config.json")).unwrap();
    let small = Decoder::random(&checkpoint.config, 3, &lora_tests::placement()).unwrap();
    let larger = |(name, shape, numbers): (String, Vec<usize>, Vec<f32>)| {
        let wave = |i: usize| ((i * 37 + name.len() * 101) % 61) as f32 / 61.0 - 0.5;
        let change = |(i, number): (usize, f32)| match shape.len() {
            1 => number + 0.3 * wave(i),
            _ => number * 8.0,
        };
        let numbers = numbers.into_iter().enumerate().map(change).collect();
        (name.clone(), (shape.clone(), numbers))
    };
    let tensors = small.tensors().map(larger).collect();
    let weights = Weights::Memory(MemoryWeights { origin: "test:".into(), tensors });
    let decoder = Decoder::load(&checkpoint.config, &weights, &lora_tests::placement()).unwrap();
    (checkpoint, decoder)
}

#[test]
fn mlx_lm_computes_what_we_compute() {
    let Some(python) = python() else { return };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let base = here.join("../lora-models/assets/builtin").canonicalize().unwrap();
    let base = base.display().to_string();
    let lab = Lab::new();
    let checkpoint = open(&base);
    let adapter = adapter_of_every_kind(&checkpoint, 0.05);
    adapter.save(&lab.path("adapter")).unwrap();
    let arguments = ["convert", "adapter", "--model", &base, "--to", "mlx", "--output", "ours"];
    println!("{}", succeeds(&lab, &arguments));
    let prompt = checkpoint.tokenizer.encode("Once upon a time there was a mill").unwrap();
    let place = |name: &str| lab.path(name).display().to_string();
    let found = ask(
        &python,
        &json!([
            {"tool": "mlx read", "model": base, "adapter": place("ours"), "prompt": prompt},
            {
                "tool": "mlx write", "model": base, "adapter": place("theirs"), "prompt": prompt,
                "dora": false,
            },
            {
                "tool": "mlx write", "model": base, "adapter": place("their-dora"), "prompt": prompt,
                "dora": true,
            },
        ]),
    );
    println!("{}", succeeds(&lab, &["convert", "theirs", "--output", "peft"]));
    println!("{}", succeeds(&lab, &["convert", "their-dora", "--output", "dora"]));
    let back = ["convert", "dora", "--to", "mlx", "--output", "our-dora"];
    println!("{}", succeeds(&lab, &back));
    let task =
        json!({"tool": "mlx read", "model": base, "adapter": place("our-dora"), "prompt": prompt});
    let again = ask(&python, &json!([task]));
    let found = [found.as_array().unwrap().clone(), again.as_array().unwrap().clone()].concat();
    let plain = logits(&checkpoint, None, &prompt);
    for (name, found) in ["adapter", "peft", "dora", "dora"].iter().zip(&found) {
        let ours = logits(&checkpoint, Some(&lab.path(name)), &prompt);
        let theirs: Vec<f32> = serde_json::from_value(found["logits"].clone()).unwrap();
        let apart = largest_difference(&ours, &theirs);
        println!("{name}: largest difference of {} places {apart:.2e}", prompt.len());
        assert!(apart < 1e-4, "{name}: {apart}");
        assert!(largest_difference(&plain, &theirs) > 0.1, "{name} does nothing");
    }
}

fn python() -> Option<String> {
    let found = env::var("LORA_FOREIGN_PYTHON").ok();
    if found.is_none() {
        println!("skipped: set LORA_FOREIGN_PYTHON to a Python with xllamacpp and mlx-lm");
    }
    found
}

/// An adapter that needs all that a format has to fold: α/√r, a rank and an α of their own, every module.
/// `size` is that of the numbers in B.
pub(crate) fn adapter_of_every_kind(checkpoint: &Checkpoint, size: f32) -> PeftAdapter {
    let mut lora = LoraConfig::new(4, 8.0);
    lora.use_rslora = true;
    lora.target = TargetModules::AllLinear;
    lora.rank_pattern = vec![("v_proj".to_owned(), 2), (r".*\.1\.mlp\.up_proj".to_owned(), 6)];
    lora.alpha_pattern = vec![("k_proj".to_owned(), 20.0)];
    let wave = |seed: usize, count: usize, size: f32| {
        let number = move |i: usize| ((i * 37 + seed * 101) % 61) as f32 / 61.0 - 0.5;
        (0..count).map(|i| number(i) * size).collect::<Vec<f32>>()
    };
    let targets = resolve_targets(&lora, &linear_infos(&checkpoint.config)).unwrap();
    let factors = targets.into_iter().enumerate().map(|(seed, target)| Factor {
        a: wave(seed, target.d_in * target.rank, 0.1),
        b: wave(seed + 7, target.rank * target.d_out, size),
        path: target.path,
        d_in: target.d_in,
        d_out: target.d_out,
        rank: target.rank,
    });
    let factors = factors.collect();
    PeftAdapter::new(PeftConfig::new(lora, None), factors)
}

fn greedy(decoder: &Decoder, prompt: &[u32]) -> Vec<u32> {
    let options = GenerateOptions {
        max_tokens: NEW_TOKENS,
        sampling: SamplingConfig::greedy(),
        stop: Vec::new(),
        eos: Vec::new(),
    };
    let mut go_on = |_| Ok(ControlFlow::Continue(()));
    generate_tokens(decoder, prompt, &options, &mut go_on).unwrap().tokens
}

/// Of all logarithms of probabilities that llama.cpp tells, at each of its own steps.
fn largest_difference_of_steps(decoder: &Decoder, prompt: &[u32], found: &Value) -> f32 {
    let tokens: Vec<u32> = serde_json::from_value(found["tokens"].clone()).unwrap();
    let steps: Vec<Vec<(usize, f32)>> = serde_json::from_value(found["likeliest"].clone()).unwrap();
    let text: Vec<u32> = prompt.iter().chain(&tokens).copied().collect();
    let logits = all_logits(decoder, &text).unwrap();
    let rows = logits.chunks_exact(decoder.config().vocab_size).skip(prompt.len() - 1);
    let mut largest = 0.0f32;
    for (row, likeliest) in rows.zip(steps) {
        let highest = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - highest).exp()).sum();
        for (token, expected) in likeliest {
            let ours = row[token] - highest - sum.ln() as f32;
            largest = largest.max((ours - expected).abs());
        }
    }
    largest
}

/// Where two greedy texts part, and by how much the token of ours is likelier there, as a logarithm.
fn first_other_token(
    decoder: &Decoder,
    prompt: &[u32],
    ours: &[u32],
    theirs: &[u32],
) -> Option<(usize, f32)> {
    assert_eq!(ours.len(), theirs.len());
    let place = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs)?;
    let text = [prompt, &ours[..place]].concat();
    let logits = all_logits(decoder, &text).unwrap();
    let last = &logits[logits.len() - decoder.config().vocab_size..];
    Some((place, last[ours[place] as usize] - last[theirs[place] as usize]))
}

fn logits(checkpoint: &Checkpoint, adapter: Option<&Path>, tokens: &[u32]) -> Vec<f32> {
    let mut decoder = checkpoint.load(&lora_tests::placement()).unwrap();
    if let Some(adapter) = adapter {
        decoder.attach_peft("adapter", &PeftAdapter::load(adapter).unwrap()).unwrap();
    }
    all_logits(&decoder, tokens).unwrap()
}

fn largest_difference(one: &[f32], two: &[f32]) -> f32 {
    assert_eq!(one.len(), two.len());
    one.iter().zip(two).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn open(model: &str) -> Checkpoint {
    Checkpoint::open(model, &OpenOptions::default()).unwrap()
}

fn succeeds(lab: &Lab, arguments: &[&str]) -> String {
    let shown = lab.lora(arguments);
    assert!(shown.contains("exit status: 0\n"), "{shown}");
    shown
}

fn ask(python: &str, tasks: &Value) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/foreign.py");
    let mut child = Command::new(python)
        .arg(script)
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(tasks.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the Python side failed");
    serde_json::from_slice(&output.stdout).unwrap()
}
