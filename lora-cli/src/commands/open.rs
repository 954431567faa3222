//! What commands open before they work: recipes, models, adapters.

use std::path::{Path, PathBuf};

use lora_core::device::DeviceSpec;
use lora_core::peft::PeftAdapter;
use lora_core::placement::{Placement, Precision, Quantize};
use lora_models::DecoderConfig;
use lora_models::adapter_files::{AdapterFormat, load_adapter};
use lora_models::checkpoint::{Checkpoint, OpenOptions};
use lora_models::decoder::Decoder;
use lora_models::formats::StoredType;
use lora_models::hub::HubOptions;
use lora_models::labels::{LABELS_FILE, read_labels};
use lora_train::recipe::{self, Run, RunConfig};

use crate::args::{
    ComputeArguments, DeviceArguments, QuantizeName, RecipeArguments, SamplingArguments,
};
use crate::progress::Waiting;
use crate::style::{self, Problem};

/// The name that the one adapter of a command is attached under.
pub(crate) const ADAPTER: &str = "default";

/// Reads a recipe with its `--set` keys, and `extra` ones from options of their own.
pub(crate) fn read_recipe(
    arguments: &RecipeArguments,
    extra: &[String],
    command: recipe::Command,
) -> anyhow::Result<Run> {
    let path = recipe_file(&arguments.recipe)?;
    let overrides: Vec<String> = arguments.set.iter().chain(extra).cloned().collect();
    Ok(RunConfig::load(&path, &overrides, command)?.resolve()?)
}

/// A run folder stands for the recipe in it.
pub(crate) fn recipe_file(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.exists() {
        let problem = Problem::new(format!("there is no recipe `{}`", path.display()));
        let hint = format!("`lora init {}` writes one to edit", path.display());
        return Err(problem.with_hint(hint).into());
    }
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let inside = path.join("recipe.toml");
    if inside.is_file() {
        return Ok(inside);
    }
    let reason = format!("`{}` is a folder without a recipe.toml", path.display());
    Err(Problem::new(reason).with_hint("pass a recipe file, or the folder of a run").into())
}

/// `key="value"` with the value quoted as TOML, for `--set`.
pub(crate) fn override_text(key: &str, value: &str) -> String {
    format!("{key}={}", toml::Value::String(value.to_string()))
}

/// Opens a model: configuration, tokenizer, template, and the weights mapped but not read.
pub(crate) fn open_checkpoint(
    source: &str,
    offline: bool,
    quiet: bool,
) -> anyhow::Result<Checkpoint> {
    Ok(Checkpoint::open(source, &open_options(offline, quiet))?)
}

/// Opens the model of a run; one that starts from random weights has a configuration and a tokenizer.
pub(crate) fn open_run_model(run: &Run, offline: bool, quiet: bool) -> anyhow::Result<Checkpoint> {
    Ok(lora_train::open_checkpoint(run, &open_options(offline, quiet))?)
}

/// How models are opened.
pub(crate) fn open_options(offline: bool, quiet: bool) -> OpenOptions {
    let progress = (!quiet).then(crate::progress::download);
    let hub = HubOptions { offline, progress, ..HubOptions::default() };
    OpenOptions { hub }
}

/// Reads the weights onto a device.
pub(crate) fn load_decoder(
    checkpoint: &Checkpoint,
    device: &str,
    formats: Formats,
    quiet: bool,
) -> anyhow::Result<Decoder> {
    let opened = DeviceSpec::parse(device)?.open()?;
    let Formats { precision, quantize } = formats;
    let (placement, _) = Placement::new(&opened, precision, quantize, false)?;
    let _waiting = Waiting::start(&format!("loading {}", checkpoint.source), quiet);
    let needs = || {
        let number = placement.weights.size() as u64;
        Some(lora_train::plan::bytes(checkpoint.config.parameter_count() * number))
    };
    let loaded = lora_core::device::guarded(&opened.name, needs, || checkpoint.load(&placement))?;
    Ok(loaded?)
}

/// The number formats of a model.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Formats {
    /// What is computed in.
    pub(crate) precision: Precision,
    /// How the weights rest.
    pub(crate) quantize: Quantize,
}

impl Formats {
    /// f32 and nothing rounded.
    pub(crate) const F32: Self = Self { precision: Precision::F32, quantize: Quantize::None };

