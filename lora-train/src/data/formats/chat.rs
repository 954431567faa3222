//! Conversations: lists of messages, and ShareGPT's lists of turns.

use lora_models::chat_template::{Conversation, Message};
use serde_json::{Map, Value, json};

use super::{Row, kind, optional_text, required, wrong_type};
use crate::error::{Error, Result};

/// `{"messages": [{"role", "content"}, …], "tools": […]}`.
pub(super) fn messages(row: &Map<String, Value>) -> Result<Row> {
    let mut messages = Vec::new();
    let mut learn = Vec::new();
    for (message, learned) in list(row, "messages")? {
        messages.push(message);
        learn.push(learned);
    }
    Ok(Row::Chat { conversation: Conversation { messages, tools: tools(row)? }, learn })
}

/// The messages under a key, each with whether it may be learned.
pub(super) fn list(row: &Map<String, Value>, key: &str) -> Result<Vec<(Message, bool)>> {
    let value = required(row, key)?;
    let list = value.as_array().ok_or_else(|| wrong_type(key, value, "an array of messages"))?;
    if list.is_empty() {
        return Err(Error::invalid(format!("key `{key}` is an empty array")));
    }
    let messages = list.iter().enumerate();
    messages.map(|(index, value)| message(value, &format!("{key}[{index}]"))).collect()
}

/// A message with one role and content, as most are.
pub(crate) fn simple(role: &str, content: &str) -> Message {
    let mut message = Message::new();
    message.insert("role".into(), role.into());
    message.insert("content".into(), content.into());
    message
}

/// Tools the model may call: an array, or an array written as a string.
pub(super) fn tools(row: &Map<String, Value>) -> Result<Option<Value>> {
    let tools = match row.get("tools") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => serde_json::from_str(text).map_err(|error| {
            Error::invalid(format!("key `tools` is a string but not JSON: {error}"))
        })?,
        Some(value) => value.clone(),
    };
    match &tools {
        Value::Array(list) if list.is_empty() => Ok(None),
        Value::Array(_) => Ok(Some(tools)),
        other => Err(wrong_type("tools", other, "an array")),
    }
}

fn message(value: &Value, at: &str) -> Result<(Message, bool)> {
    let object = value.as_object().ok_or_else(|| wrong_type(at, value, "an object"))?;
    let role = object.get("role").ok_or_else(|| {
        let hint = "a message looks like {\"role\": \"user\", \"content\": \"…\"}";
        Error::invalid(format!("key `{at}.role` is missing")).with_hint(hint)
    })?;
    if !role.is_string() {
        return Err(wrong_type(&format!("{at}.role"), role, "a string"));
    }
    let learned = learned(object, at)?;
    let mut message = object.clone();
    message.shift_remove("weight");
    message.shift_remove("train");

    let calls = message.contains_key("tool_calls");
    match object.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            message.insert("content".into(), joined(parts, at)?.into());
        }
        // A message that only calls tools says nothing; most templates want a string all the same.
        None | Some(Value::Null) if calls => {
            message.insert("content".into(), "".into());
        }
        None => return Err(Error::invalid(format!("key `{at}.content` is missing"))),
        Some(other) => return Err(wrong_type(&format!("{at}.content"), other, "a string")),
    }
    if calls {
        tool_calls(&mut message, at)?;
    }
    Ok((message, learned))
}

/// `"weight": 0` and `"train": false` keep a message of the model from being learned.
fn learned(message: &Map<String, Value>, at: &str) -> Result<bool> {
    match (message.get("weight"), message.get("train")) {
        (None | Some(Value::Null), None | Some(Value::Null)) => Ok(true),
        (_, Some(Value::Bool(train))) => Ok(*train),
        (_, Some(other)) if !other.is_null() => {
            Err(wrong_type(&format!("{at}.train"), other, "true or false"))
        }
        (Some(weight), _) => match weight.as_f64() {
            Some(0.0) => Ok(false),
            Some(1.0) => Ok(true),
            Some(other) => Err(Error::invalid(format!("key `{at}.weight` is {other}, not 0 or 1"))),
            None => Err(wrong_type(&format!("{at}.weight"), weight, "0 or 1")),
        },
        (None, _) => Ok(true),
    }
}

