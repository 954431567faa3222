//! Texts for encoders: with the tokens that the tokenizer's own post-processor puts around one text and between
//! two, and the segment of each token.

use tokenizers::{EncodeInput, PostProcessor as _, TruncationParams, TruncationStrategy};

use super::{Tokenizer, encode_error};
use crate::{Error, Result};

/// Turns texts and pairs of texts into what an encoder reads.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    whole: tokenizers::Tokenizer,
    cut: tokenizers::Tokenizer,
    max_tokens: usize,
}

/// A text, or two, as an encoder reads them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedText {
    /// Token numbers, `[CLS] … [SEP]` or what the model has in their place.
    pub tokens: Vec<u32>,
    /// Segment of each token.
    pub segments: Vec<u32>,
    /// Tokens that were cut off.
    pub truncated: usize,
}

impl Tokenizer {
    /// What makes texts of at most `max_tokens` tokens; of two texts the longer one is cut first.
    ///
    /// # Errors
    /// A tokenizer that does not say which tokens stand around a text; no room for any of the text's own.
    pub fn text_encoder(&self, max_tokens: usize) -> Result<TextEncoder> {
        let Some(post_processor) = self.shared.post_processor.clone() else {
            return Err(Error::invalid(
                "tokenizer.json has no `post_processor`: which tokens stand around a text is not known",
            )
            .with_hint("write it once in Python: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"));
        };
        let added = post_processor.added_tokens(true);
        if max_tokens <= added {
            let reason =
                format!("{max_tokens} tokens leave no room for a text: {added} are markers");
            return Err(Error::invalid(reason).with_hint("raise `data.max_tokens`"));
        }
        let mut whole = self.shared.inner.clone();
        whole.with_post_processor(Some(post_processor));
        let mut cut = whole.clone();
        let limit = TruncationParams {
            max_length: max_tokens,
            strategy: TruncationStrategy::LongestFirst,
            ..TruncationParams::default()
        };
        cut.with_truncation(Some(limit)).map_err(|error| encode_error(error.as_ref()))?;
        Ok(TextEncoder { whole, cut, max_tokens })
    }
}

impl TextEncoder {
    /// The tokens of a text, or of a pair.
    ///
    /// # Errors
    /// What the tokenizer's model can't encode.
    pub fn encode(&self, text: &str, second: Option<&str>) -> Result<EncodedText> {
        let input = || match second {
            Some(second) => EncodeInput::from((text, second)),
            None => EncodeInput::from(text),
        };
        let failed = |error: tokenizers::Error| encode_error(error.as_ref());
        let whole = self.whole.encode(input(), true).map_err(failed)?;
        let length = whole.len();
        let kept = match length > self.max_tokens {
            true => self.cut.encode(input(), true).map_err(failed)?,
            false => whole,
        };
        Ok(EncodedText {
            tokens: kept.get_ids().to_vec(),
            segments: kept.get_type_ids().to_vec(),
            truncated: length - kept.len(),
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn words(post_processor: Value) -> Tokenizer {
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": post_processor, "decoder": null,
            "model": {"type": "WordLevel", "unk_token": "?",
                "vocab": {"?": 0, "[C]": 1, "[S]": 2, "a": 3, "b": 4, "c": 5, "d": 6}},
        });
        Tokenizer::from_json(json.to_string().as_bytes(), None, Path::new("tokenizer.json"))
            .unwrap()
    }

    #[test]
    fn texts_are_framed_as_bert_and_roberta_do() {
        let bert = words(json!({"type": "BertProcessing", "sep": ["[S]", 2], "cls": ["[C]", 1]}));
        let found = bert.text_encoder(9).unwrap();
        let one = found.encode("a b", None).unwrap();
        assert_eq!((one.tokens, one.segments), (vec![1, 3, 4, 2], vec![0; 4]));
        let two = found.encode("a b", Some("c")).unwrap();
        assert_eq!(two.tokens, [1, 3, 4, 2, 5, 2]);
        assert_eq!(two.segments, [0, 0, 0, 0, 1, 1]);
        let roberta = words(json!({"type": "RobertaProcessing", "sep": ["[S]", 2],
            "cls": ["[C]", 1], "trim_offsets": true, "add_prefix_space": false}));
        let two = roberta.text_encoder(9).unwrap().encode("a b", Some("c")).unwrap();
        assert_eq!(two.tokens, [1, 3, 4, 2, 2, 5, 2]);
        assert_eq!(two.segments, [0; 7]);
        // What a text of a language model gets stays as it was.
        assert_eq!(bert.encode("a b").unwrap(), [3, 4]);
    }

    #[test]
    fn the_longer_text_is_cut_and_the_frame_stays() {
        let bert = words(json!({"type": "BertProcessing", "sep": ["[S]", 2], "cls": ["[C]", 1]}));
        let short = bert.text_encoder(6).unwrap();
        let found = short.encode("a b c d a b", None).unwrap();
        assert_eq!((found.tokens, found.truncated), (vec![1, 3, 4, 5, 6, 2], 2));
        let found = short.encode("a b c d", Some("d")).unwrap();
        assert_eq!((found.tokens, found.truncated), (vec![1, 3, 4, 2, 6, 2], 2));
        assert_eq!(short.encode("a b", Some("d")).unwrap().truncated, 0);
    }

    #[test]
    fn without_a_frame_or_room_there_is_an_error() {
        let error = words(Value::Null).text_encoder(9).unwrap_err().to_string();
        assert!(error.contains("no `post_processor`"), "{error}");
        let bert = words(json!({"type": "BertProcessing", "sep": ["[S]", 2], "cls": ["[C]", 1]}));
        let error = bert.text_encoder(3).unwrap_err().to_string();
        assert_eq!(error, "3 tokens leave no room for a text: 3 are markers");
    }
}
