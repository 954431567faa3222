//! A checkpoint: a folder, a GGUF file, a hub id or the model that the crate carries.

use std::path::{Path, PathBuf};

use lora_core::placement::Placement;
use serde_json::Value;

use crate::builtin;
use crate::chat_template::ChatTemplate;
use crate::decoder::Decoder;
use crate::decoder_config::DecoderConfig;
use crate::decoder_load::absent_prefix;
use crate::encoder_load::{spelled_today, stored_spelling};
use crate::error::{Error, Result};
use crate::families::decoder_config;
use crate::formats::safetensors::SafetensorsCheckpoint;
use crate::formats::{GgufWeights, Weights};
use crate::hub::{self, HubOptions};
use crate::tokenizer::Tokenizer;

/// Name of the model that the crate carries.
pub const BUILTIN: &str = "builtin:";

/// How checkpoints are opened.
#[derive(Clone, Default)]
pub struct OpenOptions {
    /// How hub ids are fetched.
    pub hub: HubOptions,
}

/// Everything about a model but its tensors, which stay in the file until [`Checkpoint::load`].
pub struct Checkpoint {
    /// What was asked for: a path, a hub id or `builtin:`.
    pub source: String,
    /// The folder or file that was opened; `builtin:` for the carried model.
    pub path: PathBuf,
    /// Shape of the decoder.
    pub config: DecoderConfig,
    /// `config.json` as it stands in the checkpoint.
    pub config_json: Value,
    /// `generation_config.json`, where there is one.
    pub generation_json: Option<Value>,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, where the model has one.
    pub chat_template: Option<ChatTemplate>,
    /// Tokens that end a generation.
    pub eos_tokens: Vec<u32>,
    /// The weights, mapped.
    pub weights: Weights,
}

impl Checkpoint {
    /// What the files of this checkpoint call a tensor: some were saved without what stands before all keys.
    pub fn stored_name(&self, tensor: &str) -> String {
        let names = self.weights.names();
        let prefix = absent_prefix(&self.config, &names).unwrap_or_default();
        stored_spelling(tensor.strip_prefix(prefix).unwrap_or(tensor), &names)
    }

    /// The tensors of the files, each with the name that a whole model of today has for it.
    pub fn tensor_names(&self) -> Vec<(String, String)> {
        let names = self.weights.names();
        let prefix = absent_prefix(&self.config, &names).unwrap_or_default();
        let both = |name: String| (format!("{prefix}{}", spelled_today(&name)), name);
        names.into_iter().map(both).collect()
    }

    /// Opens a checkpoint: `builtin:`, a Hugging Face folder, a `.gguf` file, or `org/name[@revision]`.
    ///
    /// # Errors
    /// Nothing there, a file missing or malformed, an unknown model type, a hub that can't be reached.
    pub fn open(source: &str, options: &OpenOptions) -> Result<Self> {
        if source == BUILTIN {
            return Self::open_builtin();
        }
        let path = Path::new(source);
        if path.is_file() {
            return match path.extension().and_then(|extension| extension.to_str()) {
                Some("gguf") => Self::open_gguf(source, path),
                _ => Err(Error::malformed(path, "this file is no checkpoint").with_hint(
                    "name a folder with config.json and model.safetensors, or a .gguf file",
                )),
            };
        }
        if path.is_dir() {
            return Self::open_folder(source, path);
        }
        if hub::is_hub_id(source) {
            let folder = hub::fetch(source, &options.hub)?;
            return Self::open_folder(source, &folder);
        }
        Err(Error::malformed(path, "no such checkpoint")
            .with_hint("name a folder, a .gguf file, a hub id such as `org/name`, or `builtin:`"))
    }

