//! `lora convert`: an adapter or a model in another format, read back and compared before it is put in
//! its place.

use std::path::{Path, PathBuf};

use lora_core::peft::PeftAdapter;
use lora_core::placement::Quantize;
use lora_models::adapter_files::{AdapterFormat, load_adapter, save_adapter};
use lora_models::export::save_model;
use lora_models::export_gguf::{differs_in_llama_cpp, save_gguf};
use lora_models::formats::StoredType;
use lora_models::{Checkpoint, Decoder, OpenOptions};

use super::{open, probe};
use crate::args::convert::{ConvertArguments, FormatName};
use crate::progress::Waiting;
use crate::style::{self, Problem};

/// Largest difference that a change of form may make to an adapter's update, relative to its size: factors
/// that one format says beside the weights and another inside them are rounded once more.
const UPDATE: f64 = 1e-5;

/// The same for a logit: the rounding of an update passes through every block after it.
const LOGIT: f32 = 1e-3;

/// Converts, compares, and only then puts the result in its place.
pub(crate) fn run(arguments: &ConvertArguments) -> anyhow::Result<()> {
    open::refuse_existing(&arguments.output)?;
    let source = Path::new(&arguments.source);
    let adapter = match open::find_adapter(source) {
        Ok(found) => AdapterFormat::of(&found)?.map(|format| (found, format)),
        Err(_) => None,
    };
    match adapter {
        Some((path, format)) => convert_adapter(arguments, &path, format),
        None => convert_model(arguments),
    }
}

fn convert_adapter(
    arguments: &ConvertArguments,
    source: &Path,
    from: AdapterFormat,
) -> anyhow::Result<()> {
    let to = match (arguments.to, names_gguf(&arguments.output)) {
        (Some(FormatName::Hf), _) => {
            let reason =
                format!("`{}` is an adapter, and hf is a format of models", source.display());
            let hint = "`lora merge MODEL ADAPTER --output FOLDER` folds it into its model";
            return Err(Problem::new(reason).with_hint(hint).into());
        }
        (Some(name), _) => name.of_adapter().unwrap_or(AdapterFormat::Peft),
        (None, true) => AdapterFormat::Gguf,
        (None, false) => AdapterFormat::Peft,
    };
    check_name(&arguments.output, to == AdapterFormat::Gguf)?;
    if arguments.dtype.is_some() {
        let problem = Problem::new("--dtype is for models; adapters are written as f32");
        return Err(problem.with_hint("leave it out").into());
    }
    let quiet = arguments.quiet.quiet;
    let mut checkpoint = match &arguments.model {
        Some(model) => Some(open::open_checkpoint(model, arguments.hub.offline, quiet)?),
        None => None,
    };
    let mut before = None;
    if checkpoint.is_none() {
        // A GGUF adapter can't be read before its model is known.
        let named = match from {
            AdapterFormat::Gguf => None,
            other => {
                let adapter = load_adapter(source, other, None)?;
                let base = adapter.config.base_model.clone();
                before = Some(adapter);
                base
            }
        };
        checkpoint = named.and_then(|name| named_model(&name));
        if checkpoint.is_none() && (from == AdapterFormat::Gguf || to == AdapterFormat::Gguf) {
            let reason = "a GGUF adapter can't be converted without its model: the order of its rows \
                          follows from the model's heads";
            return Err(Problem::new(reason).with_hint("name the model with --model MODEL").into());
        }
    }
    let config = checkpoint.as_ref().map(|checkpoint| &checkpoint.config);
    let before = match before {
        Some(adapter) => adapter,
        None => load_adapter(source, from, config)?,
    };
    open::say_warnings(&before, quiet);

    let landed = Landing::beside(&arguments.output)?;
    save_adapter(&before, landed.path(), to, config)?;
    let after = load_adapter(landed.path(), to, config)?;
    let apart = after.largest_difference(&before)?;
    if apart.is_nan() || apart > UPDATE {
        return Err(Problem::new(format!(
            "what was written is not what was read: the updates differ by {apart:.1e} of their size"
        ))
        .with_hint("nothing was kept; please report this with the adapter")
        .into());
    }
    let mut said = format!(
        "{from} to {to}: {}, read back, updates differ by at most {} of their size",
        style::counted(after.factors.len() as u64, "module", "modules"),
        distance(apart)
    );
    match &checkpoint {
        Some(checkpoint) => {
            let largest = compare_on_model(arguments, checkpoint, &before, &after)?;
            said.push_str(&format!(
                "\nlargest logit difference over {} with the adapter before and after: {}",
                checkpoint.source,
                distance(f64::from(largest))
            ));
        }
        None => said.push_str("\nno logits were compared: name the model with --model for that"),
    }
    landed.put()?;
    style::say(&said);
    style::out_line(&arguments.output.display().to_string())?;
    Ok(())
}

/// The model that an adapter names, where it lies on this machine: nothing is fetched unasked.
fn named_model(name: &str) -> Option<Checkpoint> {
    let mut options = OpenOptions::default();
    options.hub.offline = true;
    Checkpoint::open(name, &options).ok()
}

/// The largest difference of a logit of base and adapter.
fn compare_on_model(
    arguments: &ConvertArguments,
    checkpoint: &Checkpoint,
    before: &PeftAdapter,
    after: &PeftAdapter,
) -> anyhow::Result<f32> {
    let quiet = arguments.quiet.quiet;
    let device = open::device(&arguments.device);
    let mut decoder = open::load_decoder(checkpoint, device, open::Formats::F32, quiet)?;
    let _waiting = Waiting::start("comparing", quiet);
    let tokens = probe::tokens(checkpoint)?;
    decoder.attach_peft("before", before)?;
    let expected = probe::logits(&decoder, &tokens)?;
    decoder.detach("before")?;
    decoder.attach_peft("after", after)?;
    let found = probe::logits(&decoder, &tokens)?;
    let largest = probe::compare(&found, &expected, tokens.len()).largest;
    if largest > LOGIT {
        return Err(Problem::new(format!(
            "what was written is not what was read: logits differ by {largest:.2e}"
        ))
        .with_hint("nothing was kept; please report this with the adapter")
        .into());
    }
    Ok(largest)
}

