//! A tokenizer as GGUF metadata: the inverse of `gguf_tokenizer`.
//!
//! A GGUF file names the way a text is split instead of describing it, so only tokenizers that are one of
//! those that `gguf_tokenizer` builds can be written; what splits otherwise is refused.

use serde_json::{Value as Json, json};

use super::gguf_tokenizer::{SPACE, SPLIT_NAMES, split_rules};
use super::gguf_value::{Array, Value};
use crate::chat_template::ChatTemplate;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

// Kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The metadata `tokenizer.…` for an embedding of `rows` rows. Rows without a token get one that no text
/// has.
///
/// # Errors
/// A tokenizer of a kind that GGUF has no name for; more tokens than rows.
pub(crate) fn tokenizer_metadata(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    rows: usize,
) -> Result<Vec<(String, Value)>> {
    let description = tokenizer.description()?;
    let model = &description["model"];
    if model["type"] != "BPE" {
        return Err(refused(&format!("its model is `{}`, not BPE", short(&model["type"]))));
    }
    let mut vocabulary = Vocabulary::read(&description, rows)?;
    let merges = merges(model)?;
    let special = tokenizer.special();
    let mut metadata = Vec::new();
    let mut put = |key: &str, value: Value| metadata.push((format!("tokenizer.{key}"), value));
    let text = |text: &str| Value::String(text.to_owned());
    if model["byte_fallback"] == true {
        let prefix = sentence_piece_prefix(&description)?;
        vocabulary.mark_pieces(model["unk_token"].as_str());
        put("ggml.model", text("llama"));
        put("ggml.pre", text("default"));
        put("ggml.scores", Value::Array(Array::F32(scores(&vocabulary, &merges))));
        put("ggml.add_space_prefix", Value::Bool(prefix));
    } else {
        put("ggml.model", text("gpt2"));
        put("ggml.pre", text(split_name(&description)?));
        let lines = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        put("ggml.merges", Value::Array(Array::String(lines)));
    }
    put("ggml.tokens", Value::Array(Array::String(vocabulary.tokens)));
    put("ggml.token_type", Value::Array(Array::I32(vocabulary.kinds)));
    for (name, id) in [
        ("bos", special.bos),
        ("eos", special.eos),
        ("unknown", special.unk),
        ("padding", special.pad),
    ] {
        if let Some(id) = id {
            put(&format!("ggml.{name}_token_id"), Value::U32(id));
        }
    }
    put("ggml.add_bos_token", Value::Bool(special.add_bos));
    put("ggml.add_eos_token", Value::Bool(special.add_eos));
    if let Some(template) = template {
        put("chat_template", text(template.source()));
    }
    Ok(metadata)
}

/// Tokens by number, and what each is.
struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<i32>,
}

impl Vocabulary {
    fn read(description: &Json, rows: usize) -> Result<Self> {
        let mut tokens: Vec<Option<(String, i32)>> = vec![None; rows];
        let mut place = |token: &str, id: &Json, kind: i32| {
            let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).unwrap_or(usize::MAX);
            match tokens.get_mut(id) {
                Some(slot) => {
                    *slot = Some((token.to_owned(), kind));
                    Ok(())
                }
                None => Err(Error::invalid(format!(
                    "token `{token}` has the number {id}, but the embedding has {rows} rows"
                ))),
            }
        };
        let vocabulary = description["model"]["vocab"].as_object();
        for (token, id) in vocabulary.into_iter().flatten() {
            place(token, id, NORMAL)?;
        }
        for token in description["added_tokens"].as_array().into_iter().flatten() {
            let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
            place(token["content"].as_str().unwrap_or_default(), &token["id"], kind)?;
        }
        let filled = tokens.into_iter().enumerate();
        let (tokens, kinds) =
            filled.map(|(id, token)| token.unwrap_or((format!("[PAD{id}]"), UNUSED))).unzip();
        Ok(Self { tokens, kinds })
    }

    /// The kinds that SentencePiece has besides.
    fn mark_pieces(&mut self, unknown: Option<&str>) {
        for (token, kind) in self.tokens.iter().zip(&mut self.kinds) {
            if Some(token.as_str()) == unknown {
                *kind = UNKNOWN;
            } else if is_byte(token) {
                *kind = BYTE;
            }
        }
    }
}

/// `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

fn merges(model: &Json) -> Result<Vec<(String, String)>> {
    let pair = |merge: &Json| match merge {
        Json::Array(pair) => Some((pair.first()?.as_str()?.into(), pair.get(1)?.as_str()?.into())),
        Json::String(line) => line.split_once(' ').map(|(l, r)| (l.to_owned(), r.to_owned())),
        _ => None,
    };
    let listed = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let read: Option<Vec<_>> = listed.iter().map(pair).collect();
    read.ok_or_else(|| refused("its merges are no pairs of tokens"))
}

