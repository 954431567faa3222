//! Tests of the tokenizers inside GGUF files.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use super::*;
use crate::formats::Array;
use crate::formats::gguf_testing::{Builder, fetched_smollm2};

fn strings(texts: &[&str]) -> Value {
    Value::Array(Array::String(texts.iter().map(|&text| text.to_owned()).collect()))
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn open(builder: Builder) -> Result<GgufTokenizer> {
    let file = GgufFile::from_bytes(builder.build(), Path::new("tiny.gguf")).unwrap();
    tokenizer_from_gguf(&file)
}

fn error(builder: Builder) -> String {
    open(builder).err().unwrap().to_string()
}

const BYTE_TOKENS: [&str; 12] =
    ["<|end|>", "a", "b", "Ġ", "1", "2", "ab", "Ġab", "Ċ", "<tool>", "12", "."];

fn byte_level_file(pre: &str) -> Builder {
    Builder::new()
        .metadata("tokenizer.ggml.model", text("gpt2"))
        .metadata("tokenizer.ggml.pre", text(pre))
        .metadata("tokenizer.ggml.tokens", strings(&BYTE_TOKENS))
        .metadata(
            "tokenizer.ggml.token_type",
            Value::Array(Array::I32(vec![3, 1, 1, 1, 1, 1, 1, 1, 1, 4, 1, 1])),
        )
        .metadata("tokenizer.ggml.merges", strings(&["a b", "Ġ ab", "1 2"]))
        .metadata("tokenizer.ggml.bos_token_id", Value::U32(0))
        .metadata("tokenizer.ggml.eos_token_id", Value::U32(0))
}

#[test]
fn byte_level_with_special_tokens_in_the_text() {
    let found = open(byte_level_file("gpt-2").metadata("tokenizer.chat_template", text("{{ x }}")));
    let GgufTokenizer { tokenizer, chat_template } = found.unwrap();
    assert_eq!(chat_template.as_deref(), Some("{{ x }}"));
    assert_eq!(tokenizer.vocab_size(), BYTE_TOKENS.len());
    assert_eq!(tokenizer.encode("ab ab\n12<|end|><tool>.").unwrap(), [6, 7, 8, 10, 0, 9, 11]);
    assert_eq!(tokenizer.decode(&[6, 7, 0, 9], true).unwrap(), "ab ab<tool>");
    assert_eq!(tokenizer.decode(&[6, 7, 0, 9], false).unwrap(), "ab ab<|end|><tool>");
    assert!(tokenizer.is_special(0) && !tokenizer.is_special(9));
    let special = tokenizer.special();
    assert_eq!((special.bos, special.eos, special.pad), (Some(0), Some(0), None));
    assert!(!special.add_bos && !special.add_eos);
}

#[test]
fn pre_tokenizers_differ() {
    let encode =
        |pre: &str, text: &str| open(byte_level_file(pre)).unwrap().tokenizer.encode(text).unwrap();
    // Digits one by one.
    assert_eq!(encode("smollm", "12"), [4, 5]);
    assert_eq!(encode("qwen2", "12"), [4, 5]);
    assert_eq!(encode("llama-bpe", "12"), [10]);
    assert_eq!(encode("default", "12."), [10, 11]);
    assert!(open(byte_level_file("llama-bpe")).unwrap().tokenizer.special().add_bos);
}

#[test]
fn sentence_piece_merges_follow_the_scores() {
    let tokens = [
        "<unk>", "<s>", "</s>", "<0x41>", "<0xC3>", "<0xA9>", "▁", "a", "b", "▁a", "ab", "▁ab",
        "<0x0A>",
    ];
    let kinds = [2, 3, 3, 6, 6, 6, 1, 1, 1, 1, 1, 1, 6];
    let scores = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -8.0, -7.0, -2.0, -1.0, -3.0, 0.0];
    let file = |prefix| {
        Builder::new()
            .metadata("tokenizer.ggml.model", text("llama"))
            .metadata("tokenizer.ggml.tokens", strings(&tokens))
            .metadata("tokenizer.ggml.scores", Value::Array(Array::F32(scores.to_vec())))
            .metadata("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds.to_vec())))
            .metadata("tokenizer.ggml.bos_token_id", Value::U32(1))
            .metadata("tokenizer.ggml.eos_token_id", Value::U32(2))
            .metadata("tokenizer.ggml.add_space_prefix", Value::Bool(prefix))
    };
    let tokenizer = open(file(true)).unwrap().tokenizer;
    // `ab` is the better piece, so `▁ab` comes from `▁` and `ab`.
    assert_eq!(tokenizer.encode("ab").unwrap(), [11]);
    assert_eq!(tokenizer.encode("a b").unwrap(), [9, 6, 8]);
    // Bytes for what is no piece.
    assert_eq!(tokenizer.encode("é").unwrap(), [6, 4, 5]);
    assert_eq!(tokenizer.decode(&[11, 4, 5, 2], true).unwrap(), "abé");
    assert!(tokenizer.special().add_bos);
    let bare = open(file(false)).unwrap().tokenizer;
    assert_eq!(bare.encode("ab a").unwrap(), [10, 9]);
}

#[test]
fn contradictions_are_named() {
    let without = Builder::new();
    assert!(error(without).contains("metadata `tokenizer.ggml.tokens` is missing"));
    assert!(error(byte_level_file("bloom")).contains("pre-tokenizer `bloom` is not supported"));
    let base = |kind: &str| {
        Builder::new()
            .metadata("tokenizer.ggml.model", text(kind))
            .metadata("tokenizer.ggml.tokens", strings(&["a", "b", "ab"]))
    };
    assert!(error(base("bert")).contains("tokenizer of the kind `bert` is not supported"));
    assert!(error(base("gpt2")).contains("metadata `tokenizer.ggml.merges` is missing"));
    assert!(error(base("llama")).contains("metadata `tokenizer.ggml.scores` is missing"));
    let merges = |merge: &str| base("gpt2").metadata("tokenizer.ggml.merges", strings(&[merge]));
    assert!(open(merges("a b")).is_ok());
    assert!(error(merges("ab")).contains("merge 0 is `ab`, not two tokens"));
    assert!(error(merges("a c")).contains("its tokenizer can't be used"));
    let out = merges("a b").metadata("tokenizer.ggml.eos_token_id", Value::U32(3));
    assert!(error(out).contains("`tokenizer.ggml.eos_token_id` is 3, but there are 3 tokens"));
    let kinds = Value::Array(Array::I32(vec![1]));
    let kinds = merges("a b").metadata("tokenizer.ggml.token_type", kinds);
    assert!(error(kinds).contains("`tokenizer.ggml.token_type` is an array of 1 i32, but there"));
    let scores = Value::Array(Array::F32(vec![1.0]));
    let scores = base("llama").metadata("tokenizer.ggml.scores", scores);
    assert!(error(scores).contains("`tokenizer.ggml.scores` has 1 entries for 3 tokens"));
    let twice = Builder::new()
        .metadata("tokenizer.ggml.model", text("gpt2"))
        .metadata("tokenizer.ggml.tokens", strings(&["a", "b", "a"]));
    assert!(error(twice).contains("tokens 0 and 2 are both `a`"));
}

#[test]
fn bos_is_put_in_front_for_tools_that_read_the_file() {
    let file = byte_level_file("gpt-2").metadata("tokenizer.ggml.add_bos_token", Value::Bool(true));
    let tokenizer = open(file).unwrap().tokenizer;
    assert_eq!(tokenizer.encode("ab").unwrap(), [6]);
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path(), None).unwrap();
    let saved = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
    assert_eq!(saved.encode("ab", true).unwrap().get_ids(), [0, 6]);
}

