//! Tests of the tokenizer.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

const CORPUS: [&str; 4] = [
    "the cat sat on the mat, the cat sat on the hat",
    "naïve café, Straße, 你好世界, 🙂🙃 and the cat",
    "def add(a, b):\n    return a + b\n\n\n",
    "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\nthe hat<|im_end|>\n",
];

const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

fn trained() -> Tokenizer {
    let texts = CORPUS.iter().map(ToString::to_string);
    Tokenizer::train_byte_bpe(texts, 320, &SPECIAL).unwrap()
}

fn json_of(tokenizer: &Tokenizer) -> String {
    String::from_utf8(tokenizer.tokenizer_json().unwrap()).unwrap()
}

/// SentencePiece BPE as in Llama 2: spaces become `▁`, unknown characters become bytes.
fn byte_fallback_json() -> Value {
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    for byte in 0..=255 {
        vocab.insert(format!("<0x{byte:02X}>"), vocab.len().into());
    }
    for token in ["▁", "h", "i", "▁h", "▁hi", "y", "o", "▁y", "▁yo"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false, "vocab": vocab,
            "merges": [["▁", "h"], ["▁h", "i"], ["▁", "y"], ["▁y", "o"]]}
    })
}

fn byte_fallback(config: &Value) -> Result<Tokenizer> {
    let json = byte_fallback_json().to_string();
    let config = config.to_string();
    Tokenizer::from_json(json.as_bytes(), Some(config.as_bytes()), Path::new("tokenizer.json"))
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream();
    let mut pieces: Vec<String> = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
    pieces.extend(stream.finish().unwrap());
    pieces
}

#[test]
fn training_is_deterministic() {
    let first = json_of(&trained());
    for _ in 0..4 {
        assert_eq!(first, json_of(&trained()));
    }
    let backwards = CORPUS.iter().rev().map(ToString::to_string);
    assert_eq!(first, json_of(&Tokenizer::train_byte_bpe(backwards, 320, &SPECIAL).unwrap()));
    // "the" occurs six times in text that is not markup, more often than any other longer word.
    let merges = serde_json::from_str::<Value>(&first).unwrap()["model"]["merges"].clone();
    let merged = |index: usize| {
        let pair = &merges[index];
        format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())
    };
    assert_eq!([merged(0), merged(1), merged(2)], ["at", "he", "the"]);
}

#[test]
fn any_text_comes_back() {
    let tokenizer = trained();
    for text in CORPUS.iter().chain(&["", " ", "  two", "ß\u{0}\u{7f}\r\n\t", "日本語 unseen 🦀"])
    {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), *text);
    }
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), [2]);
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(3));
    assert_eq!(tokenizer.decode(&[2], true).unwrap(), "");
    assert_eq!(tokenizer.token(2).as_deref(), Some("<|im_end|>"));
}

#[test]
fn markup_is_not_learned_as_text() {
    let json = json_of(&trained());
    assert!(!json.contains("\"im"), "{json}");
    let vocab: Value = serde_json::from_str(&json).unwrap();
    assert!(vocab["model"]["vocab"].as_object().unwrap().len() <= 320);
}

#[test]
fn a_vocabulary_has_to_hold_the_bytes() {
    let texts = || std::iter::once("text".to_string());
    let error = Tokenizer::train_byte_bpe(texts(), 258, &SPECIAL).unwrap_err();
    assert_eq!(error.hint(), Some("ask for more than 259 tokens"));
    let least = Tokenizer::train_byte_bpe(texts(), 259, &SPECIAL).unwrap();
    assert_eq!(least.vocab_size(), 259);
    assert!(Tokenizer::train_byte_bpe(std::iter::empty(), 300, &SPECIAL).is_err());
}

#[test]
fn offsets_are_bytes_and_cover_the_text() {
    let tokenizer = trained();
    let text = "the cat<|im_end|> 你好 🙂";
    let (ids, offsets) = tokenizer.encode_with_offsets(text).unwrap();
    assert_eq!(ids, tokenizer.encode(text).unwrap());
    let mut end = 0;
    for (id, (from, to)) in ids.iter().zip(&offsets) {
        assert!(*from <= end && *to >= end, "gap before {from}");
        assert!(text.get(*from..*to).is_some(), "not whole characters: {from}..{to}");
        if tokenizer.is_special(*id) {
            assert_eq!(&text[*from..*to], "<|im_end|>");
        }
        end = *to;
    }
    assert_eq!(end, text.len());
    // A token that begins with a space includes it.
    assert_eq!(&text[offsets[1].0..offsets[1].1], " cat");
}

