//! Everything found in a checkpoint folder: configuration, weights, tokenizer and chat template, and
//! the decoder that runs them.

pub mod chat_template;
pub mod error;
pub mod formats;
pub mod hub;
pub mod sampling;
pub mod tokenizer;

pub use error::{Error, Result};
