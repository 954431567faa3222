//! `lora classify`: what an encoder says of texts.

use std::io::{self, BufRead as _};

use anyhow::Context as _;
use lora_core::parameter::read_f32;
use lora_models::tokenizer::EncodedText;
use lora_models::{Checkpoint, Decoder, EncoderConfig, Input};
use serde_json::{Map, Value, json};

use super::open;
use crate::args::classify::ClassifyArguments;
use crate::style::{self, Problem};

/// Answers for one text, or for each line of standard input.
pub(crate) fn run(arguments: &ClassifyArguments) -> anyhow::Result<()> {
    let quiet = arguments.quiet.quiet;
    let checkpoint = open::open_checkpoint(&arguments.model, arguments.hub.offline, quiet)?;
    check(&checkpoint, arguments.adapter.is_some())?;
    let adapter = arguments.adapter.as_deref();
    let (device, formats) = open::compute_beside(&arguments.compute, adapter, quiet);
    let mut decoder = open::load_decoder(&checkpoint, device, formats, quiet)?;
    if let Some(adapter) = &arguments.adapter {
        open::attach(&mut decoder, adapter, quiet)?;
    }
    let limit = decoder.config().position_limit();
    let limit = limit.unwrap_or(decoder.config().max_position_embeddings);
    let texts = checkpoint.tokenizer.text_encoder(limit)?;
    let answer = |text: &str, second: Option<&str>| -> anyhow::Result<()> {
        let encoded = texts.encode(text, second)?;
        if encoded.truncated > 0 && !quiet {
            let cut = style::counted(encoded.truncated as u64, "token", "tokens");
            let what = format!("{cut} cut off: the model reads at most {limit}");
            style::say(&style::warning(&what));
        }
        let logits = read_f32(decoder.classify(&input(&encoded)));
        let encoder = encoder(&decoder)?;
        let line = if arguments.json { json(encoder, &logits)? } else { plain(encoder, &logits) };
        Ok(style::out_line(&line)?)
    };
    if let Some(text) = &arguments.text {
        return answer(text, arguments.pair.as_deref());
    }
    for line in io::stdin().lock().lines() {
        let line = line.context("cannot read standard input")?;
        if !line.trim().is_empty() {
            answer(&line, None)?;
        }
    }
    Ok(())
}

/// The model must be an encoder, and somebody must have trained its classifier.
pub(super) fn check(checkpoint: &Checkpoint, with_adapter: bool) -> anyhow::Result<()> {
    let problem = if checkpoint.config.encoder.is_none() {
        Problem::new(format!("`{}` is a language model: it has no labels", checkpoint.source))
            .with_hint("use `lora generate`")
    } else if !with_adapter && !checkpoint.absent_head().is_empty() {
        let absent = checkpoint.absent_head().join(", ");
        let reason =
            format!("`{}` has no trained classifier ({absent} is missing)", checkpoint.source);
        Problem::new(reason).with_hint("train one with `lora train`, and add --adapter DIR")
    } else {
        return Ok(());
    };
    Err(problem.into())
}

fn encoder(decoder: &Decoder) -> anyhow::Result<&EncoderConfig> {
    decoder.config().encoder.as_ref().context("an encoder has an encoder's configuration")
}

fn input(encoded: &EncodedText) -> Input {
    let segments = encoded.segments.iter().map(|segment| *segment as i32).collect();
    Input { segments, ..Input::single(&encoded.tokens, 0) }
}

/// Labels with their probabilities, the likeliest first.
fn ranked<'a>(encoder: &'a EncoderConfig, logits: &[f32]) -> Vec<(&'a str, f64)> {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |most, logit| most.max(*logit));
    let shares: Vec<f64> = logits.iter().map(|it| f64::from(it - largest).exp()).collect();
    let sum: f64 = shares.iter().sum();
    let names = encoder.labels.iter().map(String::as_str);
    let mut ranked: Vec<_> = names.zip(shares.into_iter().map(|share| share / sum)).collect();
    ranked.sort_by(|one, two| two.1.total_cmp(&one.1));
    ranked
}

fn plain(encoder: &EncoderConfig, logits: &[f32]) -> String {
    if encoder.regression {
        return format!("{:.4}", logits[0]);
    }
    let shown = ranked(encoder, logits).into_iter();
    let shown: Vec<String> = shown.map(|(name, share)| format!("{name} {share:.4}")).collect();
    shown.join("  ")
}

fn json(encoder: &EncoderConfig, logits: &[f32]) -> anyhow::Result<String> {
    let object = if encoder.regression {
        json!({ "score": logits[0] })
    } else {
        let ranked = ranked(encoder, logits);
        let all: Map<String, Value> =
            ranked.iter().map(|(name, share)| ((*name).to_owned(), json!(share))).collect();
        json!({ "label": ranked[0].0, "probability": ranked[0].1, "probabilities": all })
    };
    serde_json::to_string(&object).context("cannot write the result as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &[&str], regression: bool) -> EncoderConfig {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        EncoderConfig { segments: 2, first_position: 0, padding: None, labels, regression }
    }

    #[test]
    fn answers_are_lines() {
        let labels = of(&["no", "yes"], false);
        assert_eq!(plain(&labels, &[0.0, 3.0f32.ln()]), "yes 0.7500  no 0.2500");
        assert_eq!(plain(&of(&["score"], true), &[2.5]), "2.5000");
        let json = json(&labels, &[1.0, 1.0]).unwrap_or_default();
        assert_eq!(
            json,
            r#"{"label":"no","probability":0.5,"probabilities":{"no":0.5,"yes":0.5}}"#
        );
    }
}
