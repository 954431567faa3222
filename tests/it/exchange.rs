//! Files exchanged with PEFT and transformers: an adapter trained here gives the same logits there, one
//! trained there gives the same logits here, a merged model is an ordinary checkpoint, and so is what was
//! converted from another format.
//!
//! Runs where `LORA_PEFT_PYTHON` names a Python that has torch, transformers and peft; elsewhere it
//! says that it did not.

use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lora_core::peft::PeftAdapter;
use lora_models::generate::all_logits;
use lora_models::{Checkpoint, OpenOptions};
use serde_json::Value;

use crate::cli::lab::Lab;
use crate::foreign::adapter_of_every_kind;

/// Largest difference of two logits. They lie within ±20; another order of summation moves them by 1e-5.
pub(crate) const LOGITS: f32 = 1e-4;

const RECIPE: &str = "\
model = \"builtin:\"
[adapter]
rank = 4
alpha = 8.0
[[data.train]]
path = \"rows.jsonl\"
[train]
steps = 10
batch_size = 2
learning_rate = 1e-2
[output]
folder = \"run\"
";

/// Settings of methods beyond plain LoRA; the carried model's head is its embedding.
const METHODS: [(&str, &[&str]); 9] = [
    ("dora", &["adapter.dora=true", "adapter.scaling=rslora"]),
    ("pissa", &["adapter.init=pissa"]),
    ("olora", &["adapter.init=olora", "adapter.dora=true"]),
    ("eva", &["adapter.init=eva"]),
    ("orthogonal", &["adapter.init=orthogonal", "train.lora_plus_ratio=4"]),
    ("tokens", &["adapter.trainable_tokens=[5,7]", "train.lora_fa=true"]),
    ("embedding", &["adapter.target_modules=[\"embed_tokens\",\"q_proj\"]"]),
    (
        "tied",
        &[
            "adapter.target_modules=[\"embed_tokens\",\"q_proj\"]",
            "adapter.ensure_weight_tying=true",
        ],
    ),
    ("saved", &["adapter.modules_to_save=[\"embed_tokens\"]", "adapter.ensure_weight_tying=true"]),
];

