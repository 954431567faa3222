//! One piece of work by several programs, each in a process of its own, so that its memory is its own, and the lines
//! they print.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::machine::{self, Watch};
use super::rows::{Quantity, Work};
use super::statistics::median;
use super::turns::Turns;

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

/// Runs the work of all these programs, each in a process of its own. Where there are turns to take, they take them
/// step by step until enough were taken, and none computes beside another.
///
/// A failure is part of the result: the other rows do not depend on it.
pub(crate) fn run_in_turns(
    commands: Vec<(&'static str, Command)>,
    mut turns: Turns,
    work: &'static Work,
    round: usize,
) -> Vec<Run> {
    let load_average = machine::load_average();
    let (watch, started) = (Watch::start(), Instant::now());
    let mut programs: Vec<_> =
        commands.into_iter().map(|(by, command)| (by, Program::start(command))).collect();
    loop {
        let mut any_waits = false;
        for program in programs.iter_mut().filter_map(|(_, program)| program.as_mut().ok()) {
            any_waits |= program.comes_to_wait();
        }
        if !any_waits {
            break;
        }
        let are_enough = turns.are_enough(started.elapsed());
        for (index, (_, program)) in programs.iter_mut().enumerate() {
            match program {
                Ok(program) if are_enough => program.finish(),
                Ok(program) => {
                    if let Some(time) = program.take_turn() {
                        turns.took(index, time);
                    }
                }
                Err(_) => {}
            }
        }
    }
    let ended: Vec<_> =
        programs.into_iter().map(|(by, program)| (by, program.and_then(Program::end))).collect();
    let (seconds, others_percent) = watch.stop();
    let each = ended.into_iter().map(|(by, end)| {
        let (line, failure) = match end {
            Ok(line) => (Some(line), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Run { work: work.name, by, round, seconds, load_average, others_percent, line, failure }
    });
    each.collect()
}

/// What a program prints where it waits for its turn.
const WAITING: &str = ".";
/// After a turn, until the threads of the program have stopped looking for more work.
const PAUSE: Duration = Duration::from_millis(100);

/// A program that runs.
struct Program {
    /// Without its folder: the page may be kept, and must not name folders of this machine.
    name: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// Reads what it says meanwhile, so that it never waits for that.
    errors: JoinHandle<String>,
    state: State,
}

enum State {
    Running,
    Waiting,
    /// With what it printed last.
    Done(String),
}

impl Program {
    fn start(mut command: Command) -> Result<Self> {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default();
        let name = name.display().to_string();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting `{name}`"))?;
        let (Some(output), Some(mut errors)) = (child.stdout.take(), child.stderr.take()) else {
            bail!("`{name}` has no output");
        };
        let errors = std::thread::spawn(move || {
            let mut said = Vec::new();
            // What can't be read is not said.
            let _ = errors.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        });
        let lines = BufReader::new(output).lines();
        Ok(Self { name, child, lines, errors, state: State::Running })
    }

    /// Returns when it waits for its turn or has ended; whether it waits.
    fn comes_to_wait(&mut self) -> bool {
        let mut last = String::new();
        while matches!(self.state, State::Running) {
            self.state = match self.lines.next() {
                Some(Ok(line)) if line == WAITING => State::Waiting,
                Some(Ok(line)) => {
                    if !line.trim().is_empty() {
                        last = line;
                    }
                    continue;
                }
                Some(Err(_)) | None => State::Done(std::mem::take(&mut last)),
            };
        }
        matches!(self.state, State::Waiting)
    }

    /// Lets it do one step, if it waits for that, and says how long that took.
    fn take_turn(&mut self) -> Option<Duration> {
        let (State::Waiting, Some(input)) = (&self.state, &mut self.child.stdin) else {
            return None;
        };
        let started = Instant::now();
        // A program that has ended meanwhile says so when it is asked.
        let _ = input.write_all(b"\n").and_then(|()| input.flush());
        self.state = State::Running;
        let waits = self.comes_to_wait();
        let time = started.elapsed();
        if waits {
            std::thread::sleep(PAUSE);
        }
        Some(time)
    }

    /// Says that there are no more turns, and waits for its end.
    fn finish(&mut self) {
        self.child.stdin = None;
        while self.comes_to_wait() {
            self.state = State::Running;
        }
    }

    fn end(mut self) -> Result<Line> {
        let status = self.child.wait().with_context(|| format!("waiting for `{}`", self.name))?;
        let said = self.errors.join().unwrap_or_default();
        let name = &self.name;
        if !status.success() {
            bail!("{status}: {}", last_words(&said));
        }
        match &self.state {
            State::Done(last) if !last.is_empty() => serde_json::from_str(last)
                .with_context(|| format!("`{name}` printed no line of the bench but `{last}`")),
            _ => bail!("`{name}` ended well and printed nothing"),
        }
    }
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
            let turns = Turns::new(None, 1);
            let run = run_in_turns(vec![(OURS, command)], turns, &WORKS[0], 1).remove(0);
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

    #[cfg(unix)]
    #[test]
    fn programs_take_turns() {
        let shared = tempfile::NamedTempFile::new().unwrap();
        let line = TRAIN.replace('\n', "");
        // Each writes its name when it begins a step and when it ends it; the last one fails in its second.
        let program = |name: &str, steps: usize, end: &str| {
            let mut command = Command::new("sh");
            let file = shared.path().display();
            command.arg("-c").arg(format!(
                "for step in $(seq {steps}); do echo .; read turn || exit 4; \
                 echo '{name} begins' >> {file}; sleep 0.01; echo '{name} ends' >> {file}; done; {end}"
            ));
            command
        };
        let done = format!("echo '{line}'");
        let commands = vec![
            ("a", program("a", 3, &done)),
            ("b", program("b", 1, &done)),
            ("c", program("c", 2, "echo why >&2; exit 3")),
        ];
        let runs = run_in_turns(commands, Turns::new(Some(0), 3), &WORKS[0], 1);
        let said = std::fs::read_to_string(shared.path()).unwrap();
        let order: Vec<&str> = said.lines().collect();
        let turn = |name: &str| [format!("{name} begins"), format!("{name} ends")];
        assert_eq!(order, ["a", "b", "c", "a", "c", "a"].map(turn).concat());
        assert!(runs[0].line.is_some() && runs[1].line.is_some(), "{runs:?}");
        assert_eq!(runs[2].failure.as_deref(), Some("exit status: 3: why"));
    }

    #[cfg(unix)]
    #[test]
    fn turns_end_when_they_are_enough() {
        let line = TRAIN.replace('\n', "");
        let program = || {
            let mut command = Command::new("sh");
            // As a program does that asks for its next turn a second time before it ends.
            let steps = "n=0; while [ $n -lt 60 ] && echo . && read turn; do n=$((n+1)); sleep 0.2; done; \
                         echo .; read turn;";
            let line = line.replace(r#""loss_last":10.7"#, r#""loss_last":'$n'"#);
            command.arg("-c").arg(format!("{steps} echo '{line}'"));
            command
        };
        let commands = vec![("a", program()), ("b", program())];
        let runs = run_in_turns(commands, Turns::new(Some(1), 2), &WORKS[0], 1);
        let turns = |run: &Run| run.line.as_ref().and_then(|line| line.loss_last);
        assert!(runs.iter().all(|run| turns(run).is_some_and(|turns| turns < 60.0)), "{runs:?}");
    }
}