/// The text of a content written in parts.
fn joined(parts: &[Value], at: &str) -> Result<String> {
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        match part {
            Value::String(part) => text.push_str(part),
            Value::Object(part) => match (part.get("type"), part.get("text")) {
                (None | Some(Value::String(_)), Some(Value::String(part))) => text.push_str(part),
                (Some(Value::String(what)), _) => {
                    let reason = format!("key `{at}.content[{index}]` is of type `{what}`");
                    return Err(Error::invalid(reason).with_hint("only text can be learned"));
                }
                _ => {
                    let key = format!("{at}.content[{index}].text");
                    return Err(Error::invalid(format!("key `{key}` is missing")));
                }
            },
            other => return Err(wrong_type(&format!("{at}.content[{index}]"), other, "a part")),
        }
    }
    Ok(text)
}

/// Arguments written as a string become what they say: templates write them as JSON themselves.
fn tool_calls(message: &mut Message, at: &str) -> Result<()> {
    let calls = match message.get_mut("tool_calls") {
        Some(Value::Array(calls)) => calls,
        Some(Value::Null) | None => {
            message.shift_remove("tool_calls");
            return Ok(());
        }
        Some(other) => return Err(wrong_type(&format!("{at}.tool_calls"), other, "an array")),
    };
    for (index, call) in calls.iter_mut().enumerate() {
        let key = format!("{at}.tool_calls[{index}]");
        if !call.is_object() {
            return Err(wrong_type(&key, call, "an object"));
        }
        let function = match call.get_mut("function") {
            Some(function) => function,
            None => call,
        };
        if let Some(Value::String(arguments)) = function.get("arguments")
            && let Ok(parsed @ Value::Object(_)) = serde_json::from_str(arguments)
        {
            function["arguments"] = parsed;
        }
    }
    Ok(())
}

/// `{"conversations": [{"from", "value"}, …], "system", "tools"}`.
pub(super) fn sharegpt(row: &Map<String, Value>) -> Result<Row> {
    let key = "conversations";
    let value = required(row, key)?;
    let list = value.as_array().ok_or_else(|| wrong_type(key, value, "an array of turns"))?;
    if list.is_empty() {
        return Err(Error::invalid(format!("key `{key}` is an empty array")));
    }
    let mut messages = Vec::new();
    let mut learn = Vec::new();
    if let Some(system) = optional_text(row, "system")? {
        messages.push(simple("system", system));
        learn.push(false);
    }
    for (index, value) in list.iter().enumerate() {
        let (message, learned) = turn(value, &format!("{key}[{index}]"))?;
        messages.push(message);
        learn.push(learned);
    }
    Ok(Row::Chat { conversation: Conversation { messages, tools: tools(row)? }, learn })
}

fn turn(value: &Value, at: &str) -> Result<(Message, bool)> {
    let object = value.as_object().ok_or_else(|| wrong_type(at, value, "an object"))?;
    if object.contains_key("role") {
        return message(value, at);
    }
    let field = |name: &str| match object.get(name) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(wrong_type(&format!("{at}.{name}"), other, "a string")),
        None => Err(Error::invalid(format!("key `{at}.{name}` is missing"))
            .with_hint("a turn looks like {\"from\": \"human\", \"value\": \"…\"}")),
    };
    let (from, said) = (field("from")?, field("value")?);
    let role = match from {
        "human" | "user" => "user",
        "gpt" | "assistant" | "model" | "chatgpt" | "bing" | "bard" => "assistant",
        "system" => "system",
        "tool" | "observation" | "function_response" => "tool",
        "function_call" => return Ok((call(said, at)?, learned(object, at)?)),
        other => {
            let reason = format!("key `{at}.from` is `{other}`");
            return Err(Error::invalid(reason).with_hint(
                "known are human, user, gpt, assistant, model, system, tool, observation and \
                 function_call",
            ));
        }
    };
    Ok((simple(role, said), learned(object, at)?))
}

