//! From data files to batches: rows are read ([`load`]), turned into tokens with a mark on each that
//! is learned ([`Encoder`]), ordered ([`epoch_order`]), packed ([`pack`]) and put side by side
//! ([`Batch`]).
//!
//! Nothing here knows tensors or the model; a batch is plain numbers.

mod batch;
mod encode;
mod formats;
mod labels;
mod load;
mod order;
mod pack;
mod preview;
mod report;
mod source;
#[cfg(test)]
mod testing;
mod texts;

use std::path::PathBuf;

pub use batch::Batch;
pub use encode::Encoder;
pub use formats::Row;
pub use labels::{LabelEncoder, labels_in};
pub use load::{load, load_for};
pub use order::{epoch_order, examples_per_epoch};
pub use pack::{Sequence, pack, sequences, unpacked};
pub use preview::{PreviewSpan, preview};
pub use report::{DataReport, FileReport};
pub use texts::texts;

/// One row as the model sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// Token ids, beginning of sequence included.
    pub tokens: Vec<u32>,
    /// Whether token `i` is a target, predicted from what stands before it; never true for the first.
    pub learned: Vec<bool>,
    /// Index into [`Dataset::files`].
    pub file: usize,
    /// Line of the file on which the row starts, counted from 1.
    pub line: usize,
    /// Tokens cut off at the end.
    pub truncated: usize,
    /// What an encoder is to say of it; no token is learned then, and the first one counts as the one that is.
    pub label: Option<Label>,
}

/// What an encoder is to say of a text, or of two.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    /// The answer.
    pub answer: Answer,
    /// The segment of each token.
    pub segments: Vec<u32>,
}

/// An answer of an encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Answer {
    /// The number of a label.
    Class(u32),
    /// A number, where the model is a regression.
    Score(f32),
}

impl Example {
    /// Number of tokens that are targets.
    pub fn learned_tokens(&self) -> usize {
        self.learned.iter().filter(|&&learned| learned).count()
    }
}

/// Encoded rows, in the order of the files.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    /// The rows.
    pub examples: Vec<Example>,
    /// The files they come from.
    pub files: Vec<PathBuf>,
    /// How often an epoch draws the rows of each file.
    pub weights: Vec<f64>,
    /// What was read, cut and left out.
    pub report: DataReport,
}

impl Dataset {
    /// A dataset from examples made elsewhere; all belong to one nameless file.
    pub fn from_examples(examples: Vec<Example>) -> Self {
        let mut file = FileReport::new("examples", None, 1.0);
        for example in &examples {
            file.rows += 1;
            file.count(example);
        }
        let examples = examples.into_iter().map(|example| Example { file: 0, ..example }).collect();
        Self {
            examples,
            files: vec![PathBuf::from("examples")],
            weights: vec![1.0],
            report: DataReport { files: vec![file] },
        }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there is no example.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }
}
