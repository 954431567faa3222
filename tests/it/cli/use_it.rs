//! The commands on good input, from `lora init` to a merged model.

use std::fs;

use serde_json::Value;

use super::lab::Lab;
use super::tiny;

const RECIPE: &str = "\
model = \"model\"

[adapter]
rank = 2
alpha = 4.0

[data]
max_tokens = 96
validation_rows = 2

[[data.train]]
path = \"rows.jsonl\"

[train]
steps = 3
batch_size = 2
learning_rate = 1e-2

[output]
folder = \"run\"

[sample]
prompts = [\"name: The Mill\"]
max_tokens = 4
";

/// A lab with the tiny model, rows and a recipe.
fn lab() -> Lab {
    let lab = Lab::new();
    tiny::write_model(&lab);
    let rows: String = ["Blue Spice", "The Eagle", "The Mill", "Giraffe", "Wildwood", "The Punter"]
        .iter()
        .map(|name| {
            format!("{{\"prompt\": \"name: {name}\\n\", \"completion\": \"{name} is a place.\"}}\n")
        })
        .collect();
    lab.write("rows.jsonl", rows);
    lab.write("recipe.toml", RECIPE);
    lab
}

fn succeeds(lab: &Lab, arguments: &[&str]) -> String {
    let shown = lab.lora(arguments);
    assert!(shown.contains("exit status: 0\n"), "{shown}");
    shown
}

#[test]
fn a_profile_says_where_the_time_went_and_adds_up() {
    let lab = lab();
    let shown = succeeds(&lab, &["train", "recipe.toml", "--device", "cpu", "--profile"]);
    let seconds = |part: &str| -> f64 {
        let lines = shown.lines().map(|line| line.trim_start_matches("| ").trim());
        let line =
            lines.filter_map(|line| line.strip_prefix(part)).find(|rest| rest.ends_with('%'));
        let words: Vec<&str> =
            line.unwrap_or_else(|| panic!("no {part} in {shown}")).split_whitespace().collect();
        words[words.len() - 3].parse().unwrap()
    };
    let whole = seconds("together");
    // Three steps of two blocks, with evaluations and samples: every operation has its share.
    for part in [
        "linear",
        "linear, backward",
        "attention",
        "attention, backward",
        "optimizer",
        "everything else",
    ] {
        assert!(seconds(part) <= whole, "{part} in {shown}");
    }
}

#[test]
fn init_writes_a_recipe_once() {
    let lab = Lab::new();
    lab.check_lora("init", &["init"]);
    let text = fs::read_to_string(lab.path("recipe.toml")).expect("init wrote a recipe");
    lab.check("init_recipe", &text);
    lab.check_lora("init_exists", &["init"]);
    let after = fs::read_to_string(lab.path("recipe.toml")).expect("the recipe is still there");
    assert_eq!(after, text);
    fs::create_dir(lab.path("folder")).expect("a folder in the lab");
    lab.check_lora("init_folder", &["init", "folder"]);
    lab.check_lora("init_new_folder", &["init", "recipes/mine.toml"]);
    assert!(lab.path("recipes/mine.toml").is_file());
    lab.check_lora("init_below_a_file", &["init", "recipe.toml/mine.toml"]);
    let printed = lab.output(&["init", "-"], b"");
    assert_eq!(String::from_utf8_lossy(&printed.stdout), text);
}

#[test]
fn doctor_tells_about_this_machine() {
    let lab = Lab::new();
    let shown = succeeds(&lab, &["doctor"]);
    let labels: Vec<&str> = shown
        .lines()
        .skip(3)
        .take_while(|line| !line.starts_with("-----"))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split("  ").next())
        .collect();
    // The values are this machine's; the labels are ours.
    lab.check("doctor_labels", &labels.join("\n"));
}

#[test]
fn data_marks_what_is_learned() {
    let lab = lab();
    lab.check_lora("data", &["data", "recipe.toml", "--rows", "2"]);
    lab.check_lora("data_validation", &["data", "recipe.toml", "--rows", "1", "--validation"]);
    let all = &["data", "recipe.toml", "--rows", "1", "--set", "data.learn=all"];
    lab.check_lora("data_learn_all", all);
    let none = &["data", "recipe.toml", "--validation", "--set", "data.validation_rows=0"];
    lab.check_lora("data_no_validation", none);
    let cut = &["data", "recipe.toml", "--rows", "1", "--set", "data.max_tokens=24"];
    lab.check_lora("data_truncated", cut);
}

#[test]
fn plan_says_what_will_happen() {
    let lab = lab();
    lab.check_lora("plan", &["plan", "recipe.toml"]);
    assert!(!lab.path("run").exists(), "a plan wrote a run folder");
}

