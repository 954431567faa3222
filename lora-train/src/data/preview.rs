//! An example as text, cut where learned turns into not learned.

use lora_models::tokenizer::Tokenizer;

use super::Example;

/// A run of tokens that are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewSpan {
    /// What they say.
    pub text: String,
    /// Whether they are targets.
    pub learned: bool,
    /// Whether they are special tokens.
    pub special: bool,
}

/// The spans of an example; put together they are its text, special tokens included.
///
/// Tokens that make no text (an incomplete character at the cut) show as the replacement character.
pub fn preview(example: &Example, tokenizer: &Tokenizer) -> Vec<PreviewSpan> {
    let mut spans = Vec::new();
    // The first token of a labelled text only stands for it.
    let learned = |at: usize| example.learned[at] && example.label.is_none();
    let kind = |at: usize| (learned(at), tokenizer.is_special(example.tokens[at]));
    let text = |end: usize| tokenizer.decode(&example.tokens[..end], false).unwrap_or_default();
    let mut start = 0;
    let mut before = String::new();
    while start < example.tokens.len() {
        let (learned, special) = kind(start);
        let mut end = start + 1;
        while end < example.tokens.len() && kind(end) == (learned, special) {
            end += 1;
        }
        // Decoded with what stands before it: some decoders take the first space away.
        let all = text(end);
        let own = match all.strip_prefix(before.as_str()) {
            Some(own) => own.to_string(),
            None => tokenizer.decode(&example.tokens[start..end], false).unwrap_or_default(),
        };
        spans.push(PreviewSpan { text: own, learned, special });
        before = all;
        start = end;
    }
    spans
}
