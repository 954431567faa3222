//! Takes typed values out of a recipe. A value of the wrong type or out of its bounds becomes a
//! problem with its line; a value that is not there gets its default and a note that says why.

use std::fmt::Display;
use std::ops::Range;

use super::problems::Problems;
use super::written::{Node, Place, Value};

/// A recipe that is being read.
pub(super) struct Reader<'a> {
    pub(super) root: &'a Node,
    pub(super) problems: Problems,
    pub(super) notes: Vec<String>,
}

/// What a number may be.
pub(super) struct Bounds {
    fits: fn(f64) -> bool,
    says: &'static str,
}

/// Above zero.
pub(super) const POSITIVE: Bounds = Bounds { fits: |x| x > 0.0, says: "must be above 0" };
/// Zero or above.
pub(super) const NOT_NEGATIVE: Bounds = Bounds { fits: |x| x >= 0.0, says: "must not be negative" };
/// A probability below one.
pub(super) const BELOW_ONE: Bounds =
    Bounds { fits: |x| (0.0..1.0).contains(&x), says: "must be at least 0 and below 1" };
/// A part of the whole, the whole included.
pub(super) const PART: Bounds =
    Bounds { fits: |x| (0.0..=1.0).contains(&x), says: "must be between 0 and 1" };

impl Reader<'_> {
    /// Whether the recipe says anything under this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.root.find(key).is_some()
    }

    /// A problem with what stands under this key.
    pub(super) fn problem(&mut self, key: &str, what: impl Into<String>) {
        let place = self.root.find(key).map_or(Place::Nowhere, |node| node.place);
        self.problems.add(place, key, what);
    }

    /// Takes the default where the recipe says nothing, and notes why it is that.
    pub(super) fn or<T: Display>(
        &mut self,
        key: &str,
        written: Option<T>,
        default: T,
        why: &str,
    ) -> T {
        written.unwrap_or_else(|| {
            self.notes.push(format!("{key} = {default}: {why}"));
            default
        })
    }

    /// A number within bounds.
    pub(super) fn number(&mut self, key: &str, bounds: &Bounds) -> Option<f64> {
        let node = self.root.find(key)?;
        self.number_of(node, key, bounds)
    }

    /// A whole number of at least `minimum`.
    pub(super) fn count(&mut self, key: &str, minimum: usize) -> Option<usize> {
        let node = self.root.find(key)?;
        self.count_of(node, key, minimum)
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        let node = self.root.find(key)?;
        match node.value {
            Value::Boolean(value) => Some(value),
            _ => self.wrong(node, key, "true or false"),
        }
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let node = self.root.find(key)?;
        match &node.value {
            Value::Text(text) if text.trim().is_empty() => {
                self.problems.add(node.place, key, "is empty");
                None
            }
            Value::Text(text) => Some(text.clone()),
            _ => self.wrong(node, key, "a text in quotes"),
        }
    }

    /// A list of texts; nothing written is an empty list.
    pub(super) fn texts(&mut self, key: &str) -> Vec<String> {
        self.list(key, |reader, node| match &node.value {
            Value::Text(text) => Some(text.clone()),
            _ => reader.wrong(node, key, "a list of texts in quotes"),
        })
    }

    /// A list of whole numbers; nothing written is an empty list.
    pub(super) fn counts(&mut self, key: &str) -> Vec<usize> {
        self.list(key, |reader, node| reader.count_of(node, key, 0))
    }

    /// One of several words.
    pub(super) fn choice<T: Copy + Display>(&mut self, key: &str, choices: &[T]) -> Option<T> {
        let node = self.root.find(key)?;
        let names: Vec<String> = choices.iter().map(T::to_string).collect();
        let list = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        let Value::Text(text) = &node.value else {
            return self.wrong(node, key, &format!("one of {list}"));
        };
        if let Some(index) = names.iter().position(|name| name == text) {
            return Some(choices[index]);
        }
        let near = names
            .iter()
            .map(|name| (strsim::osa_distance(&text.to_lowercase(), name), name))
            .min()
            .filter(|(distance, name)| *distance <= (name.len() / 3).max(1));
        let hint = near.map_or_else(
            || format!("it is one of {list}"),
            |(_, name)| format!("did you mean {name:?}?"),
        );
        self.problems.add(node.place, key, format!("{text:?} is unknown ({hint})"));
        None
    }

    /// A table from free names to values that `read` takes out.
    pub(super) fn pairs<T>(
        &mut self,
        key: &str,
        mut read: impl FnMut(&mut Self, &Node, &str) -> Option<T>,
    ) -> Vec<(String, T)> {
        let root = self.root;
        let Some(node) = root.find(key) else {
            return Vec::new();
        };
        let Value::Table(entries) = &node.value else {
            self.wrong::<()>(node, key, "a table");
            return Vec::new();
        };
        let pairs = entries.iter().filter_map(|entry| {
            let value = read(self, &entry.node, &format!("{key}.{}", quoted(&entry.key)))?;
            Some((entry.key.clone(), value))
        });
        pairs.collect()
    }

    /// Rows as `"first..end"`, the end not included; both sides may be left out.
    pub(super) fn rows(&mut self, key: &str) -> Option<Range<usize>> {
        let text = self.text(key)?;
        let side = |text: &str, open: usize| match text.trim() {
            "" => Some(open),
            digits => digits.parse().ok(),
        };
        let rows = text.split_once("..").and_then(|(first, end)| {
            let end = end.trim();
            let last_included = end.strip_prefix('=');
            let end = match last_included {
                Some(last) => side(last, usize::MAX)?.saturating_add(1),
                None => side(end, usize::MAX)?,
            };
            Some(side(first, 0)?..end)
        });
        match rows {
            Some(rows) if rows.is_empty() => {
                self.problem(key, format!("{text:?} holds no row"));
                None
            }
            Some(rows) => Some(rows),
            None => {
                let what = format!("{text:?} is no range of rows; write it like \"0..969\"");
                self.problem(key, what);
                None
            }
        }
    }

    /// A number within bounds.
    pub(super) fn number_of(&mut self, node: &Node, key: &str, bounds: &Bounds) -> Option<f64> {
        let number = match node.value {
            Value::Float(number) => number,
            Value::Integer(number) => number as f64,
            _ => return self.wrong(node, key, "a number"),
        };
        if number.is_finite() && (bounds.fits)(number) {
            return Some(number);
        }
        let what = format!("{}, not {number}", bounds.says);
        self.problems.add(node.place, key, what);
        None
    }

    /// A whole number of at least `minimum`.
    pub(super) fn count_of(&mut self, node: &Node, key: &str, minimum: usize) -> Option<usize> {
        let Value::Integer(number) = node.value else {
            return self.wrong(node, key, "a whole number");
        };
        match usize::try_from(number) {
            Ok(count) if count >= minimum => Some(count),
            Err(_) if number > 0 => {
                self.problems.add(node.place, key, format!("{number} is too large"));
                None
            }
            _ => {
                let what = format!("must be at least {minimum}, not {number}");
                self.problems.add(node.place, key, what);
                None
            }
        }
    }

    fn list<T>(
        &mut self,
        key: &str,
        mut read: impl FnMut(&mut Self, &Node) -> Option<T>,
    ) -> Vec<T> {
        let root = self.root;
        match root.find(key).map(|node| (node, &node.value)) {
            None => Vec::new(),
            Some((_, Value::List(nodes))) => {
                nodes.iter().filter_map(|node| read(self, node)).collect()
            }
            Some((node, _)) => {
                self.wrong::<()>(node, key, "a list in square brackets");
                Vec::new()
            }
        }
    }

    fn wrong<T>(&mut self, node: &Node, key: &str, expected: &str) -> Option<T> {
        let what = format!("expected {expected}, found {}", node.kind());
        self.problems.add(node.place, key, what);
        None
    }
}

/// A key as TOML writes it: in quotes where it is not a bare one.
pub(super) fn quoted(key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(bare) {
        key.to_owned()
    } else {
        toml::Value::from(key).to_string()
    }
}
