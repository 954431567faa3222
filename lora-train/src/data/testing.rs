//! Tokenizers and templates small enough to read.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use lora_models::chat_template::ChatTemplate;
use lora_models::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

pub(crate) const BOS: u32 = 0;
pub(crate) const EOS: u32 = 1;

pub(crate) const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
    {{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Turns end with nothing special.
pub(crate) const PLAIN: &str = "{% for message in messages %}{{ message.role }}: \
    {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

pub(crate) fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, Some("<s>"), Some("</s>"), Path::new("test")).unwrap()
}

/// One token per byte, with `\n\n` and ` a` merged; specials `<s>`, `</s>`, `<|im_start|>`,
/// `<|im_end|>`.
pub(crate) fn bytes(add_bos: bool) -> Tokenizer {
    let mut vocabulary = Map::new();
    let mut add = |token: String| {
        let id = vocabulary.len();
        vocabulary.insert(token, json!(id));
    };
    for token in SPECIAL {
        add(token.to_string());
    }
    // The byte-level alphabet: printable bytes stand for themselves, the others follow at U+0100.
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    (0..256).filter(|&byte| printable(byte)).for_each(|byte| add(character(byte)));
    let hidden = (0..256).filter(|&byte| !printable(byte)).count() as u32;
    (256..256 + hidden).for_each(|code| add(character(code)));
    add("ĊĊ".into());
    add("Ġa".into());
    build(
        json!({"type": "BPE", "vocab": vocabulary, "merges": ["Ċ Ċ", "Ġ a"]}),
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}),
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}),
        add_bos,
    )
}

/// A space is put before every text, as SentencePiece models do; words are `▁a` and `▁b`.
pub(crate) fn spaced() -> Tokenizer {
    let mut vocabulary = Map::new();
    for token in SPECIAL.into_iter().chain(["<unk>", "▁", "a", "b", ":", "▁a", "▁b"]) {
        vocabulary.insert(token.to_string(), json!(vocabulary.len()));
    }
    build(
        json!({"type": "BPE", "vocab": vocabulary, "merges": ["▁ a", "▁ b"], "unk_token": "<unk>"}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false}),
        true,
    )
}

const SPECIAL: [&str; 4] = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];

fn character(code: u32) -> String {
    char::from_u32(code).unwrap().to_string()
}

fn build(model: Value, pre_tokenizer: Value, decoder: Value, add_bos: bool) -> Tokenizer {
    let added: Vec<Value> = (0..)
        .zip(SPECIAL)
        .map(|(id, token): (u32, _)| {
            json!({"id": id, "content": token, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false})
        })
        .collect();
    let tokenizer = json!({"version": "1.0", "added_tokens": added, "normalizer": null,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder,
        "model": model});
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>",
        "add_bos_token": add_bos});
    Tokenizer::from_json(
        tokenizer.to_string().as_bytes(),
        Some(config.to_string().as_bytes()),
        Path::new("test/tokenizer.json"),
    )
    .unwrap()
}
