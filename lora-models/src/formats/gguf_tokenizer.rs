//! The tokenizer inside a GGUF file, as the same tokenizer that Hugging Face's `tokenizer.json` makes.
//!
//! Two kinds are read: byte-level BPE (`gpt2`), whose merges are in the file, and SentencePiece BPE
//! (`llama`), whose merges follow from the scores of its pieces.

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PostProcessorWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::gguf::GgufFile;
use super::gguf_value::Value;
use crate::tokenizer::{SpecialTokens, Tokenizer};
use crate::{Error, Result};

/// What a GGUF file says about text.
pub struct GgufTokenizer {
    /// The tokenizer with its special tokens.
    pub tokenizer: Tokenizer,
    /// The source of the chat template, where there is one.
    pub chat_template: Option<String>,
}

/// Builds the tokenizer of a file.
///
/// # Errors
/// A tokenizer missing, of another kind, with another pre-tokenizer, or that contradicts itself.
pub fn tokenizer_from_gguf(file: &GgufFile) -> Result<GgufTokenizer> {
    let vocabulary = Vocabulary::read(file)?;
    let kind = file.get_str("tokenizer.ggml.model")?.ok_or_else(|| missing(file, "model"))?;
    let (mut inner, begins_with_bos) = match kind {
        "gpt2" => byte_level(file, &vocabulary)?,
        "llama" => sentence_piece(file, &vocabulary)?,
        other => {
            return Err(Error::malformed(
                file.path(),
                format!("tokenizer of the kind `{other}` is not supported"),
            )
            .with_hint("byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`) are"));
        }
    };
    inner.add_special_tokens(&vocabulary.added(&[UNKNOWN, CONTROL], true));
    inner.add_tokens(&vocabulary.added(&[USER_DEFINED], false));

    let token = |name: &str| -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match file.get_u32(&key)? {
            Some(id) if id as usize >= vocabulary.tokens.len() => {
                let count = vocabulary.tokens.len();
                let reason = format!("metadata `{key}` is {id}, but there are {count} tokens");
                Err(Error::malformed(file.path(), reason))
            }
            id => Ok(id),
        }
    };
    let special = SpecialTokens {
        bos: token("bos")?,
        eos: token("eos")?,
        pad: token("padding")?,
        unk: token("unknown")?,
        add_bos: file.get_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(begins_with_bos),
        add_eos: file.get_bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
    };
    let with_special = post_processor(&special, &vocabulary);
    if let Some(processor) = with_special.map_err(|error| unusable(file.path(), &error))? {
        inner.with_post_processor(Some(processor));
    }
    Ok(GgufTokenizer {
        tokenizer: Tokenizer::new(inner, special),
        chat_template: file.get_str("tokenizer.chat_template")?.map(str::to_owned),
    })
}

// Kinds of tokens.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// The tokens of a file and what each is.
struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Vec<u64>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile) -> Result<Self> {
        let tokens =
            file.get_strings("tokenizer.ggml.tokens")?.ok_or_else(|| missing(file, "tokens"))?;
        let key = "tokenizer.ggml.token_type";
        let kinds = match file.metadata(key) {
            None => vec![NORMAL; tokens.len()],
            Some(Value::Array(array)) if array.len() == tokens.len() => {
                array.as_u64s().ok_or_else(|| {
                    Error::malformed(file.path(), format!("metadata `{key}` is no list of kinds"))
                })?
            }
            Some(other) => {
                let reason = format!(
                    "metadata `{key}` is {}, but there are {} tokens",
                    other.describe(),
                    tokens.len()
                );
                return Err(Error::malformed(file.path(), reason));
            }
        };
        let mut first = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(other) = first.insert(token.as_str(), id) {
                let reason = format!("tokens {other} and {id} are both `{token}`");
                return Err(Error::malformed(file.path(), reason));
            }
        }
        Ok(Self { tokens, kinds })
    }

    fn ids(&self) -> Vocab {
        self.tokens.iter().zip(0..).map(|(token, id)| (token.clone(), id)).collect()
    }

    /// Tokens of these kinds, which are found in a text before anything else.
    fn added(&self, kinds: &[u64], special: bool) -> Vec<AddedToken> {
        let chosen = self.tokens.iter().zip(&self.kinds).filter(|(_, kind)| kinds.contains(kind));
        chosen
            .map(|(token, _)| AddedToken::from(token.as_str(), special).normalized(false))
            .collect()
    }
}

