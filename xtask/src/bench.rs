//! `cargo xtask bench`: how fast `lora` trains, generates and loads, and in how much memory, beside
//! PyTorch with PEFT where that is asked for. docs/performance.md says what the rows are.
//!
//! Every number comes from a process of its own. Programs take turns step by step, or slice by slice of a step where
//! steps are long, round after round, and a ratio is taken within one turn, so that what slows the machine slows
//! both sides.

mod child;
mod machine;
mod markdown;
mod programs;
mod report;
mod rows;
mod signals;
mod statistics;
mod turns;

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use self::child::Run;
use self::machine::Machine;
use self::programs::Programs;
use self::report::{Head, Report, Skip};
use self::rows::{BURN, PEER, Quantity, ROWS, Row, WORKS, Work};
use self::turns::Turns;
use crate::matrix::text;
use crate::{ci, write_file};

const DEFAULT_ROUNDS: usize = 3;

const DOCUMENT: &str = "docs/performance.md";

/// Why PyTorch is not asked: where a step takes it 9 s in f32, it took 222 s in bf16.
const NO_BF16: &str =
    "this processor has no instructions for bf16, without which PyTorch takes minutes for a step";

/// What was asked for on the command line.
#[derive(Debug)]
struct Options {
    peer: bool,
    /// Whether runs are short.
    quick: bool,
    /// Names of the rows to fill.
    only: Vec<&'static str>,
    rounds: usize,
    /// Where the pages go.
    out: PathBuf,
    /// Whether the table goes into docs/performance.md too.
    write_docs: bool,
}

impl Options {
    fn parse(root: &Path, arguments: &[&str]) -> Result<Self> {
        let (mut peer, mut quick, mut write_docs) = (false, false, false);
        let (mut only, mut rounds, mut out) = (None, None, None);
        let mut rest = arguments;
        while let [argument, tail @ ..] = rest {
            rest = tail;
            match *argument {
                "--peer" => peer = true,
                "--quick" => quick = true,
                "--write-docs" => write_docs = true,
                "--only" => only = Some(rows_of(value(&mut rest, "--only", "names of rows")?)?),
                "--runs" => rounds = Some(count(value(&mut rest, "--runs", "a number")?)?),
                "--out" => out = Some(value(&mut rest, "--out", "a folder")?),
                other => bail!(
                    "`cargo xtask bench` knows no `{other}`; it takes --peer, --quick, --only NAME,…, \
                     --runs N, --out DIR and --write-docs"
                ),
            }
        }
        let out = match out {
            Some(folder) => std::path::absolute(folder)
                .with_context(|| format!("finding the folder `{folder}`"))?,
            None => ci::target_folder(root).join("bench"),
        };
        Ok(Self {
            peer,
            quick,
            only: only.unwrap_or_else(|| ROWS.iter().map(|row| row.name).collect()),
            rounds: rounds.unwrap_or(if quick { 1 } else { DEFAULT_ROUNDS }),
            out,
            write_docs,
        })
    }
}

fn value<'a>(rest: &mut &[&'a str], option: &str, what: &str) -> Result<&'a str> {
    match *rest {
        [value, tail @ ..] if !value.starts_with("--") => {
            *rest = tail;
            Ok(value)
        }
        _ => bail!("`{option}` needs {what}"),
    }
}

fn count(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => bail!("`--runs {text}`: how many rounds? It takes a whole number from 1 on"),
    }
}

fn rows_of(list: &str) -> Result<Vec<&'static str>> {
    let mut names = Vec::new();
    for wanted in list.split(',').map(str::trim) {
        let Some(row) = ROWS.iter().find(|row| row.name == wanted) else {
            let all: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
            bail!("there is no row `{wanted}`; the rows are {}", all.join(", "));
        };
        names.push(row.name);
    }
    Ok(names)
}

/// One program on one work, as every round repeats it.
struct Job {
    work: &'static Work,
    by: &'static str,
}

/// Measures, writes the pages after every round, prints the table. An error if a run failed.
pub(crate) fn run(root: &Path, arguments: &[&str]) -> Result<()> {
    let options = Options::parse(root, arguments)?;
    let programs = Programs::find(root, options.peer, &options.out)?;
    let head = head(root, &options, &programs)?;
    let (mut jobs, skipped) = jobs(root, &options, &programs, &head.machine);
    programs.write_models(root, jobs.iter().map(|job| job.work))?;
    let mut runs: Vec<Run> = Vec::new();
    let mut report = None;
    for round in 1..=options.rounds {
        for work in &WORKS {
            let together = jobs.iter().filter(|job| job.work.name == work.name);
            let commands: Vec<_> = together
                .filter_map(|job| {
                    let command = programs.command(root, work, job.by, options.quick);
                    Some((job.by, command.ok()?))
                })
                .collect();
            if commands.is_empty() {
                continue;
            }
            let turns = Turns::new(work.warmup_turns(options.quick), commands.len());
            for run in child::run_in_turns(commands, turns, work, round) {
                println!("{}", progress(&run, options.rounds));
                // What failed once is not tried again.
                if run.failure.is_some() {
                    jobs.retain(|job| (job.work.name, job.by) != (run.work, run.by));
                }
                runs.push(run);
            }
        }
        let joined = Report::join(head.clone(), &options.only, runs.clone(), skipped.clone());
        write_pages(&joined, &options.out)?;
        report = Some(joined);
    }
    let report = report.context("no round was run")?;
    println!("\n{}", markdown::body(&report));
    println!("{}", options.out.join("bench.md").display());
    if options.write_docs {
        write_document(root, &report)?;
    }
    let failures = report.failures();
    if !failures.is_empty() {
        let shown: Vec<String> =
            failures.iter().map(|(work, by, why)| format!("`{work}`, {by}: {why}")).collect();
        bail!("{} failed\n  {}", text::count(failures.len(), "run"), shown.join("\n  "));
    }
    Ok(())
}

