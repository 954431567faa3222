//! Builds the conformance suite for each backend and runs it: once alone, and once more when all have
//! run, each reading what the others wrote. Nothing that a child does ends the matrix: whatever goes
//! wrong becomes a failed cell.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use super::report::{Cell, Column, Outcome, Status, Suite};
use super::{Backend, Options, deviation};
use crate::ci;

const PACKAGE: &str = "lora-tests";
const SUITE: &str = "conformance";

/// The status with which a Rust program ends that panicked.
const PANICKED: i32 = 101;

/// Lines of a child's output that go into the reason of its failure, and their greatest length.
const SHOWN_LINES: usize = 4;
const LONGEST_LINE: usize = 300;

/// One backend on its way through the stages.
struct Run<'a> {
    backend: &'a Backend,
    folder: PathBuf,
    /// `None` if it could not be built.
    executable: Option<PathBuf>,
    suite: Suite,
}

/// Runs all backends through all stages.
pub(crate) fn run_all(root: &Path, options: &Options) -> Result<Vec<Column>> {
    let logs = options.out.join("logs");
    for backend in &options.backends {
        remove_earlier(&options.out.join(backend.folder()), &logs)?;
    }
    fs::create_dir_all(&logs).with_context(|| format!("creating `{}`", logs.display()))?;
    let mut runs = Vec::new();
    for backend in &options.backends {
        runs.push(build_and_run(root, options, backend));
    }
    exchange(root, options, &mut runs);
    Ok(runs.into_iter().map(column).collect())
}

/// Removes what an earlier matrix left, and nothing else.
fn remove_earlier(folder: &Path, logs: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if !logs.is_dir() {
        bail!(
            "`{}` is there and not from an earlier matrix; move it or choose another `--out`",
            folder.display()
        );
    }
    fs::remove_dir_all(folder).with_context(|| format!("removing `{}`", folder.display()))
}

fn build_and_run<'a>(root: &Path, options: &Options, backend: &'a Backend) -> Run<'a> {
    let name = backend.to_string();
    let folder = options.out.join(backend.folder());
    let (executable, suite) =
        match staged(&name, "build", || build(root, backend, &options.backends)) {
            Err(error) => (None, Suite::failed(&name, "build", format!("{error:#}"))),
            Ok(executable) => {
                let suite = staged(&name, "run", || {
                    let mut command = phase(root, options, backend, &executable, "run");
                    first(backend, &folder, finish(&mut command, options, backend, "run"))
                });
                (Some(executable), suite)
            }
        };
    Run { backend, folder, executable, suite }
}

/// Every backend that ran reads what the other ones wrote.
fn exchange(root: &Path, options: &Options, runs: &mut [Run]) {
    let ran: Vec<PathBuf> = runs
        .iter()
        .filter(|run| run.suite.status == Status::Ran)
        .map(|run| run.folder.clone())
        .collect();
    if ran.len() < 2 {
        println!("{:<10} exchange   skipped: it takes two backends that ran", "");
        return;
    }
    for run in runs.iter_mut().filter(|run| run.suite.status == Status::Ran) {
        let Some(executable) = &run.executable else { continue };
        let name = run.backend.to_string();
        let suite = staged(&name, "exchange", || {
            let mut command = phase(root, options, run.backend, executable, "exchange");
            for other in ran.iter().filter(|folder| **folder != run.folder) {
                command.arg("--others").arg(other);
            }
            let end = finish(&mut command, options, run.backend, "exchange");
            second(&run.suite, &run.folder, end)
        });
        run.suite = suite;
    }
}

/// Runs one stage and says how long it took.
fn staged<T>(backend: &str, what: &str, stage: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = stage();
    println!("{backend:<10} {what:<8} {:>12}", ci::duration(start.elapsed()));
    result
}

/// Builds the suite for this backend; returns the executable. Backends that can be in one program are:
/// then what they share is built once, and the second of them finds it there.
fn build(root: &Path, backend: &Backend, all: &[Backend]) -> Result<PathBuf> {
    let mut command = ci::cargo_command(root);
    if backend.feature == "cpu" {
        // Word for word what `cargo xtask ci` builds, so that it is there already.
        command.args(ci::BUILD);
    } else {
        let features = together(backend, all);
        command.args(["build", "-p", PACKAGE, "--test", SUITE, "--locked"]);
        command.args(["--no-default-features", "--features", &features]);
    }
    command.arg("--message-format=json-render-diagnostics");
    let output = command.stderr(Stdio::inherit()).output().context("starting cargo")?;
    if !output.status.success() {
        bail!("cargo could not build it ({}); its messages are on the terminal", output.status);
    }
    executable(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("cargo built no executable of the test `{SUITE}`"))
}

/// The features of the program that has this backend: those of all backends that are wanted and go
/// together with it, in one order whatever was asked for first.
fn together(backend: &Backend, all: &[Backend]) -> String {
    let mut features: Vec<&str> = match backend.autotuned() {
        true => vec![backend.feature, "autotune"],
        false => all
            .iter()
            .filter(|other| !other.autotuned() && other.feature != "cpu")
            .map(|other| other.feature)
            .collect(),
    };
    features.sort_unstable();
    features.dedup();
    features.join(",")
}

