//! Data files to datasets: what is held out, what is encoded, what is left out.

use std::ops::Range;

use lora_models::chat_template::ChatTemplate;
use lora_models::tokenizer::Tokenizer;
use lora_models::{Checkpoint, DecoderConfig};
use rayon::prelude::*;
use serde_json::Value;

use super::encode::labels_need_an_encoder;
use super::labels::LabelEncoder;
use super::report::counted;
use super::source::Source;
use super::{DataReport, Dataset, Encoder, Example, FileReport};
use crate::error::{Error, Result};
use crate::recipe::{DataFile, DataSettings, Format, Unlearnable};

/// A file is not drawn more often than this in one epoch.
const MAX_WEIGHT: f64 = 1000.0;

/// Reads and encodes the files of a recipe: what is learned from, and what is evaluated on (empty
/// where the recipe holds nothing out).
///
/// # Errors
/// A file that can't be read, a row that is wrong, a row without a learned token unless such rows are
/// skipped, or settings that leave nothing to learn from.
pub fn load(
    settings: &DataSettings,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<(Dataset, Dataset)> {
    let encoder = Encoder::new(settings, tokenizer, template)?;
    load_with(settings, &|row, format| encoder.encode_row(row, format))
}

/// The same for the model of a checkpoint, as it stands in `config`: an encoder's rows have labels.
///
/// # Errors
/// Those of [`load`]; rows of a format that is not for this model.
pub fn load_for(
    settings: &DataSettings,
    checkpoint: &Checkpoint,
    config: &DecoderConfig,
) -> Result<(Dataset, Dataset)> {
    let tokenizer = &checkpoint.tokenizer;
    let Some(encoder) = &config.encoder else {
        if settings.format == Format::Labels {
            return Err(labels_need_an_encoder());
        }
        return load(settings, tokenizer, checkpoint.chat_template.as_ref());
    };
    if !matches!(settings.format, Format::Auto | Format::Labels) {
        return Err(Error::invalid(format!(
            "data.format = \"{}\" is for language models; this one is an encoder (`{}`)",
            settings.format, config.model_type
        ))
        .with_hint(
            "write the rows as `text` and `label`, with `text_pair` where there are two texts",
        ));
    }
    let settings = DataSettings { format: Format::Labels, ..settings.clone() };
    let encoder = LabelEncoder::new(&settings, tokenizer, encoder)?;
    load_with(&settings, &|row, _| encoder.encode_row(row))
}

/// What turns a row into examples.
type EncodeRow<'a> = dyn Fn(&Value, Format) -> Result<Vec<Example>> + Sync + 'a;

fn load_with(settings: &DataSettings, encoder: &EncodeRow<'_>) -> Result<(Dataset, Dataset)> {
    check(settings)?;
    let open = |files: &[DataFile]| -> Result<Vec<Source>> {
        files.iter().map(|file| Source::open(file, settings.format)).collect()
    };
    let sources = open(&settings.train)?;
    let learned_rows = learned_rows(settings, &sources)?;
    let weights: Vec<f64> = settings.train.iter().map(|file| file.weight).collect();
    let rows: Vec<Range<usize>> = learned_rows.iter().map(|&end| 0..end).collect();
    let train = dataset(encoder, settings.unlearnable, &sources, &rows, weights)?;
    if train.is_empty() {
        return Err(nothing_learned("training"));
    }

    let (sources, rows) = if settings.validation.is_empty() {
        let held = sources.iter().zip(learned_rows).map(|(source, end)| end..source.len());
        let held = held.collect::<Vec<_>>();
        sources.into_iter().zip(held).filter(|(_, rows)| !rows.is_empty()).unzip()
    } else {
        let sources = open(&settings.validation)?;
        let rows: Vec<Range<usize>> = sources.iter().map(|source| 0..source.len()).collect();
        (sources, rows)
    };
    let weights = vec![1.0; sources.len()];
    let validation = dataset(encoder, settings.unlearnable, &sources, &rows, weights)?;
    if validation.is_empty() && settings.has_validation() {
        return Err(nothing_learned("validation"));
    }
    Ok((train, validation))
}

fn nothing_learned(which: &str) -> Error {
    Error::invalid(format!("no {which} row has a learned token: all are left out"))
        .with_hint("raise data.max_tokens, or see with `lora data` what the rows look like")
}

fn check(settings: &DataSettings) -> Result<()> {
    if settings.train.is_empty() {
        return Err(Error::invalid("the recipe names no training file")
            .with_hint("add [[data.train]] with `path = \"rows.jsonl\"`"));
    }
    for file in &settings.train {
        if !(0.0..=MAX_WEIGHT).contains(&file.weight) {
            let reason = format!("weight {} is not between 0 and {MAX_WEIGHT}", file.weight);
            return Err(Error::malformed(&file.path, reason)
                .with_hint("1 draws each row once in an epoch, 0.5 every second one"));
        }
    }
    if settings.train.iter().all(|file| file.weight <= 0.0) {
        return Err(Error::invalid("every training file has weight 0"));
    }
    let ways = usize::from(!settings.validation.is_empty())
        + usize::from(settings.validation_rows > 0)
        + usize::from(settings.validation_fraction > 0.0);
    if ways > 1 {
        return Err(Error::invalid("the recipe holds validation rows out in more than one way")
            .with_hint(
                "keep one of data.validation_rows, data.validation_fraction and [[data.validation]]",
            ));
    }
    if !(0.0..1.0).contains(&settings.validation_fraction) {
        return Err(Error::invalid(format!(
            "data.validation_fraction = {} is not from 0 up to 1",
            settings.validation_fraction
        )));
    }
    Ok(())
}

/// How many first rows of each file are learned from; those after them are held out. A number of rows
/// is taken from the end of all files put together, a fraction from the end of each.
fn learned_rows(settings: &DataSettings, sources: &[Source]) -> Result<Vec<usize>> {
    let mut ends: Vec<usize> = sources.iter().map(Source::len).collect();
    let rows: usize = ends.iter().sum();
    if settings.validation_rows >= rows {
        return Err(Error::invalid(format!(
            "data.validation_rows = {} leaves nothing to learn from: there is {}",
            settings.validation_rows,
            counted(rows, "row")
        )));
    }
    let mut held = settings.validation_rows;
    for end in ends.iter_mut().rev() {
        let here = held.min(*end);
        *end -= here;
        held -= here;
    }
    let fraction = settings.validation_fraction;
    if fraction > 0.0 {
        for end in &mut ends {
            *end -= (fraction * *end as f64).floor() as usize;
        }
        if ends.iter().sum::<usize>() == rows {
            return Err(Error::invalid(format!(
                "data.validation_fraction = {fraction} of {} is none",
                counted(rows, "row")
            ))
            .with_hint("set data.validation_rows to a number of rows"));
        }
    }
    Ok(ends)
}

/// Encodes rows in parallel; the result does not depend on it, nor does the error.
fn dataset(
    encoder: &EncodeRow<'_>,
    unlearnable: Unlearnable,
    sources: &[Source],
    rows: &[Range<usize>],
    weights: Vec<f64>,
) -> Result<Dataset> {
    let mut examples = Vec::new();
    let mut report = DataReport::default();
    for (index, (source, rows)) in sources.iter().zip(rows).enumerate() {
        let encode = |row: usize| -> Result<Vec<Example>> {
            let value = source.read(row)?;
            let encoded = encoder(&value, source.format);
            encoded.map_err(|error| source.wrong(row, &error))
        };
        let encoded: Vec<Result<Vec<Example>>> = rows.clone().into_par_iter().map(encode).collect();
        let mut file = FileReport::new(&source.path, Some(source.format), weights[index]);
        for (row, encoded) in rows.clone().zip(encoded) {
            let encoded = encoded?;
            file.rows += 1;
            if encoded.iter().all(|example| example.learned_tokens() == 0) {
                match unlearnable {
                    Unlearnable::Error => return Err(source.wrong(row, &unlearned(&encoded))),
                    Unlearnable::Skip => file.skip(source.line(row)),
                }
                continue;
            }
            for example in encoded {
                let example = Example { file: index, line: source.line(row), ..example };
                file.count(&example);
                examples.push(example);
            }
        }
        report.files.push(file);
    }
    let files = sources.iter().map(|source| source.path.clone()).collect();
    Ok(Dataset { examples, files, weights, report })
}

fn unlearned(examples: &[Example]) -> Error {
    let kept: usize = examples.iter().map(|example| example.tokens.len()).sum();
    let truncated: usize = examples.iter().map(|example| example.truncated).sum();
    if truncated > 0 {
        let all = kept + truncated;
        Error::invalid(format!(
            "nothing is learned: of its {all} tokens the first {kept} are all prompt"
        ))
        .with_hint(
            "raise data.max_tokens, or leave such rows out with data.unlearnable_rows = \"skip\"",
        )
    } else {
        Error::invalid("nothing is learned: the model has nothing to write in this row").with_hint(
            "add an assistant message or a completion, or leave such rows out with \
             data.unlearnable_rows = \"skip\"",
        )
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
