//! Bad recipes and bad rows: every problem named, nothing written.

use super::lab::Lab;
use super::tiny;

const RECIPE: &str = "\
model = \"model\"

[adapter]
rank = 4
alpha = 8.0

[data]
max_tokens = 96

[[data.train]]
path = \"rows.jsonl\"

[train]
steps = 2
batch_size = 2

[output]
folder = \"run\"
";

const ROWS: &str = "\
{\"prompt\": \"name: Blue Spice\", \"completion\": \" Blue Spice is a place.\"}
{\"prompt\": \"name: The Eagle\", \"completion\": \" The Eagle is a place.\"}
{\"prompt\": \"name: The Mill\", \"completion\": \" The Mill is a place.\"}
";

/// A lab with a good recipe and good rows.
fn lab() -> Lab {
    let lab = Lab::new();
    tiny::write_model(&lab);
    lab.write("recipe.toml", RECIPE);
    lab.write("rows.jsonl", ROWS);
    lab
}

/// Fails with a message, and leaves no run folder.
fn refused(lab: &Lab, name: &str, arguments: &[&str]) {
    let shown = lab.lora(arguments);
    assert!(shown.contains("exit status: 1\n"), "{name}: {shown}");
    assert!(!lab.path("run").exists(), "{name}: a refused run wrote its folder");
    lab.check(name, &shown);
}

#[test]
fn a_recipe_that_is_not_there() {
    let lab = Lab::new();
    refused(&lab, "recipe_missing", &["train", "nowhere.toml"]);
    lab.write("folder/readme.txt", "no recipe");
    refused(&lab, "recipe_in_no_run_folder", &["train", "folder"]);
}

#[test]
fn a_recipe_that_is_not_toml() {
    let lab = Lab::new();
    lab.write("recipe.toml", "model = \"builtin:\"\n[train\nsteps = 1\n");
    refused(&lab, "recipe_not_toml", &["train", "recipe.toml"]);
    lab.write("recipe.toml", b"model = \"builtin:\"\n# \xff\xfe\n");
    refused(&lab, "recipe_not_utf8", &["train", "recipe.toml"]);
}

#[test]
fn all_problems_of_a_recipe_come_at_once() {
    let lab = lab();
    let text = RECIPE
        .replace("rank = 4", "rank = 0\nranks = 3")
        .replace("steps = 2", "steps = 2\nepochs = 1\nlerning_rate = 1e-4\nlearning_rate = -1.0")
        .replace("max_tokens = 96", "max_tokens = \"many\"");
    lab.write("recipe.toml", text);
    refused(&lab, "recipe_many_problems", &["train", "recipe.toml"]);
}

#[test]
fn keys_set_on_the_command_line_are_checked() {
    let lab = lab();
    let cases = [
        ("set_unknown_key", "train.stpes=3"),
        ("set_wrong_type", "train.steps=soon"),
        ("set_rank_zero", "adapter.rank=0"),
        ("set_negative_learning_rate", "train.learning_rate=-1e-4"),
    ];
    for (name, set) in cases {
        refused(&lab, &format!("recipe_{name}"), &["train", "recipe.toml", "--set", set]);
    }
    refused(&lab, "recipe_unknown_device", &["train", "recipe.toml", "--device", "tpu"]);
    refused(&lab, "recipe_pretrain_table_missing", &["pretrain", "recipe.toml"]);
}

#[test]
fn models_that_are_not_there() {
    let lab = lab();
    let missing = &["train", "recipe.toml", "--set", "model=models/none", "--offline"];
    refused(&lab, "recipe_model_missing", missing);
    let hub = &["train", "recipe.toml", "--set", "model=nobody/nothing", "--offline"];
    refused(&lab, "recipe_model_not_in_cache", hub);
}

#[test]
fn targets_that_match_nothing_list_what_would() {
    let lab = lab();
    let set = "adapter.target_modules=[\"query\"]";
    refused(&lab, "recipe_target_matches_nothing", &["train", "recipe.toml", "--set", set]);
    let set = "adapter.modules_to_save=[\"classifier\"]";
    refused(&lab, "recipe_saved_matches_nothing", &["train", "recipe.toml", "--set", set]);
    refused(&lab, "recipe_rank_too_large", &["train", "recipe.toml", "--set", "adapter.rank=4096"]);
}

#[test]
fn rows_that_cannot_be_read_are_named_with_their_line() {
    let good = ROWS.lines().next().expect("a first row").to_string();
    let cases: [(&str, Vec<u8>); 6] = [
        ("empty", Vec::new()),
        ("not_json", format!("{good}\n{{\"prompt\": \n").into_bytes()),
        ("not_utf8", [good.as_bytes(), b"\n{\"prompt\": \"\xff\"}\n"].concat()),
        ("wrong_type", format!("{good}\n{{\"prompt\": 3, \"completion\": \"x\"}}\n").into_bytes()),
        ("missing_key", format!("{good}\n{{\"prompt\": \"x\"}}\n").into_bytes()),
        ("unknown_format", b"{\"question\": \"x\", \"answer\": \"y\"}\n".to_vec()),
    ];
    for (name, rows) in cases {
        let lab = lab();
        lab.write("rows.jsonl", rows);
        refused(&lab, &format!("rows_{name}"), &["train", "recipe.toml"]);
        let shown = lab.lora(&["data", "recipe.toml"]);
        assert!(shown.contains("exit status: 1\n"), "`lora data` accepted {name}: {shown}");
    }
    let lab = lab();
    std::fs::remove_file(lab.path("rows.jsonl")).expect("the rows are there");
    refused(&lab, "rows_missing", &["train", "recipe.toml"]);
}

#[test]
fn a_row_without_a_learned_token_is_named_or_skipped() {
    let lab = lab();
    let row = format!("{{\"prompt\": \"{}\", \"completion\": \" end\"}}\n", "name ".repeat(200));
    lab.write("rows.jsonl", format!("{ROWS}{row}"));
    refused(&lab, "rows_unlearnable", &["train", "recipe.toml"]);
    let skip = &["data", "recipe.toml", "--rows", "1", "--set", "data.unlearnable_rows=skip"];
    lab.check_lora("rows_unlearnable_skipped", skip);
}

#[test]
fn chat_rows_need_a_template() {
    let lab = lab();
    lab.write("model/tokenizer_config.json", "{\"eos_token\": \"<|end|>\"}");
    let turn = |role: &str| format!("{{\"role\": \"{role}\", \"content\": \"x\"}}");
    let row = format!("{{\"messages\": [{}, {}]}}\n", turn("user"), turn("assistant"));
    lab.write("rows.jsonl", row);
    refused(&lab, "rows_chat_without_template", &["train", "recipe.toml"]);
}

#[test]
fn a_run_folder_is_never_overwritten() {
    let lab = lab();
    lab.write("run/notes.txt", "mine");
    let shown = lab.lora(&["train", "recipe.toml"]);
    lab.check("output_exists", &shown);
    let kept = std::fs::read_to_string(lab.path("run/notes.txt")).expect("my file is still there");
    assert_eq!(kept, "mine");
}

#[test]
fn a_contradicting_key_on_the_command_line_replaces_the_recipes() {
    let lab = lab();
    let set = ["--set", "train.epochs=1", "--set", "data.packing=false"];
    let arguments: Vec<&str> = ["plan", "recipe.toml"].iter().chain(&set).copied().collect();
    let shown = lab.lora(&arguments);
    assert!(shown.contains("exit status: 0\n"), "{shown}");
    assert!(shown.contains("--set train.epochs replaces `train.steps`"), "{shown}");
}

#[test]
fn resuming_needs_the_same_recipe() {
    let lab = lab();
    let trained = lab.lora(&["train", "recipe.toml", "--quiet"]);
    assert!(trained.contains("exit status: 0\n"), "{trained}");
    let before = std::fs::read(lab.path("run/recipe.toml")).expect("the run keeps its recipe");
    let changed = ["--resume", "--set", "train.learning_rate=1e-3", "--set", "adapter.alpha=2.0"];
    let arguments: Vec<&str> = ["train", "recipe.toml"].iter().chain(&changed).copied().collect();
    lab.check_lora("resume_changed_recipe", &arguments);
    let after = std::fs::read(lab.path("run/recipe.toml")).expect("the run keeps its recipe");
    assert_eq!(before, after);
    lab.write("folder/notes.txt", "mine");
    let other = &["train", "recipe.toml", "--resume", "--output", "folder"];
    lab.check_lora("resume_no_run_folder", other);
}
