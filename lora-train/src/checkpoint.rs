//! Checkpoints of a run: trainable tensors, optimizer and position, complete or not there at all.
//!
//! A checkpoint is written into a folder beside its place, every file synced, a manifest of SHA-256 sums
//! last; then the folder is renamed. Reading takes the newest one whose manifest holds.

use std::fs;
use std::path::{Path, PathBuf};

use lora_core::files::write_whole;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::optimizer::Moments;

/// Where a run stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: usize,
    /// Loss of the first step.
    pub first_loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Validation loss before the first step.
    pub validation_before: Option<f64>,
    /// Lowest validation loss so far.
    pub best_loss: Option<f64>,
    /// Step of the lowest validation loss.
    pub best_step: usize,
    /// Evaluations since then.
    pub evaluations_without_improvement: usize,
    /// Seconds of training before this checkpoint.
    pub seconds: f64,
}

/// Key, shape and numbers.
type StoredTensor = (String, Vec<usize>, Vec<f32>);

/// Everything a run needs to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct RunCheckpoint {
    /// Where the run stands.
    pub progress: Progress,
    /// The trainable tensors: key, shape, numbers.
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
    /// The optimizer's moments, in the same order.
    pub moments: Vec<Moments>,
}

const TENSORS: &str = "trainable.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const PROGRESS: &str = "progress.json";
const MANIFEST: &str = "manifest.json";

impl RunCheckpoint {
    /// Writes the checkpoint as `folder/step-000123` and removes all but the newest `keep`.
    ///
    /// # Errors
    /// A disk that is full or can't be written; older checkpoints stay as they are then.
    pub fn save(&self, folder: &Path, keep: usize) -> Result<PathBuf> {
        let name = format!("step-{:06}", self.progress.step);
        let place = folder.join(&name);
        let scratch = folder.join(format!("{name}.tmp"));
        remove_folder(&scratch)?;
        fs::create_dir_all(&scratch).map_err(|error| Error::write(&scratch, error))?;
        let written = self.write_files(&scratch);
        if let Err(error) = written {
            // The scratch folder would only take space from the next try.
            let _ = fs::remove_dir_all(&scratch);
            return Err(error);
        }
        remove_folder(&place)?;
        fs::rename(&scratch, &place).map_err(|error| Error::write(&place, error))?;
        sync_folder(folder)?;
        for (_, old) in checkpoints(folder).into_iter().skip(keep.max(1)) {
            remove_folder(&old)?;
        }
        Ok(place)
    }

    /// Reads the newest complete checkpoint of a run, if there is one.
    ///
    /// # Errors
    /// A complete checkpoint whose content can't be read.
    pub fn newest(folder: &Path) -> Result<Option<Self>> {
        for (_, place) in checkpoints(folder) {
            if is_complete(&place) {
                return Self::read(&place).map(Some);
            }
        }
        Ok(None)
    }

    fn write_files(&self, folder: &Path) -> Result<()> {
        let tensors = self.tensors.iter();
        let tensors =
            serialize(tensors.map(|(key, shape, data)| (key.clone(), shape, data)), folder)?;
        let flat: Vec<_> = self.moments.iter().map(|m| (m, vec![m.first.len()])).collect();
        let moments = flat.iter().flat_map(|(moments, shape)| {
            [
                (format!("{}.first", moments.key), shape, &moments.first),
                (format!("{}.second", moments.key), shape, &moments.second),
            ]
        });
        let moments = serialize(moments, folder)?;
        let progress = serde_json::to_vec_pretty(&self.progress)
            .map_err(|error| Error::malformed(folder, error.to_string()))?;
        let mut sums = serde_json::Map::new();
        for (name, bytes) in [(TENSORS, tensors), (OPTIMIZER, moments), (PROGRESS, progress)] {
            sums.insert(name.to_owned(), hex(&bytes).into());
            write_whole(&folder.join(name), &bytes)?;
        }
        let manifest = serde_json::Value::Object(sums).to_string();
        write_whole(&folder.join(MANIFEST), manifest.as_bytes())?;
        Ok(())
    }

