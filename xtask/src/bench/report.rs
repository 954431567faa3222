//! The runs joined into the rows of the table.

use serde::Serialize;
use std::collections::BTreeMap;

use super::child::{Line, Run, Times};
use super::machine::Machine;
use super::rows::{PEER, Quantity, ROWS, Row, Source, Target, WORKS};
use super::statistics::{Spread, best, error_of_median, median, ratios_of_turns};

/// Everything that the pages show.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) head: Head,
    pub(crate) rows: Vec<Entry>,
    pub(crate) measurements: Vec<Measurement>,
    pub(crate) skipped: Vec<Skip>,
    pub(crate) runs: Vec<Run>,
}

/// When, where and with what.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Head {
    pub(crate) date: String,
    /// Rounds asked for; an interrupted bench has fewer.
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
    pub(crate) machine: Machine,
    pub(crate) versions: BTreeMap<String, String>,
}

/// What was not run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Skip {
    pub(crate) work: &'static str,
    pub(crate) by: &'static str,
    pub(crate) reason: String,
}

/// A row with its numbers.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) quantity: Quantity,
    /// Median over the rounds.
    pub(crate) ours: Option<f64>,
    pub(crate) other: Option<f64>,
    /// Whose number the other is.
    pub(crate) other_by: Option<&'static str>,
    /// Whether there is nothing to divide by.
    pub(crate) is_absolute: bool,
    /// Of several, the best in each round.
    pub(crate) has_choice: bool,
    /// Ours divided by the other, over the rounds.
    pub(crate) ratio: Option<Spread>,
    /// Its standard error, where it is of turns.
    pub(crate) error: Option<f64>,
    /// What the ratio has to be or, where there is no other, our number itself.
    pub(crate) target: Option<Target>,
    pub(crate) met: Option<bool>,
}

/// All runs of one program on one work.
#[derive(Debug, Serialize)]
pub(crate) struct Measurement {
    pub(crate) work: &'static str,
    pub(crate) by: &'static str,
    pub(crate) variant: String,
    pub(crate) runs: usize,
    /// Over every timed step of every round.
    pub(crate) tok_s: Option<Spread>,
    pub(crate) step_ms: Option<Spread>,
    pub(crate) prompt_ms: Option<Spread>,
    /// Median over the rounds. A generation holds all its variants at once, so that it has none.
    pub(crate) peak_rss_mb: Option<f64>,
    /// What of it was there before the model.
    pub(crate) start_rss_mb: Option<f64>,
    pub(crate) trainable_parameters: Option<u64>,
    /// Of the first round.
    pub(crate) loss: Option<(f64, f64)>,
}

impl Report {
    /// The rows named `names`, from these runs.
    pub(crate) fn join(head: Head, names: &[&str], runs: Vec<Run>, skipped: Vec<Skip>) -> Self {
        let chosen = ROWS.iter().filter(|row| names.contains(&row.name));
        let rows = chosen.map(|row| entry(row, &runs, head.rounds)).collect();
        let measurements = measurements(&runs);
        let mut head = head;
        for run in &runs {
            let versions = run.line.iter().flat_map(|line| &line.versions);
            head.versions.extend(versions.map(|(name, version)| (name.clone(), version.clone())));
        }
        Self { head, rows, measurements, skipped, runs }
    }

    /// Runs that failed, each program and work once.
    pub(crate) fn failures(&self) -> Vec<(&'static str, &'static str, &str)> {
        let mut failures: Vec<(&str, &str, &str)> = Vec::new();
        for run in &self.runs {
            let known = failures.iter().any(|(work, by, _)| (*work, *by) == (run.work, run.by));
            if let (Some(reason), false) = (&run.failure, known) {
                failures.push((run.work, run.by, reason));
            }
        }
        failures
    }

    /// The most that other programs took of the machine during a run, in percent.
    pub(crate) fn most_by_others(&self) -> Option<f64> {
        self.runs.iter().filter_map(|run| run.others_percent).reduce(f64::max)
    }

    /// Threads that the programs computed with.
    pub(crate) fn threads(&self) -> Vec<usize> {
        let mut threads: Vec<usize> =
            self.runs.iter().filter_map(|run| run.line.as_ref()).map(|line| line.threads).collect();
        threads.sort_unstable();
        threads.dedup();
        threads
    }
}

fn entry(row: &Row, runs: &[Run], rounds: usize) -> Entry {
    let more_is_better = matches!(row.quantity, Quantity::Speed | Quantity::Rate);
    let of = |source: &Source| values(source, row.quantity, runs, rounds);
    let ours = of(&row.ours);
    let others: Vec<Vec<Option<f64>>> = row.against.iter().map(of).collect();
    let other = best(&others, more_is_better);
    let rounds = ratios_of_rounds(row, runs, &ours, &others, &other);
    let ratio = Spread::of(&rounds.iter().map(|(ratio, _)| *ratio).collect::<Vec<_>>());
    let squares: Option<f64> =
        rounds.iter().map(|(_, error)| error.map(|error| error * error)).sum();
    let error = squares.filter(|_| !rounds.is_empty()).map(|sum| sum.sqrt() / rounds.len() as f64);
    let middle =
        |numbers: &[Option<f64>]| median(&numbers.iter().copied().flatten().collect::<Vec<_>>());
    let measured = match row.against {
        [] => middle(&ours),
        _ => ratio.map(|ratio| ratio.median),
    };
    Entry {
        name: row.name,
        what: row.what,
        quantity: row.quantity,
        ours: middle(&ours),
        other: middle(&other),
        other_by: most_often(row, &others, &other),
        is_absolute: row.against.is_empty(),
        has_choice: row.against.iter().filter(|source| source.by.starts_with(PEER)).count() > 1,
        ratio,
        error: ratio.zip(error).map(|(ratio, error)| ratio.median * error),
        target: row.target,
        met: row.target.zip(measured).map(|(target, measured)| target.is_met(measured)),
    }
}