/// A turn that calls a tool, or several: their names and arguments as JSON.
fn call(text: &str, at: &str) -> Result<Message> {
    let wrong = |what: String| {
        Error::invalid(format!("key `{at}.value` is not a function call: {what}"))
            .with_hint("it looks like {\"name\": \"…\", \"arguments\": {…}}")
    };
    let parsed: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let calls = match parsed {
        Value::Array(calls) => calls,
        single => vec![single],
    };
    let calls = calls.into_iter().map(|call| {
        if call.get("name").is_some_and(Value::is_string) {
            Ok(json!({"type": "function", "function": call}))
        } else {
            Err(wrong(format!("{} without a `name`", kind(&call))))
        }
    });
    let mut message = simple("assistant", "");
    message.insert("tool_calls".into(), calls.collect::<Result<Vec<Value>>>()?.into());
    tool_calls(&mut message, at)?;
    Ok(message)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::recipe::Format;

    fn parse(value: &Value) -> Result<(Value, Vec<bool>, Option<Value>)> {
        match Row::parse(value, Format::Auto, true)? {
            Row::Chat { conversation, learn } => {
                Ok((json!(conversation.messages), learn, conversation.tools))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn messages_keep_every_role_and_key() {
        let row = json!({"messages": [
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "n"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "content": "3", "tool_call_id": "1"},
            {"role": "assistant", "content": "c", "weight": 0},
            {"role": "assistant", "content": "d", "train": true},
        ], "tools": "[{\"name\": \"f\"}]"});
        let (messages, learn, tools) = parse(&row).unwrap();
        assert_eq!(
            messages,
            json!([
                {"role": "developer", "content": "d"},
                {"role": "user", "content": "ab", "name": "n"},
                {"role": "assistant", "content": "", "tool_calls": [
                    {"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}]},
                {"role": "tool", "content": "3", "tool_call_id": "1"},
                {"role": "assistant", "content": "c"},
                {"role": "assistant", "content": "d"},
            ])
        );
        assert_eq!(learn, [true, true, true, true, false, true]);
        assert_eq!(tools, Some(json!([{"name": "f"}])));
    }

    #[test]
    fn sharegpt_turns_become_messages() {
        let row = json!({"system": "s", "tools": "", "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "a", "weight": 0},
        ]});
        let (messages, learn, tools) = parse(&row).unwrap();
        assert_eq!(
            messages,
            json!([
                {"role": "system", "content": "s"},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "", "tool_calls": [
                    {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
                {"role": "tool", "content": "3"},
                {"role": "assistant", "content": "a"},
            ])
        );
        assert_eq!(learn, [false, true, true, true, false]);
        assert_eq!(tools, None);
    }

    #[test]
    fn wrong_types_name_their_key() {
        let rows = [
            json!({"messages": "hello"}),
            json!({"messages": []}),
            json!({"messages": ["hello"]}),
            json!({"messages": [{"content": "a"}]}),
            json!({"messages": [{"role": 1, "content": "a"}]}),
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": 5}]}),
            json!({"messages": [{"role": "user"}]}),
            json!({"messages": [{"role": "user", "content": [{"type": "image", "url": ""}]}]}),
            json!({"messages": [{"role": "user", "content": "a", "weight": 0.5}]}),
            json!({"messages": [{"role": "user", "content": "a", "tool_calls": 1}]}),
            json!({"messages": [{"role": "user", "content": "a"}], "tools": 1}),
            json!({"messages": [{"role": "user", "content": "a"}], "tools": "{"}),
            json!({"conversations": {}}),
            json!({"conversations": [{"from": "alien", "value": ""}]}),
            json!({"conversations": [{"from": "human", "text": ""}]}),
            json!({"conversations": [{"from": "gpt", "value": null}]}),
            json!({"conversations": [{"from": "function_call", "value": "f(1)"}]}),
            json!({"conversations": [{"from": "function_call", "value": "[3]"}]}),
        ];
        let all: Vec<String> = rows.iter().map(|row| parse(row).unwrap_err().to_string()).collect();
        insta::assert_snapshot!(all.join("\n"), @r"
        key `messages` is a string, not an array of messages
        key `messages` is an empty array
        key `messages[0]` is a string, not an object
        key `messages[0].role` is missing
        key `messages[0].role` is a number, not a string
        key `messages[1].content` is a number, not a string
        key `messages[0].content` is missing
        key `messages[0].content[0]` is of type `image`
        key `messages[0].weight` is 0.5, not 0 or 1
        key `messages[0].tool_calls` is a number, not an array
        key `tools` is a number, not an array
        key `tools` is a string but not JSON: EOF while parsing an object at line 1 column 1
        key `conversations` is an object, not an array of turns
        key `conversations[0].from` is `alien`
        key `conversations[0].value` is missing
        key `conversations[0].value` is null, not a string
        key `conversations[0].value` is not a function call: expected ident at line 1 column 2
        key `conversations[0].value` is not a function call: a number without a `name`
        ");
    }
}
