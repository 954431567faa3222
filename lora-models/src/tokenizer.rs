//! Text to tokens and back: `tokenizer.json` with the special tokens of `tokenizer_config.json`.
//!
//! Encoding never adds a token and never cuts or pads, whatever the files say: which document begins
//! with BOS is decided where documents are made. Texts for encoders are framed in `texts.rs`.

mod save;
mod special;
mod stream;
mod texts;
mod train;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use lora_core::files;
use serde_json::{Map, Value};
use tokenizers::PostProcessorWrapper;

pub use self::special::SpecialTokens;
pub use self::stream::TokenStream;
pub use self::texts::{EncodedText, TextEncoder};
use crate::chat_template::StoredTemplates;
use crate::{Error, Result};

/// Where a token's text begins and ends, in bytes.
pub type ByteRange = (usize, usize);

/// A tokenizer with its special tokens. Clones share the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
    special: SpecialTokens,
}

struct Shared {
    /// Without truncation, padding and post-processor: the last would trim the offsets of spaces.
    inner: tokenizers::Tokenizer,
    post_processor: Option<PostProcessorWrapper>,
    /// `tokenizer.json` as read, where nothing was added to it.
    json: Option<Vec<u8>>,
    /// `tokenizer_config.json` as read.
    config: Option<Map<String, Value>>,
    special_ids: HashSet<u32>,
    vocab_size: usize,
}

impl Tokenizer {
    /// A tokenizer that was built in memory.
    pub fn new(inner: tokenizers::Tokenizer, special: SpecialTokens) -> Self {
        Self::from_parts(inner, special, None, None)
    }

    /// Reads `tokenizer.json`, and beside it `tokenizer_config.json`, `special_tokens_map.json` and
    /// `added_tokens.json` where they are. `folder` may also be the `tokenizer.json` itself.
    ///
    /// # Errors
    /// No `tokenizer.json`; a file that is not valid JSON or no tokenizer; a BOS or EOS token that the
    /// vocabulary lacks.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let (folder, path) = if folder.is_file() {
            (folder.parent().unwrap_or(Path::new("")), folder.to_path_buf())
        } else {
            (folder, folder.join("tokenizer.json"))
        };
        if !path.is_file() {
            return Err(no_tokenizer(folder));
        }
        let json = files::read(&path)?;
        let declared = special::Declared::read(folder)?;
        Self::from_declared(json, declared, &path)
    }

    /// Reads a tokenizer from the content of `tokenizer.json` and `tokenizer_config.json`; `origin` is
    /// named in errors.
    ///
    /// # Errors
    /// As [`Self::from_folder`].
    pub fn from_json(json: &[u8], config_json: Option<&[u8]>, origin: &Path) -> Result<Self> {
        let declared = special::Declared::parse(config_json, origin)?;
        Self::from_declared(json.to_vec(), declared, origin)
    }

    /// The same vocabulary with other special tokens.
    #[must_use]
    pub fn with_special(&self, special: SpecialTokens) -> Self {
        let Shared { inner, post_processor, .. } = &*self.shared;
        let mut inner = inner.clone();
        inner.with_post_processor(post_processor.clone());
        Self::from_parts(inner, special, None, None)
    }

    /// The source of a folder's chat template: that of `chat_template.jinja`, else of
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// A file that can't be read, or whose template is neither text nor a list with a default.
    pub fn chat_template_in(folder: &Path) -> Result<Option<String>> {
        Ok(StoredTemplates::read(folder)?.map(|templates| templates.default))
    }

    /// The tokens of a text. Special tokens written in it are recognised; none are added.
    ///
    /// # Errors
    /// What the tokenizer's model can't encode.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self.shared.inner.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(encode_error(error.as_ref())),
        }
    }

    /// The tokens of a text with the range of bytes that each stands for. Tokens that share one
    /// character all have its whole range.
    ///
    /// # Errors
    /// What the tokenizer's model can't encode.
    pub fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<ByteRange>)> {
        match self.shared.inner.encode(text, false) {
            Ok(encoding) => Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec())),
            Err(error) => Err(encode_error(error.as_ref())),
        }
    }

    /// The text of tokens. Bytes that are no whole character become U+FFFD.
    ///
    /// # Errors
    /// What the tokenizer's decoder refuses.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.shared.inner.decode(ids, skip_special).map_err(|error| {
            Error::invalid(format!("the tokenizer can't turn tokens into text: {error}"))
        })
    }

    /// Decodes tokens one by one as they are generated, without the special ones.
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream::new(self)
    }

    /// The number of a token that is written like this, special or not.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.shared.inner.token_to_id(token)
    }

    /// How a token is written in the vocabulary: for a byte-level tokenizer not the text it stands
    /// for.
    pub fn token(&self, id: u32) -> Option<String> {
        self.shared.inner.id_to_token(id)
    }

    /// Whether a token is markup and not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.shared.special_ids.contains(&id)
    }

    /// One more than the largest token: an embedding needs at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.shared.vocab_size
    }

    /// The special tokens.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    fn from_declared(json: Vec<u8>, declared: special::Declared, origin: &Path) -> Result<Self> {
        let mut inner: tokenizers::Tokenizer = serde_json::from_slice(&json).map_err(|error| {
            Error::malformed(origin, format!("not a tokenizer: {error}"))
                .with_hint("fetch the model's tokenizer.json again")
        })?;
        switch_off_limits(&mut inner);
        let added = declared.add_missing_tokens(&mut inner)?;
        let special = declared.resolve(&inner)?;
        let json = (!added).then_some(json);
        Ok(Self::from_parts(inner, special, json, declared.into_config()))
    }

    fn from_parts(
        mut inner: tokenizers::Tokenizer,
        special: SpecialTokens,
        json: Option<Vec<u8>>,
        config: Option<Map<String, Value>>,
    ) -> Self {
        switch_off_limits(&mut inner);
        let post_processor = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let mut special_ids: HashSet<u32> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some(id))
            .collect();
        special_ids.extend([special.bos, special.eos, special.pad, special.unk].iter().flatten());
        let largest = inner.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        let shared = Shared { inner, post_processor, json, config, special_ids, vocab_size };
        Self { shared: Arc::new(shared), special }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

fn switch_off_limits(inner: &mut tokenizers::Tokenizer) {
    inner.with_padding(None);
    // Only a stride that is too large is refused, and there is none.
    let _ = inner.with_truncation(None);
}

fn encode_error(error: &(dyn std::error::Error + Send + Sync)) -> Error {
    Error::invalid(format!("the tokenizer can't encode this text: {error}"))
}

fn no_tokenizer(folder: &Path) -> Error {
    let slow = ["tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"]
        .into_iter()
        .find(|name| folder.join(name).is_file());
    match slow {
        Some(name) => Error::malformed(
            folder.join("tokenizer.json"),
            format!("no such file; there is only the older `{name}`"),
        )
        .with_hint(
            "write it once in Python: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        ),
        None => Error::malformed(folder.join("tokenizer.json"), "no such file")
            .with_hint("a model folder holds config.json, tokenizer.json and the weights"),
    }
}

#[cfg(test)]
#[path = "tokenizer/tests.rs"]
mod tests;