/// The number of each round.
fn values(source: &Source, quantity: Quantity, runs: &[Run], rounds: usize) -> Vec<Option<f64>> {
    let of_round = |round: usize| line(source, runs, round)?.value(quantity, source.variant);
    (1..=rounds).map(of_round).collect()
}

fn line<'a>(source: &Source, runs: &'a [Run], round: usize) -> Option<&'a Line> {
    let is_it = |run: &&Run| (run.work, run.by, run.round) == (source.work, source.by, round);
    runs.iter().find(is_it)?.line.as_ref()
}

/// Ours divided by the best of the others, round by round: the middle of the ratios of single turns with the part that
/// it may be off where both took turns, else that of the numbers of the round.
fn ratios_of_rounds(
    row: &Row,
    runs: &[Run],
    ours: &[Option<f64>],
    others: &[Vec<Option<f64>>],
    best: &[Option<f64>],
) -> Vec<(f64, Option<f64>)> {
    let of_round = |round: usize| {
        let (ours, best) = (ours[round]?, (*best.get(round)?)?);
        let mut sources = row.against.iter().zip(others);
        let (source, _) = sources.find(|(_, numbers)| numbers[round] == Some(best))?;
        let steps = |source: &Source| {
            let times = line(source, runs, round + 1)?.times(source.variant)?;
            match row.quantity {
                Quantity::Speed => Some(times.tok_s.as_slice()),
                Quantity::TokenTime | Quantity::StepTime => Some(times.step_ms.as_slice()),
                Quantity::Rate | Quantity::Memory | Quantity::Time => None,
            }
        };
        let take_turns = source.work == row.ours.work && takes_turns(source.work);
        let both = steps(&row.ours).zip(steps(source)).filter(|_| take_turns);
        let turns = both.map_or(Vec::new(), |(ours, other)| ratios_of_turns(ours, other));
        Some((median(&turns).unwrap_or(ours / best), error_of_median(&turns)))
    };
    (0..ours.len()).filter_map(of_round).collect()
}

fn takes_turns(work: &str) -> bool {
    WORKS.iter().any(|found| found.name == work && found.has_turns())
}

/// Who had the best number in the most rounds.
fn most_often(
    row: &Row,
    others: &[Vec<Option<f64>>],
    best: &[Option<f64>],
) -> Option<&'static str> {
    let wins = |numbers: &Vec<Option<f64>>| {
        numbers.iter().zip(best).filter(|(number, best)| best.is_some() && number == best).count()
    };
    let counted = row.against.iter().zip(others).map(|(source, numbers)| (source, wins(numbers)));
    // The first of equals: the peer's default stands in front.
    let winner = counted.filter(|(_, wins)| *wins > 0).reduce(|a, b| if b.1 > a.1 { b } else { a });
    let first = row.against.first()?;
    // The f32 of a row on bf16 is known by its work.
    let is_other_work = |source: &Source| source.by == first.by && source.work != first.work;
    winner.map(|(source, _)| if is_other_work(source) { source.work } else { source.by })
}

fn measurements(runs: &[Run]) -> Vec<Measurement> {
    let mut all = Vec::new();
    for work in &WORKS {
        for (by, _) in work.by {
            let lines: Vec<&Line> = runs
                .iter()
                .filter(|run| (run.work, run.by) == (work.name, *by))
                .filter_map(|run| run.line.as_ref())
                .collect();
            let Some(first) = lines.first() else { continue };
            let mut variants: Vec<&str> =
                first.variants.iter().map(|variant| variant.variant.as_str()).collect();
            if variants.is_empty() {
                variants.push("");
            }
            all.extend(variants.into_iter().map(|name| measurement(work.name, by, name, &lines)));
        }
    }
    all
}

fn measurement(
    work: &'static str,
    by: &'static str,
    variant: &str,
    lines: &[&Line],
) -> Measurement {
    let spread = |of: fn(&Times) -> &Vec<f64>| {
        let times = lines.iter().filter_map(|line| line.times(variant));
        Spread::of(&times.flat_map(of).copied().collect::<Vec<_>>())
    };
    let starts: Vec<f64> = lines.iter().filter_map(|line| line.start_rss_mb).collect();
    let peaks: Vec<f64> = lines.iter().map(|line| line.peak_rss_mb).collect();
    Measurement {
        work,
        by,
        variant: variant.to_owned(),
        runs: lines.len(),
        tok_s: spread(|times| &times.tok_s),
        step_ms: spread(|times| &times.step_ms),
        prompt_ms: spread(|times| &times.prompt_ms),
        peak_rss_mb: median(&peaks).filter(|_| variant.is_empty()),
        start_rss_mb: median(&starts).filter(|_| variant.is_empty()),
        trainable_parameters: lines.iter().find_map(|line| line.trainable_parameters),
        loss: lines.iter().find_map(|line| line.loss_first.zip(line.loss_last)),
    }
}
