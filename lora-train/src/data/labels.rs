//! Rows with a label as an encoder sees them, and which labels there are.

use std::collections::BTreeSet;

use lora_models::encoder::{EncoderConfig, numbered_labels};
use lora_models::labels::Labels;
use lora_models::tokenizer::{TextEncoder, Tokenizer};
use serde_json::Value;

use super::formats::Row;
use super::source::Source;
use super::{Answer, Example, Label};
use crate::error::{Error, Result};
use crate::recipe::{DataSettings, Format, Task};

/// More labels than this are no labels.
const MOST: usize = 1000;

/// Turns rows with a label into examples for one encoder.
#[derive(Debug)]
pub struct LabelEncoder<'a> {
    texts: TextEncoder,
    config: &'a EncoderConfig,
}

impl<'a> LabelEncoder<'a> {
    /// An encoder of rows for a model's tokenizer and labels.
    ///
    /// # Errors
    /// A tokenizer that does not say how a text is framed; too few tokens.
    pub fn new(
        settings: &DataSettings,
        tokenizer: &Tokenizer,
        config: &'a EncoderConfig,
    ) -> Result<Self> {
        Ok(Self { texts: tokenizer.text_encoder(settings.max_tokens)?, config })
    }

    /// The example of a row.
    ///
    /// # Errors
    /// A key that is missing or has the wrong type, a label that is none of the model's.
    pub fn encode_row(&self, row: &Value) -> Result<Vec<Example>> {
        let Row::Labelled { text, second, label } = Row::parse(row, Format::Labels, false)? else {
            return Ok(Vec::new());
        };
        let answer = match self.config.regression {
            true => Answer::Score(score_of(&label)?),
            false => Answer::Class(class_of(&label, &self.config.labels)?),
        };
        let encoded = self.texts.encode(&text, second.as_deref())?;
        let mut learned = vec![false; encoded.tokens.len()];
        learned.iter_mut().take(1).for_each(|first| *first = true);
        Ok(vec![Example {
            tokens: encoded.tokens,
            learned,
            truncated: encoded.truncated,
            label: Some(Label { answer, segments: encoded.segments }),
            ..Example::default()
        }])
    }
}

/// The number of a label: that of its name, or the number itself.
fn class_of(label: &Value, names: &[String]) -> Result<u32> {
    let written = written(label);
    let named = names.iter().position(|name| *name == written);
    let number = || match label {
        Value::Number(number) => number.as_u64().and_then(|number| usize::try_from(number).ok()),
        Value::Bool(yes) if names.len() == 2 => Some(usize::from(*yes)),
        _ => None,
    };
    let found = named.or_else(number).filter(|index| *index < names.len());
    found.and_then(|index| u32::try_from(index).ok()).ok_or_else(|| {
        let known: Vec<&str> = names.iter().take(12).map(String::as_str).collect();
        let more = if names.len() > known.len() { ", …" } else { "" };
        let hint = if label.is_f64() {
            "set `data.task = \"regression\"` if the labels are quantities"
        } else {
            "name all labels in `data.labels`, in the order of their numbers"
        };
        Error::invalid(format!("the label `{written}` is none of {}{more}", known.join(", ")))
            .with_hint(hint)
    })
}

fn score_of(label: &Value) -> Result<f32> {
    label.as_f64().map(|score| score as f32).filter(|score| score.is_finite()).ok_or_else(|| {
        Error::invalid(format!("the label `{}` is no number", written(label)))
            .with_hint("this is a regression; set `data.task = \"classification\"` for labels")
    })
}

/// A label as text.
fn written(label: &Value) -> String {
    label.as_str().map_or_else(|| label.to_string(), str::to_owned)
}

