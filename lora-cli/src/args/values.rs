//! Values of options, read and checked.

pub(super) fn key_and_value(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => Ok(text.to_string()),
        _ => Err("expected KEY=VALUE, as in train.learning_rate=1e-4".to_string()),
    }
}

pub(super) fn number(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err("not a number".to_string()),
    }
}

pub(super) fn temperature(text: &str) -> Result<f32, String> {
    match number(text)? {
        value if value >= 0.0 => Ok(value),
        _ => Err("must be 0 or more".to_string()),
    }
}

pub(super) fn positive(text: &str) -> Result<f32, String> {
    match number(text)? {
        value if value > 0.0 => Ok(value),
        _ => Err("must be more than 0".to_string()),
    }
}

pub(super) fn probability(text: &str) -> Result<f32, String> {
    match number(text)? {
        value if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("must lie between 0 and 1".to_string()),
    }
}

pub(super) fn positive_probability(text: &str) -> Result<f32, String> {
    match probability(text)? {
        value if value > 0.0 => Ok(value),
        _ => Err("must be more than 0, up to 1".to_string()),
    }
}

pub(super) fn unescape(text: &str) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            result.push(character);
            continue;
        }
        match characters.next() {
            Some('n') => result.push('\n'),
            Some('t') => result.push('\t'),
            Some('r') => result.push('\r'),
            Some('\\') | None => result.push('\\'),
            Some(other) => {
                result.push('\\');
                result.push(other);
            }
        }
    }
    if result.is_empty() {
        return Err("an empty stop text would stop at once".to_string());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_texts_are_unescaped() {
        assert_eq!(unescape("a\\nb\\t\\\\n\\x"), Ok("a\nb\t\\n\\x".to_string()));
        assert!(unescape("").is_err());
    }

    #[test]
    fn sampling_numbers_have_limits() {
        assert!(temperature("-0.1").is_err());
        assert!(temperature("nan").is_err());
        assert_eq!(temperature("0"), Ok(0.0));
        assert!(positive_probability("0").is_err());
        assert_eq!(positive_probability("1"), Ok(1.0));
        assert!(probability("1.5").is_err());
        assert!(positive("0").is_err());
    }

    #[test]
    fn set_needs_a_key() {
        assert!(key_and_value("train.steps").is_err());
        assert!(key_and_value("=3").is_err());
        assert!(key_and_value("train.steps=3").is_ok());
    }
}
