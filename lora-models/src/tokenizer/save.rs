//! Writing the tokenizer files of a model folder.

use std::path::Path;

use lora_core::files;
use serde_json::{Map, Value, json};
use tokenizers::processors::template::TemplateProcessing;

use super::Tokenizer;
use crate::{Error, Result};

impl Tokenizer {
    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and, where there is
    /// a template, `chat_template.jinja` into a folder that exists. Files that were read from a folder
    /// are written as they were; a new template replaces the old.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn save(&self, folder: &Path, chat_template: Option<&str>) -> Result<()> {
        files::write_whole(&folder.join("tokenizer.json"), &self.tokenizer_json()?)?;
        let mut config = match &self.shared.config {
            Some(config) => config.clone(),
            None => self.describe(),
        };
        if let Some(template) = chat_template {
            // Older readers know only the configuration, newer ones prefer the file.
            config.insert("chat_template".into(), Value::String(template.into()));
            files::write_whole(&folder.join("chat_template.jinja"), template.as_bytes())?;
        }
        write_json(&folder.join("tokenizer_config.json"), config)?;
        write_json(&folder.join("special_tokens_map.json"), self.special_map())
    }

    pub(super) fn tokenizer_json(&self) -> Result<Vec<u8>> {
        if let Some(json) = &self.shared.json {
            return Ok(json.clone());
        }
        let mut inner = self.shared.inner.clone();
        match &self.shared.post_processor {
            Some(post_processor) => inner.with_post_processor(Some(post_processor.clone())),
            None => inner.with_post_processor(self.document_markers()?),
        };
        let json = inner.to_string(true);
        json.map(String::into_bytes)
            .map_err(|error| Error::invalid(format!("the tokenizer can't be written: {error}")))
    }

    /// The tokenizer as the content of `tokenizer.json`, in the spelling of the newest version.
    ///
    /// # Errors
    /// What can't be written as JSON.
    pub(crate) fn description(&self) -> Result<Value> {
        serde_json::to_value(&self.shared.inner)
            .map_err(|error| Error::invalid(format!("the tokenizer can't be described: {error}")))
    }

    /// Makes other readers put BOS and EOS where this one does.
    fn document_markers(&self) -> Result<Option<TemplateProcessing>> {
        let special = self.special();
        let marker = |wanted: bool, id: Option<u32>| {
            id.filter(|_| wanted).and_then(|id| Some((self.token(id)?, id)))
        };
        let bos = marker(special.add_bos, special.bos);
        let eos = marker(special.add_eos, special.eos);
        if bos.is_none() && eos.is_none() {
            return Ok(None);
        }
        let single: Vec<String> = bos
            .iter()
            .map(|(token, _)| format!("{token}:0"))
            .chain(["$A:0".to_string()])
            .chain(eos.iter().map(|(token, _)| format!("{token}:0")))
            .collect();
        let mut tokens: Vec<(String, u32)> = bos.into_iter().chain(eos).collect();
        tokens.dedup();
        let refused = |error: &dyn std::fmt::Display| {
            Error::invalid(format!("BOS and EOS can't be written into tokenizer.json: {error}"))
        };
        let mut builder = TemplateProcessing::builder();
        builder.try_single(single).map_err(|error| refused(&error))?.special_tokens(tokens);
        builder.build().map(Some).map_err(|error| refused(&error))
    }

    /// `tokenizer_config.json` for a tokenizer that had none.
    fn describe(&self) -> Map<String, Value> {
        let mut added: Vec<_> = self.shared.inner.get_added_tokens_decoder().into_iter().collect();
        added.sort_by_key(|(id, _)| *id);
        let added: Map<String, Value> = added
            .into_iter()
            .map(|(id, token)| {
                let description = json!({
                    "content": token.content,
                    "lstrip": token.lstrip,
                    "normalized": token.normalized,
                    "rstrip": token.rstrip,
                    "single_word": token.single_word,
                    "special": token.special,
                });
                (id.to_string(), description)
            })
            .collect();
        let mut config = Map::new();
        config.insert("add_bos_token".into(), self.special.add_bos.into());
        config.insert("add_eos_token".into(), self.special.add_eos.into());
        config.insert("added_tokens_decoder".into(), added.into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.extend(self.special_map());
        config
    }

    fn special_map(&self) -> Map<String, Value> {
        let special = self.special();
        [
            ("bos_token", special.bos),
            ("eos_token", special.eos),
            ("pad_token", special.pad),
            ("unk_token", special.unk),
        ]
        .into_iter()
        .filter_map(|(key, id)| Some((key.to_string(), self.token(id?)?.into())))
        .collect()
    }
}

fn write_json(path: &Path, object: Map<String, Value>) -> Result<()> {
    let text = format!("{:#}\n", Value::Object(object));
    Ok(files::write_whole(path, text.as_bytes())?)
}