    /// Those of a recipe, where the command line says nothing else.
    pub(crate) fn of(
        arguments: &ComputeArguments,
        precision: Precision,
        quantize: Quantize,
    ) -> Self {
        Self {
            precision: arguments.precision.map_or(precision, Precision::from),
            quantize: arguments.quantize.map_or(quantize, Quantize::from),
        }
    }
}

/// How the base rests where the command line does not say: as it did in the run that the adapter lies in.
pub(crate) fn quantize_beside(
    asked: Option<QuantizeName>,
    adapter: Option<&Path>,
    quiet: bool,
) -> Quantize {
    if let Some(asked) = asked {
        return Quantize::from(asked);
    }
    // A run folder, or the adapter folder inside of one.
    let folders = adapter.into_iter().flat_map(|folder| [Some(folder), folder.parent()]).flatten();
    let mut texts = folders.filter_map(|it| std::fs::read_to_string(it.join("recipe.toml")).ok());
    let text = texts.next();
    let table = text.and_then(|text| toml::from_str::<toml::Table>(&text).ok());
    let named = table.as_ref().and_then(|table| table.get("quantize")?.as_str());
    let found = Quantize::ALL.into_iter().find(|it| Some(it.to_string().as_str()) == named);
    let quantize = found.unwrap_or_default();
    if quantize != Quantize::None && !quiet {
        style::say(&format!(
            "the base rests in {quantize}, as in the adapter's run; --quantize says otherwise"
        ));
    }
    quantize
}

/// As [`compute`], with the base at rest as in the run of the adapter, where nothing else is said.
pub(crate) fn compute_beside<'a>(
    arguments: &'a ComputeArguments,
    adapter: Option<&Path>,
    quiet: bool,
) -> (&'a str, Formats) {
    let (device, formats) = compute(arguments);
    let quantize = quantize_beside(arguments.quantize, adapter, quiet);
    (device, Formats { quantize, ..formats })
}

/// Device and number formats of a command without a recipe.
pub(crate) fn compute(arguments: &ComputeArguments) -> (&str, Formats) {
    (device(&arguments.on), Formats::of(arguments, Precision::Auto, Quantize::None))
}

/// The device asked for.
pub(crate) fn device(arguments: &DeviceArguments) -> &str {
    arguments.device.as_deref().unwrap_or("auto")
}

/// The recipe keys behind `--device`, `--precision` and `--quantize`.
pub(crate) fn compute_keys(arguments: &ComputeArguments) -> Vec<String> {
    let device = arguments.on.device.as_deref();
    let precision = arguments.precision.map(|name| Precision::from(name).to_string());
    let device = device.map(|device| override_text("device", device));
    let precision = precision.map(|precision| override_text("precision", &precision));
    let quantize = arguments.quantize.map(|name| Quantize::from(name).to_string());
    let quantize = quantize.map(|quantize| override_text("quantize", &quantize));
    device.into_iter().chain(precision).chain(quantize).collect()
}

/// Attaches the adapter at `path` (or of the run there), whatever its format, and switches it on.
pub(crate) fn attach(decoder: &mut Decoder, path: &Path, quiet: bool) -> anyhow::Result<()> {
    let adapter = read_adapter(path, Some(decoder.config()), quiet)?;
    // The adapter attached last is the active one.
    decoder.attach_peft(ADAPTER, &adapter)?;
    name_labels(decoder, &find_adapter(path)?)
}

/// Gives the classifier of the adapter there the names that its folder has for the labels.
fn name_labels(decoder: &mut Decoder, folder: &Path) -> anyhow::Result<()> {
    let Some(encoder) = &decoder.config().encoder else { return Ok(()) };
    let Some(labels) = read_labels(folder)? else { return Ok(()) };
    let (count, named) = (encoder.labels.len(), labels.names.len());
    if count != named {
        let file = folder.join(LABELS_FILE);
        let reason =
            format!("`{}` names {named} labels, the classifier has {count}", file.display());
        return Err(Problem::new(reason).with_hint("put the adapter's own file back").into());
    }
    decoder.set_labels(labels.names, labels.regression);
    Ok(())
}