/// The labels of the training files, in order: by number where all are whole numbers, else by name. One without a
/// name where they are numbers with fractions, or `data.task` says so.
///
/// # Errors
/// A file that can't be read, a row that is wrong; one label alone, or so many that they are none.
pub fn labels_in(settings: &DataSettings) -> Result<Labels> {
    let regression = Labels { names: numbered_labels(1), regression: true };
    if settings.task == Task::Regression {
        return Ok(regression);
    }
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let (mut all_whole, mut all_numbers) = (true, true);
    for file in &settings.train {
        let source = Source::open(file, Format::Labels)?;
        for row in 0..source.len() {
            let parsed = Row::parse(&source.read(row)?, Format::Labels, false);
            let parsed = parsed.map_err(|error| source.wrong(row, &error))?;
            let Row::Labelled { label, .. } = parsed else { continue };
            all_numbers &= label.is_number();
            match label.as_i64() {
                Some(number) => drop(numbers.insert(number)),
                None => all_whole = false,
            }
            if names.len() <= MOST {
                names.insert(written(&label));
            }
        }
    }
    if settings.task == Task::Auto && all_numbers && !all_whole {
        return Ok(regression);
    }
    if names.len() > MOST {
        return Err(Error::invalid(format!("there are more than {MOST} different labels"))
            .with_hint("set `data.task = \"regression\"` if they are quantities"));
    }
    if names.len() < 2 {
        let only = names.into_iter().next().unwrap_or_default();
        return Err(Error::invalid(format!("every row has the same label, `{only}`"))
            .with_hint("name all labels in `data.labels`, in the order of their numbers"));
    }
    let names = match all_whole {
        true if numbers.iter().copied().eq(0..numbers.len() as i64) => numbered_labels(names.len()),
        true => numbers.iter().map(i64::to_string).collect(),
        false => names.into_iter().collect(),
    };
    Ok(Labels { names, regression: false })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::recipe::DataFile;

    #[test]
    fn labels_are_names_or_numbers() {
        let names = ["no".to_owned(), "yes".to_owned()];
        let number = |label| class_of(&label, &names);
        assert_eq!(number(json!("yes")).unwrap(), 1);
        assert_eq!(number(json!(0)).unwrap(), 0);
        assert_eq!(number(json!(true)).unwrap(), 1);
        for label in [json!("maybe"), json!(2), json!(-1), json!(0.5)] {
            let error = number(label).unwrap_err();
            assert!(error.to_string().contains("is none of no, yes"), "{error}");
        }
        // A name comes before a number.
        let stars = ["1".to_owned(), "2".to_owned(), "5".to_owned()];
        assert_eq!(class_of(&json!(5), &stars).unwrap(), 2);
        assert_eq!(score_of(&json!(-2.5)).unwrap(), -2.5);
        assert!(score_of(&json!("good")).unwrap_err().to_string().contains("`good` is no number"));
    }

    fn found(rows: &[Value], task: Task) -> Result<Labels> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let line = |label: &Value| format!("{}\n", json!({"text": "a", "label": label}));
        std::fs::write(&path, rows.iter().map(line).collect::<String>()).unwrap();
        let train = vec![DataFile::new(path)];
        labels_in(&DataSettings { train, task, ..DataSettings::default() })
    }

    #[test]
    fn labels_are_found_in_the_data() {
        let names = |rows: &[Value]| found(rows, Task::Auto).unwrap().names;
        assert_eq!(names(&[json!("b"), json!("a"), json!("b")]), ["a", "b"]);
        assert_eq!(names(&[json!(1), json!(0), json!(2)]), ["LABEL_0", "LABEL_1", "LABEL_2"]);
        assert_eq!(names(&[json!(10), json!(2)]), ["2", "10"]);
        assert!(found(&[json!(1), json!(0.5)], Task::Auto).unwrap().regression);
        assert!(found(&[json!(1), json!(2)], Task::Regression).unwrap().regression);
        let classes = found(&[json!(1), json!(0.5)], Task::Classification).unwrap();
        assert_eq!(classes.names, ["0.5", "1"]);
        let error = found(&[json!("a"), json!("a")], Task::Auto).unwrap_err().to_string();
        assert_eq!(error, "every row has the same label, `a`");
        let error = found(&[json!("a"), json!([1])], Task::Auto).unwrap_err().to_string();
        assert!(error.contains("line 2: key `label` is an array, not a label"), "{error}");
    }
}
