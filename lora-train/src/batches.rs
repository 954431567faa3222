//! Micro-batches of a run, in an order that seed and step alone decide.

use std::collections::VecDeque;

use crate::data::{Batch, Dataset, Sequence, epoch_order, sequences};
use crate::recipe::{DataSettings, Length, TrainSettings};

/// All micro-batches of a run, epoch after epoch.
pub struct BatchStream<'a> {
    dataset: &'a Dataset,
    data: &'a DataSettings,
    train: &'a TrainSettings,
    pad: u32,
    epoch: usize,
    sequences: VecDeque<Sequence>,
    total_steps: usize,
    /// Micro-batches that an epoch-bound run still has.
    left: usize,
}

impl<'a> BatchStream<'a> {
    /// The stream of a run from its first step on.
    pub fn new(
        dataset: &'a Dataset,
        data: &'a DataSettings,
        train: &'a TrainSettings,
        pad: u32,
    ) -> Self {
        let first = epoch_sequences(dataset, data, train, 0);
        let micro_batches = first.len().div_ceil(train.batch_size.max(1));
        let total_steps = if micro_batches == 0 { 0 } else { train.total_steps(micro_batches) };
        let left = match train.length {
            Length::Epochs(epochs) => (micro_batches as f64 * epochs).ceil() as usize,
            Length::Steps(_) => usize::MAX,
        };
        Self { dataset, data, train, pad, epoch: 0, sequences: first.into(), total_steps, left }
    }

    /// Optimizer steps of the run.
    pub fn total_steps(&self) -> usize {
        self.total_steps
    }

    /// The micro-batches of the next optimizer step; `None` at the end of the data.
    pub fn next_window(&mut self) -> Option<Vec<Batch>> {
        let mut window = Vec::new();
        while window.len() < self.train.accumulation.max(1) && self.left > 0 {
            let sequences = self.next_sequences()?;
            window.push(Batch::collate(&sequences, self.pad));
            self.left -= 1;
        }
        (!window.is_empty()).then_some(window)
    }

    /// Passes over the windows of `steps` optimizer steps.
    pub fn skip(&mut self, steps: usize) {
        for _ in 0..steps * self.train.accumulation.max(1) {
            if self.left == 0 || self.next_sequences().is_none() {
                return;
            }
            self.left -= 1;
        }
    }

    fn next_sequences(&mut self) -> Option<Vec<Sequence>> {
        if self.sequences.is_empty() {
            self.epoch += 1;
            self.sequences =
                epoch_sequences(self.dataset, self.data, self.train, self.epoch).into();
        }
        let count = self.train.batch_size.max(1).min(self.sequences.len());
        let sequences: Vec<_> = self.sequences.drain(..count).collect();
        (!sequences.is_empty()).then_some(sequences)
    }
}

/// The validation data as batches, in file order.
pub fn evaluation_batches(
    dataset: &Dataset,
    data: &DataSettings,
    train: &TrainSettings,
    pad: u32,
) -> Vec<Batch> {
    let order: Vec<usize> = (0..dataset.len()).collect();
    let sequences = sequences(&dataset.examples, &order, data.max_tokens, data.packing);
    sequences.chunks(train.batch_size.max(1)).map(|rows| Batch::collate(rows, pad)).collect()
}

fn epoch_sequences(
    dataset: &Dataset,
    data: &DataSettings,
    train: &TrainSettings,
    epoch: usize,
) -> Vec<Sequence> {
    let order = epoch_order(dataset, train.seed, epoch as u64, train.shuffle);
    sequences(&dataset.examples, &order, data.max_tokens, data.packing)
}