/// Finds the suite among cargo's messages, of which each is a line.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter(|message| message["target"]["name"] == SUITE)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

fn phase(
    root: &Path,
    options: &Options,
    backend: &Backend,
    executable: &Path,
    phase: &str,
) -> Command {
    let mut command = ci::command(root, executable.as_os_str());
    command.args(["--phase", phase, "--device"]).arg(backend.to_string());
    command.arg("--out").arg(options.out.join(backend.folder()));
    if options.quick {
        command.arg("--quick");
    }
    command
}

/// How a child ended.
struct End {
    status: ExitStatus,
    /// What it said last.
    last_words: String,
}

impl End {
    /// Whether nothing is wrong, or the cells say what is. A signal and a panic are never explained.
    fn is_explained_by(&self, cells: &[Cell]) -> bool {
        self.status.success()
            || self.status.code().is_some_and(|code| code != PANICKED)
                && cells.iter().any(|cell| cell.outcome == Outcome::Fail)
    }

    fn reason(&self) -> String {
        match self.last_words.as_str() {
            "" => self.status.to_string(),
            words => format!("{}: {words}", self.status),
        }
    }
}

/// Runs a child to its end, with its output in a file of the folder `logs`.
fn finish(command: &mut Command, options: &Options, backend: &Backend, phase: &str) -> Result<End> {
    let path = options.out.join("logs").join(format!("{}-{phase}.log", backend.folder()));
    let log = File::create(&path).with_context(|| format!("creating `{}`", path.display()))?;
    let errors = log.try_clone().with_context(|| format!("opening `{}`", path.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .status()
        .with_context(|| format!("starting `{}`", command.get_program().display()))?;
    let output = fs::read(&path).with_context(|| format!("reading `{}`", path.display()))?;
    Ok(End { status, last_words: last_words(&String::from_utf8_lossy(&output)) })
}

fn last_words(output: &str) -> String {
    let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].iter();
    let shown: Vec<String> =
        shown.map(|line| line.trim().chars().take(LONGEST_LINE).collect()).collect();
    shown.join(" | ")
}

/// What the first phase left.
fn first(backend: &Backend, folder: &Path, end: Result<End>) -> Suite {
    let name = backend.to_string();
    let end = match end {
        Ok(end) => end,
        Err(error) => return Suite::failed(&name, "suite/run", format!("{error:#}")),
    };
    let mut suite = match Suite::read(&folder.join("cells.json")) {
        Ok(suite) => suite,
        Err(error) => {
            let reason = format!("{}; {error:#}", end.reason());
            return Suite::failed(&name, "suite/run", reason);
        }
    };
    if suite.backend.split(':').next() != Some(backend.feature) {
        let reason = format!("asked for {name}, it ran on {}", suite.backend);
        return Suite::failed(&name, "suite/run", reason);
    }
    if !end.is_explained_by(&suite.cells) {
        suite.cells.push(Cell::failed("suite/run", end.reason()));
    }
    suite
}

/// What the second phase left, which has appended its cells to those of the first.
fn second(before: &Suite, folder: &Path, end: Result<End>) -> Suite {
    // A failure of the first phase stands here alone, and not in the file.
    let (own, written): (Vec<Cell>, Vec<Cell>) =
        before.cells.iter().cloned().partition(|cell| cell.case == "suite/run");
    let failed = |reason: String| {
        let mut suite = before.clone();
        suite.cells.push(Cell::failed("suite/exchange", reason));
        suite
    };
    let end = match end {
        Ok(end) => end,
        Err(error) => return failed(format!("{error:#}")),
    };
    let mut suite = match Suite::read(&folder.join("cells.json")) {
        Ok(suite) => suite,
        Err(error) => return failed(format!("{}; {error:#}", end.reason())),
    };
    let kept = suite.cells.len() > written.len()
        && suite.cells.iter().zip(&written).all(|(after, before)| after.case == before.case);
    if !kept || suite.status != Status::Ran {
        return failed(format!("it did not append its cells; {}", end.reason()));
    }
    if !end.is_explained_by(&suite.cells) {
        suite.cells.push(Cell::failed("suite/exchange", end.reason()));
    }
    suite.cells.extend(own);
    suite
}

fn column(run: Run) -> Column {
    let mut suite = run.suite;
    let mut values = None;
    if suite.status == Status::Ran {
        match deviation::read(&run.folder.join("values.safetensors")) {
            Ok(read) => values = Some(read),
            Err(error) => suite.cells.push(Cell::failed("suite/values", format!("{error:#}"))),
        }
    }
    Column { name: run.backend.to_string(), suite, values }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const CPU: Backend = Backend { feature: "cpu", device: None };

    /// `cells.json` with these cases, of which those that begin with `!` fail.
    fn cells(backend: &str, status: &str, cases: &[&str]) -> String {
        let cells: Vec<String> = cases
            .iter()
            .map(|case| match case.strip_prefix('!') {
                Some(case) => format!(r#"{{"case":"{case}","outcome":"fail","reason":"off"}}"#),
                None => format!(r#"{{"case":"{case}","outcome":"pass"}}"#),
            })
            .collect();
        let cells = cells.join(",");
        format!(r#"{{"backend":"{backend}","status":"{status}","seconds":1,"cells":[{cells}]}}"#)
    }

    /// A child that leaves `cells` (nothing if empty) and then does what `end` says.
    fn child(out: &TempDir, cells: &str, end: &str) -> Result<End> {
        let options = Options { backends: vec![CPU], quick: false, out: out.path().to_owned() };
        fs::create_dir_all(out.path().join("logs")).unwrap();
        fs::create_dir_all(out.path().join("cpu")).unwrap();
        if !cells.is_empty() {
            fs::write(out.path().join("cpu/cells.json"), cells).unwrap();
        }
        let mut shell = Command::new("sh");
        finish(shell.args(["-c", end]), &options, &CPU, "run")
    }

    #[test]
    fn backends_without_autotune_share_one_program() {
        let all = ["cpu", "wgpu", "ndarray", "cuda", "vulkan:1"]
            .map(|name| Backend::parse(name).unwrap());
        let programs = all[1..].iter().map(|backend| together(backend, &all)).collect::<Vec<_>>();
        let expected = ["ndarray,wgpu", "ndarray,wgpu", "autotune,cuda", "autotune,vulkan"];
        assert_eq!(programs, expected);
        assert_eq!(together(&all[2], &all[2..3]), "ndarray");
    }

    /// Status and failures of the first phase, with the folder of the test left out.
    fn run(cells: &str, end: &str) -> String {
        let out = tempfile::tempdir().unwrap();
        let end = child(&out, cells, end);
        told(&first(&CPU, &out.path().join("cpu"), end), &out)
    }

    fn told(suite: &Suite, out: &TempDir) -> String {
        let failures = suite.cells.iter().filter(|cell| cell.outcome == Outcome::Fail);
        let failures: Vec<String> = failures
            .map(|cell| format!("{}: {}", cell.case, cell.reason.clone().unwrap_or_default()))
            .collect();
        format!("{:?} {failures:?}", suite.status).replace(&out.path().display().to_string(), "OUT")
    }

    #[test]
    fn a_status_needs_cells_that_explain_it() {
        let good = cells("cpu", "ran", &["a"]);
        let bad = cells("cpu", "ran", &["a", "!b"]);
        let endings = [
            run(&good, "exit 0"),
            run(&bad, "exit 1"),
            run(&good, "echo said; echo; echo more >&2; exit 1"),
            run(&bad, "exit 101"),
            run(&bad, "kill -9 $$"),
            run("", "echo no space left; exit 3"),
            run("", "exit 0"),
            run("{", "exit 0"),
            run(&cells("wgpu", "ran", &["a"]), "exit 0"),
            run(&cells("cpu", "absent", &[]), "exit 0"),
        ];
        insta::assert_snapshot!(endings.join("\n"));
    }

    #[test]
    fn the_second_phase_keeps_the_first() {
        let before = Suite::failed("cpu", "suite/run", "signal: 9 (SIGKILL)".to_owned());
        let exchange = |cases: &[&str], status: &str, end: &str| {
            let out = tempfile::tempdir().unwrap();
            let mut before = before.clone();
            before.status = Status::Ran;
            before.cells.insert(0, Cell { outcome: Outcome::Pass, ..Cell::failed("a", "".into()) });
            let end = child(&out, &cells("cpu", status, cases), end);
            told(&second(&before, &out.path().join("cpu"), end), &out)
        };
        let endings = [
            exchange(&["a", "exchange/b"], "ran", "exit 0"),
            exchange(&["a", "!exchange/b"], "ran", "exit 1"),
            exchange(&["a", "exchange/b"], "ran", "exit 1"),
            exchange(&["a"], "ran", "exit 101"),
            exchange(&["exchange/b", "exchange/c"], "ran", "exit 0"),
            exchange(&[], "absent", "exit 0"),
        ];
        insta::assert_snapshot!(endings.join("\n"));
    }

    #[test]
    fn only_earlier_results_are_removed() {
        let out = tempfile::tempdir().unwrap();
        let (folder, logs) = (out.path().join("cpu"), out.path().join("logs"));
        remove_earlier(&folder, &logs).unwrap();
        fs::create_dir(&folder).unwrap();
        let error = remove_earlier(&folder, &logs).unwrap_err().to_string();
        assert!(error.contains("not from an earlier matrix"), "{error}");
        fs::create_dir(&logs).unwrap();
        remove_earlier(&folder, &logs).unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn the_executable_is_found_among_messages() {
        let messages = r#"not json
{"reason":"compiler-artifact","target":{"name":"lora_tests"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"conformance"},"executable":"target/debug/deps/conformance-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages).unwrap(), Path::new("target/debug/deps/conformance-1"));
        assert!(executable("{}").is_none());
    }
}
