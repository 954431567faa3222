//! A base in few bits from the recipe to the merged model, and what is refused.

use serde_json::Value;

use super::lab::Lab;
use super::tiny;

const RECIPE: &str = "\
model = \"builtin:\"
device = \"cpu\"
quantize = \"nf4\"

[adapter]
rank = 4
alpha = 8.0
init = \"loftq\"

[data]
max_tokens = 64
validation_rows = 1

[[data.train]]
path = \"rows.jsonl\"

[train]
steps = 4
batch_size = 2
learning_rate = 1e-3
checkpoint_every = 2

[output]
folder = \"run\"
";

fn lab(recipe: &str) -> Lab {
    let lab = Lab::new();
    let rows: String = ["The Mill", "Wildwood", "The Punter", "Giraffe", "Blue Spice"]
        .iter()
        .map(|name| {
            format!("{{\"prompt\": \"name: {name}\\n\", \"completion\": \"{name} is a place.\"}}\n")
        })
        .collect();
    lab.write("rows.jsonl", rows);
    lab.write("recipe.toml", recipe);
    lab
}

fn succeeds(lab: &Lab, arguments: &[&str]) -> String {
    let shown = lab.lora(arguments);
    assert!(shown.contains("exit status: 0\n"), "{shown}");
    shown
}

/// Losses of a model on the rows, alone and with an adapter.
fn losses(lab: &Lab, arguments: &[&str]) -> Vec<f64> {
    let all = [&["evaluate"], arguments, &["--data", "rows.jsonl", "--json", "--device", "cpu"]];
    let shown = succeeds(lab, &all.concat());
    let json: String = shown
        .lines()
        .skip_while(|line| !line.starts_with('{') && !line.starts_with('['))
        .take_while(|line| !line.starts_with("-----"))
        .collect();
    let found: Value = serde_json::from_str(&json).unwrap();
    let mut losses = Vec::new();
    collect(&found, &mut losses);
    losses
}

/// Every `loss`, in the order of the text.
fn collect(json: &Value, losses: &mut Vec<f64>) {
    match json {
        Value::Object(map) => {
            losses.extend(map.get("loss").and_then(Value::as_f64));
            map.values().for_each(|value| collect(value, losses));
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, losses)),
        _ => {}
    }
}

#[test]
fn an_adapter_trained_beside_four_bits_is_merged_into_what_it_was_trained_beside() {
    let lab = lab(RECIPE);
    let trained = succeeds(&lab, &["train", "recipe.toml"]);
    assert!(trained.contains("base weights at rest: nf4, unpacked to f32"), "{trained}");
    let on = ["--device", "cpu", "--quantize", "nf4"];
    let merge = ["merge", "builtin:", "run", "--output", "merged", "--dtype", "f32"];
    succeeds(&lab, &[&merge[..], &on[..]].concat());
    let packed = losses(&lab, &["builtin:", "--adapter", "run", "--quantize", "nf4"]);
    let merged = losses(&lab, &["merged"]);
    let dense = losses(&lab, &["builtin:", "--adapter", "run", "--quantize", "none"]);
    let as_in_its_run = losses(&lab, &["builtin:", "--adapter", "run"]);
    assert_eq!(as_in_its_run, packed);
    // Without being told, from the run; the file is read back as it is.
    let merge = ["merge", "builtin:", "run", "--output", "merged.gguf", "--dtype", "f32"];
    let said = succeeds(&lab, &[&merge[..], &["--device", "cpu"]].concat());
    assert!(said.contains("the base rests in nf4"), "{said}");
    assert!((losses(&lab, &["merged.gguf"])[0] - packed[1]).abs() < 2e-5);
    assert_eq!((packed.len(), merged.len(), dense.len()), (2, 1, 2));
    assert!((merged[0] - packed[1]).abs() < 2e-5, "{merged:?} {packed:?}");
    assert!((dense[1] - packed[1]).abs() > 2e-4, "beside other weights: {dense:?} {packed:?}");
}

#[test]
fn a_killed_run_beside_four_bits_ends_the_same() {
    let (whole, cut) = (lab(RECIPE), lab(RECIPE));
    succeeds(&whole, &["train", "recipe.toml"]);
    succeeds(&cut, &["train", "recipe.toml"]);
    let adapter = "run/adapter/adapter_model.safetensors";
    let bytes = |lab: &Lab| std::fs::read(lab.path(adapter)).unwrap();
    assert_eq!(bytes(&whole), bytes(&cut), "the same run");
    std::fs::remove_dir_all(cut.path("run/checkpoints/step-000004")).unwrap();
    std::fs::remove_dir_all(cut.path("run/adapter")).unwrap();
    succeeds(&cut, &["train", "recipe.toml", "--resume"]);
    assert_eq!(bytes(&whole), bytes(&cut), "after a resume");
}

#[test]
fn what_can_not_rest_in_few_bits() {
    let full =
        RECIPE.replace("init = \"loftq\"\n", "").replace("quantize", "method = \"full\"\nquantize");
    lab(&full).check_lora("quantize_full", &["train", "recipe.toml"]);
    let keep = RECIPE.replace("nf4", "keep").replace("loftq", "kaiming");
    lab(&keep).check_lora("quantize_keep_nothing", &["train", "recipe.toml"]);
    let nothing = RECIPE.replace("quantize = \"nf4\"\n", "");
    lab(&nothing).check_lora("quantize_loftq_nothing", &["train", "recipe.toml"]);
    let unknown = RECIPE.replace("nf4", "fp4");
    lab(&unknown).check_lora("quantize_unknown", &["train", "recipe.toml"]);
    let lab = Lab::new();
    tiny::write_model(&lab);
    let generate = ["generate", "model", "--prompt", "a", "--device", "cpu", "--quantize", "keep"];
    lab.check_lora("quantize_keep_generate", &generate);
}
