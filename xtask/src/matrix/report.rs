//! What the suites left, joined into one table: cases down, backends across.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::Path;

use super::deviation::{self, Deviation, Values};

/// The groups of cells that `suite.rs` makes when a child fails; other backends lack them rightly.
const STAGES: [&str; 2] = ["build", "suite"];

/// In this group a case may name the backend whose files it reads, which lacks that case itself.
const EXCHANGE: &str = "exchange";

/// How a suite ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Ran,
    /// This machine lacks the device.
    Absent,
    /// It was not built, or left nothing that can be read.
    #[serde(skip_deserializing)]
    Failed,
}

/// What a suite writes about one case.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Pass,
    Fail,
    Skipped,
}

/// One case as a suite writes it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Cell {
    pub(crate) case: String,
    pub(crate) outcome: Outcome,
    pub(crate) reason: Option<String>,
    pub(crate) deviation: Option<f64>,
    pub(crate) tolerance: Option<f64>,
    /// What the case is compared with.
    pub(crate) reference: Option<String>,
    pub(crate) seconds: Option<f64>,
}

/// The file `cells.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Suite {
    pub(crate) backend: String,
    pub(crate) device: Option<String>,
    pub(crate) driver: Option<String>,
    pub(crate) status: Status,
    pub(crate) reason: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) cells: Vec<Cell>,
}

/// All that one backend contributes.
#[derive(Debug)]
pub(crate) struct Column {
    /// The backend as it was asked for.
    pub(crate) name: String,
    pub(crate) suite: Suite,
    /// What it computed, if it ran and left that.
    pub(crate) values: Option<Values>,
}

/// The matrix; its JSON is `matrix.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) date: String,
    /// Whether the suites ran their short form.
    pub(crate) quick: bool,
    pub(crate) totals: Counts,
    pub(crate) columns: Vec<Heading>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) groups: Vec<Group>,
    pub(crate) deviations: Vec<Deviation>,
}

/// How many cells ended how; what is missing counts as failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

/// The head of a column.
#[derive(Debug, Serialize)]
pub(crate) struct Heading {
    pub(crate) backend: String,
    pub(crate) device: Option<String>,
    pub(crate) driver: Option<String>,
    pub(crate) status: Status,
    pub(crate) reason: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) counts: Counts,
}

/// One thing that failed: a cell, or a tensor between two backends.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    pub(crate) case: String,
    pub(crate) backend: String,
    pub(crate) reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reason.lines().next().unwrap_or_default();
        write!(formatter, "{} on {}: {reason}", self.case, self.backend)
    }
}

/// The cases whose names begin alike.
#[derive(Debug, Serialize)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) rows: Vec<Row>,
}

/// One case on every backend.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    /// What it is compared with, where a suite says so.
    pub(crate) reference: Option<String>,
    /// In the order of the columns.
    pub(crate) cells: Vec<Entry>,
}

impl Row {
    /// The case without the name of its group.
    pub(crate) fn label(&self) -> &str {
        self.case.split_once('/').map_or(self.case.as_str(), |(_, rest)| rest)
    }
}

/// How one case ended on one backend.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) outcome: Verdict,
    pub(crate) reason: Option<String>,
    pub(crate) deviation: Option<f64>,
    pub(crate) tolerance: Option<f64>,
    pub(crate) seconds: Option<f64>,
}

/// What the table says of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Pass,
    Fail,
    Skipped,
    /// The backend ran and says nothing of this case: a failure.
    Missing,
    /// There is nothing that this backend could say.
    None,
}

impl Cell {
    /// The failed cell for a stage that did not succeed.
    pub(crate) fn failed(case: &str, reason: String) -> Self {
        Self {
            case: case.to_owned(),
            outcome: Outcome::Fail,
            reason: Some(reason),
            deviation: None,
            tolerance: None,
            reference: None,
            seconds: None,
        }
    }
}

impl Suite {
    /// Reads `cells.json`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("reading `{}`", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("reading `{}`", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let suite: Self = serde_json::from_slice(bytes)?;
        let mut seen = HashSet::new();
        if let Some(twice) = suite.cells.iter().find(|cell| !seen.insert(&cell.case)) {
            bail!("the case `{}` stands there twice", twice.case);
        }
        Ok(suite)
    }

    /// Stands for a suite that left nothing.
    pub(crate) fn failed(backend: &str, case: &str, reason: String) -> Self {
        Self {
            backend: backend.to_owned(),
            device: None,
            driver: None,
            status: Status::Failed,
            reason: Some(reason.clone()),
            seconds: 0.0,
            cells: vec![Cell::failed(case, reason)],
        }
    }
}