/// Pieces that are merged earlier have higher scores; what is not merged can have any.
fn scores(vocabulary: &Vocabulary, merges: &[(String, String)]) -> Vec<f32> {
    let mut first = std::collections::HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        first.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |(token, &kind): (&String, &i32)| match kind {
        NORMAL => -(*first.get(token).unwrap_or(&merges.len()) as f32),
        _ => 0.0,
    };
    vocabulary.tokens.iter().zip(&vocabulary.kinds).map(score).collect()
}

/// Whether a space is put in front, for a tokenizer that treats text as SentencePiece does.
fn sentence_piece_prefix(description: &Json) -> Result<bool> {
    let steps = steps(&description["normalizer"], "normalizers");
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let plain = description["pre_tokenizer"].is_null();
    match steps.as_slice() {
        [first, second] if plain && *first == prepend && *second == replace => Ok(true),
        [only] if plain && *only == replace => Ok(false),
        _ => Err(refused("its way of writing spaces has no name there")),
    }
}

/// The name of the rules by which a byte-level tokenizer splits.
fn split_name(description: &Json) -> Result<&'static str> {
    let found = splits(&description["pre_tokenizer"]);
    let normalizer = steps(&description["normalizer"], "normalizers");
    let whole_words_first = description["model"]["ignore_merges"] == true;
    for name in SPLIT_NAMES {
        let Some(rules) = split_rules(name) else { continue };
        let built = rules
            .pre_tokenizers()
            .ok()
            .and_then(|steps| serde_json::to_value(steps).ok())
            .map(|steps| splits(&json!({"type": "Sequence", "pretokenizers": steps})));
        let composes = normalizer == [json!({"type": "NFC"})];
        if built.as_ref() == Some(&found)
            && (composes || normalizer.is_empty())
            && rules.compose_characters == composes
            && rules.whole_words_first == whole_words_first
        {
            return Ok(name);
        }
    }
    Err(refused("its way of splitting text has no name there"))
}

/// The steps of a pre-tokenizer; where offsets are cut does not change the tokens.
fn splits(pre_tokenizer: &Json) -> Vec<Json> {
    let mut steps = steps(pre_tokenizer, "pretokenizers");
    for step in &mut steps {
        if let Some(step) = step.as_object_mut() {
            step.remove("trim_offsets");
        }
    }
    steps
}

/// A step, or the steps of a sequence of them, whatever the depth.
fn steps(description: &Json, key: &str) -> Vec<Json> {
    if description.is_null() {
        return Vec::new();
    }
    match description[key].as_array() {
        Some(inner) => inner.iter().flat_map(|step| steps(step, key)).collect(),
        None => vec![description.clone()],
    }
}

fn short(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn refused(why: &str) -> Error {
    Error::invalid(format!("the tokenizer can't be written into a GGUF file: {why}")).with_hint(
        "write a Hugging Face folder; llama.cpp's `convert_hf_to_gguf.py` knows more tokenizers",
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, OpenOptions};

    #[test]
    fn every_named_split_is_recognised() {
        for name in SPLIT_NAMES {
            let rules = split_rules(name).unwrap();
            let mut description = json!({
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": rules.pre_tokenizers().unwrap()},
                "normalizer": null,
                "model": {"ignore_merges": rules.whole_words_first},
            });
            if rules.compose_characters {
                description["normalizer"] = json!({"type": "NFC"});
            }
            assert_eq!(split_name(&description).unwrap(), name);
        }
    }

    #[test]
    fn another_split_is_refused() {
        let other = json!({
            "pre_tokenizer": {"type": "Whitespace"},
            "normalizer": null,
            "model": {"ignore_merges": false},
        });
        insta::assert_snapshot!(
            split_name(&other).unwrap_err(),
            @"the tokenizer can't be written into a GGUF file: its way of splitting text has no name there"
        );
    }

    #[test]
    fn rows_without_a_token_are_filled() {
        let builtin = Checkpoint::open("builtin:", &OpenOptions::default()).unwrap();
        let rows = builtin.tokenizer.vocab_size() + 2;
        let metadata = tokenizer_metadata(&builtin.tokenizer, None, rows).unwrap();
        let find = |key: &str| metadata.iter().find(|(name, _)| name == key).unwrap().1.clone();
        let Value::Array(Array::String(tokens)) = find("tokenizer.ggml.tokens") else { panic!() };
        let Value::Array(Array::I32(kinds)) = find("tokenizer.ggml.token_type") else { panic!() };
        assert_eq!(tokens.len(), rows);
        assert_eq!(tokens[rows - 1], format!("[PAD{}]", rows - 1));
        assert_eq!((kinds[0], kinds[100], kinds[rows - 1]), (CONTROL, NORMAL, UNUSED));
        assert_eq!(find("tokenizer.ggml.pre"), Value::String("gpt-2".to_owned()));
        let error = tokenizer_metadata(&builtin.tokenizer, None, 3).unwrap_err().to_string();
        assert!(error.ends_with("but the embedding has 3 rows"), "{error}");
    }
}
