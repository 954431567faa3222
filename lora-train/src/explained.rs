//! The start of an adapter from data (EVA): a pass over the first rows of the training data, before any step.

use lora_core::config::LoraConfig;
use lora_models::Decoder;

use crate::data::{Batch, Dataset, epoch_order, sequences};
use crate::error::Result;
use crate::recipe::Run;
use crate::step::{input_of, learned_rows, select_rows};

/// Tokens that are looked at: some hundred for each direction that is sought.
const TOKENS: usize = 1 << 15;
/// A layer gets at most so many times the configured rank, as in PEFT.
const SPREAD: f64 = 2.0;

/// Attaches the adapter `name` with an A that spans what the layers' inputs vary most along.
///
/// The rows are those of the first epoch in its order, so that a resumed run finds the same.
///
/// # Errors
/// Those of [`Decoder::attach_explained`].
pub(crate) fn attach(
    run: &Run,
    config: &LoraConfig,
    name: &str,
    decoder: &mut Decoder,
    dataset: &Dataset,
) -> Result<()> {
    let order = epoch_order(dataset, run.train.seed, 0, run.train.shuffle);
    let all = sequences(&dataset.examples, &order, run.data.max_tokens, run.data.packing);
    let mut pass = |decoder: &Decoder| {
        let mut left = TOKENS;
        for sequence in &all {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(sequence.tokens.len());
            // One at a time: no padding, which would be looked at too.
            let batch = Batch::collate(std::slice::from_ref(sequence), 0);
            let hidden = decoder.forward(&input_of(&batch), None);
            if decoder.config().encoder.is_some() {
                // The layer before an encoder's classifier is one to adapt too.
                decoder.logits(select_rows(hidden, &learned_rows(&batch).0));
            }
        }
    };
    Ok(decoder.attach_explained(name, config, run.train.seed, SPREAD, &mut pass)?)
}
