//! Micro-batches of a run, in an order that seed and step alone decide.

use std::collections::VecDeque;

use crate::data::{Batch, Dataset, Sequence, epoch_order, sequences};
use crate::recipe::Run;

/// All micro-batches of a run, epoch after epoch.
pub struct BatchStream<'a> {
    dataset: &'a Dataset,
    run: &'a Run,
    pad: u32,
    epoch: usize,
    sequences: VecDeque<Sequence>,
    total_steps: usize,
    /// Micro-batches that an epoch-bound run still has.
    left: usize,
}

impl<'a> BatchStream<'a> {
    /// The stream of a run from its first step on.
    pub fn new(dataset: &'a Dataset, run: &'a Run, pad: u32) -> Self {
        let first = epoch_sequences(dataset, run, 0);
        let micro_batches = first.len().div_ceil(run.train.batch_size.max(1));
        let total_steps = if micro_batches == 0 { 0 } else { run.train.total_steps(micro_batches) };
        let left = match run.train.length {
            crate::recipe::Length::Epochs(epochs) => {
                (micro_batches as f64 * epochs).ceil() as usize
            }
            crate::recipe::Length::Steps(_) => usize::MAX,
        };
        Self { dataset, run, pad, epoch: 0, sequences: first.into(), total_steps, left }
    }

    /// Optimizer steps of the run.
    pub fn total_steps(&self) -> usize {
        self.total_steps
    }

    /// The micro-batches of the next optimizer step; `None` at the end of the data.
    pub fn next_window(&mut self) -> Option<Vec<Batch>> {
        let mut window = Vec::new();
        while window.len() < self.run.train.accumulation.max(1) && self.left > 0 {
            let sequences = self.next_sequences()?;
            window.push(Batch::collate(&sequences, self.pad));
            self.left -= 1;
        }
        (!window.is_empty()).then_some(window)
    }

    /// Passes over the windows of `steps` optimizer steps.
    pub fn skip(&mut self, steps: usize) {
        for _ in 0..steps * self.run.train.accumulation.max(1) {
            if self.left == 0 || self.next_sequences().is_none() {
                return;
            }
            self.left -= 1;
        }
    }

    fn next_sequences(&mut self) -> Option<Vec<Sequence>> {
        if self.sequences.is_empty() {
            self.epoch += 1;
            self.sequences = epoch_sequences(self.dataset, self.run, self.epoch).into();
        }
        let count = self.run.train.batch_size.max(1).min(self.sequences.len());
        let sequences: Vec<_> = self.sequences.drain(..count).collect();
        (!sequences.is_empty()).then_some(sequences)
    }
}

/// The validation data as batches, in file order.
pub fn evaluation_batches(dataset: &Dataset, run: &Run, pad: u32) -> Vec<Batch> {
    let order: Vec<usize> = (0..dataset.len()).collect();
    let sequences = sequences(&dataset.examples, &order, run.data.max_tokens, run.data.packing);
    sequences.chunks(run.train.batch_size.max(1)).map(|rows| Batch::collate(rows, pad)).collect()
}

fn epoch_sequences(dataset: &Dataset, run: &Run, epoch: usize) -> Vec<Sequence> {
    let order = epoch_order(dataset, run.train.seed, epoch as u64, run.train.shuffle);
    sequences(&dataset.examples, &order, run.data.max_tokens, run.data.packing)
}
