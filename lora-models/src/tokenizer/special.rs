//! Which tokens are special: what `tokenizer_config.json`, `special_tokens_map.json` and
//! `added_tokens.json` declare, looked up in the vocabulary.

use std::path::{Path, PathBuf};

use lora_core::files;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::{Error, Result};

/// Tokens with a meaning beyond their text, and whether the model expects them around a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a document.
    pub bos: Option<u32>,
    /// Ends a document or the model's turn.
    pub eos: Option<u32>,
    /// Fills up short rows of a batch; often the same token as `eos`, which is why padding is never
    /// recognised by its token.
    pub pad: Option<u32>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<u32>,
    /// A plain document begins with `bos`. Chat templates write theirs themselves.
    pub add_bos: bool,
    /// A plain document ends with `eos`.
    pub add_eos: bool,
}

/// What the files beside `tokenizer.json` say.
pub(super) struct Declared {
    config: Option<Map<String, Value>>,
    config_path: PathBuf,
    map: Option<Map<String, Value>>,
    map_path: PathBuf,
    /// Content, number and where they are declared, by number.
    added: Vec<(AddedToken, u32, PathBuf)>,
}

impl Declared {
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let config_path = folder.join("tokenizer_config.json");
        let map_path = folder.join("special_tokens_map.json");
        let config = read_object(&config_path)?;
        let map = read_object(&map_path)?;
        let added = declared_in_config(config.as_ref(), &config_path)?;
        let mut declared = Self { config, config_path, map, map_path, added };
        declared.read_added_tokens(&folder.join("added_tokens.json"))?;
        declared.added.sort_by_key(|(_, id, _)| *id);
        Ok(declared)
    }

    /// Reads the older list, which has only numbers.
    fn read_added_tokens(&mut self, path: &Path) -> Result<()> {
        for (content, id) in read_object(path)?.unwrap_or_default() {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                Error::malformed(path, format!("`{content}` has the number {id}"))
            })?;
            if self.added.iter().any(|(token, ..)| token.content == content) {
                continue;
            }
            let mut special = false;
            for key in ["bos_token", "eos_token", "pad_token", "unk_token"] {
                special |= self.named(key)?.is_some_and(|(token, _)| token == content);
            }
            let token = AddedToken::from(content, special).normalized(false);
            self.added.push((token, id, path.to_path_buf()));
        }
        Ok(())
    }

    pub(super) fn parse(config_json: Option<&[u8]>, origin: &Path) -> Result<Self> {
        let config = config_json.map(|json| parse_object(json, origin)).transpose()?;
        let mut added = declared_in_config(config.as_ref(), origin)?;
        added.sort_by_key(|(_, id, _)| *id);
        let path = origin.to_path_buf();
        Ok(Self { config, config_path: path.clone(), map: None, map_path: path, added })
    }

    pub(super) fn into_config(self) -> Option<Map<String, Value>> {
        self.config
    }

    /// Adds tokens that are declared but not in `tokenizer.json`; whether there were any.
    pub(super) fn add_missing_tokens(&self, inner: &mut tokenizers::Tokenizer) -> Result<bool> {
        let mut added = false;
        for (token, id, path) in &self.added {
            if inner.token_to_id(&token.content).is_some() {
                continue;
            }
            if token.special {
                inner.add_special_tokens(std::slice::from_ref(token));
            } else {
                inner.add_tokens(std::slice::from_ref(token));
            }
            added = true;
            let given = inner.token_to_id(&token.content);
            if given != Some(*id) {
                let content = &token.content;
                let next = given.map_or_else(|| "none".to_string(), |given| given.to_string());
                return Err(Error::malformed(
                    path,
                    format!(
                        "`{content}` is declared as token {id}, but the next free one is {next}"
                    ),
                )
                .with_hint("tokenizer.json and this file belong to different models: fetch both"));
            }
        }
        Ok(added)
    }

    /// Looks the special tokens up in the vocabulary.
    pub(super) fn resolve(&self, inner: &tokenizers::Tokenizer) -> Result<SpecialTokens> {
        let bos = self.required(inner, "bos_token")?;
        let eos = self.required(inner, "eos_token")?;
        // Some checkpoints name a padding or unknown token that they do not have and never use.
        let pad = self.named("pad_token")?.and_then(|(token, _)| inner.token_to_id(&token));
        let unk = self.named("unk_token")?.and_then(|(token, _)| inner.token_to_id(&token));
        let (begins, ends) = added_by_post_processor(inner, bos, eos);
        let flag = |key: &str| self.config.as_ref()?.get(key)?.as_bool();
        Ok(SpecialTokens {
            bos,
            eos,
            pad,
            unk,
            add_bos: bos.is_some() && flag("add_bos_token").unwrap_or(begins),
            add_eos: eos.is_some() && flag("add_eos_token").unwrap_or(ends),
        })
    }

    fn required(&self, inner: &tokenizers::Tokenizer, key: &str) -> Result<Option<u32>> {
        let Some((token, path)) = self.named(key)? else {
            return Ok(None);
        };
        match inner.token_to_id(&token) {
            Some(id) => Ok(Some(id)),
            None => Err(Error::malformed(
                path,
                format!("`{key}` is `{token}`, which the vocabulary of tokenizer.json lacks"),
            )
            .with_hint("both files have to come from the same model")),
        }
    }

    /// A special token as text, in either spelling: `"</s>"` or `{"content": "</s>", ..}`. What the
    /// configuration says, `null` too, wins over the map.
    fn named(&self, key: &str) -> Result<Option<(String, &Path)>> {
        let in_config = self.config.as_ref().and_then(|config| config.get(key));
        let in_map = self.map.as_ref().and_then(|map| map.get(key));
        let (value, path) = match (in_config, in_map) {
            (Some(value), _) => (value, &self.config_path),
            (None, Some(value)) => (value, &self.map_path),
            (None, None) => return Ok(None),
        };
        match value.get("content").unwrap_or(value) {
            Value::Null => Ok(None),
            Value::String(token) => Ok(Some((token.clone(), path))),
            other => Err(Error::malformed(path, format!("`{key}` is {other}, not a token"))
                .with_hint("write the token as text")),
        }
    }
}

