//! One piece of work by several programs, each in a process of its own, so that its memory is its own, and the lines
//! they print.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::machine::{self, Watch};
use super::rows::{Quantity, Work};
use super::signals::{go_on, stop};
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

impl Times {
    /// Takes from each step how long the program was stopped in it. There may have been one more turn, in which it
    /// ended.
    fn leave_out(&mut self, stopped: &[Duration]) -> Result<()> {
        let (turns, steps) = (stopped.len(), self.step_ms.len());
        ensure!(turns == steps || turns == steps + 1, "it took {turns} turns for {steps} steps");
        for (at, stopped) in stopped.iter().enumerate().take(steps) {
            let whole = self.step_ms[at];
            self.step_ms[at] -= stopped.as_secs_f64() * 1e3;
            if let Some(speed) = self.tok_s.get_mut(at) {
                *speed *= whole / self.step_ms[at];
            }
        }
        Ok(())
    }
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
/// until enough were taken: step by step, a slice of each at a time where steps are long, and none computes beside
/// another.
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
        let mut waiting = Vec::new();
        for (index, (_, program)) in programs.iter_mut().enumerate() {
            if let Ok(program) = program
                && program.comes_to_wait()
            {
                waiting.push((index, program));
            }
        }
        if waiting.is_empty() {
            break;
        }
        if turns.are_enough(started.elapsed()) {
            waiting.into_iter().for_each(|(_, program)| program.finish());
        } else {
            take_turns(waiting, &mut turns);
        }
    }
    let ended: Vec<_> = programs
        .into_iter()
        .map(|(by, program)| (by, program.and_then(|program| program.end(turns.untimed()))))
        .collect();
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

/// Lets each do one step. In the slices of a step it runs alone; the others are stopped where they are.
fn take_turns(mut waiting: Vec<(usize, &mut Program)>, turns: &mut Turns) {
    let taking: Vec<usize> = waiting.iter().map(|(index, _)| *index).collect();
    let slices: BTreeMap<usize, Duration> = turns.slices(&taking);
    while !waiting.is_empty() {
        waiting.retain_mut(|(index, program)| match program.run(slices.get(index).copied()) {
            Some(time) => {
                turns.took(*index, time);
                false
            }
            None => true,
        });
    }
}

/// What a program prints where it waits for its turn.
const WAITING: &str = ".";
/// After a whole step, until the threads of the program have stopped looking for more work.
const PAUSE: Duration = Duration::from_millis(100);

/// A program that runs.
struct Program {
    /// Without its folder: the page may be kept, and must not name folders of this machine.
    name: String,
    child: Child,
    /// Read meanwhile, as what it says is, so that it never waits for that.
    lines: Receiver<io::Result<String>>,
    errors: Option<JoinHandle<String>>,
    state: State,
    /// When it began the step that it is at, and how long it has run since.
    step: Option<(Instant, Duration)>,
    /// How long it was stopped in each step.
    stopped: Vec<Duration>,
}

enum State {
    /// With what it printed last.
    Running(String),
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
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            // Nobody may want them any more.
            BufReader::new(output).lines().try_for_each(|line| sender.send(line))
        });
        let (errors, state) = (Some(errors), State::Running(String::new()));
        Ok(Self { name, child, lines, errors, state, step: None, stopped: Vec::new() })
    }

    /// Returns when it waits for its turn or has ended; whether it waits.
    fn comes_to_wait(&mut self) -> bool {
        while matches!(self.state, State::Running(_)) {
            self.listen(None);
        }
        matches!(self.state, State::Waiting)
    }

    /// Listens until it waits or has ended, but not beyond `until`.
    fn listen(&mut self, until: Option<Instant>) {
        while let State::Running(last) = &mut self.state {
            let line = match until {
                Some(until) => {
                    self.lines.recv_timeout(until.saturating_duration_since(Instant::now()))
                }
                None => self.lines.recv().map_err(RecvTimeoutError::from),
            };
            match line {
                Ok(Ok(line)) if line == WAITING => self.state = State::Waiting,
                Ok(Ok(line)) if line.trim().is_empty() => {}
                Ok(Ok(line)) => *last = line,
                Err(RecvTimeoutError::Timeout) => return,
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
                    self.state = State::Done(std::mem::take(last));
                }
            }
        }
    }

    /// Lets it run until its step is done, or for a slice; how long it has run in the step, if that is done.
    fn run(&mut self, slice: Option<Duration>) -> Option<Duration> {
        let started = Instant::now();
        let (began, before) = self.step.unwrap_or((started, Duration::ZERO));
        if matches!(self.state, State::Waiting) {
            self.state = State::Running(String::new());
            // A program that has ended meanwhile says so when it is asked.
            let input = self.child.stdin.as_mut();
            let _ = input.map(|input| input.write_all(b"\n").and_then(|()| input.flush()));
        }
        go_on(&self.child);
        self.listen(slice.map(|slice| started + slice));
        if slice.is_some() {
            stop(&self.child);
        }
        let time = before + started.elapsed();
        if matches!(self.state, State::Running(_)) {
            self.step = Some((began, time));
            return None;
        }
        self.step = None;
        self.stopped.push(began.elapsed().saturating_sub(time));
        if slice.is_none() && matches!(self.state, State::Waiting) {
            std::thread::sleep(PAUSE);
        }
        Some(time)
    }

    /// Says that there are no more turns, and waits for its end.
    fn finish(&mut self) {
        self.child.stdin = None;
        go_on(&self.child);
        while self.comes_to_wait() {
            self.state = State::Running(String::new());
        }
    }

    /// What it printed, without the times in which it was stopped; so many of its first steps are not timed.
    fn end(mut self, untimed: Option<usize>) -> Result<Line> {
        go_on(&self.child);
        let status = self.child.wait().with_context(|| format!("waiting for `{}`", self.name))?;
        let said = self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default();
        let name = &self.name;
        if !status.success() {
            bail!("{status}: {}", last_words(&said));
        }
        let mut line: Line = match &self.state {
            State::Done(last) if !last.is_empty() => serde_json::from_str(last)
                .with_context(|| format!("`{name}` printed no line of the bench but `{last}`"))?,
            _ => bail!("`{name}` ended well and printed nothing"),
        };
        if let Some(stopped) = untimed.and_then(|untimed| self.stopped.get(untimed..)) {
            line.times.leave_out(stopped).with_context(|| format!("reading `{name}`"))?;
        }
        Ok(line)
    }
}

