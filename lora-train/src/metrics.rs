//! The metrics of a run: a line of JSON for each step and evaluation in `metrics.jsonl`, and the
//! same for TensorBoard.
//!
//! A resumed run goes on after the step of its checkpoint: what was written for later steps is
//! taken back, so that each step stands in the file once.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use lora_core::files::{read, write_whole};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::evaluate::Evaluation;
use crate::tensorboard::EventWriter;
use crate::trainer::StepMetrics;

/// Name of the file in the run folder.
pub const FILE: &str = "metrics.jsonl";

/// Writes the metrics of a run.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    events: EventWriter,
    /// The step of the last evaluation in the file.
    evaluated: Option<usize>,
}

impl Metrics {
    /// Opens the metrics of a run that has done `steps` steps: lines of later steps are taken
    /// back; with 0 the run begins anew and all are.
    ///
    /// # Errors
    /// A file that can't be read or written, or whose lines are not metrics.
    pub fn open(folder: &Path, steps: usize) -> Result<Self> {
        let path = folder.join(FILE);
        let evaluated = take_back(&path, steps)?;
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(|source| Error::write(&path, source))?;
        let first_step = if steps == 0 { 0 } else { steps + 1 };
        let events = EventWriter::open(folder, first_step)?;
        Ok(Self { path, file, events, evaluated })
    }

    /// Writes what an optimizer step did.
    ///
    /// # Errors
    /// The operating system's.
    pub fn step(&mut self, step: &StepMetrics) -> Result<()> {
        self.line(&json!({
            "step": step.step,
            "total_steps": step.total_steps,
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "tokens": step.tokens,
            "learned_tokens": step.learned_tokens,
            "tokens_per_second": step.tokens_per_second,
            "memory_bytes": step.memory_bytes,
        }))?;
        let scalars = [
            ("train/loss", step.loss),
            ("train/learning_rate", step.learning_rate),
            ("train/gradient_norm", step.gradient_norm),
            ("train/tokens_per_second", step.tokens_per_second),
            ("train/memory_bytes", step.memory_bytes as f64),
        ];
        self.events.scalars(step.step, &scalars)
    }

    /// Writes what an evaluation after `step` steps found, unless it is there already.
    ///
    /// # Errors
    /// The operating system's.
    pub fn evaluation(&mut self, step: usize, found: &Evaluation) -> Result<()> {
        if self.evaluated == Some(step) {
            return Ok(());
        }
        self.evaluated = Some(step);
        let mut fields = Map::new();
        fields.insert("step".into(), step.into());
        fields.insert("validation_loss".into(), found.loss.into());
        let mut scalars = vec![("validation/loss".to_owned(), found.loss)];
        for (name, number) in found.measures() {
            fields.insert(format!("validation_{name}"), number.into());
            scalars.push((format!("validation/{name}"), number));
        }
        let counted = if found.scores.is_none() { "validation_tokens" } else { "validation_rows" };
        fields.insert(counted.into(), found.tokens.into());
        self.line(&Value::Object(fields))?;
        let scalars: Vec<(&str, f64)> =
            scalars.iter().map(|(name, number)| (name.as_str(), *number)).collect();
        self.events.scalars(step, &scalars)
    }

    /// One write a line, so that a killed run tears the last line at most.
    fn line(&mut self, value: &Value) -> Result<()> {
        let line = format!("{value}\n");
        self.file.write_all(line.as_bytes()).map_err(|source| Error::write(&self.path, source))
    }
}

/// The lines of a metrics file, each with its step. A torn last line is left out.
///
/// # Errors
/// A file that can't be read; a line before the last that is no metrics line, with its number.
pub fn lines(path: &Path) -> Result<Vec<(usize, Map<String, Value>)>> {
    let bytes = read(path)?;
    Ok(parse(path, &bytes)?.into_iter().map(|(step, fields, _)| (step, fields)).collect())
}

