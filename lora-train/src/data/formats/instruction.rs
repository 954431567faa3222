//! One question, one answer: prompt and completion, and Alpaca's instructions.

use lora_models::chat_template::Conversation;
use serde_json::{Map, Value};

use super::chat::{list, simple, tools};
use super::{Row, optional_text, required, text, wrong_type};
use crate::error::{Error, Result};

/// `{"prompt", "completion"}`: two strings, or lists of messages.
pub(super) fn prompt_completion(row: &Map<String, Value>, chat: bool) -> Result<Row> {
    let is_list = |key| row.get(key).is_some_and(Value::is_array);
    if !chat && !is_list("prompt") && !is_list("completion") {
        let (prompt, completion) = (text(row, "prompt")?, text(row, "completion")?);
        return Ok(Row::Pair { prompt: prompt.into(), completion: completion.into() });
    }
    let mut messages = Vec::new();
    let mut learn = Vec::new();
    for (key, role, learned) in [("prompt", "user", false), ("completion", "assistant", true)] {
        match required(row, key)? {
            Value::String(content) => {
                messages.push(simple(role, content));
                learn.push(learned);
            }
            Value::Array(_) => {
                for (message, own) in list(row, key)? {
                    messages.push(message);
                    learn.push(learned && own);
                }
            }
            other => return Err(wrong_type(key, other, "a string or an array of messages")),
        }
    }
    Ok(Row::Chat { conversation: Conversation { messages, tools: tools(row)? }, learn })
}

/// `{"instruction", "input", "output"}`, with an optional `system` and `history`.
pub(super) fn alpaca(row: &Map<String, Value>, chat: bool) -> Result<Row> {
    let instruction = text(row, "instruction")?;
    let input = optional_text(row, "input")?;
    let output = text(row, "output")?;
    let system = optional_text(row, "system")?;
    let history = history(row)?;
    if !chat {
        if system.is_some() || !history.is_empty() {
            let key = if system.is_some() { "system" } else { "history" };
            return Err(Error::invalid(format!(
                "key `{key}` needs a chat template, and the model has none"
            ))
            .with_hint("use a model with a chat template, or remove the key"));
        }
        return Ok(Row::Pair { prompt: prompt(instruction, input), completion: output.into() });
    }
    let mut messages = Vec::new();
    messages.extend(system.map(|system| simple("system", system)));
    for (question, answer) in history {
        messages.push(simple("user", question));
        messages.push(simple("assistant", answer));
    }
    let question = match input {
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction.to_string(),
    };
    messages.push(simple("user", &question));
    messages.push(simple("assistant", output));
    let learn = vec![true; messages.len()];
    Ok(Row::Chat { conversation: Conversation { messages, tools: tools(row)? }, learn })
}

/// The prompt that Alpaca's models were trained with, for models without a chat template.
fn prompt(instruction: &str, input: Option<&str>) -> String {
    match input {
        Some(input) => format!(
            "Below is an instruction that describes a task, paired with an input that provides \
             further context. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        None => format!(
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        ),
    }
}

/// Earlier questions and answers: `[["…", "…"], …]`.
fn history(row: &Map<String, Value>) -> Result<Vec<(&str, &str)>> {
    let turns = match row.get("history") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(turns)) => turns,
        Some(other) => return Err(wrong_type("history", other, "an array of pairs")),
    };
    let pairs =
        turns.iter().enumerate().map(|(index, turn)| match turn.as_array().map(Vec::as_slice) {
            Some([Value::String(question), Value::String(answer)]) => {
                Ok((question.as_str(), answer.as_str()))
            }
            _ => Err(wrong_type(&format!("history[{index}]"), turn, "a pair of strings")),
        });
    pairs.collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::recipe::Format;

    fn chat(value: &Value) -> (Value, Vec<bool>) {
        match Row::parse(value, Format::Auto, true).unwrap() {
            Row::Chat { conversation, learn } => (json!(conversation.messages), learn),
            other => panic!("{other:?}"),
        }
    }

    fn pair(value: &Value) -> (String, String) {
        match Row::parse(value, Format::Auto, false).unwrap() {
            Row::Pair { prompt, completion } => (prompt, completion),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn alpaca_without_a_template_uses_its_own_prompt() {
        let row = json!({"instruction": "Add.", "input": "1 2", "output": "3"});
        let (prompt, completion) = pair(&row);
        insta::assert_snapshot!(prompt, @r"
        Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.

        ### Instruction:
        Add.

        ### Input:
        1 2

        ### Response:
        ");
        assert_eq!(completion, "3");
        let (prompt, _) = pair(&json!({"instruction": "Add.", "input": "", "output": "3"}));
        assert!(!prompt.contains("Input"), "{prompt}");
        assert!(prompt.ends_with("### Instruction:\nAdd.\n\n### Response:\n"), "{prompt}");
    }

    #[test]
    fn alpaca_with_a_template_is_a_conversation() {
        let row = json!({"instruction": "Add.", "input": "1 2", "output": "3", "system": "s",
            "history": [["q", "a"]]});
        let (messages, learn) = chat(&row);
        assert_eq!(
            messages,
            json!([
                {"role": "system", "content": "s"},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"},
                {"role": "user", "content": "Add.\n1 2"},
                {"role": "assistant", "content": "3"},
            ])
        );
        assert_eq!(learn, [true; 5]);
    }

    #[test]
    fn prompts_are_never_learned() {
        let row = json!({
            "prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
                {"role": "user", "content": "r"}],
            "completion": [{"role": "assistant", "content": "b"}],
        });
        assert_eq!(chat(&row).1, [false, false, false, true]);
        let (messages, learn) = chat(&json!({"prompt": "q", "completion": "a"}));
        assert_eq!(messages[1], json!({"role": "assistant", "content": "a"}));
        assert_eq!(learn, [false, true]);
        assert_eq!(pair(&json!({"prompt": "q", "completion": "a"})), ("q".into(), "a".into()));
    }

    #[test]
    fn wrong_types_name_their_key() {
        let rows = [
            (json!({"prompt": 1, "completion": "a"}), false),
            (json!({"prompt": 1, "completion": "a"}), true),
            (json!({"prompt": "a", "completion": {}}), true),
            (json!({"prompt": "a", "completion": [1]}), false),
            (json!({"instruction": "a", "output": null}), true),
            (json!({"instruction": "a", "output": "b", "input": 1}), true),
            (json!({"instruction": "a", "output": "b", "history": [["q"]]}), true),
            (json!({"instruction": "a", "output": "b", "history": [["q", "a"]]}), false),
            (json!({"instruction": "a", "output": "b", "system": "s"}), false),
        ];
        let all: Vec<String> = rows
            .iter()
            .map(|(row, chat)| Row::parse(row, Format::Auto, *chat).unwrap_err().to_string())
            .collect();
        insta::assert_snapshot!(all.join("\n"), @r"
            key `prompt` is a number, not a string
            key `prompt` is a number, not a string or an array of messages
            key `completion` is an object, not a string or an array of messages
            key `completion[0]` is a number, not an object
            key `output` is null, not a string
            key `input` is a number, not a string
            key `history[0]` is an array, not a pair of strings
            key `history` needs a chat template, and the model has none
            key `system` needs a chat template, and the model has none
            ");
    }
}