/// Says what was in an adapter's files and is left out.
pub(crate) fn say_warnings(adapter: &PeftAdapter, quiet: bool) {
    if quiet {
        return;
    }
    for warning in &adapter.config.warnings {
        style::say(&style::warning(warning));
    }
}

/// Reads an adapter of any format, and says what its file has that is not kept. A GGUF file wants the
/// configuration of its model.
pub(crate) fn read_adapter(
    path: &Path,
    config: Option<&DecoderConfig>,
    quiet: bool,
) -> anyhow::Result<PeftAdapter> {
    let path = find_adapter(path)?;
    let format = AdapterFormat::of(&path)?.unwrap_or(AdapterFormat::Peft);
    if format == AdapterFormat::Gguf && config.is_none() {
        let shown = path.display();
        let problem = Problem::new(format!("`{shown}` is a GGUF adapter, which needs its model"));
        let hint = "`lora convert` makes a PEFT folder of it, with --model";
        return Err(problem.with_hint(hint).into());
    }
    let adapter = load_adapter(&path, format, config)?;
    say_warnings(&adapter, quiet);
    Ok(adapter)
}

/// An adapter folder or a GGUF adapter itself, or the adapter of a run folder: the best one, else the
/// last one.
pub(crate) fn find_adapter(path: &Path) -> anyhow::Result<PathBuf> {
    if path.is_file() && AdapterFormat::of(path)?.is_some() {
        return Ok(path.to_path_buf());
    }
    let candidates = [path.to_path_buf(), path.join("best"), path.join("adapter")];
    if let Some(found) = candidates.iter().find(|f| f.join("adapter_config.json").is_file()) {
        return Ok(found.clone());
    }
    let shown = path.display();
    let problem = if path.is_dir() {
        Problem::new(format!("`{shown}` holds no adapter: adapter_config.json is missing"))
            .with_hint("pass an adapter folder, or the folder of a finished run")
    } else {
        Problem::new(format!("`{shown}` is not a folder")).with_hint(
            "an adapter is a folder with adapter_config.json and adapter_model.safetensors",
        )
    };
    Err(problem.into())
}

/// Nothing is ever overwritten, and nobody waits for a result to learn that.
pub(crate) fn refuse_existing(output: &Path) -> anyhow::Result<()> {
    if !output.exists() {
        return Ok(());
    }
    let reason = format!("`{}` exists, and nothing is overwritten", output.display());
    let hint = "name a place that is free, or move what is there";
    Err(Problem::new(reason).with_hint(hint).into())
}

/// The number format that the model's weights have; f32 for a quantised one.
pub(crate) fn stored_like(checkpoint: &Checkpoint) -> StoredType {
    let key = format!("{}.weight", checkpoint.config.modules.embedding);
    match checkpoint.weights.stored_type(&checkpoint.stored_name(&key)) {
        Some(StoredType::F16) => StoredType::F16,
        Some(StoredType::BF16) => StoredType::BF16,
        _ => StoredType::F32,
    }
}

/// Only GGUF files hold quantised weights.
pub(crate) fn check_stored(stored: StoredType, gguf: bool) -> anyhow::Result<()> {
    if gguf || !stored.is_quantised() {
        return Ok(());
    }
    let problem = Problem::new(format!("a Hugging Face folder can't hold weights as {stored}"));
    let hint = "use --dtype f32, f16 or bf16, or name an output that ends in .gguf";
    Err(problem.with_hint(hint).into())
}

/// The settings of a draw; without a seed, one from the clock.
pub(crate) fn sampling(arguments: &SamplingArguments) -> lora_models::sampling::SamplingConfig {
    lora_models::sampling::SamplingConfig {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        repetition_penalty: arguments.repetition_penalty,
        seed: arguments.seed.unwrap_or_else(seed_from_clock),
    }
}

fn seed_from_clock() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    // Short enough to type again.
    u64::from(since.subsec_nanos()) ^ (since.as_secs() & 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_quoted_as_toml() {
        assert_eq!(override_text("output.folder", "a b"), "output.folder=\"a b\"");
        let windows = override_text("output.folder", "C:\\runs");
        let parsed: toml::Table = toml::from_str(&windows).unwrap_or_default();
        assert_eq!(parsed["output"]["folder"].as_str(), Some("C:\\runs"));
    }
}