#[test]
fn offsets_keep_spaces_even_where_the_file_trims_them() {
    let mut json: Value = serde_json::from_str(&json_of(&trained())).unwrap();
    json["post_processor"] = json!(
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let json = json.to_string();
    let tokenizer = Tokenizer::from_json(json.as_bytes(), None, Path::new("t.json")).unwrap();
    assert_eq!(tokenizer.encode_with_offsets("the cat").unwrap().1, [(0, 3), (3, 7)]);
    assert_eq!(json_of(&tokenizer), json, "saved as read");
}

#[test]
fn stored_truncation_and_padding_are_ignored() {
    let tokenizer = byte_fallback(&json!({"bos_token": "<s>"})).unwrap();
    let ids = tokenizer.encode("hi yo hi yo").unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hi yo hi yo");
    assert_eq!(ids.len(), 4);
}

#[test]
fn special_tokens_in_both_spellings() {
    let text =
        byte_fallback(&json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "pad_token": null}));
    let objects = byte_fallback(&json!({
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": false},
        "eos_token": {"content": "</s>"}, "unk_token": {"content": "<unk>"}}));
    let expected = SpecialTokens {
        bos: Some(1),
        eos: Some(2),
        pad: None,
        unk: Some(0),
        add_bos: true,
        add_eos: false,
    };
    assert_eq!(text.unwrap().special(), &expected);
    assert_eq!(objects.unwrap().special(), &expected);
}

#[test]
fn add_bos_is_said_or_inferred() {
    let add_bos = |config: Value| byte_fallback(&config).unwrap().special().add_bos;
    assert!(add_bos(json!({"bos_token": "<s>"})), "the post-processor puts it");
    assert!(!add_bos(json!({"bos_token": "<s>", "add_bos_token": false})));
    assert!(!add_bos(json!({"add_bos_token": true})), "there is none to add");
    assert!(!add_bos(json!({"bos_token": "</s>"})), "the post-processor puts another token");
    let without = json_of(&trained());
    let config = br#"{"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}"#;
    let tokenizer =
        Tokenizer::from_json(without.as_bytes(), Some(config), Path::new("t.json")).unwrap();
    assert!(!tokenizer.special().add_bos);
    assert_eq!(tokenizer.special().eos, Some(2));
}

#[test]
fn a_missing_end_token_is_an_error_and_a_missing_pad_token_is_none() {
    let error = byte_fallback(&json!({"eos_token": "<|eot|>"})).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`tokenizer.json`: `eos_token` is `<|eot|>`, which the vocabulary of tokenizer.json lacks"
    );
    let tokenizer = byte_fallback(&json!({"pad_token": "[PAD]"})).unwrap();
    assert_eq!(tokenizer.special().pad, None);
    assert!(byte_fallback(&json!({"eos_token": 3})).unwrap_err().to_string().contains("eos_token"));
}

