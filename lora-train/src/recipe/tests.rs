//! Whole recipes: what they resolve to, and what they say when they are wrong.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use lora_core::config::{Bias, Init, TargetModules};

use super::{
    Command, DataFile, Format, Learn, Length, Method, Run, RunConfig, Schedule, Unlearnable,
    Warmup, differing_keys,
};

const BARE: &str = "model = \"builtin:\"\n[[data.train]]\npath = \"rows.jsonl\"\n";

fn resolve(text: &str, overrides: &[&str], command: Command) -> crate::Result<Run> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    RunConfig::parse(text, Path::new("r.toml"), &overrides, command)?.resolve()
}

fn plan(text: &str) -> Run {
    resolve(text, &[], Command::Plan).unwrap()
}

fn problems(text: &str) -> String {
    resolve(text, &[], Command::Plan).unwrap_err().to_string()
}

#[test]
fn model_and_data_are_enough() {
    let run = plan(BARE);
    let expected = Run::new("builtin:", "rows.jsonl");
    assert_eq!(run.output, Path::new("runs/r"));
    assert!(run.notes.iter().any(|note| note.starts_with("train.learning_rate = 0.0002: ")));
    assert!(run.notes.iter().any(|note| note.starts_with("adapter.rank = 16: ")));
    assert_eq!(Run { notes: Vec::new(), output: expected.output.clone(), ..run }, expected);
}