/// What the rows need, in the order of a round, and what can't be run.
fn jobs(
    root: &Path,
    options: &Options,
    programs: &Programs,
    machine: &Machine,
) -> (Vec<Job>, Vec<Skip>) {
    // What is only there to be compared with Burn's own says nothing alone.
    let says_something =
        |row: &&Row| options.peer || !row.against.iter().any(|source| source.by == BURN);
    let asked = ROWS.iter().filter(|row| options.only.contains(&row.name));
    let rows: Vec<&Row> = asked.filter(says_something).collect();
    let mut jobs = Vec::new();
    let mut skipped = Vec::new();
    for work in &WORKS {
        for &(by, _) in work.by {
            let mut sources = rows.iter().flat_map(|row| row.sources());
            let is_wanted = sources.any(|source| (source.work, source.by) == (work.name, by));
            // That there is no peer is what was asked for.
            if !is_wanted || (by.starts_with(PEER) && !options.peer) {
                continue;
            }
            let mut skip = |reason: String| skipped.push(Skip { work: work.name, by, reason });
            if work.is_long && options.quick {
                skip("the short form leaves it out".to_owned());
                continue;
            }
            if by.starts_with(PEER) && work.trains_in_bf16() && machine.lacks_bf16() {
                skip(NO_BF16.to_owned());
                continue;
            }
            match programs.command(root, work, by, options.quick) {
                Ok(_) => jobs.push(Job { work, by }),
                Err(reason) => skip(reason),
            }
        }
    }
    (jobs, skipped)
}

fn head(root: &Path, options: &Options, programs: &Programs) -> Result<Head> {
    let now =
        SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    let mut versions = BTreeMap::new();
    let said = |command: &mut Command| {
        let output = command.output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let ours = said(ci::command(root, programs.ours.as_os_str()).arg("--version"));
    let commit = said(ci::command(root, "git".as_ref()).args(["rev-parse", "--short", "HEAD"]));
    let changes = said(ci::command(root, "git".as_ref()).args(["status", "--porcelain"]));
    if let Some(ours) = ours {
        let version = ours.trim_start_matches("lora ").to_owned();
        let changed = changes.is_some_and(|changes| !changes.is_empty());
        let changed = if changed { " with changes" } else { "" };
        let commit = commit.map(|commit| format!(" at {commit}{changed}")).unwrap_or_default();
        versions.insert("lora".to_owned(), format!("{version}{commit}"));
    }
    let compiler = said(ci::command(root, "rustc".as_ref()).arg("--version"));
    if let Some(version) = compiler.as_deref().and_then(|text| text.split_whitespace().nth(1)) {
        versions.insert("rustc".to_owned(), version.to_owned());
    }
    Ok(Head {
        date: text::date(now),
        rounds: options.rounds,
        quick: options.quick,
        machine: Machine::this(),
        versions,
    })
}

/// A run on one line of the terminal.
fn progress(run: &Run, rounds: usize) -> String {
    let found = match (&run.line, &run.failure) {
        (_, Some(failure)) => format!("FAILED: {}", failure.replace('\n', "; ")),
        (Some(line), None) => {
            let speed = line.value(Quantity::Speed, "");
            let speed = speed.or_else(|| line.value(Quantity::Speed, "base"));
            let speed = speed.map(|speed| markdown::number(Quantity::Speed, speed));
            let memory = markdown::number(Quantity::Memory, line.peak_rss_mb);
            format!("{:>16} {memory:>9}", speed.unwrap_or_default())
        }
        (None, None) => String::new(),
    };
    format!(
        "{}/{rounds}  {:<15} {:<20} {:>7.1} s  {found}",
        run.round, run.work, run.by, run.seconds
    )
}

fn write_pages(report: &Report, out: &Path) -> Result<()> {
    let mut json = serde_json::to_string_pretty(report).context("writing the report as JSON")?;
    json.push('\n');
    write_file(&out.join("bench.json"), &json)?;
    write_file(&out.join("bench.md"), &markdown::page(report))
}

fn write_document(root: &Path, report: &Report) -> Result<()> {
    let path = root.join(DOCUMENT);
    let page = std::fs::read_to_string(&path).with_context(|| format!("reading `{DOCUMENT}`"))?;
    let page = markdown::into_page(&page, &markdown::body(report))
        .with_context(|| format!("`{DOCUMENT}` has no place for the table"))?;
    write_file(&path, &page)
}

#[cfg(test)]
mod tests;
