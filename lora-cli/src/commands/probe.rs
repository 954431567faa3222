//! What is held against each other when a model or an adapter was changed in form only: the logits of one
//! fixed text.

use lora_models::generate::all_logits;
use lora_models::{Checkpoint, Decoder};

use crate::style::Problem;

/// Any text would do.
const TEXT: &str = "The quick brown fox jumps over the lazy dog, 1 + 2 = 3, and then? It rests.";

/// How far two lists of logits are apart.
pub(crate) struct Difference {
    /// The largest difference of two logits.
    pub(crate) largest: f32,
    /// Places at which both find the same token likeliest.
    pub(crate) agreeing: usize,
    /// Places of the text.
    pub(crate) places: usize,
}

/// The text's tokens.
pub(crate) fn tokens(checkpoint: &Checkpoint) -> anyhow::Result<Vec<u32>> {
    let mut tokens = checkpoint.tokenizer.encode(TEXT)?;
    tokens.truncate(checkpoint.config.max_position_embeddings);
    Ok(tokens)
}

/// The logits at every place, which must be finite.
pub(crate) fn logits(decoder: &Decoder, tokens: &[u32]) -> anyhow::Result<Vec<f32>> {
    let logits = all_logits(decoder, tokens)?;
    if logits.iter().any(|logit| !logit.is_finite()) {
        let problem = Problem::new("the model's logits are not finite numbers");
        return Err(problem.with_hint("the adapter or the weights are damaged").into());
    }
    Ok(logits)
}

/// Compares the logits of the same `places`.
pub(crate) fn compare(one: &[f32], two: &[f32], places: usize) -> Difference {
    let largest = one.iter().zip(two).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let vocabulary = one.len() / places.max(1);
    let rows = one.chunks_exact(vocabulary).zip(two.chunks_exact(vocabulary));
    let agreeing = rows.filter(|(one, two)| likeliest(one) == likeliest(two)).count();
    Difference { largest, agreeing, places }
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}
