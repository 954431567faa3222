//! Models of the Hugging Face hub: `org/name[@revision]` becomes a local folder.
//!
//! Files are kept where the Python libraries keep theirs, in the same layout, so a model is fetched
//! once for all of them. `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`
//! mean what they mean there. Only what this crate reads is fetched.

mod download;
mod settings;
mod snapshot;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::settings::Settings;
use crate::{Error, Result};

/// How far a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubProgress {
    /// Name of the file in the model's folder.
    pub file: String,
    /// Bytes that are there, with those of an earlier, interrupted download.
    pub bytes_done: u64,
    /// Size of the file.
    pub bytes_total: u64,
}

/// How models are fetched. What is not set comes from the environment.
#[derive(Clone, Default)]
pub struct HubOptions {
    /// Takes models from the cache and never asks the hub; also by `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// Called as bytes arrive.
    pub progress: Option<Arc<dyn Fn(HubProgress) + Send + Sync>>,
    /// The folder with `models--org--name`; otherwise `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: Option<PathBuf>,
    /// The hub; otherwise `HF_ENDPOINT`, or `https://huggingface.co`.
    pub endpoint: Option<String>,
    /// Access token; otherwise `HF_TOKEN`, or the one that `hf auth login` stored.
    pub token: Option<String>,
}

impl std::fmt::Debug for HubOptions {
    /// Without the token.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("HubOptions")
            .field("offline", &self.offline)
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// Whether `source` is `org/name` or `org/name@revision`, and nothing on this machine is called so.
pub fn is_hub_id(source: &str) -> bool {
    HubId::parse(source).is_ok() && !Path::new(source).exists()
}

/// Fetches a model and gives the folder with its configuration, tokenizer, template and weights.
/// What is there already is not fetched again, an interrupted download goes on where it stopped.
///
/// # Errors
/// An id that is none; a hub that can't be reached, refuses or has no such model; a model without
/// safetensors; with `offline` a model that is not or not wholly in the cache.
pub fn fetch(id: &str, options: &HubOptions) -> Result<PathBuf> {
    let settings = Settings::resolve(options, |name| std::env::var(name).ok())?;
    fetch_with(id, &settings)
}

fn fetch_with(id: &str, settings: &Settings) -> Result<PathBuf> {
    let id = HubId::parse(id)?;
    if settings.offline {
        snapshot::find_complete(&id, &settings.cache)
    } else {
        download::fetch(&id, settings)
    }
}

/// A model and its revision: a branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HubId {
    model: String,
    revision: String,
}

impl HubId {
    fn parse(text: &str) -> Result<Self> {
        let (model, revision) = text.split_once('@').unwrap_or((text, "main"));
        let valid_model = model.split_once('/').is_some_and(|(organisation, name)| {
            valid_name(organisation) && valid_name(name) && !names_a_file(name)
        });
        let valid_revision = revision.split('/').all(valid_name);
        if !valid_model || !valid_revision {
            return Err(Error::invalid(format!("`{text}` is no hub id"))
                .with_hint("a hub id is `org/name` or `org/name@revision`"));
        }
        Ok(Self { model: model.to_string(), revision: revision.to_string() })
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision.as_str() {
            "main" => write!(formatter, "{}", self.model),
            revision => write!(formatter, "{}@{revision}", self.model),
        }
    }
}

fn valid_name(name: &str) -> bool {
    let edge = |character: Option<char>| !matches!(character, None | Some('-' | '.'));
    name.len() <= 96
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && !name.contains("..")
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// So that a mistyped path is reported as one.
fn names_a_file(name: &str) -> bool {
    [".gguf", ".safetensors", ".json", ".jsonl", ".toml", ".bin", ".txt"]
        .iter()
        .any(|extension| name.ends_with(extension))
}

#[cfg(test)]
#[path = "hub/tests.rs"]
mod tests;

#[cfg(test)]
#[path = "hub/test_server.rs"]
mod test_server;
