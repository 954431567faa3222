//! How a run gets its model: from a checkpoint, or drawn fresh with a tokenizer trained on its text.

use std::path::Path;

use lora_core::placement::Placement;
use lora_models::families::decoder_config;
use lora_models::formats::{MemoryWeights, Weights};
use lora_models::labels::{Labels, read_labels};
use lora_models::tokenizer::{SpecialTokens, Tokenizer};
use lora_models::{Checkpoint, Decoder, DecoderConfig, OpenOptions};

use crate::data;
use crate::error::{Error, Result};
use crate::recipe::{PretrainSettings, Run, Task};

/// Ends a document in a vocabulary trained here.
const END: &str = "<|end|>";
/// Fills short rows in a vocabulary trained here; another token than the end, which is learned.
const PAD: &str = "<|pad|>";

/// Opens the run's model, or makes it.
///
/// # Errors
/// A checkpoint, configuration or tokenizer that can't be used.
pub(crate) fn open(
    run: &Run,
    options: &OpenOptions,
    placement: &Placement,
) -> Result<(Checkpoint, Decoder, Option<String>)> {
    let mut checkpoint = open_as_it_is(run, options)?;
    let mut decoder = match fresh_config(run) {
        Some(_) => Decoder::random(&checkpoint.config, run.train.seed, placement)?,
        None => checkpoint.load(placement)?,
    };
    let note = settle_labels(run, &mut checkpoint)?;
    if let Some(encoder) = &checkpoint.config.encoder {
        decoder.set_labels(encoder.labels.clone(), encoder.regression);
    }
    Ok((checkpoint, decoder, note))
}

/// The run's model without its weights; for a model that starts from random ones, its configuration,
/// and its tokenizer, trained on the run's text if the recipe says so. An encoder has the labels of the run.
///
/// # Errors
/// A checkpoint, configuration or tokenizer that can't be used.
pub fn open_checkpoint(run: &Run, options: &OpenOptions) -> Result<Checkpoint> {
    let mut checkpoint = open_as_it_is(run, options)?;
    settle_labels(run, &mut checkpoint)?;
    Ok(checkpoint)
}

/// Gives an encoder the labels of the run: those of the recipe, of the adapter to start from, of the checkpoint
/// where it has a classifier, or of the data. What was decided is told.
fn settle_labels(run: &Run, checkpoint: &mut Checkpoint) -> Result<Option<String>> {
    let absent = checkpoint.absent_head();
    let Some(encoder) = &mut checkpoint.config.encoder else { return Ok(None) };
    let of_adapter = match &run.initial_adapter {
        Some(folder) => read_labels(folder)?,
        None => None,
    };
    let (from, labels) = if !run.data.labels.is_empty() {
        let names = run.data.labels.clone();
        ("of the recipe", Labels { regression: names.len() == 1, names })
    } else if let Some(labels) = of_adapter {
        ("of the adapter", labels)
    } else if absent.is_empty() && run.data.task == Task::Auto {
        let names = encoder.labels.clone();
        ("of the model", Labels { names, regression: encoder.regression })
    } else {
        ("of the data", data::labels_in(&run.data)?)
    };
    let regression = match run.data.task {
        Task::Regression => true,
        Task::Classification => false,
        Task::Auto => labels.regression,
    };
    if regression != (labels.names.len() == 1) {
        return Err(Error::invalid(format!(
            "data.task = \"{}\" does not go with {} labels {from}",
            run.data.task,
            labels.names.len()
        ))
        .with_hint("a regression has one, a classification several"));
    }
    let resized = labels.names.len() != encoder.labels.len();
    (encoder.labels, encoder.regression) = (labels.names, regression);
    let what = match encoder.regression {
        true => format!("one number {from}"),
        false => format!("labels {from}: {}", encoder.labels.join(", ")),
    };
    let last = checkpoint.config.modules.encoder.map_or("", |more| more.classifier);
    let fresh = match (absent.is_empty(), resized) {
        (false, _) => {
            format!("; the checkpoint has no {}, which starts anew", absent.join(", no "))
        }
        (true, true) => format!("; `{last}` of the checkpoint has another size, and starts anew"),
        (true, false) => String::new(),
    };
    Ok(Some(format!("{what}{fresh}")))
}