impl Column {
    fn entry(&self, case: &str) -> Entry {
        let stage = STAGES.contains(&group(case));
        let found = self.suite.cells.iter().find(|cell| cell.case == case);
        let (outcome, reason) = match (found, self.suite.status) {
            (Some(cell), _) if stage => (verdict(cell), cell.reason.clone()),
            (None, _) if stage => (Verdict::None, None),
            (_, Status::Absent) => (
                Verdict::Skipped,
                Some(self.suite.reason.clone().unwrap_or_else(|| "absent".to_owned())),
            ),
            (Some(cell), _) => judged(cell),
            (None, Status::Failed) => (Verdict::Skipped, Some("the suite did not run".to_owned())),
            (None, Status::Ran) if self.owns(case) => (Verdict::None, None),
            (None, Status::Ran) => {
                (Verdict::Missing, Some("this backend says nothing of the case".to_owned()))
            }
        };
        let number = |of: fn(&Cell) -> Option<f64>| match self.suite.status {
            Status::Absent => None,
            _ => found.and_then(of),
        };
        Entry {
            outcome,
            reason,
            deviation: number(|cell| cell.deviation),
            tolerance: number(|cell| cell.tolerance),
            seconds: number(|cell| cell.seconds),
        }
    }

    /// Whether the case reads what this very backend wrote, which is no exchange.
    fn owns(&self, case: &str) -> bool {
        group(case) == EXCHANGE
            && case.split('/').any(|part| part == self.name || part == self.name.replace(':', "-"))
    }
}

fn verdict(cell: &Cell) -> Verdict {
    match cell.outcome {
        Outcome::Pass => Verdict::Pass,
        Outcome::Fail => Verdict::Fail,
        Outcome::Skipped => Verdict::Skipped,
    }
}

/// What a cell says, unless its numbers contradict it. JSON has no word for NaN but `null`, so a
/// tolerance without a deviation has not been kept.
fn judged(cell: &Cell) -> (Verdict, Option<String>) {
    let broken = match (cell.outcome, cell.deviation, cell.tolerance) {
        (Outcome::Pass, None, Some(_)) => "said to pass, and its deviation is no number",
        (Outcome::Pass, Some(value), Some(limit)) if value.is_nan() || value > limit => {
            "said to pass, and its deviation exceeds the tolerance"
        }
        (Outcome::Pass, _, _) => return (Verdict::Pass, cell.reason.clone()),
        (Outcome::Fail | Outcome::Skipped, _, _) => {
            let reason = cell.reason.clone().unwrap_or_else(|| "no reason given".to_owned());
            return (verdict(cell), Some(reason));
        }
    };
    (Verdict::Fail, Some(broken.to_owned()))
}

/// The first part of a case's name.
fn group(case: &str) -> &str {
    case.split('/').next().unwrap_or(case)
}

/// Joins the columns. The date is given, so that the same columns make the same report.
pub(crate) fn join(date: String, quick: bool, columns: &[Column]) -> Report {
    let groups = groups(columns);
    let mut failures = failed_cells(&groups, columns);
    let deviations = deviations(columns);
    for deviation in &deviations {
        failures.extend(deviation.failures.iter().map(|failure| Failure {
            case: failure.tensor.clone(),
            backend: format!("{} and {}", deviation.left, deviation.right),
            reason: failure.reason.clone(),
        }));
    }
    let columns: Vec<Heading> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| heading(column, counts(&groups, index)))
        .collect();
    let totals = Counts {
        passed: columns.iter().map(|column| column.counts.passed).sum(),
        failed: failures.len(),
        skipped: columns.iter().map(|column| column.counts.skipped).sum(),
    };
    Report { date, quick, totals, columns, failures, groups, deviations }
}

/// All cases in the order in which they first appear, each under the first part of its name.
fn groups(columns: &[Column]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut seen = HashSet::new();
    for cell in columns.iter().flat_map(|column| &column.suite.cells) {
        if !seen.insert(cell.case.as_str()) {
            continue;
        }
        let row = Row {
            case: cell.case.clone(),
            reference: reference(&cell.case, columns),
            cells: columns.iter().map(|column| column.entry(&cell.case)).collect(),
        };
        let name = group(&cell.case);
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.rows.push(row),
            None => groups.push(Group { name: name.to_owned(), rows: vec![row] }),
        }
    }
    groups
}

