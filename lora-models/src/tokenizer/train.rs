//! Training a byte-level BPE vocabulary on text, for models that are pre-trained from scratch.

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, ModelWrapper};

use super::{SpecialTokens, Tokenizer};
use crate::{Error, Result};

impl Tokenizer {
    /// Trains a byte-level BPE vocabulary of at most `vocab_size` tokens, the `special` ones first and
    /// then all 256 bytes, so that any text can be encoded. The same texts give the same tokenizer,
    /// in whatever order they come. Special tokens that occur in the texts are not learned as text.
    ///
    /// Which special token is BOS, EOS or padding is for [`Tokenizer::with_special`] to say.
    ///
    /// # Errors
    /// A vocabulary too small for the bytes, or no text.
    pub fn train_byte_bpe(
        texts: impl Iterator<Item = String> + Send,
        vocab_size: usize,
        special: &[&str],
    ) -> Result<Self> {
        let least = special.len() + ByteLevel::alphabet().len();
        if vocab_size < least {
            return Err(Error::invalid(format!(
                "a vocabulary of {vocab_size} tokens is too small: special tokens and bytes are {least}"
            ))
            .with_hint(format!("ask for more than {least} tokens")));
        }
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(special.iter().map(|token| AddedToken::from(*token, true)).collect())
            .build()
            .into();
        let mut inner = tokenizers::Tokenizer::new(ModelWrapper::BPE(BPE::default()));
        // No space is put before the text: what is decoded is what was encoded.
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
        inner.with_decoder(Some(ByteLevelDecoder::new(false, false, true)));
        let mut any = false;
        let pieces = texts.flat_map(|text| {
            any |= !text.is_empty();
            without_special(text, special)
        });
        inner
            .train::<TrainerWrapper, _, _>(&mut trainer, pieces)
            .map_err(|error| Error::invalid(format!("the vocabulary can't be trained: {error}")))?;
        if !any {
            return Err(Error::invalid("there is no text to train a vocabulary on"));
        }
        Ok(Self::new(inner, SpecialTokens::default()))
    }
}

/// The text between the special tokens.
fn without_special(text: String, special: &[&str]) -> Vec<String> {
    let mut pieces = vec![text];
    for token in special.iter().filter(|token| !token.is_empty()) {
        if pieces.iter().any(|piece| piece.contains(token)) {
            pieces = pieces
                .iter()
                .flat_map(|piece| piece.split(token))
                .filter(|piece| !piece.is_empty())
                .map(str::to_string)
                .collect();
        }
    }
    pieces
}
