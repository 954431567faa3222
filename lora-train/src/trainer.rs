//! The training loop's body: one optimizer step at a time, on whatever batches the caller brings.

use std::time::Instant;

use lora_core::ops::awake;
use lora_core::profile::timed;
use lora_models::{Decoder, Trainable};

use crate::data::Batch;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluation, evaluate};
use crate::optimizer::{AdamW, global_norm};
use crate::recipe::TrainSettings;
use crate::schedule::learning_rate;
use crate::step::{StepSettings, mix, window_gradients};

/// What one optimizer step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepMetrics {
    /// Steps done, this one included.
    pub step: usize,
    /// Steps of the run.
    pub total_steps: usize,
    /// Mean loss over the learned tokens of the step, before the update.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens of the step without padding.
    pub tokens: usize,
    /// Learned tokens of the step.
    pub learned_tokens: usize,
    /// Tokens per second of the step.
    pub tokens_per_second: f64,
    /// Resident memory.
    pub memory_bytes: u64,
    /// Time to the end of the run at this speed.
    pub seconds_left: f64,
}

/// A decoder in training.
pub struct Trainer<'a> {
    decoder: &'a mut Decoder,
    trainable: Trainable,
    settings: TrainSettings,
    total_steps: usize,
    warmup_steps: usize,
    pub(crate) optimizer: AdamW,
}

impl<'a> Trainer<'a> {
    /// Prepares `decoder` to learn what `trainable` names, over `total_steps` steps.
    ///
    /// # Errors
    /// No adapter of that name, nothing to train, a warm-up longer than the run.
    pub fn new(
        decoder: &'a mut Decoder,
        trainable: Trainable,
        settings: &TrainSettings,
        total_steps: usize,
    ) -> Result<Self> {
        if let Trainable::Adapter(name) = &trainable
            && settings.lora_fa
        {
            decoder.freeze_a(name)?;
        }
        decoder.set_trainable(&trainable)?;
        if decoder.trainable_mut(&trainable).is_empty() {
            return Err(Error::invalid("there is nothing to train")
                .with_hint("attach an adapter first, or train the base"));
        }
        let warmup_steps = settings.warmup_steps(total_steps)?;
        let mut optimizer = AdamW::new(settings);
        if let Trainable::Adapter(name) = &trainable {
            optimizer.metrics = decoder.frozen_metrics(name);
        }
        let settings = settings.clone();
        Ok(Self { decoder, trainable, settings, total_steps, warmup_steps, optimizer })
    }

    /// One optimizer step on a window of micro-batches.
    ///
    /// # Errors
    /// A loss or gradient that is not finite; after the first step, an adapter of which no B has a
    /// gradient. The decoder is as it was before the step.
    pub fn step(&mut self, window: &[Batch]) -> Result<StepMetrics> {
        let device = self.decoder.device().clone();
        awake(&device, || self.step_here(window))
    }

    fn step_here(&mut self, window: &[Batch]) -> Result<StepMetrics> {
        let started = Instant::now();
        let done = self.optimizer.steps;
        let step_settings = StepSettings {
            recompute: self.settings.recompute || self.decoder.placement().keeps_unpacked(),
            loss_chunk_tokens: self.settings.loss_chunk_tokens,
            dropout_seed: mix(self.settings.seed, done as u64),
        };
        let found = timed("elsewhere in the step", || {
            window_gradients(self.decoder, &self.trainable, window, &step_settings)
        });
        if found.learned_tokens == 0 {
            return Err(Error::invalid(format!(
                "step {}: no learned token in the batch",
                done + 1
            )));
        }
        if !found.loss.is_finite() {
            return Err(Error::invalid(format!("step {}: the loss is {}", done + 1, found.loss))
                .with_hint("lower `train.learning_rate`, or check the data with `lora data`"));
        }
        let norm = timed("optimizer", || global_norm(&found.gradients));
        if !norm.is_finite() {
            return Err(Error::invalid(format!("step {}: a gradient is not finite", done + 1))
                .with_hint("lower `train.learning_rate`"));
        }
        if done == 0 {
            self.check_first_gradients(&found.gradients)?;
        }
        let rate = learning_rate(
            done,
            self.total_steps,
            self.warmup_steps,
            self.settings.learning_rate,
            self.settings.minimum_learning_rate,
            self.settings.schedule,
        );
        timed("optimizer", || {
            self.optimizer.update(self.decoder, &self.trainable, &found.gradients, norm, rate);
        });
        let seconds = started.elapsed().as_secs_f64();
        Ok(StepMetrics {
            step: done + 1,
            total_steps: self.total_steps,
            loss: found.loss,
            learning_rate: rate,
            gradient_norm: norm,
            tokens: found.tokens,
            learned_tokens: found.learned_tokens,
            tokens_per_second: found.tokens as f64 / seconds,
            memory_bytes: crate::memory::resident_bytes(),
            seconds_left: seconds * self.total_steps.saturating_sub(done + 1) as f64,
        })
    }