/// What the suites say that a case is compared with; all of it where they differ.
fn reference(case: &str, columns: &[Column]) -> Option<String> {
    let mut references: Vec<&str> = Vec::new();
    for cell in columns.iter().flat_map(|column| &column.suite.cells) {
        if let Some(reference) = cell.reference.as_deref()
            && cell.case == case
            && !references.contains(&reference)
        {
            references.push(reference);
        }
    }
    (!references.is_empty()).then(|| references.join(", "))
}

fn failed_cells(groups: &[Group], columns: &[Column]) -> Vec<Failure> {
    let mut failures = Vec::new();
    for row in groups.iter().flat_map(|group| &group.rows) {
        for (entry, column) in row.cells.iter().zip(columns) {
            if matches!(entry.outcome, Verdict::Fail | Verdict::Missing) {
                failures.push(Failure {
                    case: row.case.clone(),
                    backend: column.name.clone(),
                    reason: entry.reason.clone().unwrap_or_default(),
                });
            }
        }
    }
    failures
}

fn counts(groups: &[Group], index: usize) -> Counts {
    let mut counts = Counts::default();
    for row in groups.iter().flat_map(|group| &group.rows) {
        match row.cells[index].outcome {
            Verdict::Pass => counts.passed += 1,
            Verdict::Fail | Verdict::Missing => counts.failed += 1,
            Verdict::Skipped => counts.skipped += 1,
            Verdict::None => {}
        }
    }
    counts
}

fn heading(column: &Column, counts: Counts) -> Heading {
    let suite = &column.suite;
    Heading {
        backend: column.name.clone(),
        device: said(&suite.device),
        driver: said(&suite.driver),
        status: suite.status,
        reason: suite.reason.clone(),
        seconds: suite.seconds,
        counts,
    }
}

/// A text unless it is empty, as the device of a backend is that is absent.
fn said(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.is_empty())
}

/// Every two backends that computed something, kind by kind.
fn deviations(columns: &[Column]) -> Vec<Deviation> {
    let computed: Vec<(&str, &Values)> = columns
        .iter()
        .filter_map(|column| Some((column.name.as_str(), column.values.as_ref()?)))
        .collect();
    let mut deviations = Vec::new();
    for (index, left) in computed.iter().enumerate() {
        for right in &computed[index + 1..] {
            deviations.extend(deviation::between(*left, *right));
        }
    }
    deviations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(cells: &str) -> Result<Suite> {
        let text = format!(r#"{{"backend":"cpu","status":"ran","seconds":1.5,"cells":[{cells}]}}"#);
        Suite::parse(text.as_bytes())
    }

    #[test]
    fn a_case_stands_once() {
        let cell = r#"{"case":"a/b","outcome":"pass"}"#;
        assert_eq!(suite(cell).unwrap().cells.len(), 1);
        let error = suite(&[cell, cell].join(",")).unwrap_err();
        assert_eq!(error.to_string(), "the case `a/b` stands there twice");
    }

    #[test]
    fn no_suite_says_of_itself_that_it_failed() {
        let text = r#"{"backend":"cpu","status":"failed","seconds":0,"cells":[]}"#;
        assert!(Suite::parse(text.as_bytes()).is_err());
    }

    #[test]
    fn a_pass_keeps_its_tolerance() {
        let judge = |numbers: &str| {
            let cell = format!(r#"{{"case":"a","outcome":"pass",{numbers}}}"#);
            judged(&suite(&cell).unwrap().cells[0]).0
        };
        assert_eq!(judge(r#""deviation":1e-6,"tolerance":1e-6"#), Verdict::Pass);
        assert_eq!(judge(r#""deviation":null,"tolerance":null"#), Verdict::Pass);
        assert_eq!(judge(r#""deviation":2e-6,"tolerance":1e-6"#), Verdict::Fail);
        assert_eq!(judge(r#""deviation":null,"tolerance":1e-6"#), Verdict::Fail);
    }

    #[test]
    fn only_its_own_exchange_may_be_missing() {
        let column =
            |name: &str| Column { name: name.to_owned(), suite: suite("").unwrap(), values: None };
        assert_eq!(column("cpu").entry("exchange/cpu/adapter").outcome, Verdict::None);
        assert_eq!(column("cuda:1").entry("exchange/adapter/cuda-1").outcome, Verdict::None);
        assert_eq!(column("cpu").entry("exchange/wgpu/adapter").outcome, Verdict::Missing);
        assert_eq!(column("cpu").entry("parity/cpu").outcome, Verdict::Missing);
        assert_eq!(column("cpu").entry("suite/run").outcome, Verdict::None);
    }
}