/// Byte-level BPE. The second value is whether texts begin with BOS where the file does not say.
fn byte_level(file: &GgufFile, vocabulary: &Vocabulary) -> Result<(tokenizers::Tokenizer, bool)> {
    let name = file.get_str("tokenizer.ggml.pre")?.unwrap_or("default");
    let Some(rules) = split_rules(name) else {
        return Err(Error::malformed(
            file.path(),
            format!("pre-tokenizer `{name}` is not supported"),
        )
        .with_hint(
            "use the safetensors version of this model, whose tokenizer.json says how text is \
                 split",
        ));
    };
    let lines =
        file.get_strings("tokenizer.ggml.merges")?.ok_or_else(|| missing(file, "merges"))?;
    let mut merges = Merges::with_capacity(lines.len());
    for (number, line) in lines.iter().enumerate() {
        // A token may begin with a space, but it may not have one inside.
        let cut = line.char_indices().skip(1).find(|(_, letter)| *letter == ' ');
        let Some((cut, _)) = cut else {
            let reason =
                format!("`tokenizer.ggml.merges`: merge {number} is `{line}`, not two tokens");
            return Err(Error::malformed(file.path(), reason));
        };
        merges.push((line[..cut].to_owned(), line[cut + 1..].to_owned()));
    }
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.ids(), merges)
        .ignore_merges(rules.whole_words_first)
        .build()
        .map_err(|error| unusable(file.path(), &error))?;
    let mut inner = tokenizers::Tokenizer::new(model);
    if rules.compose_characters {
        inner.with_normalizer(Some(NFC));
    }
    let pre_tokenizers = rules.pre_tokenizers().map_err(|error| unusable(file.path(), &error))?;
    inner.with_pre_tokenizer(Some(PreTokenizers::new(pre_tokenizers)));
    inner.with_decoder(Some(ByteLevel::new(false, true, true)));
    Ok((inner, rules.begins_with_bos))
}

/// How a byte-level tokenizer splits a text before the merges.
#[derive(Default)]
pub(super) struct SplitRules {
    /// Every digit is a word of its own.
    single_digits: bool,
    /// Regular expressions whose matches become words, one after the other.
    patterns: &'static [&'static str],
    /// GPT-2's own expression, behind those.
    gpt2_pattern: bool,
    /// Unicode normal form C comes first.
    pub(super) compose_characters: bool,
    /// A word that is a token is not put together from merges.
    pub(super) whole_words_first: bool,
    begins_with_bos: bool,
}

const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// One name for each set of rules, for writing.
pub(super) const SPLIT_NAMES: [&str; 4] = ["gpt-2", "smollm", "llama-bpe", "qwen2"];

/// The rules by the name that `tokenizer.ggml.pre` has.
pub(super) fn split_rules(name: &str) -> Option<SplitRules> {
    Some(match name {
        "gpt-2" => SplitRules { gpt2_pattern: true, ..SplitRules::default() },
        "smollm" | "starcoder" | "refact" => {
            SplitRules { single_digits: true, gpt2_pattern: true, ..SplitRules::default() }
        }
        "llama-bpe" | "llama3" | "llama-v3" => SplitRules {
            patterns: &[LLAMA3_PATTERN],
            whole_words_first: true,
            begins_with_bos: true,
            ..SplitRules::default()
        },
        "qwen2" | "deepseek-r1-qwen" => SplitRules {
            patterns: &[QWEN2_PATTERN],
            compose_characters: true,
            ..SplitRules::default()
        },
        // What llama.cpp does with files that don't say.
        "default" => SplitRules {
            patterns: &[
                r"[\p{P}\$\+<=>\^~\|]+",
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
                r"\p{N}+",
                r"[0-9][0-9][0-9]",
            ],
            ..SplitRules::default()
        },
        _ => return None,
    })
}

impl SplitRules {
    pub(super) fn pre_tokenizers(&self) -> tokenizers::Result<Vec<PreTokenizerWrapper>> {
        let mut steps: Vec<PreTokenizerWrapper> = vec![];
        if self.single_digits {
            steps.push(Digits::new(true).into());
        }
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
        }
        steps.push(ByteLevel::new(false, true, self.gpt2_pattern).into());
        Ok(steps)
    }
}

/// How SentencePiece writes a space.
pub(super) const SPACE: &str = "▁";
/// Pieces are a few letters; what is longer than this is never put together.
const LONGEST_PIECE_BYTES: usize = 512;