    /// Steps done.
    pub fn steps_done(&self) -> usize {
        self.optimizer.steps
    }

    /// The decoder, to look at.
    pub fn decoder(&self) -> &Decoder {
        self.decoder
    }

    /// Every trainable tensor's key, shape and numbers.
    pub fn tensors(&mut self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let parameters = self.decoder.trainable_mut(&self.trainable);
        parameters.iter().map(|(key, p)| (key.clone(), p.shape(), p.read())).collect()
    }

    /// Puts back the trainable tensors and the optimizer of a checkpoint.
    ///
    /// # Errors
    /// Keys or sizes that differ from this decoder's.
    pub(crate) fn restore(
        &mut self,
        steps: usize,
        moments: Vec<crate::optimizer::Moments>,
        tensors: &[(String, Vec<f32>)],
    ) -> Result<()> {
        let device = self.decoder.device().clone();
        let mut parameters = self.decoder.trainable_mut(&self.trainable);
        let same = parameters.len() == tensors.len()
            && parameters.len() == moments.len()
            && parameters.iter().zip(tensors).zip(&moments).all(|(((key, p), (name, data)), m)| {
                key == name
                    && *key == m.key
                    && p.count() == data.len()
                    && m.first.len() == data.len()
                    && m.second.len() == data.len()
            });
        if !same {
            return Err(Error::invalid("the checkpoint does not belong to this model and adapter"));
        }
        for ((_, parameter), (_, data)) in parameters.iter_mut().zip(tensors) {
            parameter.write(data.clone(), &device);
        }
        self.optimizer.steps = steps;
        self.optimizer.moments = moments;
        Ok(())
    }

    /// Evaluates the decoder as it stands, without dropout and without keeping activations.
    ///
    /// # Errors
    /// Never; the adapter is known to be there.
    pub fn evaluate(&mut self, batches: &[Batch]) -> Result<Evaluation> {
        self.decoder.set_trainable(&Trainable::Nothing)?;
        let found = evaluate(self.decoder, batches, self.settings.loss_chunk_tokens);
        self.decoder.set_trainable(&self.trainable)?;
        Ok(found)
    }

    /// A B that gets no gradient in the first step will never learn: the graph is cut somewhere.
    fn check_first_gradients(&mut self, gradients: &[Option<Vec<f32>>]) -> Result<()> {
        let keys = self.decoder.trainable_mut(&self.trainable);
        let mut factors = 0;
        for ((key, _), gradient) in keys.iter().zip(gradients) {
            if key.ends_with("lora_B.weight") {
                factors += 1;
                if gradient.iter().flatten().any(|number| *number != 0.0) {
                    return Ok(());
                }
            }
        }
        if factors == 0 {
            return Ok(());
        }
        Err(Error::invalid(format!("step 1: the gradients of all {factors} B matrices are zero"))
            .with_hint(
                "nothing would be learned: see `lora data` for what is learned, and check \
                 `adapter.targets`",
            ))
    }
}
