//! The arguments of `lora convert`, and the number formats that models are written in.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lora_models::adapter_files::AdapterFormat;
use lora_models::formats::StoredType;

use super::{DeviceArguments, HubArguments, QuietArguments};

/// Convert an adapter or a model to another format, and prove it
///
/// Adapters: PEFT folders, mlx-lm folders and llama.cpp's GGUF adapters, each to each. Models: a
/// Hugging Face folder or a GGUF file, tokenizer and chat template included. What was written is read
/// back: an adapter's updates must be the same, and where the model is at hand, the logits of a fixed
/// text. Only then is the result put in its place; nothing is ever overwritten.
///
/// What a format can't carry is refused: GGUF holds low-rank pairs only, mlx-lm those and DoRA's
/// magnitudes. `lora merge` folds any adapter into a model.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora convert runs/first --model models/smollm2 --output first.gguf
  llama-cli -m smollm2.gguf --lora first.gguf
  lora convert first.gguf --model models/smollm2 --output adapter
  lora convert runs/first --to mlx --output mlx-adapter
  lora convert models/smollm2 --output smollm2-q8.gguf --dtype q8_0
  lora convert smollm2.gguf --output smollm2 --dtype bf16")]
pub(crate) struct ConvertArguments {
    /// An adapter (folder, run folder or .gguf) or a model (folder, .gguf, hub id or `builtin:`)
    #[arg(value_name = "ADAPTER|MODEL")]
    pub(crate) source: String,

    /// The .gguf file or the folder to create
    #[arg(long, short, value_name = "PATH")]
    pub(crate) output: PathBuf,

    /// What to write; without it .gguf files are GGUF, folders are PEFT adapters or Hugging Face models
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: Option<FormatName>,

    /// The model that the adapter is for; the one that the adapter names, if it is there
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// Number format of a model's weights; as the model stores them, or f32 if it is quantised
    #[arg(long, value_name = "DTYPE")]
    pub(crate) dtype: Option<StoredName>,

    #[command(flatten)]
    pub(crate) device: DeviceArguments,

    #[command(flatten)]
    pub(crate) hub: HubArguments,

    #[command(flatten)]
    pub(crate) quiet: QuietArguments,
}

/// Formats by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatName {
    /// PEFT's adapter folder
    Peft,
    /// mlx-lm's adapter folder
    Mlx,
    /// A file for llama.cpp, adapter or model
    Gguf,
    /// A Hugging Face model folder
    Hf,
}

impl FormatName {
    /// The format of an adapter; `None` for that of a model.
    pub(crate) fn of_adapter(self) -> Option<AdapterFormat> {
        match self {
            Self::Peft => Some(AdapterFormat::Peft),
            Self::Mlx => Some(AdapterFormat::Mlx),
            Self::Gguf => Some(AdapterFormat::Gguf),
            Self::Hf => None,
        }
    }
}

/// Number formats that a model can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoredName {
    /// 32 bits
    F32,
    /// 16 bits with more digits and little range
    F16,
    /// 16 bits with the range of f32
    Bf16,
    /// 8.5 bits a weight; GGUF only
    #[value(name = "q8_0")]
    Q8_0,
    /// 4.5 bits a weight, embedding and head 8.5; GGUF only
    #[value(name = "q4_0")]
    Q4_0,
    /// 4.5 bits a weight with less error than q4_0; GGUF only
    #[value(name = "q4_k")]
    Q4K,
}

impl StoredName {
    /// The format itself.
    pub(crate) fn stored(self) -> StoredType {
        match self {
            Self::F32 => StoredType::F32,
            Self::F16 => StoredType::F16,
            Self::Bf16 => StoredType::BF16,
            Self::Q8_0 => StoredType::Q8_0,
            Self::Q4_0 => StoredType::Q4_0,
            Self::Q4K => StoredType::Q4K,
        }
    }
}
