//! Tests of [`super::Encoder`]: what is learned, where sequences begin and end, what is cut.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::{Value, json};

use super::*;
use crate::data::preview;
use crate::data::testing::{BOS, CHATML, EOS, PLAIN, bytes, spaced, template};

fn settings() -> DataSettings {
    DataSettings { max_tokens: 400, ..DataSettings::default() }
}

/// The texts of the examples with « and » around what is learned.
fn shown(examples: &[Example], tokenizer: &Tokenizer) -> String {
    let texts = examples.iter().map(|example| {
        let spans = preview(example, tokenizer);
        let marked = spans.iter().map(|span| match span.learned {
            true => format!("«{}»", span.text),
            false => span.text.clone(),
        });
        marked.collect::<String>().replace("»«", "")
    });
    texts.collect::<Vec<_>>().join("|")
}

fn encoded(
    row: &Value,
    settings: &DataSettings,
    tokenizer: &Tokenizer,
    chat: Option<&str>,
) -> Result<String> {
    let template = chat.map(template);
    let encoder = Encoder::new(settings, tokenizer, template.as_ref())?;
    Ok(shown(&encoder.encode_row(row, Format::Auto)?, tokenizer))
}

fn conversation() -> Value {
    json!({"messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "b"},
    ]})
}

#[test]
fn assistant_turns_with_their_end_are_learned() {
    let text = encoded(&conversation(), &settings(), &bytes(false), Some(CHATML)).unwrap();
    insta::assert_snapshot!(text, @r"
    <|im_start|>user
    q<|im_end|>
    <|im_start|>assistant
    «a<|im_end|>»
    <|im_start|>user
    r<|im_end|>
    <|im_start|>assistant
    «b<|im_end|>»
    ");
}

#[test]
fn all_can_be_learned_but_the_first() {
    let settings = DataSettings { learn: Learn::All, ..settings() };
    let row = json!({"prompt": "q", "completion": "a"});
    let text = encoded(&row, &settings, &bytes(true), Some(CHATML)).unwrap();
    assert_eq!(text, "<s>«<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n»");
    let text = encoded(&row, &settings, &bytes(false), None).unwrap();
    assert_eq!(text, "q«a</s>»");
}

#[test]
fn messages_can_be_kept_from_being_learned() {
    let mut row = conversation();
    row["messages"][1]["weight"] = json!(0);
    let text = encoded(&row, &settings(), &bytes(false), Some(CHATML)).unwrap();
    assert!(text.contains("assistant\na<|im_end|>"), "{text}");
    assert!(text.contains("assistant\n«b<|im_end|>»"), "{text}");
    row["messages"][3]["weight"] = json!(0);
    let text = encoded(&row, &settings(), &bytes(false), Some(CHATML)).unwrap();
    assert!(!text.contains('«'), "{text}");
}

#[test]
fn the_system_message_is_put_first_where_there_is_none() {
    let settings = DataSettings { system: Some("s".into()), ..settings() };
    let mut row = conversation();
    let text = encoded(&row, &settings, &bytes(false), Some(CHATML)).unwrap();
    assert!(text.starts_with("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq"), "{text}");
    assert_eq!(text.matches('«').count(), 2, "{text}");
    row["messages"][0]["role"] = json!("system");
    let text = encoded(&row, &settings, &bytes(false), Some(CHATML)).unwrap();
    assert!(text.starts_with("<|im_start|>system\nq<|im_end|>\n<|im_start|>assistant"), "{text}");
    let error = encoded(&row, &settings, &bytes(false), None).unwrap_err();
    insta::assert_snapshot!(error, @"data.system needs a chat template, and the model has none");
}

#[test]
fn a_turn_without_an_end_token_gets_the_end_of_sequence() {
    let text = encoded(&conversation(), &settings(), &bytes(false), Some(PLAIN)).unwrap();
    assert_eq!(text, "user: q\nassistant: «a\n»user: r\nassistant: «b</s>»");
    let asked = json!({"messages": [{"role": "user", "content": "q"}]});
    let text = encoded(&asked, &settings(), &bytes(false), Some(PLAIN)).unwrap();
    assert_eq!(text, "user: q\n", "nothing is ended where the user speaks last");
}

#[test]
fn conversations_need_a_template() {
    let error = encoded(&conversation(), &settings(), &bytes(false), None).unwrap_err();
    insta::assert_snapshot!(error, @"a conversation needs a chat template, and the model has none");
    assert!(error.hint().unwrap().contains("`prompt` and `completion`"));
    for (row, expected) in [
        (json!({"prompt": "q", "completion": "a"}), "q«a</s>»"),
        (json!({"text": "xyz"}), "x«yz</s>»"),
    ] {
        assert_eq!(encoded(&row, &settings(), &bytes(false), None).unwrap(), expected);
    }
    let alpaca = json!({"instruction": "i", "output": "o"});
    let text = encoded(&alpaca, &settings(), &bytes(false), None).unwrap();
    assert!(text.ends_with("### Response:\n«o</s>»"), "{text}");
}

#[test]
fn the_completion_begins_with_a_token_of_its_own() {
    let tokenizer = bytes(false);
    let settings = settings();
    let encoder = Encoder::new(&settings, &tokenizer, None).unwrap();
    let ids = |texts: &[&str]| -> Vec<u32> {
        texts.iter().map(|text| tokenizer.token_id(text).unwrap()).collect()
    };
    // "Ċ Ċ" and "Ġ a" would merge across the boundary.
    let row = json!({"prompt": "q\n", "completion": "\na"});
    let example = &encoder.encode_row(&row, Format::Auto).unwrap()[0];
    assert_eq!(example.tokens, [ids(&["q", "Ċ", "Ċ", "a"]), vec![EOS]].concat());
    assert_eq!(example.learned, [false, false, true, true, true]);
    let row = json!({"prompt": "q ", "completion": "a"});
    let example = &encoder.encode_row(&row, Format::Auto).unwrap()[0];
    assert_eq!(example.tokens, [ids(&["q", "Ġ", "a"]), vec![EOS]].concat());
    assert_eq!(example.learned, [false, false, true, true]);
}

#[test]
fn where_texts_can_not_be_cut_a_token_across_the_boundary_is_learned() {
    let tokenizer = spaced();
    assert!(!joins(&tokenizer).unwrap());
    let settings = settings();
    let encoder = Encoder::new(&settings, &tokenizer, None).unwrap();
    let ids = |texts: &[&str]| -> Vec<u32> {
        texts.iter().map(|text| tokenizer.token_id(text).unwrap()).collect()
    };
    let row = json!({"prompt": "a: ", "completion": "b a"});
    let example = &encoder.encode_row(&row, Format::Auto).unwrap()[0];
    assert_eq!(example.tokens, [vec![BOS], ids(&["▁a", ":", "▁b", "▁a"]), vec![EOS]].concat());
    assert_eq!(example.learned, [false, false, false, true, true, true]);
    let row = json!({"prompt": "a:", "completion": " b"});
    let example = &encoder.encode_row(&row, Format::Auto).unwrap()[0];
    assert_eq!(example.learned, [false, false, false, true, true]);
}

#[test]
fn the_beginning_of_sequence_stands_once() {
    let text = encoded(&json!({"text": "<s>a</s>"}), &settings(), &bytes(true), None).unwrap();
    assert_eq!(text, "<s>«a</s>»");
    let text = encoded(&json!({"text": "a"}), &settings(), &bytes(true), None).unwrap();
    assert_eq!(text, "<s>«a</s>»");
    let chat = format!("{{{{ bos_token }}}}{CHATML}");
    let text = encoded(&conversation(), &settings(), &bytes(true), Some(&chat)).unwrap();
    assert_eq!(text.matches("<s>").count(), 1, "{text}");
    let text = encoded(&conversation(), &settings(), &bytes(true), Some(CHATML)).unwrap();
    assert!(text.starts_with("<s><|im_start|>"), "{text}");
}

#[test]
fn the_end_is_learned_though_padding_has_its_id() {
    let tokenizer = bytes(false);
    assert_eq!(tokenizer.special().pad, Some(EOS));
    let settings = settings();
    let encoder = Encoder::new(&settings, &tokenizer, None).unwrap();
    let row = json!({"prompt": "q", "completion": "a"});
    let example = &encoder.encode_row(&row, Format::Auto).unwrap()[0];
    assert_eq!((example.tokens.last(), example.learned.last()), (Some(&EOS), Some(&true)));
}

#[test]
fn long_rows_are_cut_and_counted() {
    let tokenizer = bytes(false);
    let settings = DataSettings { max_tokens: 5, ..settings() };
    let encoder = Encoder::new(&settings, &tokenizer, None).unwrap();
    let row = json!({"prompt": "qqq", "completion": "xyz"});
    let example = &encoder.encode_row(&row, Format::Auto).unwrap()[0];
    assert_eq!((example.tokens.len(), example.truncated, example.learned_tokens()), (5, 2, 2));
    let row = json!({"prompt": "qqqqq", "completion": "xyz"});
    let example = &encoder.encode_row(&row, Format::Auto).unwrap()[0];
    assert_eq!((example.truncated, example.learned_tokens()), (4, 0));
}

#[test]
fn long_texts_go_on_and_every_token_is_learned_once() {
    let tokenizer = bytes(true);
    let settings = DataSettings { max_tokens: 4, ..settings() };
    let encoder = Encoder::new(&settings, &tokenizer, None).unwrap();
    let examples = encoder.encode_row(&json!({"text": "uvwxyz"}), Format::Auto).unwrap();
    assert_eq!(shown(&examples, &tokenizer), "<s>«uvw»|w«xyz»|z«</s>»");
    assert!(examples.iter().all(|example| example.truncated == 0));
    let examples = encoder.encode_row(&json!({"text": "uv"}), Format::Auto).unwrap();
    assert_eq!(shown(&examples, &tokenizer), "<s>«uv</s>»", "one that just fits stays whole");
}

#[test]
fn settings_that_teach_nothing_are_refused() {
    let settings = DataSettings { max_tokens: 1, ..settings() };
    let error = Encoder::new(&settings, &bytes(false), None).unwrap_err();
    insta::assert_snapshot!(error, @"data.max_tokens = 1 is too short");
}