    fn read(place: &Path) -> Result<Self> {
        let path = place.join(PROGRESS);
        let progress = serde_json::from_slice(&lora_core::files::read(&path)?)
            .map_err(|error| Error::malformed(&path, error.to_string()))?;
        let tensors = deserialize(&place.join(TENSORS))?;
        let optimizer = deserialize(&place.join(OPTIMIZER))?;
        let mut moments = Vec::new();
        for (key, ..) in &tensors {
            let find = |kind: &str| {
                let name = format!("{key}.{kind}");
                let found = optimizer.iter().find(|(found, ..)| *found == name);
                found.map(|(_, _, data)| data.clone()).ok_or_else(|| {
                    Error::malformed(place.join(OPTIMIZER), format!("tensor `{name}` is missing"))
                })
            };
            moments.push(Moments {
                key: key.clone(),
                first: find("first")?,
                second: find("second")?,
            });
        }
        Ok(Self { progress, tensors, moments })
    }
}

/// Checkpoint folders, newest first.
fn checkpoints(folder: &Path) -> Vec<(usize, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(usize, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let step = name.strip_prefix("step-")?.parse().ok()?;
            Some((step, entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found
}

/// Whether every file that the manifest names is there and unchanged.
fn is_complete(place: &Path) -> bool {
    let read = |name: &str| fs::read(place.join(name)).ok();
    let manifest = read(MANIFEST).and_then(|bytes| {
        serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&bytes).ok()
    });
    manifest.is_some_and(|sums| {
        [TENSORS, OPTIMIZER, PROGRESS].iter().all(|name| {
            let sum = read(name).map(|bytes| hex(&bytes));
            sum.is_some() && sums.get(*name).and_then(|sum| sum.as_str()) == sum.as_deref()
        })
    })
}

fn serialize<'a>(
    tensors: impl Iterator<Item = (String, &'a Vec<usize>, &'a Vec<f32>)>,
    folder: &Path,
) -> Result<Vec<u8>> {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .map(|(key, shape, data)| {
            (key, shape.clone(), data.iter().flat_map(|number| number.to_le_bytes()).collect())
        })
        .collect();
    let malformed =
        |error: safetensors::SafeTensorError| Error::malformed(folder, error.to_string());
    let mut views = Vec::new();
    for (key, shape, data) in &bytes {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data)
                .map_err(malformed)?;
        views.push((key.clone(), view));
    }
    // The order of the keys is the order of the optimizer; safetensors sorts by name, so it is kept.
    let order: Vec<&str> = bytes.iter().map(|(key, ..)| key.as_str()).collect();
    let order = serde_json::to_string(&order).unwrap_or_default();
    let metadata = std::collections::HashMap::from([("order".to_owned(), order)]);
    safetensors::serialize(views, Some(metadata)).map_err(malformed)
}

fn deserialize(path: &Path) -> Result<Vec<StoredTensor>> {
    let bytes = lora_core::files::read(path)?;
    let malformed = |reason: String| Error::malformed(path, reason);
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)
        .map_err(|error| malformed(error.to_string()))?;
    let order = header.metadata().as_ref().and_then(|metadata| metadata.get("order"));
    let order: Vec<String> = order
        .and_then(|order| serde_json::from_str(order).ok())
        .ok_or_else(|| malformed("no `order` in the metadata".into()))?;
    let file = safetensors::SafeTensors::deserialize(&bytes)
        .map_err(|error| malformed(error.to_string()))?;
    let mut tensors = Vec::new();
    for key in order {
        let view = file.tensor(&key).map_err(|error| malformed(error.to_string()))?;
        let numbers = view.data().chunks_exact(4);
        let numbers = numbers.map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        tensors.push((key, view.shape().to_vec(), numbers.collect()));
    }
    Ok(tensors)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::write(path, error))
        }
        _ => Ok(()),
    }
}

fn sync_folder(path: &Path) -> Result<()> {
    // Windows has no way to sync a folder and needs none.
    if cfg!(unix) {
        let folder = fs::File::open(path).map_err(|error| Error::write(path, error))?;
        folder.sync_all().map_err(|error| Error::write(path, error))?;
    }
    Ok(())
}
