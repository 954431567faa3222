//! Adapters in whatever format: PEFT's folder, mlx-lm's folder, llama.cpp's GGUF file.

use std::fmt;
use std::path::Path;

use lora_core::mlx;
use lora_core::peft::{CONFIG_FILE, PeftAdapter};

use crate::decoder_config::DecoderConfig;
use crate::error::{Error, Result};
use crate::formats::gguf_adapter::{is_gguf_adapter, read_gguf_adapter, write_gguf_adapter};

/// How an adapter is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterFormat {
    /// A folder of PEFT.
    Peft,
    /// A folder of mlx-lm.
    Mlx,
    /// A file for llama.cpp.
    Gguf,
}

impl AdapterFormat {
    /// The format of what is there; `None` where it is no adapter.
    ///
    /// # Errors
    /// A `.gguf` file that can't be read.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        if path.is_file() {
            let named_so = path.extension().is_some_and(|extension| extension == "gguf");
            return Ok((named_so && is_gguf_adapter(path)?).then_some(Self::Gguf));
        }
        if mlx::is_mlx_adapter(path) {
            return Ok(Some(Self::Mlx));
        }
        Ok(path.join(CONFIG_FILE).is_file().then_some(Self::Peft))
    }
}

impl fmt::Display for AdapterFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Peft => "PEFT",
            Self::Mlx => "mlx-lm",
            Self::Gguf => "GGUF",
        })
    }
}

/// Reads an adapter. A GGUF file says less than the others: `config` is that of the model it is for.
///
/// # Errors
/// What the format's reader refuses; a GGUF file without a configuration.
pub fn load_adapter(
    path: &Path,
    format: AdapterFormat,
    config: Option<&DecoderConfig>,
) -> Result<PeftAdapter> {
    let mut adapter = match format {
        AdapterFormat::Peft => return Ok(PeftAdapter::load(path)?),
        AdapterFormat::Mlx => mlx::load(path)?,
        AdapterFormat::Gguf => read_gguf_adapter(path, config.ok_or_else(needs_model)?)?,
    };
    // Only PEFT's own files say how the base is stored.
    if let Some(config) = config {
        adapter.config.fan_in_fan_out = config.modules.fan_in_fan_out;
    }
    Ok(adapter)
}

/// Writes an adapter. For a GGUF file `config` is that of the model it is for.
///
/// # Errors
/// What the format can't carry; a GGUF file without a configuration; the operating system's.
pub fn save_adapter(
    adapter: &PeftAdapter,
    path: &Path,
    format: AdapterFormat,
    config: Option<&DecoderConfig>,
) -> Result<()> {
    match format {
        AdapterFormat::Peft => Ok(adapter.save(path)?),
        AdapterFormat::Mlx => Ok(mlx::save(adapter, path)?),
        AdapterFormat::Gguf => write_gguf_adapter(path, adapter, config.ok_or_else(needs_model)?),
    }
}

fn needs_model() -> Error {
    Error::invalid("a GGUF adapter can't be converted without its model: how rows are ordered follows from the model's heads")
        .with_hint("name the model that the adapter is for")
}
