//! A resolved run as a recipe again, and the keys in which two runs differ.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use lora_core::config::{LoraConfig, TargetModules};

use super::reader::quoted;
use super::{DataFile, Length, Method, Run, Task, Warmup};

impl Run {
    /// The run as a recipe that says everything. Read back it gives the same run, without notes.
    pub fn to_toml(&self) -> String {
        let mut text =
            String::from("# A recipe with every setting resolved; it repeats the run as it was.\n");
        for Section { header, settings, .. } in sections(self) {
            if !header.is_empty() {
                // Writing to a String can't fail.
                let _ = writeln!(text, "\n{header}");
            }
            for (key, value) in settings {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        text
    }
}

/// Where a run is written to, and where it computes, makes no difference to what it is.
const FREE: [&str; 2] = ["output.folder", "device"];

/// The keys in which two runs differ, such as `train.learning_rate`, but for `output.folder` and `device`.
pub fn differing_keys(a: &Run, b: &Run) -> Vec<String> {
    let (a, b) = (flat(a), flat(b));
    let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| !FREE.contains(&key.as_str()) && a.get(*key) != b.get(*key))
        .cloned()
        .collect()
}

struct Section {
    header: String,
    /// What its keys are addressed under, with a dot at the end.
    prefix: String,
    settings: Vec<(&'static str, String)>,
}

impl Section {
    fn new(name: &str, settings: Vec<(&'static str, String)>) -> Self {
        Self { header: format!("[{name}]"), prefix: format!("{name}."), settings }
    }
}

fn flat(run: &Run) -> BTreeMap<String, String> {
    let sections = sections(run).into_iter();
    sections
        .flat_map(|Section { prefix, settings, .. }| {
            settings.into_iter().map(move |(key, value)| (format!("{prefix}{key}"), value))
        })
        .collect()
}

fn sections(run: &Run) -> Vec<Section> {
    let mut top = Vec::new();
    if !run.model.is_empty() {
        top.push(("model", text(&run.model)));
    }
    let method = if matches!(run.method, Method::Full) { "full" } else { "lora" };
    top.extend([
        ("method", text(method)),
        ("device", text(&run.device)),
        ("precision", text(&run.precision.to_string())),
        ("quantize", text(&run.quantize.to_string())),
    ]);
    let mut all = vec![Section { header: String::new(), prefix: String::new(), settings: top }];
    match (&run.method, &run.initial_adapter) {
        (Method::Lora(_), Some(folder)) => {
            let folder = text(&folder.to_string_lossy());
            all.push(Section::new("adapter", vec![("resume_from", folder)]));
        }
        (Method::Lora(config), None) => all.push(Section::new("adapter", adapter(config))),
        (Method::Full, _) => {}
    }
    all.push(Section::new("data", data(run)));
    files(&mut all, "data.train", &run.data.train);
    files(&mut all, "data.validation", &run.data.validation);
    all.push(Section::new("train", train(run)));
    let mut output = vec![("folder", text(&run.output.to_string_lossy()))];
    if matches!(run.method, Method::Full) {
        output.push(("dtype", text(&run.weights.to_string())));
    }
    all.push(Section::new("output", output));
    let prompts = texts(&run.sample.prompts);
    let max_tokens = run.sample.max_tokens.to_string();
    all.push(Section::new("sample", vec![("prompts", prompts), ("max_tokens", max_tokens)]));
    if let Some(pretrain) = &run.pretrain {
        let mut settings = Vec::new();
        if let Some(config) = &pretrain.config {
            settings.push(("config", text(&config.to_string_lossy())));
        }
        if let Some(tokenizer) = &pretrain.tokenizer {
            settings.push(("tokenizer", text(&tokenizer.to_string_lossy())));
        }
        if let Some(vocab) = pretrain.tokenizer_vocab {
            settings.push(("tokenizer_vocab", vocab.to_string()));
        }
        all.push(Section::new("pretrain", settings));
    }
    all
}

fn adapter(config: &LoraConfig) -> Vec<(&'static str, String)> {
    let scaling = if config.use_rslora { "rslora" } else { "standard" };
    let mut settings = vec![
        ("rank", config.rank.to_string()),
        ("alpha", number(config.alpha)),
        ("dropout", number(config.dropout)),
        ("scaling", text(scaling)),
        ("init", text(&config.init.to_string())),
        ("dora", config.use_dora.to_string()),
        ("bias", text(&config.bias.to_string())),
        ("lora_bias", config.lora_bias.to_string()),
        match &config.target {
            TargetModules::AllLinear => ("targets", text("all-linear")),
            TargetModules::Suffixes(names) => ("target_modules", texts(names)),
            TargetModules::Regex(regex) => ("target_regex", text(regex)),
        },
        ("exclude", texts(&config.exclude)),
    ];
    if let Some(layers) = &config.layers {
        let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
        settings.push(("layers", format!("[{}]", layers.join(", "))));
    }
    let ranks = config.rank_pattern.iter().map(|(key, rank)| (key, rank.to_string()));
    let alphas = config.alpha_pattern.iter().map(|(key, alpha)| (key, number(*alpha)));
    settings.extend([
        ("layers_pattern", texts(&config.layers_pattern)),
        ("rank_pattern", inline_table(ranks)),
        ("alpha_pattern", inline_table(alphas)),
        ("modules_to_save", texts(&config.modules_to_save)),
        ("ensure_weight_tying", config.ensure_weight_tying.to_string()),
    ]);
    if let [(_, tokens)] = &config.trainable_tokens[..] {
        let tokens: Vec<String> = tokens.iter().map(u32::to_string).collect();
        settings.push(("trainable_tokens", format!("[{}]", tokens.join(", "))));
    }
    settings
}

fn data(run: &Run) -> Vec<(&'static str, String)> {
    let data = &run.data;
    let mut settings = vec![
        ("format", text(&data.format.to_string())),
        ("max_tokens", data.max_tokens.to_string()),
        ("packing", data.packing.to_string()),
        ("learn", text(&data.learn.to_string())),
        ("unlearnable_rows", text(&data.unlearnable.to_string())),
    ];
    if data.task != Task::Auto {
        settings.push(("task", text(&data.task.to_string())));
    }
    if !data.labels.is_empty() {
        settings.push(("labels", texts(&data.labels)));
    }
    if let Some(system) = &data.system {
        settings.push(("system", text(system)));
    }
    if data.validation_rows > 0 {
        settings.push(("validation_rows", data.validation_rows.to_string()));
    }
    if data.validation_fraction > 0.0 {
        settings.push(("validation_fraction", number(data.validation_fraction)));
    }
    settings
}

fn files(all: &mut Vec<Section>, list: &str, files: &[DataFile]) {
    for (index, file) in files.iter().enumerate() {
        let mut settings = vec![("path", text(&file.path.to_string_lossy()))];
        if list == "data.train" {
            settings.push(("weight", number(file.weight)));
        }
        if let Some(rows) = &file.rows {
            settings.push(("rows", text(&rows_text(rows))));
        }
        let header = format!("[[{list}]]");
        all.push(Section { header, prefix: format!("{list}.{index}."), settings });
    }
}

fn train(run: &Run) -> Vec<(&'static str, String)> {
    let train = &run.train;
    vec![
        match train.length {
            Length::Epochs(epochs) => ("epochs", number(epochs)),
            Length::Steps(steps) => ("steps", steps.to_string()),
        },
        ("batch_size", train.batch_size.to_string()),
        ("accumulation", train.accumulation.to_string()),
        ("learning_rate", number(train.learning_rate)),
        ("schedule", text(&train.schedule.to_string())),
        match train.warmup {
            Warmup::Steps(steps) => ("warmup_steps", steps.to_string()),
            Warmup::Fraction(fraction) => ("warmup_fraction", number(fraction)),
        },
        ("minimum_learning_rate", number(train.minimum_learning_rate)),
        ("weight_decay", number(train.weight_decay)),
        ("decay_vectors", train.decay_vectors.to_string()),
        ("beta1", number(train.beta1)),
        ("beta2", number(train.beta2)),
        ("epsilon", number(train.epsilon)),
        ("clip_norm", number(train.clip_norm.unwrap_or(0.0))),
        ("lora_plus_ratio", number(train.lora_plus_ratio)),
        ("lora_fa", train.lora_fa.to_string()),
        ("seed", train.seed.to_string()),
        ("shuffle", train.shuffle.to_string()),
        ("recompute", train.recompute.to_string()),
        ("loss_chunk_tokens", train.loss_chunk_tokens.to_string()),
        ("evaluate_every", train.evaluate_every.to_string()),
        ("patience", train.patience.to_string()),
        ("keep_best", train.keep_best.to_string()),
        ("checkpoint_every", train.checkpoint_every.to_string()),
        ("keep_checkpoints", train.keep_checkpoints.to_string()),
        ("log_every", train.log_every.to_string()),
    ]
}

fn text(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn texts(list: &[String]) -> String {
    let list: Vec<String> = list.iter().map(|entry| text(entry)).collect();
    format!("[{}]", list.join(", "))
}

/// The shortest form that reads back as the same number; Rust's is also TOML's.
fn number(number: f64) -> String {
    format!("{number:?}")
}

fn inline_table<'a>(pairs: impl Iterator<Item = (&'a String, String)>) -> String {
    let pairs: Vec<String> =
        pairs.map(|(key, value)| format!("{} = {value}", quoted(key))).collect();
    if pairs.is_empty() { "{}".into() } else { format!("{{ {} }}", pairs.join(", ")) }
}

fn rows_text(rows: &Range<usize>) -> String {
    if rows.end == usize::MAX {
        format!("{}..", rows.start)
    } else {
        format!("{}..{}", rows.start, rows.end)
    }
}
