//! From a recipe to an adapter: data, loss, optimizer, schedule, the training loop, checkpoints,
//! metrics and evaluation.

pub mod batches;
pub mod checkpoint;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod finetune;
mod loss;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod plan;
pub mod recipe;
pub mod samples;
pub mod schedule;
mod start;
pub mod step;
pub mod tensorboard;
pub mod trainer;

pub use error::{Error, Result};
pub use evaluate::{Evaluation, evaluate};
pub use finetune::{Event, Outcome, TrainOptions, train};
pub use start::open_checkpoint;
pub use trainer::{StepMetrics, Trainer};
