//! As much JSON as the generators write: one object of strings on one line.

/// `{"key": "value", …}`, escaped.
pub(crate) fn object(fields: &[(&str, &str)]) -> String {
    let fields: Vec<String> =
        fields.iter().map(|(key, value)| format!("{}: {}", string(key), string(value))).collect();
    format!("{{{}}}", fields.join(", "))
}

fn string(value: &str) -> String {
    let mut text = String::from('"');
    for letter in value.chars() {
        match letter {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            control if control < ' ' => text.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_reserves_is_escaped() {
        let line = object(&[("a", "say \"hi\"\n\\ \u{1} ü"), ("b", "")]);
        assert_eq!(line, r#"{"a": "say \"hi\"\n\\ \u0001 ü", "b": ""}"#);
    }
}
