//! How rows are written: which keys they have, and what a row of each format says.

mod chat;
mod instruction;
mod labels;

pub(crate) use chat::simple;
use lora_models::chat_template::Conversation;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::recipe::Format;

/// What a row says, whatever keys it was written with.
#[derive(Debug, Clone)]
pub enum Row {
    /// A conversation, to be written through the model's chat template.
    Chat {
        /// Messages and tools.
        conversation: Conversation,
        /// For each message whether it may be learned; only what the model itself writes is.
        learn: Vec<bool>,
    },
    /// A prompt and what the model is to write after it, without a chat template.
    Pair {
        /// Not learned.
        prompt: String,
        /// Learned, with the end of sequence after it.
        completion: String,
    },
    /// Plain text, learned as a whole.
    Text(String),
    /// A text, or two, of which an encoder is to say something.
    Labelled {
        /// The text.
        text: String,
        /// The second text of a pair.
        second: Option<String>,
        /// What is to be said, as it is written.
        label: Value,
    },
}

impl Row {
    /// Reads a row of a known format. With `chat`, the formats that can be a conversation become one;
    /// without, they become plain prompts.
    ///
    /// # Errors
    /// A key that is missing or has the wrong type, by its name.
    pub fn parse(value: &Value, format: Format, chat: bool) -> Result<Self> {
        match format {
            Format::Auto => Self::parse(value, detect(value)?, chat),
            Format::Messages => chat::messages(object(value)?),
            Format::ShareGpt => chat::sharegpt(object(value)?),
            Format::PromptCompletion => instruction::prompt_completion(object(value)?, chat),
            Format::Alpaca => instruction::alpaca(object(value)?, chat),
            Format::Labels => labels::labelled(object(value)?),
            Format::Text => match value {
                Value::String(text) => Ok(Self::Text(text.clone())),
                _ => Ok(Self::Text(text(object(value)?, "text")?.to_string())),
            },
        }
    }
}

/// The format whose keys a row has.
pub(crate) fn detect(row: &Value) -> Result<Format> {
    let row = object(row)?;
    let has = |keys: &[&str]| keys.iter().all(|&key| row.contains_key(key));
    let known: [(&[&str], Format); 5] = [
        (&["messages"], Format::Messages),
        (&["conversations"], Format::ShareGpt),
        (&["prompt", "completion"], Format::PromptCompletion),
        (&["instruction", "output"], Format::Alpaca),
        (&["text"], Format::Text),
    ];
    let found = known.iter().find(|(keys, _)| has(keys));
    found.map(|&(_, format)| format).ok_or_else(|| {
        let keys: Vec<String> = row.keys().take(8).map(|key| format!("`{key}`")).collect();
        let keys = if keys.is_empty() { "no keys".to_string() } else { keys.join(", ") };
        Error::invalid(format!("the row is of no known format: it has {keys}")).with_hint(
            "known are `messages`; `conversations`; `prompt` and `completion`; `instruction` and \
             `output`; `text`",
        )
    })
}

/// The name of a format in recipes.
pub(crate) fn name(format: Format) -> &'static str {
    match format {
        Format::Auto => "auto",
        Format::Messages => "messages",
        Format::PromptCompletion => "prompt_completion",
        Format::Alpaca => "alpaca",
        Format::ShareGpt => "sharegpt",
        Format::Text => "text",
        Format::Labels => "labels",
    }
}

fn object(value: &Value) -> Result<&Map<String, Value>> {
    value.as_object().ok_or_else(|| {
        Error::invalid(format!("the row is {}, not an object", kind(value)))
            .with_hint("a row looks like {\"prompt\": \"…\", \"completion\": \"…\"}")
    })
}

/// A key that must be there.
fn required<'a>(row: &'a Map<String, Value>, key: &str) -> Result<&'a Value> {
    row.get(key).ok_or_else(|| {
        let keys: Vec<String> = row.keys().take(8).map(|key| format!("`{key}`")).collect();
        let has = if keys.is_empty() { "nothing".to_string() } else { keys.join(", ") };
        Error::invalid(format!("key `{key}` is missing; the row has {has}")).with_hint(
            "set data.format if the row is of another format than the first one of its file",
        )
    })
}

/// A text that must be there.
fn text<'a>(row: &'a Map<String, Value>, key: &str) -> Result<&'a str> {
    let value = required(row, key)?;
    value.as_str().ok_or_else(|| wrong_type(key, value, "a string"))
}

/// A text that may be missing, null or empty.
fn optional_text<'a>(row: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(value) => Err(wrong_type(key, value, "a string")),
    }
}

fn wrong_type(key: &str, value: &Value, expected: &str) -> Error {
    Error::invalid(format!("key `{key}` is {}, not {expected}", kind(value)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_tell_the_format() {
        let detected = |value| detect(&value).unwrap();
        assert_eq!(detected(json!({"id": 1, "messages": []})), Format::Messages);
        assert_eq!(detected(json!({"conversations": []})), Format::ShareGpt);
        assert_eq!(detected(json!({"prompt": "", "completion": ""})), Format::PromptCompletion);
        let alpaca = json!({"instruction": "", "input": "", "output": "", "text": ""});
        assert_eq!(detected(alpaca), Format::Alpaca, "the full prompt beside it is not the row");
        assert_eq!(detected(json!({"text": ""})), Format::Text);
        insta::assert_snapshot!(detect(&json!({"prompt": "", "chosen": ""})).unwrap_err(), @"the row is of no known format: it has `prompt`, `chosen`");
        assert!(detect(&json!([1])).unwrap_err().to_string().contains("an array, not an object"));
    }

    #[test]
    fn texts_are_strings() {
        let parse = |value| Row::parse(&value, Format::Text, false);
        assert!(matches!(parse(json!("a")).unwrap(), Row::Text(text) if text == "a"));
        assert!(matches!(parse(json!({"text": "b"})).unwrap(), Row::Text(text) if text == "b"));
        insta::assert_snapshot!(parse(json!({"text": 3})).unwrap_err(), @"key `text` is a number, not a string");
        insta::assert_snapshot!(parse(json!({"content": "x"})).unwrap_err(), @"key `text` is missing; the row has `content`");
    }
}
