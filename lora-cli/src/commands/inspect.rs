//! `lora inspect`: what a checkpoint, an adapter, a GGUF file or a run folder holds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use lora_core::config::{Bias, LoraConfig, TargetModules};
use lora_core::peft::PeftAdapter;
use lora_models::adapter_files::{AdapterFormat, load_adapter};
use lora_models::checkpoint::Checkpoint;
use lora_models::families::peft_targets;
use lora_models::formats::safetensors::SafetensorsCheckpoint;
use lora_models::formats::{GgufFile, TensorInfo, Weights};
use lora_models::labels::read_labels;
use lora_models::{DecoderConfig, EncoderConfig, linear_infos};
use lora_train::recipe::{Command, Method, RunConfig};

use super::open;
use crate::args::InspectArguments;
use crate::style::{self, Problem};

/// Prints what is there.
pub(crate) fn run(arguments: &InspectArguments) -> anyhow::Result<()> {
    let path = Path::new(&arguments.path);
    let text = if path.join("adapter_config.json").is_file() {
        adapter(path, arguments.tensors)?
    } else if AdapterFormat::of(path)? == Some(AdapterFormat::Gguf) {
        gguf_adapter(path, arguments.tensors)?
    } else if path.join("recipe.toml").is_file() {
        run_folder(path)?
    } else if path.is_file() && path.extension().is_some_and(|e| e == "safetensors") {
        safetensors(path, arguments.tensors)?
    } else if arguments.path == "builtin:" || path.exists() {
        checkpoint(&arguments.path, arguments.tensors)?
    } else {
        let problem = Problem::new(format!("`{}` does not exist", path.display())).with_hint(
            "inspect takes a model folder, an adapter folder, a run folder, a .safetensors or \
             .gguf file, or `builtin:`",
        );
        return Err(problem.into());
    };
    style::out(&text)?;
    Ok(())
}

fn checkpoint(source: &str, with_tensors: bool) -> anyhow::Result<String> {
    let checkpoint = open::open_checkpoint(source, true, true)?;
    let config = &checkpoint.config;
    let special = checkpoint.tokenizer.special();
    let name = |id: Option<u32>| {
        id.and_then(|id| checkpoint.tokenizer.token(id)).unwrap_or_else(|| "none".to_string())
    };
    let template = if checkpoint.chat_template.is_some() { "yes" } else { "no" };
    let tied = if config.tie_word_embeddings { ", embedding also the output head" } else { "" };
    let rows = [
        ("model", checkpoint.source.clone()),
        ("family", config.model_type.clone()),
        ("parameters", style::count(config.parameter_count())),
        ("blocks", format!("{} of width {}", config.num_hidden_layers, config.hidden_size)),
        ("attention", attention(config)),
        ("feed-forward", format!("width {}", config.intermediate_size)),
        ("linear layers", linear_layers(config)),
        ("vocabulary", format!("{}{tied}", style::count(config.vocab_size as u64))),
        ("context", context(config)),
        ("weights", weights_summary(&checkpoint.weights)),
        (
            "tokens",
            format!(
                "bos {}, eos {}, pad {}",
                name(special.bos),
                ends(&checkpoint),
                name(special.pad)
            ),
        ),
        match &config.encoder {
            None => ("chat template", template.to_string()),
            Some(encoder) => ("classifier", classifier(&checkpoint, encoder)),
        },
    ];
    let mut text = style::fields(&rows);
    if with_tensors {
        text.push('\n');
        text.push_str(&tensor_table(&checkpoint.weights));
    }
    Ok(text)
}

/// The labels of an encoder, and what of its head is not there.
fn classifier(checkpoint: &Checkpoint, encoder: &EncoderConfig) -> String {
    let absent = checkpoint.absent_head();
    if absent.is_empty() {
        return if encoder.regression {
            "one number".to_string()
        } else {
            encoder.labels.join(", ")
        };
    }
    format!("none yet: {} starts anew in training", absent.join(", "))
}