#[test]
fn folders_are_read_and_written_back() {
    let from = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let json = byte_fallback_json().to_string();
    fs::write(from.path().join("tokenizer.json"), &json).unwrap();
    fs::write(from.path().join("tokenizer_config.json"), r#"{"eos_token": "<eot>", "x": 1}"#)
        .unwrap();
    fs::write(from.path().join("special_tokens_map.json"), r#"{"bos_token": "<s>"}"#).unwrap();
    fs::write(from.path().join("added_tokens.json"), r#"{"<eot>": 268}"#).unwrap();
    let read = Tokenizer::from_folder(from.path()).unwrap();
    assert_eq!((read.special().bos, read.special().eos), (Some(1), Some(268)));
    assert_eq!(read.vocab_size(), 269);
    assert_eq!(read.encode("hi<eot>").unwrap().last(), Some(&268));

    read.save(to.path(), Some("{{ messages }}")).unwrap();
    let again = Tokenizer::from_folder(to.path()).unwrap();
    assert_eq!(again.special(), read.special());
    assert_eq!(again.encode("hi<eot> yo é").unwrap(), read.encode("hi<eot> yo é").unwrap());
    assert_eq!(Tokenizer::chat_template_in(to.path()).unwrap().unwrap(), "{{ messages }}");
    let config = fs::read_to_string(to.path().join("tokenizer_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!((&config["x"], &config["chat_template"]), (&json!(1), &json!("{{ messages }}")));
}

#[test]
fn a_trained_tokenizer_is_described_and_marks_documents() {
    let folder = tempfile::tempdir().unwrap();
    let special = SpecialTokens {
        bos: Some(0),
        eos: Some(2),
        pad: Some(0),
        unk: None,
        add_bos: true,
        add_eos: true,
    };
    let tokenizer = trained().with_special(special);
    tokenizer.save(folder.path(), None).unwrap();
    let again = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(again.special(), &special);
    assert!(!folder.path().join("chat_template.jinja").exists());
    // What other readers of tokenizer.json see.
    let plain = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
    let ids = plain.encode("the", true).unwrap().get_ids().to_vec();
    assert_eq!((ids[0], ids[ids.len() - 1], ids.len()), (0, 2, 3));
    assert_eq!(again.encode("the").unwrap().len(), 1);
}

#[test]
fn declared_tokens_have_to_fit() {
    let config = json!({"added_tokens_decoder": {"300": {"content": "<x>", "special": true}}});
    let error = byte_fallback(&config).unwrap_err().to_string();
    assert!(
        error.contains("`<x>` is declared as token 300, but the next free one is 268"),
        "{error}"
    );
    let config = json!({"added_tokens_decoder": {"268": {"content": "<x>", "special": true}}});
    assert!(byte_fallback(&config).unwrap().is_special(268));
}

#[test]
fn broken_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    fs::write(folder.path().join("tokenizer.model"), "x").unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    assert!(error.hint().unwrap().contains("AutoTokenizer"), "{error}");
    fs::write(folder.path().join("tokenizer.json"), "{\n\"model\": ]}").unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("line 2"), "{error}");
    fs::write(folder.path().join("tokenizer.json"), byte_fallback_json().to_string()).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), "{\n\n\"eos\"}").unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json") && error.contains("line 3"), "{error}");
}

#[test]
fn streams_are_whole_characters_and_the_whole_text() {
    let tokenizer = trained();
    // Neither the crab nor the flag is in the corpus: their bytes are separate tokens.
    let text = "the 🦀 cat 🇩🇪 né";
    let ids = tokenizer.encode(text).unwrap();
    let pieces = streamed(&tokenizer, &ids);
    assert_eq!(pieces.concat(), text);
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    assert!(
        pieces.contains(&"🦀".to_string()) || pieces.contains(&" 🦀".to_string()),
        "{pieces:?}"
    );
    assert!(pieces.len() < ids.len());
}

#[test]
fn streams_keep_spaces_of_sentence_pieces() {
    let tokenizer = byte_fallback(&json!({"bos_token": "<s>", "eos_token": "</s>"})).unwrap();
    let mut ids = vec![1];
    ids.extend(tokenizer.encode("hi yo é你 hi").unwrap());
    ids.push(2);
    assert_eq!(streamed(&tokenizer, &ids).concat(), "hi yo é你 hi");
    assert_eq!(streamed(&tokenizer, &ids)[..2], ["hi", " yo"]);
}

#[test]
fn streams_show_broken_bytes_only_when_certain() {
    let tokenizer = byte_fallback(&json!({})).unwrap();
    let byte = |byte: u32| byte + 3;
    let hi = tokenizer.token_id("▁hi").unwrap();
    // A character is cut off at the end.
    let cut = [hi, byte(0xE4), byte(0xBD)];
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(cut[0]).unwrap().as_deref(), Some("hi"));
    assert_eq!(stream.push(cut[1]).unwrap(), None);
    assert_eq!(stream.push(cut[2]).unwrap(), None);
    let rest = stream.finish().unwrap().unwrap();
    assert_eq!(format!("hi{rest}"), tokenizer.decode(&cut, true).unwrap());
    // Broken bytes in the middle.
    let middle = [hi, byte(0xE4), hi, hi];
    assert_eq!(streamed(&tokenizer, &middle).concat(), tokenizer.decode(&middle, true).unwrap());
}
