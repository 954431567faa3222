//! From a recipe to an adapter: data, loss, optimizer, schedule, the training loop, checkpoints,
//! metrics and evaluation.
//!
//! [`train`] carries out a whole recipe, as the command line does. For examples that come from
//! elsewhere there is [`fit`]; `examples/finetune.rs`:
//!
//! ```
#![doc = include_str!("../examples/finetune.rs")]
//! ```
//!
//! `examples/recipe.rs` carries out a recipe:
//!
//! ```no_run
#![doc = include_str!("../examples/recipe.rs")]
//! ```

pub mod batches;
pub mod checkpoint;
pub mod data;
pub mod error;
pub mod evaluate;
mod explained;
pub mod finetune;
mod fit;
mod loss;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod plan;
pub mod recipe;
pub mod samples;
pub mod schedule;
pub mod scores;
mod start;
pub mod step;
pub mod tensorboard;
pub mod trainer;

pub use error::{Error, Result};
pub use evaluate::{Evaluation, evaluate};
pub use finetune::{Event, Outcome, TrainOptions, train};
pub use fit::fit;
pub use start::{check_length, open_checkpoint, pad_token};
pub use trainer::{StepMetrics, Trainer};
