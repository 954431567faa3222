//! Training on examples that the caller brings, without a recipe or a run folder.

use std::ops::ControlFlow;

use lora_models::{Decoder, Trainable};

use crate::batches::BatchStream;
use crate::data::{Dataset, Example};
use crate::error::{Error, Result};
use crate::recipe::{DataSettings, TrainSettings};
use crate::start::check_length;
use crate::trainer::{StepMetrics, Trainer};

/// Trains what `trainable` names on `examples`, and gives the number of steps done.
///
/// Order, packing, batches and schedule are those of a recipe with the same settings. `on_step` sees
/// each step and may end the training. Afterwards nothing is trainable: the decoder is ready to use.
///
/// # Errors
/// No example with a learned token, one that is longer than the model's learned positions, no adapter of that
/// name, a loss that is not finite.
pub fn fit(
    decoder: &mut Decoder,
    trainable: &Trainable,
    examples: impl IntoIterator<Item = Example>,
    data: &DataSettings,
    train: &TrainSettings,
    on_step: &mut dyn FnMut(&StepMetrics) -> ControlFlow<()>,
) -> Result<usize> {
    let learnable = |example: &Example| example.learned.contains(&true);
    let dataset = Dataset::from_examples(examples.into_iter().filter(learnable).collect());
    if dataset.is_empty() {
        return Err(Error::invalid("no example has a token to learn")
            .with_hint("mark what the model shall write in `Example::learned`"));
    }
    let longest = dataset.examples.iter().map(|example| example.tokens.len()).max();
    check_length(decoder.config(), longest.unwrap_or_default())?;
    // Padding is masked and never a target, so any token will do.
    let mut stream = BatchStream::new(&dataset, data, train, 0);
    let mut trainer = Trainer::new(decoder, trainable.clone(), train, stream.total_steps())?;
    while trainer.steps_done() < stream.total_steps() {
        let Some(window) = stream.next_window() else { break };
        if on_step(&trainer.step(&window)?).is_break() {
            break;
        }
    }
    let steps = trainer.steps_done();
    decoder.set_trainable(&Trainable::Nothing)?;
    Ok(steps)
}
