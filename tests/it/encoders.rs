//! Encoders from rows to answers: trained with an adapter and whole, resumed, measured, merged, used. Where
//! `LORA_PEFT_PYTHON` names a Python with torch, transformers and peft, these compute the same from our files.

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::cli::lab::Lab;

const RECIPE: &str = "\
model = \"model\"
[adapter]
rank = 4
alpha = 8.0
[data]
max_tokens = 16
labels = [\"bad\", \"good\"]
validation_rows = 4
[[data.train]]
path = \"rows.jsonl\"
[train]
epochs = 6
batch_size = 4
learning_rate = 1e-2
evaluate_every = 10
checkpoint_every = 3
keep_checkpoints = 9
[output]
folder = \"run\"
";

const WORDS: &str =
    "a the film play was is good bad fine dull lovely poor and not he she left went away";

/// The model of a fixture with a tokenizer of some words, and rows that they make.
fn lab(fixture: &str) -> Lab {
    let lab = Lab::new();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/parity").join(fixture);
    for name in ["config.json", "model.safetensors"] {
        let bytes = fs::read(base.join("base").join(name)).unwrap();
        lab.write(&format!("model/{name}"), bytes);
    }
    lab.write("model/tokenizer.json", tokenizer(fixture.starts_with("roberta")).to_string());
    let mut rows = String::new();
    for subject in ["the film", "a film", "the play", "a play"] {
        for (word, label) in [
            ("good", "good"),
            ("bad", "bad"),
            ("fine", "good"),
            ("dull", "bad"),
            ("lovely", "good"),
            ("poor", "bad"),
        ] {
            rows +=
                &format!("{}\n", json!({"text": format!("{subject} is {word}"), "label": label}));
        }
    }
    lab.write("rows.jsonl", rows);
    lab.write("recipe.toml", RECIPE);
    lab
}

fn tokenizer(roberta: bool) -> Value {
    let special = if roberta {
        ["<s>", "<pad>", "</s>", "<unk>"]
    } else {
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    };
    let words = special.into_iter().chain(WORDS.split(' '));
    let vocabulary: serde_json::Map<String, Value> =
        words.zip(0..).map(|(word, id): (&str, u32)| (word.to_owned(), json!(id))).collect();
    let (start, end, unknown) =
        if roberta { ("<s>", "</s>", "<unk>") } else { ("[CLS]", "[SEP]", "[UNK]") };
    let second = u32::from(!roberta);
    let token = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let sequence = |id: &str, kind: u32| json!({"Sequence": {"id": id, "type_id": kind}});
    let last = json!({"SpecialToken": {"id": end, "type_id": second}});
    let marker = |id: &str| json!({"id": id, "ids": [vocabulary[id]], "tokens": [id]});
    json!({
        "version": "1.0",
        // Both are to be passed by.
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": special[0]},
        "added_tokens": (0..4).map(|id: usize| json!({"id": id, "content": special[id],
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})).collect::<Vec<_>>(),
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [token(start), sequence("A", 0), token(end)],
            "pair": [token(start), sequence("A", 0), token(end), sequence("B", second), last],
            "special_tokens": {start: marker(start), end: marker(end)}},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown},
    })
}

fn succeeds(lab: &Lab, arguments: &[&str]) -> String {
    let shown = lab.lora(arguments);
    assert!(shown.contains("exit status: 0\n"), "{shown}");
    shown
}