#[test]
fn training_evaluating_and_merging() {
    let lab = lab();
    lab.check_lora("train", &["train", "recipe.toml"]);
    lab.check_lora("train_output_exists", &["train", "recipe.toml"]);
    lab.check_lora("inspect_run", &["inspect", "run"]);
    lab.check_lora("inspect_adapter", &["inspect", "run/adapter", "--tensors"]);
    lab.check_lora("evaluate_recipe", &["evaluate", "recipe.toml"]);
    let arguments = ["evaluate", "model", "--data", "rows.jsonl", "--adapter", "run", "--json"];
    let output = lab.output(&arguments, b"");
    let result: Value = serde_json::from_slice(&output.stdout).expect("evaluate printed JSON");
    assert!(result["with_adapter"]["loss"].as_f64() < result["without_adapter"]["loss"].as_f64());

    lab.check_lora("merge", &["merge", "model", "run", "--output", "merged", "--dtype", "f32"]);
    lab.check_lora("inspect_merged", &["inspect", "merged", "--tensors"]);
    generates_alike(&lab);
}

#[test]
fn quiet_training_prints_the_result_alone() {
    let lab = lab();
    lab.check_lora(
        "train_quiet",
        &["train", "recipe.toml", "--quiet", "--set", "sample.prompts=[]"],
    );
}