fn convert_model(arguments: &ConvertArguments) -> anyhow::Result<()> {
    let gguf = match arguments.to {
        Some(FormatName::Gguf) => true,
        Some(FormatName::Hf) => false,
        Some(FormatName::Peft | FormatName::Mlx) => {
            let reason = format!("`{}` is no adapter", arguments.source);
            let hint = "an adapter is a folder with adapter_config.json, the folder of a run, or a \
                        .gguf file; a model is written as hf or gguf";
            return Err(Problem::new(reason).with_hint(hint).into());
        }
        None => names_gguf(&arguments.output),
    };
    let quiet = arguments.quiet.quiet;
    let checkpoint = open::open_checkpoint(&arguments.source, arguments.hub.offline, quiet)?;
    let stored = match arguments.dtype {
        Some(name) => name.stored(),
        None => open::stored_like(&checkpoint),
    };
    open::check_stored(stored, gguf)?;
    check_name(&arguments.output, gguf)?;
    let device = open::device(&arguments.device);
    let decoder = open::load_decoder(&checkpoint, device, open::Formats::F32, quiet)?;
    let said = write_model(&checkpoint, &decoder, &arguments.output, stored, gguf, quiet)?;
    style::say(&said);
    style::out_line(&arguments.output.display().to_string())?;
    Ok(())
}

/// Writes a model as it stands, reads it back, compares tokens and logits, and only then puts it in its
/// place. Gives what is to be said.
pub(crate) fn write_model(
    checkpoint: &Checkpoint,
    decoder: &Decoder,
    output: &Path,
    stored: StoredType,
    gguf: bool,
    quiet: bool,
) -> anyhow::Result<String> {
    let waiting = Waiting::start("writing", quiet);
    let landed = Landing::beside(output)?;
    if gguf {
        save_gguf(checkpoint, decoder, landed.path(), stored)?;
    } else {
        save_model(checkpoint, decoder, landed.path(), stored)?;
    }
    drop(waiting);
    let _waiting = Waiting::start("comparing", quiet);
    let written = Checkpoint::open(&landed.path().to_string_lossy(), &OpenOptions::default())?;
    let tokens = probe::tokens(checkpoint)?;
    if probe::tokens(&written)? != tokens {
        return Err(Problem::new("the tokenizer that was written finds other tokens in a text")
            .with_hint("nothing was kept; please report this with the model's tokenizer.json")
            .into());
    }
    let expected = probe::logits(decoder, &tokens)?;
    // As it is now, whatever the base it came from rested in.
    let found = written.load(&decoder.placement().clone().quantized(Quantize::None))?;
    let found = probe::logits(&found, &tokens)?;
    let difference = probe::compare(&found, &expected, tokens.len());
    if stored == StoredType::F32 && difference.largest > LOGIT {
        let largest = difference.largest;
        return Err(Problem::new(format!(
            "what was written is not what was read: logits differ by {largest:.2e}"
        ))
        .with_hint("nothing was kept; please report this with the model")
        .into());
    }
    landed.put()?;
    let mut said = format!(
        "written as {stored} and read back: largest logit difference {}, the likeliest token is the same at {} of {} places",
        distance(f64::from(difference.largest)),
        difference.agreeing,
        difference.places
    );
    if let Some(warning) = gguf.then(|| differs_in_llama_cpp(&checkpoint.config)).flatten() {
        said.push_str(&format!("\n{}", style::warning(&warning)));
    }
    Ok(said)
}

/// Whether a path is meant to be a GGUF file.
pub(crate) fn names_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf")
}

/// `3.1e-7`, and `0` where there is none.
fn distance(number: f64) -> String {
    if number == 0.0 { "0".to_string() } else { format!("{number:.1e}") }
}

/// Readers go by the name.
fn check_name(output: &Path, gguf: bool) -> anyhow::Result<()> {
    if gguf == names_gguf(output) {
        return Ok(());
    }
    let shown = output.display();
    let problem = match gguf {
        true => Problem::new(format!("`{shown}` is to be a GGUF file, but is not named so"))
            .with_hint("let --output end in .gguf"),
        false => Problem::new(format!("`{shown}` is to be a folder, but is named as a GGUF file"))
            .with_hint("leave .gguf off, or leave --to out"),
    };
    Err(problem.into())
}

/// A place beside the output, in which it is made and compared; removed unless it is put in its place.
struct Landing {
    scratch: PathBuf,
    output: PathBuf,
}

impl Landing {
    fn beside(output: &Path) -> anyhow::Result<Self> {
        if let Some(parent) = output.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)
                .map_err(|error| lora_core::Error::write(parent, error))?;
        }
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        // The name ends as the output's, since that is what a reader goes by.
        let scratch = output.with_file_name(format!(".{}.{name}", std::process::id()));
        Ok(Self { scratch, output: output.to_path_buf() })
    }

    fn path(&self) -> &Path {
        &self.scratch
    }

    fn put(&self) -> anyhow::Result<()> {
        Ok(lora_core::files::put_in_place(&self.scratch, &self.output)?)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // What is left was not good, and the error that says so is on its way.
        if self.scratch.is_dir() {
            let _ = std::fs::remove_dir_all(&self.scratch);
        } else {
            let _ = std::fs::remove_file(&self.scratch);
        }
    }
}
