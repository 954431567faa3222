//! What was read: rows, tokens, cuts and rows left out, per file and in sum.

use std::fmt;
use std::path::PathBuf;

use super::Example;
use super::formats::name;
use crate::recipe::Format;

/// So many lines of left-out rows are remembered.
const NAMED_LINES: usize = 10;

/// What was read from all files of a dataset.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DataReport {
    /// In the order of the recipe.
    pub files: Vec<FileReport>,
}

/// What was read from one file.
#[derive(Debug, Clone, PartialEq)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// How its rows are written, where they come from a file.
    pub format: Option<Format>,
    /// How often an epoch draws its rows.
    pub weight: f64,
    /// Rows read.
    pub rows: usize,
    /// Examples made of them: a long text becomes several.
    pub examples: usize,
    /// Rows left out because nothing in them is learned.
    pub skipped: usize,
    /// Lines of the first rows left out.
    pub skipped_lines: Vec<usize>,
    /// Examples that were cut.
    pub truncated: usize,
    /// Tokens cut off.
    pub truncated_tokens: usize,
    /// Tokens of all examples.
    pub tokens: usize,
    /// Tokens that are targets.
    pub learned: usize,
    /// Tokens of the longest example.
    pub longest: usize,
}

impl FileReport {
    pub(crate) fn new(path: impl Into<PathBuf>, format: Option<Format>, weight: f64) -> Self {
        Self {
            path: path.into(),
            format,
            weight,
            rows: 0,
            examples: 0,
            skipped: 0,
            skipped_lines: Vec::new(),
            truncated: 0,
            truncated_tokens: 0,
            tokens: 0,
            learned: 0,
            longest: 0,
        }
    }

    pub(crate) fn count(&mut self, example: &Example) {
        self.examples += 1;
        self.tokens += example.tokens.len();
        self.learned += example.learned_tokens();
        self.truncated += usize::from(example.truncated > 0);
        self.truncated_tokens += example.truncated;
        self.longest = self.longest.max(example.tokens.len());
    }

    pub(crate) fn skip(&mut self, line: usize) {
        self.skipped += 1;
        if self.skipped_lines.len() < NAMED_LINES {
            self.skipped_lines.push(line);
        }
    }
}

impl DataReport {
    /// Rows read.
    pub fn rows(&self) -> usize {
        self.sum(|file| file.rows)
    }

    /// Examples made of them.
    pub fn examples(&self) -> usize {
        self.sum(|file| file.examples)
    }

    /// Rows left out because nothing in them is learned.
    pub fn skipped(&self) -> usize {
        self.sum(|file| file.skipped)
    }

    /// Examples that were cut.
    pub fn truncated(&self) -> usize {
        self.sum(|file| file.truncated)
    }

    /// Tokens cut off.
    pub fn truncated_tokens(&self) -> usize {
        self.sum(|file| file.truncated_tokens)
    }

    /// Tokens of all examples.
    pub fn tokens(&self) -> usize {
        self.sum(|file| file.tokens)
    }

    /// Tokens that are targets.
    pub fn learned(&self) -> usize {
        self.sum(|file| file.learned)
    }

    /// Tokens of the longest example.
    pub fn longest(&self) -> usize {
        self.files.iter().map(|file| file.longest).max().unwrap_or(0)
    }

    fn sum(&self, of: impl Fn(&FileReport) -> usize) -> usize {
        self.files.iter().map(of).sum()
    }
}

/// One line per file and, where there are several, one for their sum.
impl fmt::Display for DataReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, file) in self.files.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            write!(out, "{file}")?;
        }
        if self.files.len() > 1 {
            write!(
                out,
                "\nin all: {}, {}",
                counted(self.rows(), "row"),
                match self.files[0].format {
                    Some(Format::Labels) => counted(self.tokens(), "token"),
                    _ => tokens(self.tokens(), self.learned()),
                }
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for FileReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.path.display(), counted(self.rows, "row"))?;
        if let Some(format) = self.format {
            write!(out, " ({})", name(format))?;
        }
        let weighted = self.weight != 1.0;
        if weighted {
            write!(out, ", weight {}", self.weight)?;
        }
        if self.examples + self.skipped != self.rows {
            write!(out, ", {}", counted(self.examples, "example"))?;
        }
        let tokens = match self.format {
            // What is learned is one answer a row.
            Some(Format::Labels) => counted(self.tokens, "token"),
            _ => tokens(self.tokens, self.learned),
        };
        write!(out, ", {tokens}, longest {}", thousands(self.longest))?;
        if self.truncated > 0 {
            write!(
                out,
                ", {} truncated by {}",
                thousands(self.truncated),
                counted(self.truncated_tokens, "token")
            )?;
        }
        if self.skipped > 0 {
            let lines: Vec<String> = self.skipped_lines.iter().map(ToString::to_string).collect();
            let more = if self.skipped > lines.len() { ", …" } else { "" };
            let word = if self.skipped == 1 { "line" } else { "lines" };
            write!(
                out,
                ", {} left out without a learned token ({word} {}{more})",
                thousands(self.skipped),
                lines.join(", ")
            )?;
        }
        Ok(())
    }
}

/// "1,234 tokens, 567 learned (45.9 %)".
fn tokens(tokens: usize, learned: usize) -> String {
    let part = if tokens == 0 { 0.0 } else { 100.0 * learned as f64 / tokens as f64 };
    format!("{}, {} learned ({part:.1} %)", counted(tokens, "token"), thousands(learned))
}

/// "1 row", "1,234 rows".
pub(crate) fn counted(count: usize, singular: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {singular}{plural}", thousands(count))
}

fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_file_and_a_sum() {
        let mut first = FileReport::new("a.jsonl", Some(Format::Alpaca), 1.0);
        first.rows = 1969;
        first.examples = 1967;
        first.tokens = 1_234_567;
        first.learned = 617_283;
        first.longest = 384;
        first.truncated = 12;
        first.truncated_tokens = 1;
        first.skip(7);
        first.skip(9);
        let mut second = FileReport::new("b.txt", Some(Format::Text), 0.5);
        second.rows = 1;
        second.examples = 3;
        second.tokens = 99;
        second.learned = 98;
        second.longest = 33;
        let report = DataReport { files: vec![first, second] };
        insta::assert_snapshot!(report, @r"
        a.jsonl: 1,969 rows (alpaca), 1,234,567 tokens, 617,283 learned (50.0 %), longest 384, 12 truncated by 1 token, 2 left out without a learned token (lines 7, 9)
        b.txt: 1 row (text), weight 0.5, 3 examples, 99 tokens, 98 learned (99.0 %), longest 33
        in all: 1,970 rows, 1,234,666 tokens, 617,381 learned (50.0 %)
        ");
    }

    #[test]
    fn an_empty_report_divides_by_nothing() {
        let report = DataReport { files: vec![FileReport::new("a", None, 1.0)] };
        assert_eq!(report.to_string(), "a: 0 rows, 0 tokens, 0 learned (0.0 %), longest 0");
        assert_eq!((report.rows(), report.longest()), (0, 0));
    }
}