#[test]
fn resuming_goes_on_from_the_last_checkpoint() {
    let lab = lab();
    succeeds(&lab, &["train", "recipe.toml", "--quiet"]);
    lab.check_lora("train_resume_finished", &["train", "recipe.toml", "--resume"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    use std::process::Command;
    use std::time::{Duration, Instant};

    let lab = lab();
    let set = "train.steps=1000000";
    let arguments = ["train", "recipe.toml", "--set", set, "--set", "sample.prompts=[]", "--quiet"];
    let child = lab.command(&arguments).spawn().expect("the binary starts");
    let started = Instant::now();
    let has_begun = || fs::read(lab.path("run/metrics.jsonl")).is_ok_and(|text| text.len() > 500);
    while !has_begun() {
        assert!(started.elapsed() < Duration::from_secs(60), "training does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    let process = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &process]).status().expect("kill runs");
    assert!(sent.success());
    let output = child.wait_with_output().expect("the binary ends");
    lab.check("train_interrupted", &super::lab::shown(&arguments, &output));
    let saved = fs::read_dir(lab.path("run/checkpoints")).expect("a folder of checkpoints").count();
    assert_eq!(saved, 1, "the checkpoint of the interruption");
    assert!(!lab.path("run/adapter").exists(), "an interrupted run has no result");
}

#[test]
fn colours_are_for_terminals() {
    let lab = lab();
    lab.check("data_in_colour", &lab.lora_in_colour(&["data", "recipe.toml", "--rows", "1"]));
    let plain = lab.lora_in_colour(&["data", "recipe.toml", "--rows", "1", "--plain"]);
    assert!(plain.contains("«"), "{plain}");
    lab.check("error_in_colour", &lab.lora_in_colour(&["train", "nowhere.toml"]));
}

#[test]
fn pretraining_from_random_weights() {
    let lab = lab();
    fs::rename(lab.path("model/config.json"), lab.path("config.json"))
        .expect("the config is there");
    let text = "{\"text\": \"the quick brown fox jumps over the lazy dog, and rests a while\"}\n";
    lab.write("text.jsonl", text.repeat(12));
    lab.write(
        "pretrain.toml",
        "[pretrain]\nconfig = \"config.json\"\ntokenizer_vocab = 280\n[data]\nmax_tokens = 64\n\
         validation_rows = 2\n[[data.train]]\npath = \"text.jsonl\"\n[train]\nsteps = 3\n\
         learning_rate = 1e-2\n[output]\nfolder = \"tiny\"\n",
    );
    lab.check_lora("pretrain_data", &["data", "pretrain.toml", "--rows", "1"]);
    succeeds(&lab, &["plan", "pretrain.toml"]);
    lab.check_lora("pretrain_evaluate_too_early", &["evaluate", "pretrain.toml"]);
    lab.check_lora("pretrain", &["pretrain", "pretrain.toml"]);
    lab.check_lora("pretrain_evaluate", &["evaluate", "pretrain.toml"]);
    let prompt = ["--prompt", "the quick", "--max-tokens", "4", "--quiet"];
    succeeds(&lab, &[&["generate", "tiny/model"][..], &prompt].concat());
    lab.check_lora("train_on_pretrain_recipe", &["train", "pretrain.toml"]);
}

#[test]
fn generating() {
    let lab = lab();
    let few = ["--max-tokens", "8"];
    let run = |name: &str, arguments: &[&str]| {
        let arguments: Vec<&str> = [&["generate", "model"], arguments, &few].concat();
        lab.check_lora(name, &arguments);
    };
    run("generate", &["--prompt", "name: "]);
    run("generate_chat", &["--chat", "--system", "be brief", "--prompt", "hello"]);
    run("generate_seed", &["--prompt", "name: ", "--temperature", "1", "--seed", "7"]);
    run("generate_json", &["--prompt", "name: ", "--json", "--quiet"]);
    run("generate_chat_empty", &["--chat", "--prompt", ""]);
    let piped = lab.lora_with_input(&["generate", "model", "--max-tokens", "8"], b"name: \n");
    lab.check("generate_from_standard_input", &piped);
    let wrong = lab.lora_with_input(&["generate", "model"], b"one\ntwo \xff\n");
    lab.check("generate_not_utf8", &wrong);
    let long = "x".repeat(600);
    let shown = lab.lora_with_input(&["generate", "model"], long.as_bytes());
    lab.check("generate_too_long", &shown);
}

#[test]
fn seeds_repeat_a_draw() {
    let lab = lab();
    let draw = |seed: &str| {
        let sampling = ["--temperature", "1.5", "--max-tokens", "16", "--quiet", "--seed", seed];
        let arguments: Vec<&str> =
            [&["generate", "model", "--prompt", "n"][..], &sampling].concat();
        lab.output(&arguments, b"").stdout
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
}

#[test]
fn chatting() {
    let lab = lab();
    tiny::write_fitting_adapter(&lab, "adapter");
    let script = b"hello\n/adapter off\nhello\n/adapter on\n/reset\nover \\\ntwo lines\n/nonsense\n/help\n/exit\nnever\n";
    let arguments = ["chat", "model", "--adapter", "adapter", "--max-tokens", "4"];
    lab.check("chat", &lab.lora_with_input(&arguments, script));
    let without = lab.lora_with_input(&["chat", "model", "--quiet"], b"/adapter on\n");
    lab.check("chat_without_adapter", &without);
    lab.write("model/tokenizer_config.json", "{\"eos_token\": \"<|end|>\"}");
    lab.check_lora("chat_without_template", &["chat", "model"]);
}

#[test]
fn a_template_that_raises_is_an_error() {
    let lab = lab();
    let template = "{{ raise_exception('only users may speak') }}";
    let config = serde_json::json!({"eos_token": "<|end|>", "chat_template": template});
    lab.write("model/tokenizer_config.json", config.to_string());
    lab.check_lora("template_raises", &["generate", "model", "--chat", "--prompt", "hello"]);
    lab.check_lora("template_raises_in_data", &["train", "recipe.toml"]);
}

#[test]
fn inspecting() {
    let lab = lab();
    lab.check_lora("inspect_model", &["inspect", "model"]);
    lab.check_lora("inspect_safetensors", &["inspect", "model/model.safetensors", "--tensors"]);
    lab.check_lora("inspect_other_file", &["inspect", "rows.jsonl"]);
}

#[test]
fn another_method_from_plan_to_merge() {
    let lab = lab();
    let set = ["--set", "adapter.dora=true", "--set", "adapter.init=pissa"];
    let tokens = ["--set", "adapter.trainable_tokens=[5,9]"];
    let with = |command: &[&'static str]| [command, &set, &tokens].concat();
    lab.check_lora("plan_method", &with(&["plan", "recipe.toml"]));
    succeeds(&lab, &with(&["train", "recipe.toml", "--quiet"]));
    lab.check_lora("inspect_method", &["inspect", "run/adapter"]);
    lab.check_lora(
        "merge_method",
        &["merge", "model", "run", "--output", "merged", "--dtype", "f32"],
    );
    generates_alike(&lab);
}

#[test]
fn a_bias_without_a_place_is_not_merged() {
    let lab = lab();
    succeeds(&lab, &["train", "recipe.toml", "--quiet", "--set", "adapter.lora_bias=true"]);
    let refused = ["merge", "model", "run", "--output", "merged"];
    lab.check_lora("merge_bias", &refused);
    assert!(!lab.path("merged").exists());
}

/// With the adapter beside the model, merged in memory, and merged on disk.
fn generates_alike(lab: &Lab) {
    let prompt = ["--prompt", "name: The Mill\n", "--max-tokens", "8", "--quiet"];
    let generate = |model: &[&str]| {
        let arguments: Vec<&str> = [&["generate"], model, &prompt].concat();
        succeeds(lab, &arguments).lines().skip(1).collect::<Vec<_>>().join("\n")
    };
    let with_adapter = generate(&["model", "--adapter", "run"]);
    assert_eq!(with_adapter, generate(&["merged"]));
    assert_eq!(with_adapter, generate(&["model", "--adapter", "run", "--merged"]));
}