/// Heads, and what is special about them, a line each.
fn attention(config: &DecoderConfig) -> String {
    let mut lines = vec![format!(
        "{} heads of {}, {} for keys and values",
        config.num_attention_heads, config.head_dim, config.num_key_value_heads
    )];
    let windows: Vec<usize> = config.windows.iter().flatten().copied().collect();
    if let Some(window) = windows.first() {
        let (some, all) = (windows.len(), config.num_hidden_layers);
        lines.push(format!("the last {window} tokens alone in {some} of {all} blocks"));
    }
    if let Some(cap) = config.score_cap {
        lines.push(format!("scores capped at {cap}"));
    }
    lines.join("\n")
}

/// What an adapter can be for.
fn linear_layers(config: &DecoderConfig) -> String {
    let mut names: Vec<String> = Vec::new();
    for info in linear_infos(config).into_iter().filter(|info| !info.is_output_head) {
        let name = info.path.rsplit('.').next().unwrap_or_default();
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    match peft_targets(&config.model_type) {
        [] => names.join(", "),
        targets => {
            let (names, targets) = (names.join(", "), targets.join(", "));
            format!("{names}\nPEFT adapts {targets} unless told otherwise")
        }
    }
}

fn context(config: &DecoderConfig) -> String {
    let limit = config.position_limit();
    let tokens = limit.unwrap_or(config.max_position_embeddings);
    let tokens = style::counted(tokens as u64, "token", "tokens");
    if limit.is_some() { format!("{tokens}, their positions learned") } else { tokens }
}

/// The tokens that end a text.
fn ends(checkpoint: &Checkpoint) -> String {
    let names: Vec<String> = checkpoint
        .eos_tokens
        .iter()
        .map(|&id| checkpoint.tokenizer.token(id).unwrap_or_else(|| id.to_string()))
        .collect();
    if names.is_empty() { "none".to_string() } else { names.join(" or ") }
}

/// `272 tensors: 210 Q4_1, 61 F32, 1 Q8_0`.
fn weights_summary(weights: &Weights) -> String {
    let names = weights.names();
    let stored = names.iter().filter_map(|name| weights.stored_type(name)).map(|t| t.to_string());
    format!("{}: {}", style::counted(names.len() as u64, "tensor", "tensors"), by_type(stored))
}

fn by_type(stored: impl Iterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for name in stored {
        *counts.entry(name).or_default() += 1;
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by(|left, right| right.1.cmp(&left.1).then_with(|| left.0.cmp(&right.0)));
    let parts: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    parts.join(", ")
}

fn tensor_table(weights: &Weights) -> String {
    let mut rows = Vec::new();
    for name in weights.names() {
        let stored = weights.stored_type(&name).map(|t| t.to_string()).unwrap_or_default();
        let shape = weights.shape(&name).unwrap_or_default();
        rows.push(vec![name, stored, shape_text(&shape)]);
    }
    style::table(&rows)
}

fn shape_text(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    sizes.join(" × ")
}

fn safetensors(path: &Path, with_tensors: bool) -> anyhow::Result<String> {
    let file = SafetensorsCheckpoint::open(path)?;
    let mut rows = Vec::new();
    let (mut parameters, mut bytes) = (0u64, 0u64);
    for tensor in file.tensors() {
        parameters += tensor.shape.iter().map(|&size| size as u64).product::<u64>();
        bytes += tensor.bytes as u64;
        rows.push(vec![
            tensor.name.to_string(),
            tensor.dtype.to_string(),
            shape_text(tensor.shape),
        ]);
    }
    let types = by_type(rows.iter().map(|row| row[1].clone()));
    let tensors = style::counted(rows.len() as u64, "tensor", "tensors");
    let mut text = style::fields(&[
        ("file", path.display().to_string()),
        ("tensors", format!("{tensors}: {types}")),
        ("parameters", style::count(parameters)),
        ("size", style::bytes(bytes)),
    ]);
    if with_tensors {
        text.push('\n');
        text.push_str(&style::table(&rows));
    }
    Ok(text)
}

fn adapter(folder: &Path, with_tensors: bool) -> anyhow::Result<String> {
    let format = AdapterFormat::of(folder)?.unwrap_or(AdapterFormat::Peft);
    let adapter = load_adapter(folder, format, None)?;
    let lora = &adapter.config.lora;
    let learned: usize = adapter.factors.iter().map(|f| f.a.len() + f.b.len()).sum();
    let beside = adapter.saved.iter().chain(&adapter.extra);
    let beside: usize = beside.map(|tensor| tensor.data.len()).sum();
    let scaling = if lora.use_rslora { "α/√r" } else { "α/r" };
    let targets = match &lora.target {
        TargetModules::AllLinear => "all linear layers".to_string(),
        TargetModules::Suffixes(names) => names.join(", "),
        TargetModules::Regex(pattern) => format!("regex {pattern}"),
    };
    let mut rows = vec![
        ("adapter", folder.display().to_string()),
        ("base", adapter.config.base_model.clone().unwrap_or_else(|| "not said".to_string())),
        ("rank", ranks(&adapter)),
        ("alpha", format!("{}, scaled by {scaling}", lora.alpha)),
        ("dropout", lora.dropout.to_string()),
        ("targets", targets),
        ("layers", style::counted(adapter.factors.len() as u64, "layer", "layers")),
        ("parameters", style::count((learned + beside) as u64)),
    ];
    if format != AdapterFormat::Peft {
        rows.insert(1, ("format", format.to_string()));
    }
    if !adapter.saved.is_empty() {
        let names: Vec<&str> = adapter.saved.iter().map(|tensor| tensor.name.as_str()).collect();
        rows.push(("saved whole", names.join(", ")));
    }
    if let Some(labels) = read_labels(folder)? {
        rows.push(("labels", labels.names.join(", ")));
    }
    if let Some(method) = method(lora) {
        rows.insert(2, ("method", method));
    }
    let is_zero = |numbers: &[f32]| numbers.iter().all(|&value| value == 0.0);
    if adapter.extra.is_empty() && adapter.factors.iter().all(|factor| is_zero(&factor.b)) {
        rows.push(("note", "every B is zero: this adapter changes nothing".to_string()));
    }
    for warning in &adapter.config.warnings {
        rows.push(("warning", warning.clone()));
    }
    let mut text = style::fields(&rows);
    if with_tensors {
        let list: Vec<Vec<String>> = adapter
            .factors
            .iter()
            .map(|f| {
                vec![f.path.clone(), format!("rank {}", f.rank), shape_text(&[f.d_in, f.d_out])]
            })
            .collect();
        let _ = write!(text, "\n{}", style::table(&list));
    }
    Ok(text)
}

/// What a GGUF adapter says by itself, without its model.
fn gguf_adapter(path: &Path, with_tensors: bool) -> anyhow::Result<String> {
    let file = GgufFile::open(path)?;
    let text = |key: &str| -> anyhow::Result<String> {
        Ok(file.get_str(key)?.unwrap_or("not said").to_string())
    };
    let alpha = file.get_f32("adapter.lora.alpha")?.unwrap_or(0.0);
    let all: Vec<_> = file.tensors().collect();
    let ranks = || {
        all.iter()
            .filter(|it| it.name.ends_with(".lora_a"))
            .map(|it| it.shape.first().copied().unwrap_or(0))
    };
    let rank = match (ranks().min(), ranks().max()) {
        (Some(least), Some(most)) if least != most => format!("{least} to {most}"),
        (Some(rank), _) => rank.to_string(),
        _ => "none".to_string(),
    };
    let parameters: usize = all.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let mut shown = style::fields(&[
        ("adapter", path.display().to_string()),
        ("format", AdapterFormat::Gguf.to_string()),
        ("base", text("general.base_model.0.name")?),
        ("family", text("general.architecture")?),
        ("rank", rank),
        ("alpha", format!("{alpha}, scaled by α/r")),
        ("layers", style::counted(ranks().count() as u64, "layer", "layers")),
        ("parameters", style::count(parameters as u64)),
    ]);
    if with_tensors {
        let row = |tensor: &TensorInfo<'_>| {
            vec![tensor.name.to_string(), tensor.dtype.to_string(), shape_text(tensor.shape)]
        };
        let list: Vec<Vec<String>> = all.iter().map(row).collect();
        let _ = write!(shown, "\n{}", style::table(&list));
    }
    Ok(shown)
}

/// What the adapter is beyond a plain pair of factors.
fn method(lora: &LoraConfig) -> Option<String> {
    let mut parts = Vec::new();
    if lora.use_dora {
        parts.push("weight-decomposed (DoRA)".to_string());
    }
    if lora.lora_bias {
        parts.push("a bias on each low-rank branch".to_string());
    }
    match lora.bias {
        Bias::None => {}
        Bias::All => parts.push("all biases of the base".to_string()),
        Bias::LoraOnly => parts.push("biases of the adapted layers".to_string()),
    }
    for (module, tokens) in &lora.trainable_tokens {
        let tokens = style::counted(tokens.len() as u64, "row", "rows");
        parts.push(format!("{tokens} of {module}"));
    }
    if lora.ensure_weight_tying {
        parts.push("the head follows the embedding".to_string());
    }
    if lora.init.takes_from_base() {
        parts.push(format!("starts as a part of the base ({})", lora.init));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// `8`, or `4 to 16` where a pattern varies it.
pub(super) fn ranks(adapter: &PeftAdapter) -> String {
    let ranks = || adapter.factors.iter().map(|factor| factor.rank);
    match (ranks().min(), ranks().max()) {
        (Some(least), Some(most)) if least != most => format!("{least} to {most}"),
        (Some(rank), _) => rank.to_string(),
        _ => adapter.config.lora.rank.to_string(),
    }
}

fn run_folder(folder: &Path) -> anyhow::Result<String> {
    let run = RunConfig::load(&folder.join("recipe.toml"), &[], Command::Inspect)?.resolve()?;
    let method = match &run.method {
        Method::Lora(lora) => format!("LoRA, rank {}, alpha {}", lora.rank, lora.alpha),
        Method::Full if run.pretrain.is_some() => "pre-training of all weights".to_string(),
        Method::Full => "fine-tuning of all weights".to_string(),
    };
    let data: Vec<String> = run.data.train.iter().map(|f| f.path.display().to_string()).collect();
    let mut rows = vec![
        ("run", folder.display().to_string()),
        ("model", run.model.clone()),
        ("method", method),
        ("data", data.join("\n")),
    ];
    rows.extend(run_facts(folder)?);
    let checkpoints = checkpoints(folder);
    let newest = checkpoints.last().map(|name| format!(", newest {name}")).unwrap_or_default();
    rows.push(("checkpoints", format!("{}{newest}", checkpoints.len())));
    let kept: Vec<&str> = ["adapter", "best", "model"]
        .into_iter()
        .filter(|name| folder.join(name).is_dir())
        .collect();
    rows.push(("results", if kept.is_empty() { "none yet".to_string() } else { kept.join(", ") }));
    Ok(style::fields(&rows))
}

/// What run.json and the metrics say about the run.
fn run_facts(folder: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut rows = Vec::new();
    let description = folder.join("run.json");
    if description.is_file() {
        let text = lora_core::files::read_text(&description)?;
        let facts: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| lora_core::Error::malformed(&description, error.to_string()))?;
        if let Some(facts) = facts.as_object() {
            let parts: Vec<String> = facts
                .iter()
                .filter_map(|(key, value)| match value {
                    serde_json::Value::String(text) => Some(format!("{key} {text}")),
                    serde_json::Value::Number(number) => Some(format!("{key} {number}")),
                    _ => None,
                })
                .collect();
            rows.push(("made with", parts.join("\n")));
        }
    }
    let metrics = folder.join("metrics.jsonl");
    if metrics.is_file() {
        let text = lora_core::files::read_text(&metrics)?;
        let lines = || text.lines().filter_map(|l| serde_json::from_str(l).ok());
        let number =
            |line: &serde_json::Value, key: &str| line.get(key).and_then(serde_json::Value::as_f64);
        let last_step = lines().rfind(|line| number(line, "loss").is_some());
        if let Some(line) = last_step {
            let step = number(&line, "step").unwrap_or(0.0);
            let loss = number(&line, "loss").unwrap_or(f64::NAN);
            rows.push(("progress", format!("step {step}, loss {loss:.4}")));
        }
    }
    Ok(rows)
}

fn checkpoints(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder.join("checkpoints")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("step-"))
        .collect();
    names.sort();
    names
}