/// What a command writes to standard output as JSON.
fn json_of(lab: &Lab, arguments: &[&str]) -> Value {
    let output = lab.output(arguments, b"");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_adapter_is_trained_measured_merged_and_used() {
    for fixture in ["bert_cls", "roberta_cls"] {
        let lab = lab(fixture);
        let trained = succeeds(&lab, &["train", "recipe.toml", "--device", "cpu"]);
        // Two labels for a classifier of three: its last layer starts anew.
        assert!(
            trained.contains("of the checkpoint has another size, and starts anew"),
            "{trained}"
        );
        assert!(trained.contains("lora classify model --adapter run"), "{trained}");
        let found = json_of(&lab, &["evaluate", "run", "--json", "--quiet"]);
        let adapter = &found["with_adapter"];
        assert_eq!(found["without_adapter"], Value::Null, "{fixture}");
        assert_eq!(adapter["rows"], 4, "{fixture}");
        for measure in ["accuracy", "f1", "matthews"] {
            assert_eq!(adapter[measure], 1.0, "{fixture}: {measure} in {adapter}");
        }
        let last = fs::read_to_string(lab.path("run/metrics.jsonl")).unwrap();
        let last: Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
        assert_eq!(last["validation_matthews"], 1.0);
        assert_eq!(last["validation_perplexity"], Value::Null);

        let ask = |model: &str, adapter: &[&str], text: &str| {
            let arguments = ["classify", model, "--json", "--quiet", "--text", text];
            json_of(&lab, &[&arguments[..], adapter].concat())
        };
        let adapter = ["--adapter", "run"];
        let answer = ask("model", &adapter, "The play is LOVELY");
        assert_eq!(answer["label"], "good", "{fixture}: {answer}");
        assert_eq!(ask("model", &adapter, "a film was dull")["label"], "bad", "{fixture}");
        let lines = lab.lora_with_input(
            &["classify", "model", "--adapter", "run"],
            b"a play is good\n\na play is bad\n",
        );
        let first: Vec<&str> = lines
            .lines()
            .filter_map(|line| line.split_once(" 0.").map(|(label, _)| label))
            .collect();
        assert_eq!(first, ["good", "bad"], "{lines}");

        succeeds(&lab, &["merge", "model", "run", "--output", "merged"]);
        let merged = ask("merged", &[], "The play is LOVELY");
        let apart = (&merged["probability"], &answer["probability"]);
        let apart = apart.0.as_f64().unwrap() - apart.1.as_f64().unwrap();
        assert!(apart.abs() < 1e-5, "{fixture}: merged is off by {apart}");
        succeeds(&lab, &["adapter", "verify", "run", "--model", "model"]);
        peft_says_the_same(&lab, fixture);
    }
}

/// The logits of the adapter and of the merged model, by transformers and PEFT.
fn peft_says_the_same(lab: &Lab, fixture: &str) {
    let Some(python) = env::var_os("LORA_PEFT_PYTHON") else {
        println!("skipped: set LORA_PEFT_PYTHON to a Python with torch, transformers and peft");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/encoders.py");
    let texts = ["the play is lovely", "a film was dull and poor"];
    let mut child = Command::new(python)
        .arg(script)
        .args(["model", "run/adapter", "merged"].map(|name| lab.path(name)))
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(json!(texts).to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the Python side failed");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["complaints"], json!([]));
    assert_eq!(found["labels"], json!({"0": "bad", "1": "good"}));
    for (name, adapter) in [("model", &["--adapter", "run"][..]), ("merged", &[])] {
        for (at, text) in texts.iter().enumerate() {
            let arguments = ["classify", name, "--json", "--quiet", "--text", text];
            let ours = json_of(lab, &[&arguments[..], adapter].concat());
            let theirs = found[name][at].as_f64().unwrap();
            let ours = ours["probabilities"]["good"].as_f64().unwrap();
            println!("{fixture}, {name}: {ours} here, {theirs} there");
            assert!((ours - theirs).abs() < 1e-5, "{fixture}, {name}: {ours}, {theirs}");
        }
    }
}

#[test]
fn all_weights_are_trained_and_the_model_keeps_its_labels() {
    let lab = lab("bert_cls");
    let whole = RECIPE.replace("[adapter]\nrank = 4\nalpha = 8.0\n", "method = \"full\"\n");
    lab.write("recipe.toml", whole.replace("1e-2", "1e-3"));
    succeeds(&lab, &["train", "recipe.toml", "--quiet"]);
    let config: Value =
        serde_json::from_slice(&fs::read(lab.path("run/model/config.json")).unwrap()).unwrap();
    assert_eq!(config["id2label"], json!({"0": "bad", "1": "good"}));
    assert_eq!(config["label2id"], json!({"bad": 0, "good": 1}));
    assert_eq!(config["architectures"], json!(["BertForSequenceClassification"]));
    let found = json_of(&lab, &["evaluate", "run", "--json", "--quiet"]);
    assert_eq!(found["trained"]["accuracy"], 1.0, "{found}");
    let text = ["--text", "the film is poor", "--json", "--quiet"];
    let answer = json_of(&lab, &[&["classify", "run/model"][..], &text].concat());
    assert_eq!(answer["label"], "bad");
}

#[test]
fn a_resumed_run_ends_with_the_same_adapter() {
    let lab = lab("roberta_cls");
    let run = ["train", "recipe.toml", "--quiet", "--set", "adapter.dropout=0.1"];
    succeeds(&lab, &run);
    let adapter = || fs::read(lab.path("run/adapter/adapter_model.safetensors")).unwrap();
    let expected = adapter();
    let metrics = fs::read_to_string(lab.path("run/metrics.jsonl")).unwrap();
    // As if it had been killed after its first checkpoint.
    fs::remove_dir_all(lab.path("run/adapter")).unwrap();
    for entry in fs::read_dir(lab.path("run/checkpoints")).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("step-000003") {
            fs::remove_dir_all(path).unwrap();
        }
    }
    succeeds(&lab, &[&run[..], &["--resume"]].concat());
    assert!(adapter() == expected, "the adapter differs");
    let losses = |text: &str| -> Vec<Value> {
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| json!([line["step"], line["loss"], line["validation_loss"]])).collect()
    };
    let resumed = fs::read_to_string(lab.path("run/metrics.jsonl")).unwrap();
    assert_eq!(losses(&resumed), losses(&metrics));
}

#[test]
fn pairs_and_numbers_are_learned() {
    let lab = lab("bert_cls");
    let mut rows = String::new();
    for (index, word) in ["good", "bad", "fine", "dull"].iter().cycle().take(16).enumerate() {
        let score = [1.5, -1.5, 0.75, -0.75][index % 4];
        let row = json!({"text": "the film was", "text_pair": word, "label": score});
        rows += &format!("{row}\n");
    }
    lab.write("rows.jsonl", rows);
    lab.write("recipe.toml", RECIPE.replace("labels = [\"bad\", \"good\"]\n", ""));
    let run = ["train", "recipe.toml", "--set", "train.epochs=30"];
    let refused = lab.lora(&run);
    assert!(refused.contains("set `data.task = \"regression\"`"), "{refused}");
    let shown = succeeds(&lab, &[&run[..], &["--set", "data.task=regression"]].concat());
    assert!(shown.contains("one number of the data; "), "{shown}");
    let found = json_of(&lab, &["evaluate", "run", "--json", "--quiet"]);
    let adapter = &found["with_adapter"];
    assert!(adapter["pearson"].as_f64().unwrap() > 0.9, "{adapter}");
    assert!(adapter["spearman"].as_f64().unwrap() > 0.9, "{adapter}");
    assert_eq!(adapter["accuracy"], Value::Null);
    let ask = |second: &str| {
        let text = ["--text", "the film was", "--pair", second, "--json", "--quiet"];
        json_of(&lab, &[&["classify", "model", "--adapter", "run"][..], &text].concat())["score"]
            .as_f64()
            .unwrap()
    };
    assert!(ask("good") > ask("dull") + 1.0, "{} and {}", ask("good"), ask("dull"));
}

#[test]
fn what_is_there_is_shown() {
    let lab = lab("bert_cls");
    lab.check_lora("encoder_inspect", &["inspect", "model"]);
    lab.check_lora("encoder_plan", &["plan", "recipe.toml", "--quiet"]);
    lab.check_lora("encoder_data", &["data", "recipe.toml", "--rows", "2", "--plain"]);
    let set = ["--set", "train.steps=2", "--set", "data.validation_rows=0"];
    let none = ["--set", "train.evaluate_every=0"];
    let shown = succeeds(&lab, &[&["train", "recipe.toml"][..], &set, &none].concat());
    lab.check("encoder_train", &shown);
    lab.check_lora("encoder_inspect_adapter", &["inspect", "run/adapter"]);
}

#[test]
fn what_an_encoder_can_not_do_is_said() {
    let lab = lab("bert_cls");
    let refused = |name: &str, arguments: &[&str]| {
        let shown = lab.lora(arguments);
        assert!(shown.contains("exit status: 1\n"), "{name}: {shown}");
        assert!(!lab.path("run").exists(), "{name}: a refused run wrote its folder");
        lab.check(&format!("encoder_refused_{name}"), &shown);
    };
    refused("generate", &["generate", "model", "--prompt", "a"]);
    refused("chat", &["chat", "model"]);
    refused("classify_a_decoder", &["classify", "builtin:", "--text", "a"]);
    let train = |set: &[&'static str]| -> Vec<&str> {
        let mut arguments = vec!["train", "recipe.toml", "--quiet"];
        arguments.extend(set.iter().flat_map(|set| ["--set", set]));
        arguments
    };
    refused("format", &train(&["data.format=alpaca"]));
    refused("label", &train(&["data.labels=[\"poor\",\"good\"]"]));
    refused("labels_twice", &train(&["data.labels=[\"good\",\"good\"]"]));
    refused("number", &train(&["data.labels=[]", "data.task=regression"]));
    refused("one_label", &train(&["data.labels=[\"good\"]"]));
    refused("sample", &train(&["sample.prompts=[\"a\"]"]));
    refused("too_long", &train(&["data.max_tokens=65"]));
    refused("decoder", &train(&["model=builtin:", "data.format=labels"]));
    lab.write(
        "rows.jsonl",
        "{\"text\": \"a\", \"label\": \"good\"}\n{\"text\": [1], \"label\": 1}\n",
    );
    refused("row", &train(&["data.validation_rows=0", "train.evaluate_every=0"]));
    lab.write("rows.jsonl", "{\"text\": \"a\", \"label\": \"good\"}\n{\"text\": \"b\"}\n");
    refused("no_label", &train(&["data.validation_rows=0", "train.evaluate_every=0"]));
    let mut config: Value =
        serde_json::from_slice(&fs::read(lab.path("model/config.json")).unwrap()).unwrap();
    config["problem_type"] = "multi_label_classification".into();
    lab.write("model/config.json", config.to_string());
    refused("problem_type", &["inspect", "model"]);
}

#[test]
fn a_checkpoint_without_a_classifier_needs_an_adapter() {
    let lab = lab("bert_cls");
    // The encoder alone, as BertModel is saved, with the names of the first programs and a head of another kind.
    let bytes = fs::read(lab.path("model/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed = file.tensors().into_iter().filter_map(|(name, view)| {
        let name = name.strip_prefix("bert.")?.replace("LayerNorm.weight", "LayerNorm.gamma");
        Some((name.replace("LayerNorm.bias", "LayerNorm.beta"), view))
    });
    let mut tensors: Vec<_> = renamed.collect();
    let other = tensors[0].1.clone();
    tensors.push(("embeddings.position_ids".to_owned(), other));
    lab.write("model/model.safetensors", safetensors::serialize(tensors, None).unwrap());
    lab.check_lora("encoder_without_classifier", &["classify", "model", "--text", "a film"]);
    lab.check_lora("encoder_without_classifier_inspect", &["inspect", "model"]);
    let quick = ["train", "recipe.toml", "--set", "train.epochs=1"];
    let shown = succeeds(&lab, &quick);
    assert!(shown.contains("the checkpoint has no classifier, which starts anew"), "{shown}");
    let found = json_of(&lab, &["evaluate", "run", "--json", "--quiet"]);
    assert_eq!(found["without_adapter"], Value::Null);
    assert_eq!(found["with_adapter"]["rows"], 4);
}