    /// Opens the configuration and weights of a folder that has no tokenizer.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_weights(folder: &Path) -> Result<(DecoderConfig, Value, Weights)> {
        let path = folder.join("config.json");
        let json = read_json(&path)?;
        let config = decoder_config(&json, &path)?;
        let weights = Weights::Safetensors(SafetensorsCheckpoint::open(folder)?);
        Ok((config, json, weights))
    }

    /// Reads the decoder's weights.
    ///
    /// # Errors
    /// A missing, unexpected or misshapen tensor.
    pub fn load(&self, placement: &Placement) -> Result<Decoder> {
        Decoder::load(&self.config, &self.weights, placement)
    }

    fn open_folder(source: &str, folder: &Path) -> Result<Self> {
        if folder.join("adapter_config.json").is_file() && !folder.join("config.json").is_file() {
            return Err(Error::malformed(folder, "this is an adapter, not a model")
                .with_hint("name the base model, and the adapter with `--adapter`"));
        }
        let (config, config_json, weights) = Self::open_weights(folder)?;
        let tokenizer = Tokenizer::from_folder(folder)?;
        let generation_path = folder.join("generation_config.json");
        let generation_json = match generation_path.is_file() {
            true => Some(read_json(&generation_path)?),
            false => None,
        };
        let chat_template = ChatTemplate::from_folder(folder, &tokenizer)?;
        let eos_tokens = eos_tokens(&config_json, generation_json.as_ref(), &tokenizer);
        Ok(Self {
            source: source.to_owned(),
            path: folder.to_path_buf(),
            config,
            config_json,
            generation_json,
            tokenizer,
            chat_template,
            eos_tokens,
            weights,
        })
    }

    fn open_gguf(source: &str, path: &Path) -> Result<Self> {
        let weights = GgufWeights::open(path)?;
        let config_json = weights.config_json()?;
        let config = decoder_config(&config_json, path)?;
        let found = crate::formats::gguf_tokenizer::tokenizer_from_gguf(weights.file())?;
        let tokenizer = found.tokenizer;
        let chat_template = match found.chat_template {
            Some(text) => {
                Some(ChatTemplate::new(&text, None, None, path)?.with_tokens_of(&tokenizer))
            }
            None => None,
        };
        let eos_tokens = eos_tokens(&config_json, None, &tokenizer);
        Ok(Self {
            source: source.to_owned(),
            path: path.to_path_buf(),
            config,
            config_json,
            generation_json: None,
            tokenizer,
            chat_template,
            eos_tokens,
            weights: Weights::Gguf(weights),
        })
    }

    fn open_builtin() -> Result<Self> {
        let path = PathBuf::from(BUILTIN);
        let config_json: Value = serde_json::from_slice(builtin::CONFIG)
            .map_err(|error| Error::malformed(&path, error.to_string()))?;
        let config = decoder_config(&config_json, &path)?;
        let tokenizer =
            Tokenizer::from_json(builtin::TOKENIZER, Some(builtin::TOKENIZER_CONFIG), &path)?;
        let weights =
            Weights::Safetensors(SafetensorsCheckpoint::from_static(builtin::WEIGHTS, &path)?);
        let eos_tokens = eos_tokens(&config_json, None, &tokenizer);
        Ok(Self {
            source: BUILTIN.into(),
            path,
            config,
            config_json,
            generation_json: None,
            tokenizer,
            chat_template: None,
            eos_tokens,
            weights,
        })
    }
}

/// Every token that ends a generation: those of generation_config.json, of config.json, and the
/// tokenizer's own.
fn eos_tokens(config: &Value, generation: Option<&Value>, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut tokens = Vec::new();
    for json in generation.into_iter().chain([config]) {
        let listed = match json.get("eos_token_id") {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_u64).collect(),
            Some(value) => value.as_u64().into_iter().collect(),
            None => Vec::new(),
        };
        tokens.extend(listed.into_iter().filter_map(|token| u32::try_from(token).ok()));
    }
    tokens.extend(tokenizer.special().eos);
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

fn read_json(path: &Path) -> Result<Value> {
    let text = lora_core::files::read_text(path)?;
    serde_json::from_str(&text)
        .map_err(|error| Error::malformed(path, format!("not valid JSON: {error}")))
}
