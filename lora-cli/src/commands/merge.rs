//! `lora merge`: folds an adapter into its model and writes a Hugging Face folder or a GGUF file.

use lora_models::export::save_model;
use lora_models::formats::StoredType;
use lora_models::{Checkpoint, Decoder};

use super::{convert, open, probe};
use crate::args::MergeArguments;
use crate::progress::Waiting;
use crate::style;

/// Compares merged and unmerged logits, prints the largest difference, then writes.
pub(crate) fn run(arguments: &MergeArguments) -> anyhow::Result<()> {
    open::refuse_existing(&arguments.output)?;
    let quiet = arguments.quiet.quiet;
    let gguf = convert::names_gguf(&arguments.output);
    let folder = open::find_adapter(&arguments.adapter)?;
    let checkpoint = open::open_checkpoint(&arguments.model, arguments.hub.offline, quiet)?;
    let stored = match arguments.dtype {
        Some(name) => name.stored(),
        None => open::stored_like(&checkpoint),
    };
    open::check_stored(stored, gguf)?;
    // The sum W0 + ΔW is always f32; `--dtype` says how it is stored.
    let device = open::device(&arguments.device);
    let quantize = open::quantize_beside(arguments.quantize, Some(&arguments.adapter), quiet);
    let formats = open::Formats { quantize, ..open::Formats::F32 };
    let mut decoder = open::load_decoder(&checkpoint, device, formats, quiet)?;
    open::attach(&mut decoder, &folder, quiet)?;
    decoder.check_storable()?;

    let waiting = Waiting::start("merging and comparing", quiet);
    let difference = merge(&checkpoint, &mut decoder)?;
    drop(waiting);
    let rounding = match stored {
        StoredType::F32 => String::new(),
        other => format!(" (computed in f32; the weights are then rounded to {other})"),
    };
    style::say(&format!(
        "largest logit difference between merged and unmerged: {difference:.2e}{rounding}"
    ));
    if gguf {
        let said =
            convert::write_model(&checkpoint, &decoder, &arguments.output, stored, true, quiet)?;
        style::say(&said);
    } else {
        let _waiting = Waiting::start("writing", quiet);
        save_model(&checkpoint, &decoder, &arguments.output, stored)?;
    }
    style::out_line(&arguments.output.display().to_string())?;
    Ok(())
}

/// Merges; gives the largest difference that this makes to a logit.
fn merge(checkpoint: &Checkpoint, decoder: &mut Decoder) -> anyhow::Result<f32> {
    let tokens = probe::tokens(checkpoint)?;
    let unmerged = probe::logits(decoder, &tokens)?;
    decoder.merge();
    let merged = probe::logits(decoder, &tokens)?;
    Ok(probe::compare(&merged, &unmerged, tokens.len()).largest)
}