/// Whether the tokenizer's post-processor puts BOS before and EOS after a document.
fn added_by_post_processor(
    inner: &tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
) -> (bool, bool) {
    // An empty document: all tokens are the post-processor's.
    let Ok(encoding) = inner.encode("", true) else {
        return (false, false);
    };
    let ids = encoding.get_ids();
    let begins = bos.is_some() && ids.first().copied() == bos;
    // One token alone that is both BOS and EOS begins the document.
    let ends = eos.is_some() && ids.last().copied() == eos && !(begins && ids.len() == 1);
    (begins, ends)
}

fn declared_in_config(
    config: Option<&Map<String, Value>>,
    path: &Path,
) -> Result<Vec<(AddedToken, u32, PathBuf)>> {
    let Some(decoder) = config.and_then(|config| config.get("added_tokens_decoder")) else {
        return Ok(Vec::new());
    };
    let wrong = |what: &str| Error::malformed(path, format!("`added_tokens_decoder`: {what}"));
    let decoder = decoder.as_object().ok_or_else(|| wrong("not an object"))?;
    decoder
        .iter()
        .map(|(id, token)| {
            let number = id.parse::<u32>().map_err(|_| wrong(&format!("`{id}` is no token")))?;
            let content = token
                .get("content")
                .and_then(Value::as_str)
                .ok_or_else(|| wrong(&format!("token {id} has no `content`")))?;
            let flag = |key: &str| token.get(key).and_then(Value::as_bool);
            let special = flag("special").unwrap_or(false);
            let added = AddedToken::from(content, special)
                .single_word(flag("single_word").unwrap_or(false))
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false))
                .normalized(flag("normalized").unwrap_or(!special));
            Ok((added, number, path.to_path_buf()))
        })
        .collect()
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.is_file() {
        return Ok(None);
    }
    parse_object(&files::read(path)?, path).map(Some)
}

fn parse_object(json: &[u8], path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_slice(json)
        .map_err(|error| Error::malformed(path, format!("not a JSON object: {error}")))
}