impl Drop for Program {
    /// It must not stay stopped: where its input ends, it ends.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            go_on(&self.child);
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
        let runs = run_in_turns(commands, Turns::new(None, 3), &WORKS[0], 1);
        let said = std::fs::read_to_string(shared.path()).unwrap();
        let order: Vec<&str> = said.lines().collect();
        let turn = |name: &str| [format!("{name} begins"), format!("{name} ends")];
        assert_eq!(order, ["a", "b", "c", "a", "c", "a"].map(turn).concat());
        assert!(runs[0].line.is_some() && runs[1].line.is_some(), "{runs:?}");
        assert_eq!(runs[2].failure.as_deref(), Some("exit status: 3: why"));
    }

    /// A program that takes so many turns at most, does `step` in each, and says that each took a second, but for the
    /// first, which is not timed. As ours do, it asks once more before it ends.
    #[cfg(unix)]
    fn paced(turns: usize, step: &str) -> Command {
        let line = TRAIN.replace('\n', "").replace("[4.0,8.0,16.0]", "['${speeds#*,}']");
        let line = line.replace("[2000.0,1000.0,500.0]", "['${times#*,}']");
        let script = format!(
            "n=0; while [ $n -lt {turns} ] && echo . && read turn; do n=$((n+1)); {step} \
             [ $n -gt 1 ] && times=$times,1000.0 speeds=$speeds,8.0; done; echo .; read turn; echo '{line}'"
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        command
    }

    #[cfg(unix)]
    #[test]
    fn turns_end_when_they_are_enough() {
        let commands = vec![("a", paced(60, "sleep 0.2;")), ("b", paced(60, "sleep 0.2;"))];
        let runs = run_in_turns(commands, Turns::new(Some(1), 2), &WORKS[0], 1);
        let turns = |run: &Run| run.line.as_ref().map(|line| line.times.step_ms.len());
        assert!(runs.iter().all(|run| turns(run).is_some_and(|turns| turns < 59)), "{runs:?}");
    }

    #[cfg(unix)]
    #[test]
    fn long_steps_are_run_by_slices() {
        let shared = tempfile::NamedTempFile::new().unwrap();
        // Nothing but the shell itself, which alone is stopped.
        let program = |name: &str| {
            let file = shared.path().display();
            paced(
                2,
                &format!(
                    "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo {name} >> {file}; \
                     k=0; while [ $k -lt 40000 ]; do k=$((k+1)); done; done;"
                ),
            )
        };
        let commands = vec![("a", program("a")), ("b", program("b"))];
        let runs = run_in_turns(commands, Turns::new(Some(1), 2), &WORKS[0], 1);
        let said = std::fs::read_to_string(shared.path()).unwrap();
        let order: Vec<&str> = said.lines().collect();
        assert_eq!(order.len(), 80);
        let changes = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes > 4, "{order:?}");
        for run in &runs {
            assert_eq!(run.failure, None);
            // The second that it says it took, without the slices of the other.
            let times = &run.line.as_ref().expect("a line").times;
            assert!(times.step_ms[0] < 950.0, "{run:?}");
            let second = times.step_ms[0] * times.tok_s[0] / 8.0;
            assert!((second - 1000.0).abs() < 1e-6, "{run:?}");
        }
    }

    #[test]
    fn stopped_times_are_left_out() {
        let times = |step_ms: &[f64], tok_s: &[f64]| Times {
            step_ms: step_ms.to_vec(),
            tok_s: tok_s.to_vec(),
            ..Times::default()
        };
        let [none, some] = [0, 1500].map(Duration::from_millis);
        for stopped in [&[some, none][..], &[some, none, some]] {
            let mut found = times(&[2000.0, 500.0], &[4.0, 16.0]);
            found.leave_out(stopped).unwrap();
            assert_eq!(found, times(&[500.0, 500.0], &[16.0, 16.0]));
        }
        for stopped in [1, 4] {
            let found = times(&[2000.0, 500.0], &[]).leave_out(&vec![none; stopped]);
            let error = found.unwrap_err().to_string();
            assert_eq!(error, format!("it took {stopped} turns for 2 steps"));
        }
    }
}
