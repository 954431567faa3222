//! The mathematics of low-rank adaptation on Burn: adapted linear layers, initialisation, targets,
//! merging, and the adapter files of PEFT. Knows no model, no training run and no command line.

pub mod algebra;
pub mod config;
pub mod decompose;
pub mod device;
pub mod embedding;
pub mod error;
pub mod files;
mod free_memory;
pub mod init;
pub mod linear;
pub mod mlx;
pub mod ops;
pub mod packed;
pub mod parameter;
pub mod peft;
pub mod placement;
pub mod profile;
pub mod report;
pub mod table;
pub mod target;

/// The optimizer's arithmetic.
pub use lora_kernels::adamw;

pub use config::{Bias, Init, LoraConfig, TargetModules};
pub use error::{Error, Result};
pub use placement::{Placement, Precision, Quantize};