/// SentencePiece BPE with bytes for unknown characters. The second value is as in [`byte_level`].
fn sentence_piece(
    file: &GgufFile,
    vocabulary: &Vocabulary,
) -> Result<(tokenizers::Tokenizer, bool)> {
    let scores = file.get_f32s("tokenizer.ggml.scores")?.ok_or_else(|| missing(file, "scores"))?;
    if scores.len() != vocabulary.tokens.len() {
        let (scores, tokens) = (scores.len(), vocabulary.tokens.len());
        let reason = format!("`tokenizer.ggml.scores` has {scores} entries for {tokens} tokens");
        return Err(Error::malformed(file.path(), reason));
    }
    let mut model = BPE::builder()
        .vocab_and_merges(vocabulary.ids(), merges_from_scores(vocabulary, scores))
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(unknown) = vocabulary.kinds.iter().position(|&kind| kind == UNKNOWN) {
        model = model.unk_token(vocabulary.tokens[unknown].clone());
    }
    let model = model.build().map_err(|error| unusable(file.path(), &error))?;
    let prefix = file.get_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unusable = |error| unusable(file.path(), &error);
    let mut normalizers = vec![Replace::new(" ", SPACE).map_err(unusable)?.into()];
    let mut decoders = vec![
        Replace::new(SPACE, " ").map_err(unusable)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefix {
        normalizers.insert(0, Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_normalizer(Some(Normalizers::new(normalizers)));
    inner.with_decoder(Some(Decoders::new(decoders)));
    Ok((inner, true))
}

/// Every way in which a piece is two others, the best pieces first; among the ways for one piece, in
/// the order of the left part and then of the right one.
fn merges_from_scores(vocabulary: &Vocabulary, scores: &[f32]) -> Merges {
    let pieces = || vocabulary.tokens.iter().map(String::as_str).enumerate();
    let normal = |id: usize| vocabulary.kinds[id] == NORMAL;
    let ids: HashMap<&str, usize> =
        pieces().filter(|&(id, _)| normal(id)).map(|(id, piece)| (piece, id)).collect();
    let mut merges = vec![];
    for (id, piece) in pieces().filter(|&(id, _)| normal(id)) {
        if piece.len() > LONGEST_PIECE_BYTES {
            continue;
        }
        for (cut, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(cut);
            if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                merges.push((id, left, right));
            }
        }
    }
    merges.sort_by(|first, second| {
        scores[second.0].total_cmp(&scores[first.0]).then_with(|| first.cmp(second))
    });
    let text = |id: usize| vocabulary.tokens[id].clone();
    merges.into_iter().map(|(_, left, right)| (text(left), text(right))).collect()
}

/// What adds BOS and EOS, for tools that read the tokenizer from disk.
fn post_processor(
    special: &SpecialTokens,
    vocabulary: &Vocabulary,
) -> tokenizers::Result<Option<PostProcessorWrapper>> {
    let around = |add: bool, id: Option<u32>| id.filter(|_| add);
    let (bos, eos) = (around(special.add_bos, special.bos), around(special.add_eos, special.eos));
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let text = |id: u32| vocabulary.tokens[id as usize].as_str();
    let sequence = |name: &str, kind: u32| {
        let token = |id: u32| json!({"SpecialToken": {"id": text(id), "type_id": kind}});
        let whole = json!({"Sequence": {"id": name, "type_id": kind}});
        [bos.map(token), Some(whole), eos.map(token)].into_iter().flatten().collect::<Vec<_>>()
    };
    let tokens: serde_json::Map<_, _> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|id| (text(id).to_owned(), json!({"id": text(id), "ids": [id], "tokens": [text(id)]})))
        .collect();
    let pair = [sequence("A", 0), sequence("B", 1)].concat();
    let processor = json!({
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    });
    Ok(Some(serde_json::from_value(processor)?))
}

fn missing(file: &GgufFile, key: &str) -> Error {
    Error::malformed(file.path(), format!("metadata `tokenizer.ggml.{key}` is missing")).with_hint(
        "the file holds no tokenizer: convert the model again with its tokenizer beside it",
    )
}

fn unusable(path: &Path, error: &tokenizers::Error) -> Error {
    Error::malformed(path, format!("its tokenizer can't be used: {error}"))
}

#[cfg(test)]
#[path = "gguf_tokenizer_tests.rs"]
mod tests;
