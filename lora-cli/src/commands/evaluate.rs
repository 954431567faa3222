//! `lora evaluate`: loss, perplexity and token accuracy, or what an encoder's answers are worth, with and without
//! an adapter.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use lora_core::placement::Quantize;
use lora_models::{Checkpoint, Decoder, DecoderConfig};
use lora_train::Evaluation;
use lora_train::batches::evaluation_batches;
use lora_train::data::{self, Batch};
use lora_train::evaluate::evaluate;
use lora_train::recipe::{Command, DataFile, Method, Run, RunConfig};

use super::{classify, open};
use crate::args::EvaluateArguments;
use crate::progress::Waiting;
use crate::style::{self, Problem};

/// Measures and prints a table, or JSON.
pub(crate) fn run(arguments: &EvaluateArguments) -> anyhow::Result<()> {
    let (run, adapter) = subject(arguments)?;
    let mut results = Vec::new();
    // A pre-training run from random weights has no model to begin with.
    if !run.model.is_empty() {
        results.extend(measure(arguments, &run, &run.model, adapter.as_deref())?);
    }
    if let Some(folder) = trained_model(&run) {
        let found = measure(arguments, &run, &folder.display().to_string(), None)?;
        results.extend(found.into_iter().map(|(_, found)| ("trained", found)));
    }
    if results.is_empty() {
        let problem = Problem::new(format!("`{}` holds no model yet", run.output.display()));
        return Err(problem.with_hint("run `lora pretrain` first").into());
    }
    if arguments.json {
        style::out_line(&json(&run, adapter.as_deref(), &results)?)?;
    } else {
        style::out(&table(&results))?;
    }
    Ok(())
}

