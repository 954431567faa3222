//! From a recipe to an adapter: data, loss, optimizer, schedule, the training loop, checkpoints,
//! metrics and evaluation.

pub mod data;
pub mod error;
pub mod metrics;
pub mod recipe;
pub mod schedule;
pub mod tensorboard;

pub use error::{Error, Result};
