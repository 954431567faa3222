//! Everything found in a checkpoint folder: configuration, weights, tokenizer and chat template, and
//! the decoder that runs them.

pub mod adapter_files;
mod attention;
mod builtin;
pub mod chat_template;
pub mod checkpoint;
pub mod decoder;
mod decoder_adapters;
pub mod decoder_config;
mod decoder_explained;
mod decoder_layout;
mod decoder_load;
mod decoder_lost;
mod decoder_methods;
pub mod encoder;
mod encoder_load;
pub mod error;
pub mod export;
pub mod export_gguf;
pub mod families;
pub mod formats;
pub mod generate;
pub mod hub;
pub mod kv_cache;
pub mod labels;
pub mod modules;
mod norm;
pub mod sampling;
pub mod tokenizer;

pub use attention::Context;
pub use checkpoint::{Checkpoint, OpenOptions};
pub use decoder::{Decoder, Input};
pub use decoder_adapters::Trainable;
pub use decoder_config::DecoderConfig;
pub use decoder_layout::{expected_tensors, linear_infos};
pub use decoder_methods::{adaptable, trained_tensors};
pub use encoder::EncoderConfig;
pub use error::{Error, Result};
