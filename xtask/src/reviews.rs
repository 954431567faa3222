//! Movie reviews as rows with a label: sentences whose mean score is above zero are positive, those below
//! negative, and those at zero are left out (Hutto and Gilbert 2014, "VADER").

use anyhow::{Context, Result, bail};
use std::path::Path;

use crate::json;
use crate::random::Random;
use crate::write_file;

const TRAIN: &str = "data/reviews/train.jsonl";
const HELDOUT: &str = "data/reviews/heldout.jsonl";
const HELDOUT_ROWS: usize = 1_000;
const SEED: u64 = 14;

/// Writes both files from the lines of the original, `number, mean score, sentence` with tabs between.
pub(crate) fn write(root: &Path, text: &str) -> Result<()> {
    let mut rows = rows(text)?;
    Random::new(SEED).shuffle(&mut rows);
    let (heldout, train) =
        rows.split_at_checked(HELDOUT_ROWS).context("there are too few reviews")?;
    for (path, rows) in [(TRAIN, train), (HELDOUT, heldout)] {
        write_file(&root.join(path), &rows.concat())?;
        println!("{path}: {} rows", rows.len());
    }
    Ok(())
}

fn rows(text: &str) -> Result<Vec<String>> {
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut fields = line.splitn(3, '\t').skip(1);
        let (Some(score), Some(sentence)) = (fields.next(), fields.next()) else {
            bail!("line {}: not a number, a score and a sentence", index + 1);
        };
        let score: f64 = score.parse().with_context(|| format!("line {}: no score", index + 1))?;
        let label = match score {
            above if above > 0.0 => "positive",
            below if below < 0.0 => "negative",
            _ => continue,
        };
        rows.push(json::object(&[("text", sentence.trim()), ("label", label)]) + "\n");
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_become_labels() {
        let text = "1\t2.5\tA \"gem\".\r\n2\t0.0\tIt is.\r\n3\t-0.1\tToo long\r\n";
        let expected = [
            "{\"text\": \"A \\\"gem\\\".\", \"label\": \"positive\"}\n",
            "{\"text\": \"Too long\", \"label\": \"negative\"}\n",
        ];
        assert_eq!(rows(text).unwrap(), expected);
        assert!(rows("1\tgood\tyes").unwrap_err().to_string().contains("line 1"));
    }
}
