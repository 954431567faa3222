//! The names of labels beside an adapter: PEFT's files do not hold them.

use std::path::Path;

use lora_core::files::{read_text, write_whole};
use serde_json::{Value, json};

use crate::encoder::EncoderConfig;
use crate::error::{Error, Result};

/// Name of the file in an adapter's folder. PEFT passes it by.
pub const LABELS_FILE: &str = "labels.json";

/// What the numbers of a classifier mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Their names, in the order of the logits.
    pub names: Vec<String>,
    /// The one number is the answer itself.
    pub regression: bool,
}

/// Writes the names into the folder of an adapter.
///
/// # Errors
/// The operating system's.
pub fn write_labels(folder: &Path, encoder: &EncoderConfig) -> Result<()> {
    let labels = json!({ "labels": encoder.labels, "regression": encoder.regression });
    let text = format!("{}\n", serde_json::to_string_pretty(&labels).unwrap_or_default());
    Ok(write_whole(&folder.join(LABELS_FILE), text.as_bytes())?)
}

/// Reads the names in the folder of an adapter; `None` where there are none.
///
/// # Errors
/// A file that is not as [`write_labels`] writes it.
pub fn read_labels(folder: &Path) -> Result<Option<Labels>> {
    let path = folder.join(LABELS_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let wrong = |what: &str| {
        Error::malformed(&path, what)
            .with_hint("it looks like {\"labels\": [\"no\", \"yes\"], \"regression\": false}")
    };
    let json: Value = serde_json::from_str(&read_text(&path)?)
        .map_err(|error| wrong(&format!("not valid JSON: {error}")))?;
    let names = json.get("labels").and_then(Value::as_array).filter(|names| !names.is_empty());
    let names: Option<Vec<String>> =
        names.and_then(|names| names.iter().map(|name| Some(name.as_str()?.to_owned())).collect());
    let names = names.ok_or_else(|| wrong("`labels` must be a list of texts"))?;
    let regression = json.get("regression").and_then(Value::as_bool).unwrap_or(false);
    if regression && names.len() != 1 {
        return Err(wrong("a regression has one label"));
    }
    Ok(Some(Labels { names, regression }))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read_labels(folder.path()).unwrap(), None);
        let names = vec!["no".to_owned(), "yes".to_owned()];
        let encoder = EncoderConfig {
            segments: 2,
            first_position: 0,
            padding: None,
            labels: names.clone(),
            regression: false,
        };
        write_labels(folder.path(), &encoder).unwrap();
        let labels = Labels { names, regression: false };
        assert_eq!(read_labels(folder.path()).unwrap(), Some(labels));
        for text in [
            "[",
            "{}",
            "{\"labels\": [1]}",
            "{\"labels\": []}",
            "{\"labels\": [\"a\", \"b\"], \"regression\": true}",
        ] {
            std::fs::write(folder.path().join(LABELS_FILE), text).unwrap();
            let error = read_labels(folder.path()).unwrap_err();
            assert!(error.to_string().contains(LABELS_FILE), "{error}");
            assert!(error.hint().is_some());
        }
    }
}