/// What was measured, and of what.
type Named = (&'static str, Evaluation);

/// One model on the rows, alone and then with the adapter if there is one.
fn measure(
    arguments: &EvaluateArguments,
    run: &Run,
    source: &str,
    adapter: Option<&Path>,
) -> anyhow::Result<Vec<Named>> {
    let quiet = arguments.quiet.quiet;
    let checkpoint = open::open_checkpoint(source, arguments.hub.offline, quiet)?;
    lora_train::check_length(&checkpoint.config, run.data.max_tokens)?;
    let device = arguments.compute.on.device.as_deref().unwrap_or(&run.device);
    let mut formats = open::Formats::of(&arguments.compute, run.precision, run.quantize);
    if formats.quantize == Quantize::None {
        formats.quantize = open::quantize_beside(arguments.compute.quantize, adapter, quiet);
    }
    let mut decoder = open::load_decoder(&checkpoint, device, formats, quiet)?;
    if checkpoint.config.encoder.is_some() {
        return measure_encoder(arguments, run, &checkpoint, decoder, adapter);
    }
    let batches = batches(arguments, run, &checkpoint, decoder.config())?;
    let chunk = run.train.loss_chunk_tokens;
    let waiting = Waiting::start("measuring the model", quiet);
    let mut found = vec![("model", evaluate(&decoder, &batches, chunk))];
    drop(waiting);
    if let Some(adapter) = adapter {
        open::attach(&mut decoder, adapter, quiet)?;
        let _waiting = Waiting::start("measuring the adapter", quiet);
        found.push(("with adapter", evaluate(&decoder, &batches, chunk)));
    }
    Ok(found)
}

/// The same of an encoder. The model alone is measured where it has a classifier with the adapter's labels.
fn measure_encoder(
    arguments: &EvaluateArguments,
    run: &Run,
    checkpoint: &Checkpoint,
    mut decoder: Decoder,
    adapter: Option<&Path>,
) -> anyhow::Result<Vec<Named>> {
    let quiet = arguments.quiet.quiet;
    let own_labels = decoder.config().encoder.as_ref().map_or(0, |encoder| encoder.labels.len());
    let wanted = run.data.labels.len();
    let has_own = checkpoint.absent_head().is_empty() && (wanted == 0 || wanted == own_labels);
    let is_base = Path::new(&run.model) == checkpoint.path && trained_model(run).is_some();
    if !has_own && adapter.is_none() && is_base {
        // It had no classifier for these labels before it was trained.
        return Ok(Vec::new());
    }
    classify::check(checkpoint, adapter.is_some())?;
    if let Some(encoder) = decoder.config().encoder.clone().filter(|_| has_own)
        && encoder.labels.len() == run.data.labels.len()
    {
        decoder.set_labels(run.data.labels.clone(), encoder.regression);
    }
    let own = decoder.config().encoder.clone();
    if let Some(adapter) = adapter {
        open::attach(&mut decoder, adapter, quiet)?;
    }
    let batches = batches(arguments, run, checkpoint, decoder.config())?;
    let mut found = Vec::new();
    if adapter.is_none() || has_own && own == decoder.config().encoder {
        decoder.set_active(&[])?;
        let _waiting = Waiting::start("measuring the model", quiet);
        found.push(("model", evaluate(&decoder, &batches, run.train.loss_chunk_tokens)));
    }
    if adapter.is_some() {
        decoder.set_active(&[(open::ADAPTER.to_owned(), 1.0)])?;
        let _waiting = Waiting::start("measuring the adapter", quiet);
        found.push(("with adapter", evaluate(&decoder, &batches, run.train.loss_chunk_tokens)));
    }
    Ok(found)
}

/// The model that a run of all weights has written, the best before the last.
fn trained_model(run: &Run) -> Option<PathBuf> {
    let candidates = [run.output.join("best"), run.output.join("model")];
    let is_wanted = run.method == Method::Full;
    candidates.into_iter().find(|folder| is_wanted && folder.join("config.json").is_file())
}

/// What to measure: settings, and the adapter if there is one.
fn subject(arguments: &EvaluateArguments) -> anyhow::Result<(Run, Option<PathBuf>)> {
    let path = Path::new(&arguments.source);
    let is_recipe = path.extension().is_some_and(|extension| extension == "toml")
        || path.join("recipe.toml").is_file();
    if is_recipe {
        let file = open::recipe_file(path)?;
        let run = RunConfig::load(&file, &arguments.set, Command::Evaluate)?.resolve()?;
        let adapter = match &arguments.adapter {
            Some(folder) => Some(open::find_adapter(folder)?),
            None => open::find_adapter(&run.output).ok(),
        };
        return Ok((run, adapter));
    }
    if arguments.data.is_empty() {
        let problem = Problem::new(format!("no rows to measure `{}` on", arguments.source))
            .with_hint("add --data FILE, or pass a recipe (.toml) instead of a model");
        return Err(problem.into());
    }
    let mut overrides = vec![open::override_text("model", &arguments.source)];
    for (index, path) in arguments.data.iter().enumerate() {
        let path = path.to_string_lossy();
        overrides.push(open::override_text(&format!("data.train.{index}.path"), &path));
    }
    overrides.extend(arguments.set.iter().cloned());
    let run = RunConfig::from_text("", &overrides, Command::Evaluate)?.resolve()?;
    let adapter = arguments.adapter.as_deref().map(open::find_adapter).transpose()?;
    Ok((run, adapter))
}

/// The rows of `--data`, else the validation rows of the recipe.
fn batches(
    arguments: &EvaluateArguments,
    run: &Run,
    checkpoint: &Checkpoint,
    config: &DecoderConfig,
) -> anyhow::Result<Vec<Batch>> {
    let _waiting = Waiting::start("reading the data", arguments.quiet.quiet);
    let pad = lora_train::pad_token(checkpoint);
    let mut settings = run.data.clone();
    if arguments.data.is_empty() {
        let (_, validation) = data::load_for(&settings, checkpoint, config)?;
        if validation.is_empty() {
            let problem = Problem::new("the recipe keeps no validation rows")
                .with_hint("add --data FILE, or set data.validation_rows in the recipe");
            return Err(problem.into());
        }
        return Ok(evaluation_batches(&validation, &run.data, &run.train, pad));
    }
    settings.train = arguments.data.iter().map(DataFile::new).collect();
    settings.validation = Vec::new();
    settings.validation_rows = 0;
    settings.validation_fraction = 0.0;
    let (rows, _) = data::load_for(&settings, checkpoint, config)?;
    Ok(evaluation_batches(&rows, &run.data, &run.train, pad))
}

/// What was counted.
fn counted(result: &Evaluation) -> &'static str {
    if result.scores.is_some() { "rows" } else { "tokens" }
}

fn table(results: &[(&str, Evaluation)]) -> String {
    let mut rows = Vec::new();
    for (name, result) in results {
        let mut heading = vec![String::new(), "loss".to_string()];
        let mut row = vec![(*name).to_string(), format!("{:.4}", result.loss)];
        for (measure, number) in result.measures() {
            heading.push(measure.to_string());
            row.push(style::measure(measure, number));
        }
        heading.push(counted(result).to_string());
        row.push(style::count(result.tokens as u64));
        if rows.is_empty() {
            rows.push(heading);
        }
        rows.push(row);
    }
    style::table(&rows)
}

fn json(
    run: &Run,
    adapter: Option<&Path>,
    results: &[(&str, Evaluation)],
) -> anyhow::Result<String> {
    let numbers = |result: &Evaluation| {
        let mut fields = serde_json::Map::new();
        fields.insert("loss".into(), result.loss.into());
        for (name, number) in result.measures() {
            fields.insert(name.into(), number.into());
        }
        fields.insert(counted(result).into(), result.tokens.into());
        serde_json::Value::Object(fields)
    };
    let find =
        |wanted: &str| results.iter().find(|(name, _)| *name == wanted).map(|r| numbers(&r.1));
    let object = serde_json::json!({
        "model": run.model,
        "adapter": adapter,
        "without_adapter": find("model"),
        "with_adapter": find("with adapter"),
        "trained": find("trained"),
    });
    serde_json::to_string_pretty(&object).context("cannot write the result as JSON")
}