#[test]
fn what_is_written_gets_no_note() {
    let run = plan(&format!("{BARE}[train]\nlearning_rate = 2e-4\n"));
    assert!(!run.notes.iter().any(|note| note.contains("train.learning_rate")));
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = r#"modle = "builtin:"
method = "lora"
learning_rate = 1e-4

[adapter]
rank = 0
alpha = "big"
dropout = 1.0
scaling = "rslra"

[data]
max_tokens = 1
validation_rows = 3
validation_fraction = 0.1

[[data.train]]
paht = "x.jsonl"
weight = -1
rows = "9..3"

[train]
epochs = 1
steps = 10
warmup_steps = 20
learning_rate = -1e-4
lr = 3
patience = 2
schedule = "cosin"
packing = true
wandb_entity = "me"
"#;
    insta::assert_snapshot!(problems(text), @r#"
    `r.toml`: 21 problems:
      r.toml:1: modle: unknown key (did you mean `model`?)
      r.toml:3: learning_rate: unknown key (did you mean `train.learning_rate`?)
      r.toml:6: adapter.rank: must be at least 1, not 0
      r.toml:7: adapter.alpha: expected a number, found the text "big"
      r.toml:8: adapter.dropout: must be at least 0 and below 1, not 1
      r.toml:9: adapter.scaling: "rslra" is unknown (did you mean "rslora"?)
      r.toml:12: data.max_tokens: must be at least 2, not 1
      r.toml:14: data.validation_fraction: can't stand together with `data.validation_rows`; keep one of them
      r.toml:16: data.train.0: names no file: add `path = "rows.jsonl"`
      r.toml:17: data.train.0.paht: unknown key (did you mean `data.train.0.path`?)
      r.toml:18: data.train.0.weight: must be above 0, not -1
      r.toml:19: data.train.0.rows: "9..3" holds no row
      r.toml:23: train.steps: can't stand together with `train.epochs`; keep one of them
      r.toml:24: train.warmup_steps: the warm-up of 20 steps is longer than the run of 10
      r.toml:25: train.learning_rate: must be above 0, not -0.0001
      r.toml:26: train.lr: unknown key (did you mean `train.learning_rate`?)
      r.toml:27: train.patience: counts evaluations, and there are none: set `train.evaluate_every`
      r.toml:28: train.schedule: "cosin" is unknown (did you mean "cosine"?)
      r.toml:29: train.packing: unknown key (did you mean `data.packing`?)
      r.toml:30: train.wandb_entity: unknown key; known here: epochs, steps, batch_size, accumulation, learning_rate, schedule, warmup_steps, warmup_fraction, minimum_learning_rate, weight_decay, decay_vectors, beta1, beta2, epsilon, clip_norm, lora_plus_ratio, lora_fa, seed, shuffle, recompute, loss_chunk_tokens, evaluate_every, patience, keep_best, checkpoint_every, keep_checkpoints, log_every
      r.toml: model: is missing: a folder, a .gguf file, org/name of a hub, or "builtin:"
    "#);
}

#[test]
fn sections_of_the_wrong_kind() {
    insta::assert_snapshot!(problems("model = 3\ntrain = 5\ndata.train = \"x.jsonl\"\n"), @r#"
    `r.toml`: 3 problems:
      r.toml:1: model: expected a text in quotes, found the number 3
      r.toml:2: train: expected a table, found the number 5
      r.toml:3: data.train: expected a list of files, found the text "x.jsonl"; write `[[data.train]]` and under it `path = "…"`
    "#);
}

#[test]
fn missing_keys_say_what_to_write() {
    insta::assert_snapshot!(problems(""), @r#"
    `r.toml`: 2 problems:
      r.toml: model: is missing: a folder, a .gguf file, org/name of a hub, or "builtin:"
      r.toml: data.train: names no file to learn from; add `[[data.train]]` and under it `path = "rows.jsonl"`
    "#);
}

#[test]
fn broken_toml_names_the_lines() {
    insta::assert_snapshot!(problems("model = \n[train]\nsteps = 1\nsteps = 2\n"), @r"
    `r.toml`: 2 problems:
      r.toml:1: is not TOML: string values must be quoted, expected literal string
      r.toml:4: is not TOML: duplicate key
    ");
}

#[test]
fn contradictions() {
    let wrong = |extra: &str| problems(&format!("{BARE}{extra}"));
    let cases = [
        ("[train]\nschedule = \"constant\"\nminimum_learning_rate = 1e-5", "never comes down"),
        ("[train]\nlearning_rate = 1e-5\nminimum_learning_rate = 1e-4", "is above"),
        ("[train]\nevaluate_every = 5", "nothing to evaluate on"),
        ("[data]\nvalidation_rows = 1\n[train]\npatience = 2", "set `train.evaluate_every`"),
        ("[train]\nwarmup_steps = 1\nwarmup_fraction = 0.1", "`train.warmup_steps`; keep one"),
        ("[adapter]\ntargets = \"all-linear\"\ntarget_modules = [\"q_proj\"]", "keep one of them"),
        ("[adapter]\nresume_from = \"a\"\nrank = 4", "the adapter's own settings count"),
        ("[adapter]\ntarget_regex = \"(\"", "adapter: "),
        ("[adapter]\nlayers_pattern = [\"h\"]", "no layers are chosen"),
        ("[pretrain]\ntokenizer_vocab = 512", "add `pretrain.config`"),
        ("[pretrain]\nconfig = \"c.json\"", "needs a tokenizer"),
    ];
    for (extra, expected) in cases {
        let error = wrong(extra);
        assert!(error.contains(expected), "{extra}\n{error}");
    }
    let full = problems(&format!("method = \"full\"\n{BARE}[adapter]\nrank = 4\n"));
    assert!(full.contains("where W0 itself is trained"), "{full}");
    let files = "[[data.validation]]\npath = \"v\"\n[data]\nvalidation_rows = 3\n";
    assert!(resolve(&format!("{BARE}{files}"), &[], Command::Plan).is_err());
}

#[test]
fn commands_ask_for_what_they_need() {
    assert!(resolve("model = \"m\"", &[], Command::Plan).is_err());
    let run = resolve("", &["model=m"], Command::Evaluate).unwrap();
    assert!(run.model == "m" && run.data.train.is_empty());
    let error = resolve(BARE, &[], Command::Train).unwrap_err().to_string();
    assert!(error.contains("r.toml:3: data.train.0.path: there is no `rows.jsonl`"), "{error}");
    let pretrain = format!("{BARE}[pretrain]\n");
    let error = resolve(&pretrain, &[], Command::Train).unwrap_err().to_string();
    assert!(error.contains("is for `lora pretrain`"), "{error}");
}

#[test]
fn pre_training_has_its_own_defaults() {
    let text = "[[data.train]]\npath = \"t.txt\"\n[pretrain]\nconfig = \"c.json\"\n\
                tokenizer_vocab = 512\n";
    let run = plan(text);
    assert_eq!(run.method, Method::Full);
    assert_eq!(run.data.learn, Learn::All);
    assert_eq!(run.train.schedule, Schedule::Cosine);
    assert_eq!(run.train.warmup, Warmup::Fraction(0.03));
    assert!(run.train.learning_rate > 2e-4 && run.train.weight_decay > 0.0);
    let going_on = plan(&format!("{BARE}[pretrain]\n"));
    assert!(going_on.train.learning_rate < run.train.learning_rate);
}

#[test]
fn the_command_line_wins() {
    let text = format!("{BARE}[train]\nepochs = 3\n");
    let overrides = ["train.steps=7", "train.schedule=cosine", "data.train.0.rows=2..8"];
    let run = resolve(&text, &overrides, Command::Plan).unwrap();
    assert_eq!(run.train.length, Length::Steps(7));
    assert_eq!(run.train.schedule, Schedule::Cosine);
    assert_eq!(run.data.train[0].rows, Some(2..8));
    assert!(run.notes.contains(&"--set train.steps replaces `train.epochs` of line 5".into()));
    let overrides = ["train.lrate=1", "train.seed=-1"];
    let error = resolve(&text, &overrides, Command::Plan).unwrap_err().to_string();
    assert!(error.contains("--set train.seed=-1: train.seed: must be at least 0"), "{error}");
    assert!(error.contains("--set train.lrate=1: train.lrate: unknown key"), "{error}");
}

#[test]
fn files_are_looked_up_here_and_beside_the_recipe() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("rows.jsonl"), "{}").unwrap();
    std::fs::create_dir(folder.path().join("base")).unwrap();
    let recipe = folder.path().join("r.toml");
    std::fs::write(&recipe, BARE.replace("builtin:", "base")).unwrap();
    let run = RunConfig::load(&recipe, &[], Command::Train).unwrap().resolve().unwrap();
    assert_eq!(run.data.train[0].path, folder.path().join("rows.jsonl"));
    assert_eq!(Path::new(&run.model), folder.path().join("base"));
}

/// A run in which no setting has its default.
fn unusual() -> Run {
    let mut run = Run::new("org/name@v1", "a \"quoted\" name.jsonl");
    if let Method::Lora(config) = &mut run.method {
        config.rank = 3;
        config.alpha = 0.1;
        config.dropout = 0.25;
        config.use_rslora = true;
        config.target = TargetModules::Suffixes(vec!["q_proj".into(), "x.y".into()]);
        config.exclude = vec!["z".into()];
        config.layers = Some(vec![1, 5]);
        config.layers_pattern = vec!["layers".into()];
        config.rank_pattern = vec![("model.layers.0".into(), 8), ("b".into(), 2)];
        config.alpha_pattern = vec![("it's".into(), 1e-3)];
        config.modules_to_save = vec!["lm_head".into()];
        config.ensure_weight_tying = true;
        config.trainable_tokens = vec![("embed_tokens".into(), vec![7, 2])];
        config.init = Init::Pissa { iterations: Some(4) };
        config.use_dora = true;
        config.bias = Bias::LoraOnly;
    }
    run.device = "cpu".into();
    run.data.format = Format::ShareGpt;
    run.data.max_tokens = 77;
    run.data.packing = false;
    run.data.learn = Learn::All;
    run.data.unlearnable = Unlearnable::Skip;
    run.data.system = Some("two\nlines \"and\" quotes".into());
    run.data.train[0].rows = Some(5..usize::MAX);
    run.data.train.push(DataFile { path: "b".into(), weight: 0.5, rows: Some(0..9) });
    run.data.validation = vec![DataFile::new("v.jsonl")];
    run.train.length = Length::Steps(123);
    run.train.batch_size = 7;
    run.train.accumulation = 3;
    run.train.learning_rate = 1.0 / 3.0;
    run.train.schedule = Schedule::Linear;
    run.train.warmup = Warmup::Fraction(0.1);
    run.train.minimum_learning_rate = 1e-12;
    run.train.weight_decay = 0.3;
    run.train.decay_vectors = true;
    run.train.beta1 = 0.8;
    run.train.beta2 = 0.95;
    run.train.epsilon = 1e-7;
    run.train.clip_norm = None;
    run.train.lora_plus_ratio = 16.0;
    run.train.lora_fa = true;
    run.train.seed = u64::MAX;
    run.train.shuffle = false;
    run.train.recompute = true;
    run.train.loss_chunk_tokens = 64;
    run.train.evaluate_every = 10;
    run.train.patience = 2;
    run.train.keep_best = false;
    run.train.checkpoint_every = 0;
    run.train.keep_checkpoints = 5;
    run.train.log_every = 4;
    run.output = "somewhere/else".into();
    run.sample.prompts = vec!["Héllo?".into()];
    run.sample.max_tokens = 9;
    run
}

#[test]
fn resolved_recipes_read_back_as_the_same_run() {
    let mut resumed = Run::new("m", "x");
    resumed.initial_adapter = Some("old/adapter".into());
    let mut full = Run::new("m", "x");
    full.method = Method::Full;
    full.data.validation_fraction = 0.1;
    let mut scratch = full.clone();
    scratch.model = String::new();
    scratch.pretrain = Some(super::PretrainSettings {
        config: Some("c.json".into()),
        tokenizer: None,
        tokenizer_vocab: Some(512),
    });
    let mut regex = Run::new("m", "x");
    if let Method::Lora(config) = &mut regex.method {
        config.target = TargetModules::Regex(r".*\.(up|down)_proj".into());
    }
    for run in [unusual(), resumed, full, scratch, regex] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        std::fs::write(&path, run.to_toml()).unwrap();
        let mut back = Run::load_resolved(&path).unwrap();
        back.notes.clear();
        assert_eq!(back, run, "{}", run.to_toml());
        assert_eq!(back.to_toml(), run.to_toml());
    }
}

#[test]
fn differing_keys_are_named() {
    let run = unusual();
    assert!(differing_keys(&run, &run.clone()).is_empty());
    let mut other = run.clone();
    other.output = PathBuf::from("moved");
    other.notes.push("a note".into());
    other.device = "vulkan:1".into();
    assert!(differing_keys(&run, &other).is_empty());
    other.train.learning_rate = 1e-4;
    other.train.length = Length::Epochs(1.0);
    other.data.train.pop();
    let expected = [
        "data.train.1.path",
        "data.train.1.rows",
        "data.train.1.weight",
        "train.epochs",
        "train.learning_rate",
        "train.steps",
    ];
    assert_eq!(differing_keys(&run, &other), expected);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_gives_a_run_or_an_error(text in "(?s).{0,200}", set in "(?s).{0,60}") {
            let _ = resolve(&text, &[set.as_str()], Command::Inspect);
        }

        #[test]
        fn any_value_of_any_key_gives_a_run_or_an_error(
            index in 0usize..super::super::keys::KEYS.len(),
            key in 0usize..32,
            value in prop_oneof![
                Just("{}"), Just("[]"), Just("[[]]"), Just("-1"), Just("1e300"), Just("nan"),
                Just("99999999999999999999"), Just("''"), Just("\"..\""), Just("true"),
                Just("{ a = 1 }"), Just("[{}]"), Just("1979-05-27"), Just("0"),
            ],
        ) {
            let (section, keys) = super::super::keys::KEYS[index];
            let key = keys[key % keys.len()];
            let full = super::super::problems::join(&section.replace('*', "0"), key);
            let _ = resolve(BARE, &[format!("{full}={value}").as_str()], Command::Plan);
            let text = format!("{full} = {value}\n{BARE}");
            let _ = resolve(&text, &[], Command::Plan);
        }
    }
}
