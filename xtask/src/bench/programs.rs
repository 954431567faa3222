//! The programs that are compared: our binary, built here, and a Python that has the peer, found or made
//! outside the checkout.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use super::machine;
use super::rows::{BURN, LLAMA, OURS, OURS_ADAPTER, OURS_F32, WRITTEN, Work};
use crate::{ci, fetch};

/// A Python environment for one of those that ours is compared with.
struct Environment {
    /// Names a Python that exists, in place of the one that would be made.
    variable: &'static str,
    /// What must work in it.
    modules: &'static str,
    /// Where it is made, below the system's folder of temporary files.
    folder: &'static str,
    /// What goes into it; the numbers are compared with these.
    packages: &'static [&'static str],
    /// How much space it takes.
    size: &'static str,
}

const PEERS: Environment = Environment {
    variable: "LORA_PEER_PYTHON",
    modules: "import torch, transformers, peft",
    folder: "lora-peer-venv",
    packages: &[
        "torch==2.15.0",
        "transformers==5.23.0",
        "peft==0.21.2",
        "accelerate==1.15.0",
        "safetensors",
        "tokenizers",
    ],
    size: "6 GB",
};

/// llama.cpp in a wheel: built for this kind of machine, with the vector instructions that it finds.
const LLAMAS: Environment = Environment {
    variable: "LORA_LLAMA_PYTHON",
    modules: "import xllamacpp",
    folder: "lora-llama-venv",
    packages: &["xllamacpp==2026.10.11549"],
    size: "300 MB",
};

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
    /// Where models are that were written for the bench.
    pub(crate) models: PathBuf,
    /// With which every program computes.
    pub(crate) threads: usize,
}

impl Programs {
    /// Builds ours; finds or makes the peers' environments if `wants_peer`. Models go to `models`.
    pub(crate) fn find(root: &Path, wants_peer: bool, models: &Path) -> Result<Self> {
        build(root, wants_peer)?;
        let program = |name: &str| {
            let file = format!("{name}{}", env::consts::EXE_SUFFIX);
            ci::target_folder(root).join("release").join(file)
        };
        let (ours, burn) = (program("lora"), program("examples/burn_apply_lora"));
        let peer = wants_peer.then(|| PEERS.python()).transpose()?;
        // The other rows can do without it.
        let llama = match wants_peer || named(LLAMAS.variable).is_some() {
            true => LLAMAS.python().map_err(|error| format!("{error:#}")),
            false => Err("`--peer` was not asked for".to_owned()),
        };
        let models = models.to_owned();
        Ok(Self { ours, burn, peer, llama, models, threads: machine::threads() })
    }

    /// Writes the models that these works read, from the real one, by our own binary.
    pub(crate) fn write_models<'a>(
        &self,
        root: &Path,
        works: impl Iterator<Item = &'a Work>,
    ) -> Result<()> {
        let works: Vec<&Work> = works.collect();
        for (word, dtype) in WRITTEN {
            if !works.iter().any(|work| work.reads(word)) {
                continue;
            }
            let path = self.model(word);
            // Of another build, perhaps.
            if path.is_file() {
                fs::remove_file(&path).with_context(|| format!("removing `{}`", path.display()))?;
            }
            fs::create_dir_all(&self.models)
                .with_context(|| format!("creating `{}`", self.models.display()))?;
            println!("writing `{}`", path.display());
            let mut convert = ci::command(root, self.ours.as_os_str());
            convert.args(["convert", fetch::SMOLLM2_GGUF, "--quiet", "--dtype", dtype, "--output"]);
            finish(convert.arg(&path), "its message is on the terminal")?;
        }
        Ok(())
    }

    /// The file that a word of a work stands for.
    fn model(&self, word: &str) -> PathBuf {
        match WRITTEN.iter().find(|(name, _)| *name == word) {
            Some((_, dtype)) => self.models.join(format!("smollm2-{dtype}.gguf")),
            None => fetch::SMOLLM2_GGUF.into(),
        }
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
            (OURS | OURS_ADAPTER | OURS_F32, _) => (&self.ours, None),
            (BURN, Some(_)) => (&self.burn, None),
            (LLAMA, _) => (self.llama.as_ref().map_err(Clone::clone)?, Some("benches/llama.py")),
            (_, Some(python)) => (python, Some("benches/peer.py")),
            (_, None) => return Err("`--peer` was not asked for".to_owned()),
        };
        let mut command = ci::command(root, program.as_os_str());
        let threads = self.threads.to_string();
        // Burn's program does nothing else.
        let first = if by == BURN { None } else { Some(script.unwrap_or("bench")) };
        command.args(first).args(work.words(by, quick, |word| self.model(word)));
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

impl Environment {
    /// The Python named by the variable, else that of an environment of our own, made if need be.
    fn python(&self) -> Result<PathBuf> {
        let Self { variable, modules, .. } = *self;
        if let Some(python) = named(variable) {
            if !has(&python, modules) {
                bail!(
                    "`{variable}` names `{}`, which can't `{modules}`; name another Python, or none: \
                     then an environment is made in the folder of temporary files",
                    python.display()
                );
            }
            return Ok(python);
        }
        let folder = env::temp_dir().join(self.folder);
        let python = match cfg!(windows) {
            true => folder.join("Scripts").join("python.exe"),
            false => folder.join("bin").join("python"),
        };
        if has(&python, modules) {
            return Ok(python);
        }
        println!("making an environment of {} in `{}`", self.size, folder.display());
        let mut make = fetch::python()?;
        finish(make.args(["-m", "venv"]).arg(&folder), "is Python's module `venv` installed?")?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]);
        let hint = format!("can pip reach its index, and is there space for {}?", self.size);
        finish(pip.args(self.packages), &hint)?;
        if !has(&python, modules) {
            bail!(
                "`{}` has the packages and still can't `{modules}`; remove the folder, or name another \
                 Python in `{variable}`",
                python.display()
            );
        }
        Ok(python)
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