/// Takes back the lines after `steps`; gives the step of the last evaluation that stays.
fn take_back(path: &Path, steps: usize) -> Result<Option<usize>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read(path)?;
    let lines = if steps == 0 { Vec::new() } else { parse(path, &bytes)? };
    let stays = || lines.iter().filter(|(step, ..)| *step <= steps);
    let kept: Vec<u8> = stays().flat_map(|(.., line)| [*line, b"\n"].concat()).collect();
    if kept != bytes {
        write_whole(path, &kept)?;
    }
    let is_evaluation = |fields: &Map<String, Value>| fields.contains_key("validation_loss");
    Ok(stays().rfind(|(_, fields, _)| is_evaluation(fields)).map(|(step, ..)| *step))
}

type Line<'a> = (usize, Map<String, Value>, &'a [u8]);

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<Line<'a>>> {
    let mut lines = Vec::new();
    let mut torn = None;
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let fields = serde_json::from_slice::<Map<String, Value>>(line).ok();
        let step = fields.as_ref().and_then(|fields| fields.get("step")?.as_u64());
        match (step, fields, torn) {
            (Some(step), Some(fields), None) => lines.push((step as usize, fields, line)),
            (Some(_), Some(_), Some(number)) => {
                let reason = format!("line {number} is no metrics line, a JSON object with `step`");
                return Err(Error::malformed(path, reason)
                    .with_hint("move the file away; the run can go on without it"));
            }
            _ => torn = torn.or(Some(index + 1)),
        }
    }
    Ok(lines)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::fs;

    use super::*;

    fn step(step: usize) -> StepMetrics {
        StepMetrics {
            step,
            total_steps: 9,
            loss: 1.0 / step as f64,
            learning_rate: 2e-4,
            gradient_norm: 0.5,
            tokens: 100,
            learned_tokens: 50,
            tokens_per_second: 10.0,
            memory_bytes: 1,
            seconds_left: 1.0,
        }
    }

    const FOUND: Evaluation =
        Evaluation { loss: 2.0, perplexity: 7.4, accuracy: 0.5, tokens: 12, scores: None };

    fn run(folder: &Path, done: usize, last: usize) {
        let mut metrics = Metrics::open(folder, done).unwrap();
        if done == 0 {
            metrics.evaluation(0, &FOUND).unwrap();
        }
        for index in done + 1..=last {
            metrics.step(&step(index)).unwrap();
            if index % 2 == 0 {
                metrics.evaluation(index, &FOUND).unwrap();
            }
        }
    }

    #[test]
    fn a_resumed_run_leaves_the_file_of_one_that_was_not_interrupted() {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        run(whole.path(), 0, 9);
        run(parts.path(), 0, 6);
        // Killed while it wrote a line.
        let path = parts.path().join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"step\":7,\"lo");
        fs::write(&path, bytes).unwrap();
        run(parts.path(), 4, 8);
        run(parts.path(), 8, 9);
        let expected = fs::read_to_string(whole.path().join(FILE)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(expected.lines().count(), 9 + 5);
        run(parts.path(), 0, 9);
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn an_evaluation_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), 0, 4);
        let mut metrics = Metrics::open(folder.path(), 4).unwrap();
        metrics.evaluation(4, &FOUND).unwrap();
        let lines = lines(&folder.path().join(FILE)).unwrap();
        let steps: Vec<usize> = lines.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [0, 1, 2, 2, 3, 4, 4]);
        assert_eq!(lines[6].1["validation_loss"], 2.0);
    }

    #[test]
    fn a_loss_that_is_no_number_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(folder.path(), 0).unwrap();
        metrics.step(&StepMetrics { loss: f64::NAN, ..step(1) }).unwrap();
        assert!(lines(&folder.path().join(FILE)).unwrap()[0].1["loss"].is_null());
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        fs::write(&path, "{\"step\":1}\nnonsense\n{\"step\":3}\n").unwrap();
        let error = Metrics::open(folder.path(), 2).unwrap_err().to_string();
        assert!(error.contains("line 2 is no metrics line"), "{error}");
        assert!(fs::read_to_string(&path).unwrap().contains("nonsense"));
    }
}
