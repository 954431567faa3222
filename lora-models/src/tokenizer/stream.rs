//! Decoding token by token, in whole characters.

use super::Tokenizer;
use crate::Result;

/// Turns generated tokens into text as soon as that text is certain. All pieces together are the text
/// that [`Tokenizer::decode`] makes of all tokens at once, without the special ones.
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The last tokens: first those already shown, which decoders need to know whether a space comes
    /// before the next, then those whose text is not certain yet.
    window: Vec<u32>,
    shown_tokens: usize,
    /// Text of the shown tokens of the window.
    shown_text: String,
}

impl<'a> TokenStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), shown_tokens: 0, shown_text: String::new() }
    }

    /// The text that is certain with this token; none where a character is not complete.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        // Special tokens have no text here, but would grow the window.
        if self.tokenizer.is_special(id) {
            return Ok(None);
        }
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window, true)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        let new = self.new_part(&text);
        if new.is_empty() {
            return Ok(None);
        }
        let new = new.to_string();
        self.window.drain(..self.shown_tokens);
        self.shown_tokens = self.window.len();
        self.shown_text = self.tokenizer.decode(&self.window, true)?;
        Ok(Some(new))
    }

    /// The rest, at the end: bytes that never became a character are shown as U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<Option<String>> {
        let text = self.tokenizer.decode(&self.window, true)?;
        let new = self.new_part(&text).to_string();
        self.window.clear();
        self.shown_tokens = 0;
        self.shown_text.clear();
        Ok((!new.is_empty()).then_some(new))
    }

    fn new_part<'t>(&self, text: &'t str) -> &'t str {
        // Decoders that tidy up (a space before a comma) may change what was shown; what comes after
        // the common part is new.
        let common = text
            .char_indices()
            .zip(self.shown_text.chars())
            .find(|((_, new), shown)| new != shown)
            .map_or_else(|| self.shown_text.len().min(text.len()), |((index, _), _)| index);
        &text[common..]
    }
}
