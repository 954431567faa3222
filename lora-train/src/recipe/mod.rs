//! Recipes: the TOML a person writes, resolved into a [`Run`] in which every setting has a value.
//!
//! A recipe needs no more than a model and a data file; [`TEMPLATE`] shows every key.
//!
//! ```
//! use lora_train::recipe::{Command, RunConfig};
//!
//! let recipe = "
//!     model = 'builtin:'
//!     [[data.train]]
//!     path = 'rows.jsonl'
//! ";
//! let overrides = ["train.learning_rate=1e-4".to_owned()];
//! let run = RunConfig::from_text(recipe, &overrides, Command::Plan)?.resolve()?;
//! assert_eq!(run.train.learning_rate, 1e-4);
//! # Ok::<(), lora_train::Error>(())
//! ```

mod keys;
mod overrides;
mod problems;
mod reader;
mod render;
mod resolve;
mod settings;
mod template;
#[cfg(test)]
mod tests;
mod written;

use std::path::{Path, PathBuf};

use lora_core::files::read_text;

use crate::error::Result;
use problems::Problems;
use written::Node;

pub use crate::schedule::Schedule;
pub use render::differing_keys;
pub use settings::{
    DataFile, DataSettings, Format, Learn, Length, Method, PretrainSettings, Run, SampleSettings,
    Task, TrainSettings, Unlearnable, Warmup, WeightType,
};
pub use template::TEMPLATE;

/// What a recipe is read for; some keys are asked for, or refused, by some commands only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Fine-tuning. The data files must be there.
    Train,
    /// Training of W0 on text. The data files must be there.
    Pretrain,
    /// Measuring a model; training files may be missing.
    Evaluate,
    /// Looking at rows. The data files must be there.
    Data,
    /// What a run would need.
    Plan,
    /// What a run was; nothing is looked up on disk.
    Inspect,
}

/// A recipe as written, with the overrides of the command line put over it.
#[derive(Debug)]
pub struct RunConfig {
    /// The recipe file, for messages.
    path: PathBuf,
    /// Paths that don't exist in the current folder are looked up here.
    folder: PathBuf,
    command: Command,
    root: Node,
    problems: Problems,
    notes: Vec<String>,
}

impl RunConfig {
    /// Reads a recipe file; `overrides` are `key=value` pairs such as `train.learning_rate=1e-4`
    /// or `data.train.0.path=rows.jsonl`.
    ///
    /// # Errors
    /// A file that can't be read, or is not TOML. All else is for [`resolve`](Self::resolve).
    pub fn load(path: &Path, overrides: &[String], command: Command) -> Result<Self> {
        Self::parse(&read_text(path)?, path, overrides, command)
    }

    /// The same with a text in place of a file.
    ///
    /// # Errors
    /// A text that is not TOML.
    pub fn from_text(text: &str, overrides: &[String], command: Command) -> Result<Self> {
        Self::parse(text, Path::new("recipe"), overrides, command)
    }

    /// Checks everything and gives each setting a value.
    ///
    /// # Errors
    /// Everything that is wrong, at once: unknown keys with the nearest known one, wrong types,
    /// values out of bounds, settings that contradict each other, each with its line.
    pub fn resolve(self) -> Result<Run> {
        resolve::resolve(self)
    }

    fn parse(text: &str, path: &Path, overrides: &[String], command: Command) -> Result<Self> {
        let mut problems = Problems::new(path, overrides);
        let mut root = written::parse(text, &mut problems);
        if !problems.is_empty() {
            return Err(problems.into_error());
        }
        let notes = overrides::apply(&mut root, overrides, &mut problems);
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Ok(Self { path: path.to_path_buf(), folder, command, root, problems, notes })
    }
}

impl Run {
    /// Reads back what [`Run::to_toml`] wrote, without looking anything up on disk.
    ///
    /// # Errors
    /// Those of [`RunConfig::load`] and [`RunConfig::resolve`].
    pub fn load_resolved(path: &Path) -> Result<Self> {
        RunConfig::load(path, &[], Command::Inspect)?.resolve()
    }
}
