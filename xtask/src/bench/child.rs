//! One piece of work in a process of its own, so that its memory is its own, and the line it prints.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use super::machine::{self, Watch};
use super::rows::{Quantity, Work};
use super::statistics::median;

/// Lines of a child's errors that go into the reason of its failure.
const SHOWN_LINES: usize = 3;

/// What `lora bench` and `benches/peer.py` print.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) kind: String,
    pub(crate) device: String,
    pub(crate) dtype: String,
    pub(crate) threads: usize,
    /// Of every timed step.
    #[serde(flatten)]
    pub(crate) times: Times,
    /// Of a generation, each way in which the adapter takes part; of products, each way in which they run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) variants: Vec<Variant>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trainable_parameters: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss_first: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss_last: Option<f64>,
    /// Before the model: the program itself and its libraries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) start_rss_mb: Option<f64>,
    pub(crate) peak_rss_mb: f64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) versions: BTreeMap<String, String>,
}

/// Of one variant of a work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Variant {
    pub(crate) variant: String,
    #[serde(flatten)]
    pub(crate) times: Times,
}

/// Every step as it was timed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Times {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) tok_s: Vec<f64>,
    #[serde(default)]
    pub(crate) step_ms: Vec<f64>,
    /// Billions of operations per second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) gflop_s: Vec<f64>,
    /// Of a generation, the time until the first new token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) prompt_ms: Vec<f64>,
}

impl Line {
    /// Times of a variant; of the work itself where the name is empty.
    pub(crate) fn times(&self, variant: &str) -> Option<&Times> {
        if variant.is_empty() {
            return Some(&self.times);
        }
        self.variants.iter().find(|found| found.variant == variant).map(|found| &found.times)
    }

    /// The one number that a row takes from a run.
    pub(crate) fn value(&self, quantity: Quantity, variant: &str) -> Option<f64> {
        let times = self.times(variant)?;
        match quantity {
            Quantity::Speed => median(&times.tok_s),
            Quantity::TokenTime | Quantity::StepTime => median(&times.step_ms),
            Quantity::Rate => median(&times.gflop_s),
            Quantity::Memory => Some(self.peak_rss_mb),
            Quantity::Time => median(&times.step_ms).map(|milliseconds| milliseconds / 1e3),
        }
    }
}

/// One run of one program.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Run {
    pub(crate) work: &'static str,
    pub(crate) by: &'static str,
    /// Counted from 1.
    pub(crate) round: usize,
    /// Of the whole process, from its start to its end.
    pub(crate) seconds: f64,
    /// Over one minute, before it started.
    pub(crate) load_average: Option<f64>,
    /// Part of the machine that other programs took meanwhile.
    pub(crate) others_percent: Option<f64>,
    pub(crate) line: Option<Line>,
    pub(crate) failure: Option<String>,
}

/// Runs the work to its end. A failure is part of the result: the other rows do not depend on it.
pub(crate) fn run(
    mut command: Command,
    work: &'static Work,
    by: &'static str,
    round: usize,
) -> Run {
    let load_average = machine::load_average();
    let watch = Watch::start();
    let end = output(&mut command);
    let (seconds, others_percent) = watch.stop();
    let (line, failure) = match end {
        Ok(line) => (Some(line), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    Run { work: work.name, by, round, seconds, load_average, others_percent, line, failure }
}

fn output(command: &mut Command) -> Result<Line> {
    // Its name alone: the page may be kept, and must not name folders of this machine.
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let program = program.display().to_string();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting `{program}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", output.status, last_words(&said));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(last) = text.lines().rfind(|line| !line.trim().is_empty()) else {
        bail!("`{program}` ended well and printed nothing");
    };
    serde_json::from_str(last)
        .with_context(|| format!("`{program}` printed no line of the bench but `{last}`"))
}

fn last_words(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.as_slice() {
        [] => "it said nothing".to_owned(),
        all => all[all.len().saturating_sub(SHOWN_LINES)..].join(" | "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rows::{OURS, WORKS};

    const TRAIN: &str = r#"{"kind":"train","device":"cpu","dtype":"f32","threads":2,"tokens":8,
        "tok_s":[4.0,8.0,16.0],"step_ms":[2000.0,1000.0,500.0],"loss_first":10.8,"loss_last":10.7,
        "trainable_parameters":7,"peak_rss_mb":100.5}"#;

    #[test]
    fn a_line_gives_the_numbers_of_the_rows() {
        let train: Line = serde_json::from_str(TRAIN).unwrap();
        let values = [Quantity::Speed, Quantity::TokenTime, Quantity::Memory, Quantity::Time]
            .map(|quantity| train.value(quantity, ""));
        assert_eq!(values, [Some(8.0), Some(1000.0), Some(100.5), Some(1.0)]);
        assert_eq!(train.value(Quantity::Speed, "base"), None);

        let generate: Line = serde_json::from_str(
            r#"{"kind":"generate","device":"cpu","dtype":"f32","threads":2,"peak_rss_mb":1,
            "variants":[{"variant":"base","tok_s":[20],"step_ms":[50],"prompt_ms":[90]}]}"#,
        )
        .unwrap();
        assert_eq!(generate.value(Quantity::TokenTime, "base"), Some(50.0));
        assert_eq!(generate.value(Quantity::Speed, ""), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_child_that_fails_is_a_result() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let run = run(command, &WORKS[0], OURS, 1);
            run.failure.unwrap_or_else(|| format!("{:?}", run.line.unwrap().times.tok_s))
        };
        let line = TRAIN.replace('\n', "");
        assert_eq!(
            shell(&format!("echo noise; echo '{line}'; echo; echo more >&2")),
            "[4.0, 8.0, 16.0]"
        );
        assert_eq!(shell("echo a >&2; echo b; exit 3"), "exit status: 3: a");
        assert_eq!(shell("exit 0"), "`sh` ended well and printed nothing");
        assert_eq!(shell("exit 1"), "exit status: 1: it said nothing");
        assert!(shell("echo done").starts_with("`sh` printed no line of the bench but `done`"));
    }
}
