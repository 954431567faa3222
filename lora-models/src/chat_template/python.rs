//! Values as Python writes them, since templates are written for it: `str`, `repr` and `json.dumps`.

use minijinja::Value;
use minijinja::value::ValueKind;
use serde_json::Value as Json;

/// `str(value)`, and nothing for what is undefined.
pub(super) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_string(),
        None => representation(value),
    }
}

fn representation(value: &Value) -> String {
    let list = |value: &Value| -> Vec<String> {
        value
            .try_iter()
            .map(|items| items.map(|item| representation(&item)).collect())
            .unwrap_or_default()
    };
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
        }
        ValueKind::String => value.as_str().map_or_else(|| value.to_string(), quoted),
        ValueKind::Seq | ValueKind::Iterable => format!("[{}]", list(value).join(", ")),
        ValueKind::Map => {
            let pair = |key: Value| {
                let item = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", representation(&key), representation(&item))
            };
            let pairs: Vec<String> =
                value.try_iter().map(|keys| keys.map(pair).collect()).unwrap_or_default();
            format!("{{{}}}", pairs.join(", "))
        }
        _ => value.to_string(),
    }
}

/// `repr` of a text.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut quoted = String::from(quote);
    for character in text.chars() {
        match character {
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            _ if character == quote => quoted.extend(['\\', quote]),
            _ if character.is_ascii_control() => {
                quoted.push_str(&format!("\\x{:02x}", u32::from(character)));
            }
            _ => quoted.push(character),
        }
    }
    quoted.push(quote);
    quoted
}

/// `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = number.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// The arguments of `json.dumps`.
pub(super) struct JsonStyle {
    pub(super) indent: Option<usize>,
    /// Between items, and between key and value.
    pub(super) separators: (String, String),
    pub(super) ensure_ascii: bool,
    pub(super) sort_keys: bool,
}

/// `json.dumps(value)`.
pub(super) fn json(value: &Json, style: &JsonStyle) -> String {
    let mut output = String::new();
    write_json(value, style, 0, &mut output);
    output
}

fn write_json(value: &Json, style: &JsonStyle, depth: usize, output: &mut String) {
    match value {
        Json::String(text) => write_json_text(text, style, output),
        Json::Number(number) if number.is_f64() => {
            output.push_str(&number.as_f64().map_or_else(|| number.to_string(), float));
        }
        Json::Array(items) if !items.is_empty() => {
            output.push('[');
            for (index, item) in items.iter().enumerate() {
                begin_item(index, style, depth + 1, output);
                write_json(item, style, depth + 1, output);
            }
            end_items(style, depth, output);
            output.push(']');
        }
        Json::Object(object) if !object.is_empty() => {
            let mut entries: Vec<(&String, &Json)> = object.iter().collect();
            if style.sort_keys {
                entries.sort_by_key(|(key, _)| *key);
            }
            output.push('{');
            for (index, (key, item)) in entries.into_iter().enumerate() {
                begin_item(index, style, depth + 1, output);
                write_json_text(key, style, output);
                output.push_str(&style.separators.1);
                write_json(item, style, depth + 1, output);
            }
            end_items(style, depth, output);
            output.push('}');
        }
        // Empty containers, integers, booleans and null are the same everywhere.
        _ => output.push_str(&value.to_string()),
    }
}

fn begin_item(index: usize, style: &JsonStyle, depth: usize, output: &mut String) {
    if index > 0 {
        output.push_str(&style.separators.0);
    }
    if let Some(indent) = style.indent {
        output.push('\n');
        output.extend(std::iter::repeat_n(' ', indent * depth));
    }
}

fn end_items(style: &JsonStyle, depth: usize, output: &mut String) {
    if let Some(indent) = style.indent {
        output.push('\n');
        output.extend(std::iter::repeat_n(' ', indent * depth));
    }
}

fn write_json_text(text: &str, style: &JsonStyle, output: &mut String) {
    // serde_json escapes what Python escapes, and in the same way, all of it ASCII.
    let escaped = Json::String(text.to_string()).to_string();
    if !style.ensure_ascii || escaped.is_ascii() {
        output.push_str(&escaped);
        return;
    }
    for character in escaped.chars() {
        if character.is_ascii() {
            output.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                output.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn floats_have_the_digits_of_python() {
        for (number, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(float(number), expected);
        }
    }

    #[test]
    fn text_of_values_is_that_of_python() {
        let value = Value::from_serialize(json!(
            {"a": [1, 2.0, true, null, "it's", "say \"hi\"", "it's \"x\"\n"], "é": {}}
        ));
        assert_eq!(
            text(&value),
            r#"{'a': [1, 2.0, True, None, "it's", 'say "hi"', 'it\'s "x"\n'], 'é': {}}"#
        );
        assert_eq!(text(&Value::from("it's")), "it's");
        assert_eq!(text(&Value::UNDEFINED), "");
    }

    #[test]
    fn json_is_that_of_python() {
        let value = json!({"b": [1, 1.0, "ä\u{1f}\"<🙂", [], {}], "a": null});
        let style = |indent, ensure_ascii, sort_keys| JsonStyle {
            indent,
            separators: (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
            ensure_ascii,
            sort_keys,
        };
        assert_eq!(
            json(&value, &style(None, false, false)),
            r#"{"b": [1, 1.0, "ä\u001f\"<🙂", [], {}], "a": null}"#
        );
        assert_eq!(
            json(&value, &style(None, true, true)),
            r#"{"a": null, "b": [1, 1.0, "\u00e4\u001f\"<\ud83d\ude42", [], {}]}"#
        );
        assert_eq!(
            json(&json!({"b": [1, {}]}), &style(Some(2), false, false)),
            "{\n  \"b\": [\n    1,\n    {}\n  ]\n}"
        );
    }
}
