//! Tests of [`super::load`]: splits, rows left out, errors with their place.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write as _;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::data::testing::{CHATML, bytes, template};
use crate::recipe::Format;

struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Rows `text: name0`, `text: name1`, …
    fn texts(&self, name: &str, rows: usize) -> DataFile {
        let mut content = String::new();
        for row in 0..rows {
            writeln!(content, "{{\"text\": \"{name}{row}\"}}").unwrap();
        }
        DataFile::new(self.write(&format!("{name}.jsonl"), &content))
    }

    /// An error without the temporary folder.
    fn message(&self, error: &Error) -> String {
        let text = format!("{error} | {}", error.hint().unwrap_or("no hint"));
        text.replace(&format!("{}/", self.folder.path().display()), "")
    }
}

fn settings(train: Vec<DataFile>) -> DataSettings {
    DataSettings { train, ..DataSettings::default() }
}

fn loaded(settings: &DataSettings) -> Result<(Dataset, Dataset)> {
    load(settings, &bytes(false), None)
}

fn texts(dataset: &Dataset) -> Vec<String> {
    let tokenizer = bytes(false);
    let decode = |example: &Example| tokenizer.decode(&example.tokens, true).unwrap();
    dataset.examples.iter().map(decode).collect()
}

#[test]
fn rows_keep_file_line_and_order() {
    let files = Files::new();
    let (train, validation) =
        loaded(&settings(vec![files.texts("a", 300), files.texts("b", 2)])).unwrap();
    assert_eq!(train.len(), 302);
    assert!(validation.is_empty());
    assert_eq!(texts(&train)[299..301], ["a299", "b0"]);
    assert_eq!((train.examples[301].file, train.examples[301].line), (1, 2));
    assert_eq!(train.report.rows(), 302);
    assert_eq!(train.report.files[1].tokens, 6);
    assert_eq!(train.report.files[1].learned, 4, "the first token is no target");
}

#[test]
fn the_last_rows_are_held_out() {
    let files = Files::new();
    let mut settings = settings(vec![files.texts("a", 3), files.texts("b", 2)]);
    settings.validation_rows = 3;
    let (train, validation) = loaded(&settings).unwrap();
    assert_eq!(texts(&train), ["a0", "a1"]);
    assert_eq!(texts(&validation), ["a2", "b0", "b1"]);
    settings.validation_rows = 5;
    let error = loaded(&settings).unwrap_err();
    insta::assert_snapshot!(error, @"data.validation_rows = 5 leaves nothing to learn from: there is 5 rows");
}

#[test]
fn a_fraction_is_held_out_of_each_file() {
    let files = Files::new();
    let mut settings = settings(vec![files.texts("a", 4), files.texts("b", 2)]);
    settings.validation_fraction = 0.5;
    let (train, validation) = loaded(&settings).unwrap();
    assert_eq!(texts(&train), ["a0", "a1", "b0"]);
    assert_eq!(texts(&validation), ["a2", "a3", "b1"]);
    settings.validation_fraction = 0.01;
    let error = loaded(&settings).unwrap_err();
    insta::assert_snapshot!(error, @"data.validation_fraction = 0.01 of 6 rows is none");
    settings.validation = vec![files.texts("c", 2)];
    assert!(loaded(&settings).unwrap_err().to_string().contains("more than one way"));
}

#[test]
fn validation_files_stand_apart() {
    let files = Files::new();
    let mut settings = settings(vec![files.texts("a", 3)]);
    let mut held = files.texts("b", 3);
    held.rows = Some(1..2);
    settings.validation = vec![held];
    let (train, validation) = loaded(&settings).unwrap();
    assert_eq!(train.len(), 3);
    assert_eq!(texts(&validation), ["b1"]);
    assert_eq!(validation.examples[0].line, 2);
}

#[test]
fn rows_without_a_learned_token_stop_or_are_left_out() {
    let files = Files::new();
    let rows = "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}\n\
        \n\
        {\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}\n";
    let mut settings = settings(vec![DataFile::new(files.write("rows.jsonl", rows))]);
    let load = |settings: &DataSettings| {
        super::load(settings, &bytes(false), Some(&template(CHATML))).map(|(train, _)| train)
    };
    insta::assert_snapshot!(files.message(&load(&settings).unwrap_err()), @r#"`rows.jsonl`: line 3: nothing is learned: the model has nothing to write in this row | add an assistant message or a completion, or leave such rows out with data.unlearnable_rows = "skip""#);
    settings.unlearnable = Unlearnable::Skip;
    let train = load(&settings).unwrap();
    assert_eq!((train.len(), train.report.skipped(), train.report.rows()), (1, 1, 2));
    assert_eq!(train.report.files[0].skipped_lines, [3]);
    settings.max_tokens = 5;
    insta::assert_snapshot!(files.message(&load(&settings).unwrap_err()), @r"no training row has a learned token: all are left out | raise data.max_tokens, or see with `lora data` what the rows look like");
    settings.unlearnable = Unlearnable::Error;
    insta::assert_snapshot!(files.message(&load(&settings).unwrap_err()), @r#"`rows.jsonl`: line 1: nothing is learned: of its 23 tokens the first 5 are all prompt | raise data.max_tokens, or leave such rows out with data.unlearnable_rows = "skip""#);
}

#[test]
fn wrong_rows_are_named_and_the_first_of_them() {
    let files = Files::new();
    let mut lines = "{\"text\": \"a\"}\n".repeat(200);
    lines.push_str("{\"text\": 5}\n{\"text\": 6}\n{\n");
    let lines = settings(vec![DataFile::new(files.write("rows.jsonl", &lines))]);
    insta::assert_snapshot!(files.message(&loaded(&lines).unwrap_err()), @r"`rows.jsonl`: line 201: key `text` is a number, not a string | no hint");
    let array = r#"[{"text": "a"}, {"body": "b"}]"#;
    let array = settings(vec![DataFile::new(files.write("rows.json", array))]);
    insta::assert_snapshot!(files.message(&loaded(&array).unwrap_err()), @r"`rows.json`: row 1 (line 1): key `text` is missing; the row has `body` | set data.format if the row is of another format than the first one of its file");

    let refused = "{{ raise_exception('only one question') }}";
    let row = "{\"prompt\": \"q\", \"completion\": \"a\"}";
    let row = settings(vec![DataFile::new(files.write("row.jsonl", row))]);
    let error = super::load(&row, &bytes(false), Some(&template(refused))).unwrap_err();
    insta::assert_snapshot!(files.message(&error), @r"`row.jsonl`: line 1: the chat template of `test` refuses the conversation: only one question | no hint");
}

#[test]
fn settings_without_data_are_refused() {
    let files = Files::new();
    assert!(loaded(&settings(Vec::new())).unwrap_err().hint().unwrap().contains("[[data.train]]"));
    for weight in [-1.0, f64::NAN, f64::INFINITY] {
        let file = DataFile { weight, ..files.texts("a", 1) };
        assert!(loaded(&settings(vec![file])).unwrap_err().to_string().contains("weight"));
    }
    let unused = DataFile { weight: 0.0, ..files.texts("a", 1) };
    assert!(loaded(&settings(vec![unused])).unwrap_err().to_string().contains("weight 0"));
    let chosen = DataSettings { format: Format::Alpaca, ..settings(vec![files.texts("a", 1)]) };
    insta::assert_snapshot!(files.message(&loaded(&chosen).unwrap_err()), @r"`a.jsonl`: line 1: key `instruction` is missing; the row has `text` | set data.format if the row is of another format than the first one of its file");
}
