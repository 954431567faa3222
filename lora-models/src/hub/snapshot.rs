//! Which files make a model, and whether the cache has them all.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use lora_core::files;
use serde_json::Value;

use super::HubId;
use crate::{Error, Result};

/// Read where they are; most models lack some.
const DESCRIPTIONS: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Which of the hub's files to fetch; the shards that [`INDEX`] names come on top.
pub(super) fn select(id: &HubId, available: &[String]) -> Result<Vec<&'static str>> {
    let has = |name: &str| available.iter().any(|file| file == name);
    let mut wanted: Vec<&str> = DESCRIPTIONS.into_iter().filter(|name| has(name)).collect();
    if !has("config.json") && ADAPTER.into_iter().all(has) {
        wanted.extend(ADAPTER);
        return Ok(wanted);
    }
    // A single file wins, as in transformers.
    match [WEIGHTS, INDEX].into_iter().find(|name| has(name)) {
        Some(weights) if has("config.json") => wanted.push(weights),
        _ => return Err(unusable(id, available)),
    }
    Ok(wanted)
}

fn unusable(id: &HubId, available: &[String]) -> Error {
    let ending = |extension: &str| -> Vec<&str> {
        available.iter().map(String::as_str).filter(|name| name.ends_with(extension)).collect()
    };
    let gguf = ending(".gguf");
    if !gguf.is_empty() {
        return Error::invalid(format!("`{id}` has no safetensors, only: {}", gguf.join(", ")))
            .with_hint("download one of these files and name its path");
    }
    if !ending(".bin").is_empty() || !ending(".pth").is_empty() {
        return Error::invalid(format!("`{id}` has no safetensors, only pickled weights"))
            .with_hint("look for a newer revision, or convert it with transformers");
    }
    Error::invalid(format!("`{id}` is no model: config.json or model.safetensors is missing"))
        .with_hint("name a model that loads with transformers")
}

/// The shards that an index names.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let json: Value = serde_json::from_slice(&files::read(index)?)
        .map_err(|error| Error::malformed(index, format!("not valid JSON: {error}")))?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| Error::malformed(index, "`weight_map` is missing"))?;
    map.iter()
        .map(|(tensor, shard)| match shard.as_str() {
            Some(name) if inside(name) => Ok(name.to_string()),
            _ => {
                Err(Error::malformed(index, format!("`{tensor}` is in {shard}, which is no file")))
            }
        })
        .collect()
}

/// Whether a name stays in its folder.
fn inside(name: &str) -> bool {
    let mut components = Path::new(name).components().peekable();
    components.peek().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
}

/// Where the cache keeps a model.
pub(super) fn model_folder(id: &HubId, cache: &Path) -> PathBuf {
    cache.join(format!("models--{}", id.model.replace('/', "--")))
}

/// The cached folder of a model, if it is whole.
pub(super) fn find_complete(id: &HubId, cache: &Path) -> Result<PathBuf> {
    const HINT: &str = "run it once without `--offline` (and without HF_HUB_OFFLINE) to fetch it";
    let folder = model_folder(id, cache);
    let reference = folder.join("refs").join(&id.revision);
    let commit = std::fs::read_to_string(reference).ok().filter(|commit| inside(commit.trim()));
    let commit = commit.as_deref().map_or(id.revision.as_str(), str::trim);
    let snapshot = folder.join("snapshots").join(commit);
    if !snapshot.is_dir() {
        let cache = cache.display();
        return Err(Error::invalid(format!("`{id}` is not in the cache `{cache}`")).with_hint(HINT));
    }
    match missing(&snapshot)? {
        None => Ok(snapshot),
        Some(file) => {
            Err(Error::invalid(format!("the cached copy of `{id}` lacks `{file}`")).with_hint(HINT))
        }
    }
}

/// The first file that a folder lacks.
fn missing(snapshot: &Path) -> Result<Option<String>> {
    let has = |name: &str| snapshot.join(name).is_file();
    if !has("config.json") && has(ADAPTER[0]) {
        return Ok((!has(ADAPTER[1])).then(|| ADAPTER[1].to_string()));
    }
    if let Some(file) = ["config.json", "tokenizer.json"].into_iter().find(|name| !has(name)) {
        return Ok(Some(file.to_string()));
    }
    if has(WEIGHTS) {
        return Ok(None);
    }
    if !has(INDEX) {
        return Ok(Some(WEIGHTS.to_string()));
    }
    Ok(shards(&snapshot.join(INDEX))?.into_iter().find(|name| !has(name)))
}
