//! `cargo xtask`: the project's own chores. Nothing here depends on Burn or on the crates of the
//! project, so that it starts in seconds and works while they do not compile.

mod bench;
mod builtin_text;
mod ci;
mod fetch;
mod grammar;
mod json;
mod matrix;
mod numbers;
mod quickstart_data;
mod random;
mod reviews;
mod tidy;

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask <COMMAND>

Commands:
  ci [STEP…]        run every check and test, or only the named steps
  tidy              check what rustfmt and clippy do not
  matrix [--backends cpu,ndarray,wgpu] [--quick] [--out DIR]
                    run one conformance suite on every backend and compare what they compute
  bench [--peer] [--quick] [--only NAME,…] [--runs N] [--out DIR] [--write-docs]
                    measure speed and memory, beside PyTorch with PEFT if asked to
  fetch smollm2     bring SmolLM2-135M-Instruct and 999 Alpaca rows into data/
  fetch minilm      bring all-MiniLM-L6-v2, an encoder, into data/
  fetch reviews     bring movie reviews with labels into data/
  fetch gemma3      bring Gemma 3 270M into data/, under Gemma's terms of use
  builtin-text      write the text that the carried model is pre-trained on into data/builtin/
  quickstart-data   write recipes/data/quickstart_{train,heldout}.jsonl";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let root = root()?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["ci", steps @ ..] => ci::run(&root, steps),
        ["tidy"] => tidy::run(&root),
        ["matrix", rest @ ..] => matrix::run(&root, rest),
        ["bench", rest @ ..] => bench::run(&root, rest),
        ["fetch", "smollm2"] => fetch::smollm2(&root),
        ["fetch", "gemma3"] => fetch::gemma3(&root),
        ["fetch", "minilm"] => fetch::minilm(&root),
        ["fetch", "reviews"] => fetch::reviews(&root),
        ["fetch", ..] => {
            bail!("`cargo xtask fetch` knows `smollm2`, `minilm`, `reviews` and `gemma3`")
        }
        ["builtin-text"] => builtin_text::run(&root),
        ["quickstart-data"] => quickstart_data::run(&root),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("unknown command `{}`\n\n{USAGE}", other.join(" ")),
    }
}

/// The root of the workspace, which is the folder above this crate.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask has no parent folder")?.to_owned())
}

/// Writes a file beside its place and renames it, so that it is never there in part.
fn write_file(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("creating `{}`", folder.display()))?;
    let beside = path.with_extension("tmp");
    fs::write(&beside, text).with_context(|| format!("writing `{}`", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("writing `{}`", path.display()))
}
