//! Everything wrong with a recipe, reported at once, and the keys that were probably meant.

use std::path::{Path, PathBuf};

use super::keys::{KEYS, OTHER_NAMES};
use super::written::Place;
use crate::error::Error;

/// What is wrong with a recipe.
#[derive(Debug)]
pub(super) struct Problems {
    path: PathBuf,
    overrides: Vec<String>,
    list: Vec<Problem>,
}

#[derive(Debug)]
struct Problem {
    place: Place,
    key: String,
    what: String,
}

impl Problems {
    pub(super) fn new(path: &Path, overrides: &[String]) -> Self {
        Self { path: path.to_path_buf(), overrides: overrides.to_vec(), list: Vec::new() }
    }

    /// Notes a problem; an empty key stands for the whole line.
    pub(super) fn add(&mut self, place: Place, key: impl Into<String>, what: impl Into<String>) {
        self.list.push(Problem { place, key: key.into(), what: what.into() });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All problems in the order of the recipe.
    pub(super) fn into_error(mut self) -> Error {
        self.list.sort_by_key(|problem| problem.place);
        let mut lines: Vec<String> = self.list.iter().map(|one| self.line(one)).collect();
        lines.dedup();
        let count = if lines.len() == 1 {
            "1 problem".to_owned()
        } else {
            format!("{} problems", lines.len())
        };
        Error::malformed(&self.path, format!("{count}:\n  {}", lines.join("\n  ")))
            .with_hint("`lora init` writes a recipe in which every key is explained")
    }

    fn line(&self, problem: &Problem) -> String {
        let path = self.path.display();
        let place = match problem.place {
            Place::Line(line) => format!("{path}:{line}"),
            Place::Override(index) => {
                format!("--set {}", self.overrides.get(index).map_or("", String::as_str))
            }
            Place::Nowhere => format!("{path}"),
        };
        if problem.key.is_empty() {
            format!("{place}: {}", problem.what)
        } else {
            format!("{place}: {}: {}", problem.key, problem.what)
        }
    }
}

/// The known key that was probably meant by an unknown key of a section.
pub(super) fn suggestion(section: &str, key: &str) -> Option<String> {
    let lower = key.to_lowercase().replace('-', "_");
    let other_name = OTHER_NAMES.iter().find(|(name, _)| *name == lower);
    if let Some((_, known)) = other_name {
        return Some((*known).to_owned());
    }
    let nearest = KEYS
        .iter()
        .filter(|known| known.0 == section)
        .flat_map(|known| known.1)
        .map(|known| (strsim::osa_distance(&lower, known), *known))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, known)| *distance <= (known.len().max(lower.len()) / 3).max(1));
    if let Some((_, known)) = nearest {
        return Some(join(section, known));
    }
    let elsewhere = KEYS.iter().find(|known| known.1.contains(&lower.as_str()));
    elsewhere.map(|(section, _)| join(section, &lower))
}

/// A key under its section.
pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_of_the_section_is_suggested() {
        assert_eq!(suggestion("adapter", "rnak").as_deref(), Some("adapter.rank"));
        assert_eq!(suggestion("train", "learning-rate").as_deref(), Some("train.learning_rate"));
        assert_eq!(suggestion("train", "batchsize").as_deref(), Some("train.batch_size"));
        assert_eq!(suggestion("", "trian").as_deref(), Some("train"));
    }

    #[test]
    fn keys_of_other_sections_and_other_tools_are_known() {
        assert_eq!(suggestion("", "learning_rate").as_deref(), Some("train.learning_rate"));
        assert_eq!(suggestion("train", "rank").as_deref(), Some("adapter.rank"));
        assert_eq!(suggestion("train", "lr").as_deref(), Some("train.learning_rate"));
        assert_eq!(suggestion("adapter", "lora_alpha").as_deref(), Some("adapter.alpha"));
    }

    #[test]
    fn nothing_near_suggests_nothing() {
        assert_eq!(suggestion("train", "wandb_entity"), None);
    }

    #[test]
    fn other_names_lead_to_known_keys() {
        for (name, known) in OTHER_NAMES {
            let (section, key) = known.rsplit_once('.').unwrap_or(("", known));
            let exists = KEYS.iter().any(|keys| keys.0 == section && keys.1.contains(&key));
            assert!(exists, "`{name}` leads to the unknown key `{known}`");
        }
    }
}
