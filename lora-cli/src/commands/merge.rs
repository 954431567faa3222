//! `lora merge`: folds an adapter into its model and writes a Hugging Face folder.

use std::path::Path;

use lora_core::placement::Precision;
use lora_models::export::save_model;
use lora_models::formats::StoredType;
use lora_models::generate::all_logits;
use lora_models::{Checkpoint, Decoder};

use super::open;
use crate::args::{MergeArguments, MergeType};
use crate::progress::Waiting;
use crate::style::{self, Problem};

/// What merged and unmerged model are compared on; any text would do.
const PROBE: &str = "The quick brown fox jumps over the lazy dog, 1 + 2 = 3, and then? It rests.";

/// Compares merged and unmerged logits, prints the largest difference, then writes.
pub(crate) fn run(arguments: &MergeArguments) -> anyhow::Result<()> {
    refuse_existing(&arguments.output)?;
    let quiet = arguments.quiet.quiet;
    let folder = open::find_adapter(&arguments.adapter)?;
    let checkpoint = open::open_checkpoint(&arguments.model, arguments.hub.offline, quiet)?;
    let stored = match arguments.dtype {
        Some(MergeType::F32) => StoredType::F32,
        Some(MergeType::F16) => StoredType::F16,
        Some(MergeType::Bf16) => StoredType::BF16,
        None => stored_like(&checkpoint),
    };
    // The sum W0 + ΔW is always f32; `--dtype` says how it is stored.
    let device = open::device(&arguments.device);
    let mut decoder = open::load_decoder(&checkpoint, device, Precision::F32, quiet)?;
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
    let waiting = Waiting::start("writing", quiet);
    save_model(&checkpoint, &decoder, &arguments.output, stored)?;
    drop(waiting);
    style::out_line(&arguments.output.display().to_string())?;
    Ok(())
}

/// Nothing is ever overwritten, and nobody waits for a merge to learn that.
fn refuse_existing(output: &Path) -> anyhow::Result<()> {
    if !output.exists() {
        return Ok(());
    }
    let reason = format!("`{}` exists, and nothing is overwritten", output.display());
    let hint = "name a folder that does not exist, or move this one";
    Err(Problem::new(reason).with_hint(hint).into())
}

/// The number format that the model's weights have; f32 for a quantised one.
fn stored_like(checkpoint: &Checkpoint) -> StoredType {
    let weights = &checkpoint.weights;
    match weights.stored_type("model.embed_tokens.weight") {
        Some(StoredType::F16) => StoredType::F16,
        Some(StoredType::BF16) => StoredType::BF16,
        _ => StoredType::F32,
    }
}

/// Merges; gives the largest difference that this makes to a logit.
fn merge(checkpoint: &Checkpoint, decoder: &mut Decoder) -> anyhow::Result<f32> {
    let mut tokens = checkpoint.tokenizer.encode(PROBE)?;
    tokens.truncate(checkpoint.config.max_position_embeddings);
    let unmerged = all_logits(decoder, &tokens)?;
    decoder.merge();
    let merged = all_logits(decoder, &tokens)?;
    if merged.iter().chain(&unmerged).any(|logit| !logit.is_finite()) {
        let problem = Problem::new("the model's logits are not finite numbers");
        return Err(problem.with_hint("the adapter or the weights are damaged").into());
    }
    Ok(merged.iter().zip(&unmerged).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
}
