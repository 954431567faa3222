//! Values of options, read and checked.

use std::path::{Path, PathBuf};

/// An adapter with its weight in a combination.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WeightedPath {
    /// Its folder.
    pub(crate) path: PathBuf,
    /// Its weight.
    pub(crate) weight: f64,
}

/// `runs/first=0.5`; without a number after the last `=`, all of it is the path. So is a path that is there.
pub(super) fn weighted_path(text: &str) -> Result<WeightedPath, String> {
    let whole = || WeightedPath { path: PathBuf::from(text), weight: 1.0 };
    let Some((path, number)) = text.rsplit_once('=') else {
        return Ok(whole());
    };
    match number.parse::<f64>() {
        _ if Path::new(text).exists() => Ok(whole()),
        Ok(weight) if weight.is_finite() && !path.is_empty() => {
            Ok(WeightedPath { path: PathBuf::from(path), weight })
        }
        _ => Err("expected ADAPTER or ADAPTER=WEIGHT, as in runs/first=0.5".to_string()),
    }
}

pub(super) fn rank(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(rank) if rank > 0 => Ok(rank),
        _ => Err("must be a whole number of at least 1".to_string()),
    }
}

/// Above 0, at most 1.
pub(super) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("must be a number above 0 and at most 1".to_string()),
    }
}

pub(super) fn quantile(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(quantile) if quantile > 0.5 && quantile <= 1.0 => Ok(quantile),
        _ => Err("must be a number above 0.5 and at most 1".to_string()),
    }
}

pub(super) fn nonzero(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor != 0.0 && factor.is_finite() => Ok(factor),
        _ => Err("must be a number other than 0".to_string()),
    }
}

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
    fn a_weight_may_follow_a_path() {
        let read = |text: &str| weighted_path(text).map(|it| (it.path, it.weight));
        assert_eq!(read("runs/first"), Ok(("runs/first".into(), 1.0)));
        assert_eq!(read("runs/first=-0.5"), Ok(("runs/first".into(), -0.5)));
        assert_eq!(read("lr=1/first=2"), Ok(("lr=1/first".into(), 2.0)));
        assert!(read("runs/first=half").is_err() && read("=1").is_err() && read("a=inf").is_err());
        assert!(share("0").is_err() && share("1.5").is_err() && share("1").is_ok());
        assert!(rank("0").is_err() && nonzero("0").is_err() && quantile("0.5").is_err());
    }

    #[test]
    fn set_needs_a_key() {
        assert!(key_and_value("train.steps").is_err());
        assert!(key_and_value("=3").is_err());
        assert!(key_and_value("train.steps=3").is_ok());
    }
}
