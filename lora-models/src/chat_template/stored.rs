//! Where a model folder keeps its chat templates.

use std::path::{Path, PathBuf};

use lora_core::files;
use serde_json::Value;

use crate::{Error, Result};

/// Where transformers keeps the template for tools beside `chat_template.jinja`.
pub(crate) const TOOL_USE_FILE: &str = "additional_chat_templates/tool_use.jinja";

/// The templates of a folder, as text.
pub(crate) struct StoredTemplates {
    pub(crate) default: String,
    /// Used where a conversation has tools.
    pub(crate) tool_use: Option<String>,
    pub(crate) origin: PathBuf,
}

impl StoredTemplates {
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("chat_template.jinja");
        if path.is_file() {
            let default = files::read_text(&path)?;
            let beside = folder.join(TOOL_USE_FILE);
            let tool_use = beside.is_file().then(|| files::read_text(&beside)).transpose()?;
            return Ok(Some(Self { default, tool_use, origin: path }));
        }
        for name in ["tokenizer_config.json", "chat_template.json"] {
            let path = folder.join(name);
            if !path.is_file() {
                continue;
            }
            let config: Value = serde_json::from_slice(&files::read(&path)?)
                .map_err(|error| Error::malformed(&path, format!("not valid JSON: {error}")))?;
            match config.get("chat_template") {
                None | Some(Value::Null) => {}
                Some(value) => return Self::parse(value, &path).map(Some),
            }
        }
        Ok(None)
    }

    fn parse(value: &Value, path: &Path) -> Result<Self> {
        let origin = path.to_path_buf();
        let wrong = || {
            Error::malformed(path, "`chat_template` is neither text nor a list of templates")
                .with_hint("a list holds objects with `name` and `template`")
        };
        if let Some(default) = value.as_str() {
            return Ok(Self { default: default.to_string(), tool_use: None, origin });
        }
        let named: Vec<(&str, &str)> = value
            .as_array()
            .ok_or_else(wrong)?
            .iter()
            .map(|entry| Some((entry.get("name")?.as_str()?, entry.get("template")?.as_str()?)))
            .collect::<Option<_>>()
            .ok_or_else(wrong)?;
        let find = |wanted: &str| {
            named.iter().find(|(name, _)| *name == wanted).map(|(_, text)| (*text).to_string())
        };
        match (find("default"), named.as_slice()) {
            (Some(default), _) => Ok(Self { default, tool_use: find("tool_use"), origin }),
            (None, [(_, only)]) => {
                Ok(Self { default: (*only).to_string(), tool_use: None, origin })
            }
            (None, _) => {
                let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
                Err(Error::malformed(
                    path,
                    format!("no chat template is named `default`, only: {}", names.join(", ")),
                )
                .with_hint("put the one to use into chat_template.jinja"))
            }
        }
    }
}
