//! Every family from one end to the other: drawn fresh and pre-trained, fine-tuned, merged, read again. Where
//! `LORA_PEFT_PYTHON` names a Python with torch, transformers and peft, these compute the same from our
//! files, and we from theirs.

use std::env;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::lab::Lab;
use crate::exchange::{LOGITS, exchange, largest_difference, logits, open};

const PRETRAIN: &str = "\
[pretrain]
config = \"config.json\"
tokenizer_vocab = 300
[data]
format = \"text\"
max_tokens = 64
[[data.train]]
path = \"rows.jsonl\"
[train]
steps = 4
batch_size = 2
learning_rate = 1e-2
[output]
folder = \"base\"
dtype = \"f32\"
";

const FINETUNE: &str = "\
model = \"base/model\"
[adapter]
rank = 4
alpha = 8.0
[data]
format = \"text\"
max_tokens = 64
[[data.train]]
path = \"rows.jsonl\"
[train]
steps = 4
batch_size = 2
learning_rate = 1e-2
[output]
folder = \"run\"
";

#[test]
fn each_family_is_trained_merged_and_read_again() {
    for fixture in ["gemma", "gemma2", "gemma3", "gpt2", "phi3", "starcoder2"] {
        let lab = lab(fixture);
        for arguments in [
            &["pretrain", "pretrain.toml", "--quiet"][..],
            &["train", "finetune.toml", "--quiet"],
            &["merge", "base/model", "run", "--output", "merged", "--dtype", "f32"],
            &["generate", "merged", "--prompt", "the mill", "--max-tokens", "5"],
            &["adapter", "extract", "base/model", "merged", "--rank", "4", "--output", "learned"],
        ] {
            let shown = lab.lora(arguments);
            assert!(shown.contains("exit status: 0\n"), "{fixture}: {shown}");
        }
        let base = lab.path("base/model").display().to_string();
        let merged = lab.path("merged").display().to_string();
        let adapter = lab.path("run/adapter");
        let tokens = open(&base).tokenizer.encode("the mill by the river is old").unwrap();
        let adapted = logits(&base, Some(&adapter), &tokens);
        let expected = Value::from(adapted.clone());
        let apart = largest_difference(&logits(&merged, None, &tokens), &expected);
        assert!(apart < LOGITS, "{fixture}: merged is off by {apart}");
        let plain = largest_difference(&logits(&base, None, &tokens), &expected);
        assert!(plain > 100.0 * LOGITS, "{fixture}: the adapter does nothing, {plain}");
        if let Some(python) = env::var_os("LORA_PEFT_PYTHON") {
            theirs(fixture, &python.into(), &lab, &tokens, &adapted);
        }
        // What the merge put into the model, taken out of it again.
        let output = lab.output(&["adapter", "diff", "run", "learned", "--json"], b"");
        let apart: Value = serde_json::from_slice(&output.stdout).unwrap();
        let [apart, whole] = ["distance", "first"].map(|key| apart["all"][key].as_f64().unwrap());
        assert!(apart < 1e-3 * whole, "{fixture}: extracted is off by {apart} of {whole}");
        if fixture == "gemma2" {
            lab.check_lora("inspect_gemma2", &["inspect", "base/model"]);
        }
        if fixture == "gpt2" {
            lab.check_lora("inspect_gpt2", &["inspect", "base/model"]);
        }
    }
}

#[test]
fn texts_longer_than_the_learned_positions_are_refused() {
    let lab = lab("gpt2");
    let arguments = &["pretrain", "pretrain.toml", "--set", "data.max_tokens=129"];
    lab.check_lora("learned_positions", arguments);
}

/// What transformers and PEFT make of our model and our adapter, and we of theirs.
fn theirs(fixture: &str, python: &PathBuf, lab: &Lab, tokens: &[u32], adapted: &[f32]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/exchange.py");
    let base = lab.path("base/model");
    let folders = [base.clone(), lab.path("run/adapter"), lab.path("merged"), lab.path("theirs")];
    let found = exchange(python, &script, &folders, tokens);
    for list in ["missing", "unexpected", "complaints", "merged_missing", "merged_unexpected"] {
        assert_eq!(found[list], Value::Array(Vec::new()), "{fixture}: {list}");
    }
    let of_theirs = logits(&base.display().to_string(), Some(&lab.path("theirs")), tokens);
    for (name, ours) in [("ours", adapted), ("merged", adapted), ("theirs", &of_theirs)] {
        let apart = largest_difference(ours, &found[name]);
        println!("{fixture}, {name}: largest difference of the logits {apart:.2e}");
        assert!(apart < LOGITS, "{fixture}: {name} is off by {apart}");
    }
}

/// A folder with the fixture's configuration, some rows, and the recipes.
fn lab(fixture: &str) -> Lab {
    let lab = Lab::new();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/parity").join(fixture);
    lab.write("config.json", std::fs::read(config.join("base/config.json")).unwrap());
    let rows = ["the mill by the river is old", "the river is wide", "an old mill by a wide river"];
    let rows: String = rows.iter().map(|text| format!("{{\"text\": \"{text}\"}}\n")).collect();
    lab.write("rows.jsonl", rows.repeat(3));
    lab.write("pretrain.toml", PRETRAIN);
    lab.write("finetune.toml", FINETUNE);
    lab
}