/// The prompts of the real SmolLM2 and the tokens that another implementation gets.
#[test]
fn smollm2() {
    let Some(path) = fetched_smollm2() else { return };
    let found = tokenizer_from_gguf(&GgufFile::open(&path).unwrap()).unwrap();
    assert!(found.chat_template.unwrap().contains("<|im_start|>"));
    let tokenizer = found.tokenizer;
    let prompt = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
                  Face<|im_end|>\n<|im_start|>user\nWhat is the capital of \
                  France?<|im_end|>\n<|im_start|>assistant\n";
    let expected = [
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411,
        407, 19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1,
        520, 9531, 198,
    ];
    assert_eq!(tokenizer.encode(prompt).unwrap(), expected);
    let greedy = [504, 3575, 282, 4649, 314, 7042, 30, 2];
    assert_eq!(tokenizer.decode(&greedy, true).unwrap(), "The capital of France is Paris.");
    let special = tokenizer.special();
    assert_eq!((special.bos, special.eos, special.pad), (Some(1), Some(2), Some(2)));
    assert!(!special.add_bos);
}

/// llama.cpp's own cases: `ggml-vocab-NAME.gguf` with texts in `.inp` and their tokens in `.out`.
#[test]
#[ignore = "reads the folder of llama.cpp's vocabularies that LORA_GGUF_VOCABS names"]
fn vocabularies_of_llama_cpp() {
    let folder = PathBuf::from(std::env::var_os("LORA_GGUF_VOCABS").unwrap());
    for name in ["gpt-2", "llama-bpe", "llama-spm", "qwen2", "refact", "starcoder"] {
        let path = folder.join(format!("ggml-vocab-{name}.gguf"));
        let tokenizer = tokenizer_from_gguf(&GgufFile::open(&path).unwrap()).unwrap().tokenizer;
        let texts = std::fs::read_to_string(path.with_extension("gguf.inp")).unwrap();
        let tokens = std::fs::read_to_string(path.with_extension("gguf.out")).unwrap();
        let texts: Vec<&str> = texts.split_terminator("\n__ggml_vocab_test__\n").collect();
        let tokens: Vec<&str> = tokens.lines().collect();
        assert_eq!(texts.len(), tokens.len(), "{name}");
        for (text, tokens) in texts.iter().zip(tokens) {
            let expected: Vec<u32> =
                tokens.split_whitespace().map(|token| token.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{name}: {text:?}");
        }
    }
}
