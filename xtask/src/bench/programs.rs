//! The programs that are compared: our binary, built here, and a Python that has the peer, found or made
//! outside the checkout.

use anyhow::{Context, Result, bail};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::machine;
use super::rows::{BURN, LLAMA, OURS, Work};
use crate::{ci, fetch};

/// Names a Python that has the peer.
const PEER_VARIABLE: &str = "LORA_PEER_PYTHON";
const PEER_MODULES: &str = "import torch, transformers, peft";
/// Names a Python that has llama-cpp-python.
const LLAMA_VARIABLE: &str = "LORA_LLAMA_PYTHON";
const LLAMA_MODULES: &str = "import llama_cpp";

/// Below the system's folder of temporary files.
const ENVIRONMENT: &str = "lora-peer-venv";
/// What goes into it; the numbers are compared with these.
const PACKAGES: [&str; 6] = [
    "torch==2.15.0",
    "transformers==5.23.0",
    "peft==0.21.2",
    "accelerate==1.15.0",
    "safetensors",
    "tokenizers",
];

/// What is there to run.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) ours: PathBuf,
    /// Burn's own way, built beside ours; not there without `--peer`.
    pub(crate) burn: PathBuf,
    /// `None` without `--peer`.
    pub(crate) peer: Option<PathBuf>,
    /// Or why there is none.
    pub(crate) llama: Result<PathBuf, String>,
    /// With which every program computes.
    pub(crate) threads: usize,
}

impl Programs {
    /// Builds ours; finds or makes the peer's environment if `wants_peer`.
    pub(crate) fn find(root: &Path, wants_peer: bool) -> Result<Self> {
        build(root, wants_peer)?;
        let program = |name: &str| {
            let file = format!("{name}{}", env::consts::EXE_SUFFIX);
            ci::target_folder(root).join("release").join(file)
        };
        let (ours, burn) = (program("lora"), program("examples/burn_apply_lora"));
        let peer = wants_peer.then(peer).transpose()?;
        Ok(Self { ours, burn, peer, llama: llama(), threads: machine::threads() })
    }

    /// The command of a work, or why it can't be run.
    pub(crate) fn command(
        &self,
        root: &Path,
        work: &Work,
        by: &str,
        quick: bool,
    ) -> Result<Command, String> {
        if work.needs_gguf() && !root.join(fetch::SMOLLM2_GGUF).is_file() {
            let file = fetch::SMOLLM2_GGUF;
            return Err(format!("`{file}` is not there; `cargo xtask fetch smollm2` brings it"));
        }
        let (program, script) = match (by, &self.peer) {
            (OURS, _) => (&self.ours, None),
            (BURN, Some(_)) => (&self.burn, None),
            (LLAMA, _) => (self.llama.as_ref().map_err(Clone::clone)?, Some("benches/llama.py")),
            (_, Some(python)) => (python, Some("benches/peer.py")),
            (_, None) => return Err("`--peer` was not asked for".to_owned()),
        };
        let mut command = ci::command(root, program.as_os_str());
        let threads = self.threads.to_string();
        // Burn's program does nothing else.
        let first = if by == BURN { None } else { Some(script.unwrap_or("bench")) };
        command.args(first).args(work.words(by, quick));
        match script {
            Some(_) => command.args(["--threads", &threads]),
            None => command.args(["--device", "cpu"]).env(machine::THREADS_VARIABLE, &threads),
        };
        Ok(command)
    }
}

fn build(root: &Path, with_burn: bool) -> Result<()> {
    println!("building the binary");
    let mut command = ci::cargo_command(root);
    command.args(["build", "--release", "--package", "lora-cli", "--locked", "--bin", "lora"]);
    if with_burn {
        command.args(["--example", "burn_apply_lora"]);
    }
    let status = command.status().context("starting cargo")?;
    if !status.success() {
        bail!("cargo could not build the binary ({status}); its messages are on the terminal");
    }
    Ok(())
}

/// The Python named by the variable, else that of an environment of our own, made if need be.
fn peer() -> Result<PathBuf> {
    if let Some(python) = named(PEER_VARIABLE) {
        if !has(&python, PEER_MODULES) {
            bail!(
                "`{PEER_VARIABLE}` names `{}`, which can't `{PEER_MODULES}`; name another Python, or \
                 none: then an environment is made in the folder of temporary files",
                python.display()
            );
        }
        return Ok(python);
    }
    let folder = env::temp_dir().join(ENVIRONMENT);
    let python = match cfg!(windows) {
        true => folder.join("Scripts").join("python.exe"),
        false => folder.join("bin").join("python"),
    };
    if has(&python, PEER_MODULES) {
        return Ok(python);
    }
    println!("making an environment of several GB for the peer in `{}`", folder.display());
    let mut make = fetch::python()?;
    finish(make.args(["-m", "venv"]).arg(&folder), "is Python's module `venv` installed?")?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]).args(PACKAGES);
    finish(&mut pip, "can pip reach its index, and is there space for 6 GB?")?;
    if !has(&python, PEER_MODULES) {
        bail!(
            "`{}` has the packages and still can't `{PEER_MODULES}`; remove the folder, or name \
             another Python in `{PEER_VARIABLE}`",
            python.display()
        );
    }
    Ok(python)
}

fn llama() -> Result<PathBuf, String> {
    match named(LLAMA_VARIABLE) {
        None => Err(format!("`{LLAMA_VARIABLE}` names no Python with llama-cpp-python")),
        Some(python) if has(&python, LLAMA_MODULES) => Ok(python),
        Some(python) => Err(format!("`{}` can't `{LLAMA_MODULES}`", python.display())),
    }
}

fn named(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| *value != OsString::new()).map(PathBuf::from)
}

fn has(python: &Path, modules: &str) -> bool {
    let output = Command::new(python).args(["-c", modules]).output();
    output.is_ok_and(|output| output.status.success())
}

fn finish(command: &mut Command, hint: &str) -> Result<()> {
    let shown = format!("{command:?}").replace('"', "");
    let status = command.status().with_context(|| format!("starting `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status}); {hint}");
    }
    Ok(())
}