fn open_as_it_is(run: &Run, options: &OpenOptions) -> Result<Checkpoint> {
    let checkpoint = match fresh_config(run) {
        Some((config, pretrain)) => fresh_checkpoint(run, config, pretrain)?,
        None => Checkpoint::open(&run.model, options)?,
    };
    if run.pretrain.is_some() {
        checkpoint.config.refuse_encoder("is not pre-trained on text")?;
    }
    if !run.sample.prompts.is_empty() {
        checkpoint.config.refuse_encoder("answers no `sample.prompts`")?;
    }
    check_length(&checkpoint.config, run.data.max_tokens)?;
    Ok(checkpoint)
}

/// Whether the model can read texts of so many tokens. Only learned positions come to an end.
///
/// # Errors
/// More tokens than the model has positions.
pub fn check_length(config: &DecoderConfig, tokens: usize) -> Result<()> {
    match config.position_limit() {
        Some(limit) if tokens > limit => Err(Error::invalid(format!(
            "texts may have {tokens} tokens, but this model has learned {limit} positions"
        ))
        .with_hint(format!("set `data.max_tokens = {limit}` or less"))),
        _ => Ok(()),
    }
}

/// The configuration of a model that starts from random weights.
fn fresh_config(run: &Run) -> Option<(&Path, &PretrainSettings)> {
    let pretrain = run.pretrain.as_ref()?;
    Some((pretrain.config.as_deref()?, pretrain))
}

/// The token that fills short rows. It is never learned: targets, not token numbers, say what is.
pub fn pad_token(checkpoint: &Checkpoint) -> u32 {
    let configured = checkpoint.config_json.get("pad_token_id").and_then(serde_json::Value::as_u64);
    let configured = configured.and_then(|token| u32::try_from(token).ok());
    checkpoint.tokenizer.special().pad.or(configured).unwrap_or(0)
}

fn fresh_checkpoint(run: &Run, config: &Path, pretrain: &PretrainSettings) -> Result<Checkpoint> {
    let text = lora_core::files::read_text(config)?;
    let mut json: serde_json::Value = serde_json::from_str(&text)
        .map_err(|error| Error::malformed(config, format!("not valid JSON: {error}")))?;
    let tokenizer = match (&pretrain.tokenizer, pretrain.tokenizer_vocab) {
        (Some(path), _) => open_tokenizer(path)?,
        (None, Some(size)) => {
            let texts = data::texts(&run.data)?;
            let trained = Tokenizer::train_byte_bpe(texts.into_iter(), size, &[END, PAD])?;
            let (eos, pad) = (trained.token_id(END), trained.token_id(PAD));
            trained.with_special(SpecialTokens { eos, pad, ..SpecialTokens::default() })
        }
        (None, None) => {
            return Err(Error::invalid(
                "`pretrain` names neither a tokenizer nor a vocabulary size",
            )
            .with_hint("set `pretrain.tokenizer` or `pretrain.tokenizer_vocab`"));
        }
    };
    // The tokenizer decides how many rows the embedding has, and which token ends a text.
    let special = *tokenizer.special();
    if let Some(object) = json.as_object_mut() {
        object.insert("vocab_size".into(), tokenizer.vocab_size().into());
        for (key, token) in [
            ("bos_token_id", special.bos),
            ("eos_token_id", special.eos),
            ("pad_token_id", special.pad),
        ] {
            object.insert(key.into(), token.into());
        }
    }
    Ok(Checkpoint {
        source: config.display().to_string(),
        path: config.to_path_buf(),
        config: decoder_config(&json, config)?,
        config_json: json,
        generation_json: None,
        eos_tokens: special.eos.into_iter().collect(),
        tokenizer,
        chat_template: None,
        weights: Weights::Memory(MemoryWeights {
            origin: config.to_path_buf(),
            ..Default::default()
        }),
    })
}

fn open_tokenizer(path: &Path) -> Result<Tokenizer> {
    if path.is_dir() {
        return Ok(Tokenizer::from_folder(path)?);
    }
    let json = lora_core::files::read(path)?;
    Ok(Tokenizer::from_json(&json, None, path)?)
}