#[test]
fn peft_and_transformers_compute_what_we_compute() {
    let Some(python) = env::var_os("LORA_PEFT_PYTHON") else {
        println!("skipped: set LORA_PEFT_PYTHON to a Python with torch, transformers and peft");
        return;
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let base = here.join("../lora-models/assets/builtin");
    let lab = Lab::new();
    let row = "{\"prompt\": \"name: The Mill\\n\", \"completion\": \"The Mill is a place.\"}\n";
    lab.write("rows.jsonl", row.repeat(4));
    lab.write("recipe.toml", RECIPE);
    adapter_of_every_kind(&open("builtin:"), 0.05).save(&lab.path("every-kind")).unwrap();
    for arguments in [
        &["train", "recipe.toml", "--quiet"][..],
        &["merge", "builtin:", "run", "--output", "merged", "--dtype", "f32"],
        // What other formats hold, in PEFT's and transformers' words again.
        &["convert", "every-kind", "--model", "builtin:", "--output", "adapter.gguf"],
        &["convert", "adapter.gguf", "--model", "builtin:", "--output", "from-gguf"],
        &["convert", "every-kind", "--to", "mlx", "--output", "mlx"],
        &["convert", "mlx", "--output", "from-mlx"],
        &["convert", "builtin:", "--output", "model.gguf"],
        &["convert", "model.gguf", "--output", "model", "--dtype", "f32"],
    ] {
        let shown = lab.lora(arguments);
        assert!(shown.contains("exit status: 0\n"), "{shown}");
    }

    let methods = METHODS.map(|(name, settings)| {
        let mut arguments = vec!["train", "recipe.toml", "--quiet", "--output", name];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let shown = lab.lora(&arguments);
        assert!(shown.contains("exit status: 0\n"), "{shown}");
        lab.path(name).join("adapter")
    });

    let text = "Once upon a time there was a mill, and name: The Mill";
    let tokens = open("builtin:").tokenizer.encode(text).unwrap();
    let made = ["run/adapter", "merged", "theirs", "from-gguf", "from-mlx", "model"];
    let mut folders = vec![base];
    folders.extend(made.iter().map(|name| lab.path(name)));
    folders.extend(methods.clone());
    let found = exchange(&python.into(), &here.join("it/exchange.py"), &folders, &tokens);

    for list in ["missing", "unexpected", "complaints", "merged_missing", "merged_unexpected"] {
        assert_eq!(found[list], Value::Array(Vec::new()), "{list}");
    }
    assert_eq!(found["merged_text"], text);
    assert_eq!(found["model_tokens"], Value::from(tokens.clone()));
    let merged = lab.path("merged").display().to_string();
    let cases = [
        ("ours", "builtin:", Some(lab.path("run/adapter"))),
        ("theirs", "builtin:", Some(lab.path("theirs"))),
        ("merged", merged.as_str(), None),
        ("from_gguf", "builtin:", Some(lab.path("every-kind"))),
        ("from_mlx", "builtin:", Some(lab.path("every-kind"))),
        ("model", "builtin:", None),
    ];
    for (name, model, adapter) in cases {
        let difference =
            largest_difference(&logits(model, adapter.as_deref(), &tokens), &found[name]);
        println!("{name}: largest difference of {} logits {difference:.2e}", tokens.len());
        assert!(difference < LOGITS, "{name}: {difference}");
    }
    for (at, ((name, _), folder)) in METHODS.iter().zip(&methods).enumerate() {
        let ours = logits("builtin:", Some(folder), &tokens);
        let difference = largest_difference(&ours, &found["more"][at]);
        println!("{name}: largest difference of {} logits {difference:.2e}", tokens.len());
        assert!(difference < LOGITS, "{name}: {difference}");
        let moved = largest_difference(&ours, &found["more"][(at + 1) % METHODS.len()]);
        assert!(moved > 100.0 * LOGITS, "{name} is like the next");
    }
    // The comparison would hold for any adapter that does nothing.
    let plain = logits("builtin:", None, &tokens);
    assert!(largest_difference(&plain, &found["ours"]) > 100.0 * LOGITS, "ours does nothing");
    assert!(largest_difference(&plain, &found["theirs"]) > 100.0 * LOGITS, "theirs does nothing");
    assert!(largest_difference(&plain, &found["from_gguf"]) > 100.0 * LOGITS, "it does nothing");
}

pub(crate) fn open(model: &str) -> Checkpoint {
    Checkpoint::open(model, &OpenOptions::default()).unwrap()
}

pub(crate) fn logits(model: &str, adapter: Option<&Path>, tokens: &[u32]) -> Vec<f32> {
    let mut decoder = open(model).load(&lora_tests::placement()).unwrap();
    if let Some(adapter) = adapter {
        decoder.attach_peft("adapter", &PeftAdapter::load(adapter).unwrap()).unwrap();
    }
    all_logits(&decoder, tokens).unwrap()
}

pub(crate) fn largest_difference(logits: &[f32], expected: &Value) -> f32 {
    let expected = expected.as_array().unwrap();
    assert_eq!(logits.len(), expected.len());
    let differences = logits
        .iter()
        .zip(expected)
        .map(|(found, expected)| found - expected.as_f64().unwrap() as f32);
    differences.map(f32::abs).fold(0.0, f32::max)
}

pub(crate) fn exchange(
    python: &PathBuf,
    script: &Path,
    folders: &[PathBuf],
    tokens: &[u32],
) -> Value {
    let mut child = Command::new(python)
        .arg(script)
        .args(folders)
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(serde_json::to_string(tokens).unwrap().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the Python side failed");
    serde_json::from_slice(&output.stdout).unwrap()
}
