//! A recipe as written: TOML values that remember the line, or the `--set`, they came from.

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::problems::Problems;

/// Where a value was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A line of the recipe, counted from 1.
    Line(usize),
    /// The n-th `--set`, counted from 0.
    Override(usize),
    /// It was not written.
    Nowhere,
}

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// A TOML value.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Date(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// A key of a table, and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

/// Reads a recipe; what is not TOML becomes a problem each.
pub(super) fn parse(text: &str, problems: &mut Problems) -> Node {
    let (table, errors) = DeTable::parse_recoverable(text);
    let lines = Lines::of(text);
    for error in errors {
        let place = error.span().map_or(Place::Nowhere, |span| lines.place(span.start));
        let what = error.message().replace('\n', ", ");
        problems.add(place, "", format!("is not TOML: {what}"));
    }
    Node { value: read_table(table.get_ref(), &lines, problems), place: Place::Line(1) }
}

/// Reads the value of a `--set`: TOML, or else the text itself.
pub(super) fn parse_value(text: &str, place: Place, problems: &mut Problems) -> Node {
    let lines = Lines::Everywhere(place);
    match DeValue::parse(text.trim()) {
        Ok(value) if !matches!(value.get_ref(), DeValue::Datetime(_)) => {
            read_value(&value, &lines, problems)
        }
        _ => Node { value: Value::Text(text.to_owned()), place },
    }
}

/// The parts of the key of a `--set`, or `None` if it is not a TOML key.
pub(super) fn parse_key(text: &str) -> Option<Vec<String>> {
    let document = format!("{text} = 0");
    let table = DeTable::parse(&document).ok()?;
    let mut table = table.get_ref();
    let mut parts = Vec::new();
    loop {
        let (key, value) = table.iter().next()?;
        parts.push(key.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => return Some(parts),
        }
    }
}

impl Node {
    /// An empty table.
    pub(super) fn table(place: Place) -> Self {
        Self { value: Value::Table(Vec::new()), place }
    }

    /// The value under a dotted key; numbers address the elements of a list.
    pub(super) fn find(&self, key: &str) -> Option<&Node> {
        if key.is_empty() {
            return Some(self);
        }
        key.split('.').try_fold(self, |node, part| match &node.value {
            Value::Table(entries) => {
                entries.iter().find(|entry| entry.key == part).map(|entry| &entry.node)
            }
            Value::List(nodes) => part.parse().ok().and_then(|index: usize| nodes.get(index)),
            _ => None,
        })
    }

    /// Takes a dotted key out of its table.
    pub(super) fn remove(&mut self, key: &str) {
        let (first, rest) = key.split_once('.').unwrap_or((key, ""));
        let Value::Table(entries) = &mut self.value else {
            return;
        };
        if rest.is_empty() {
            entries.retain(|entry| entry.key != first);
        } else if let Some(entry) = entries.iter_mut().find(|entry| entry.key == first) {
            entry.node.remove(rest);
        }
    }

    /// Elements of a list; anything else has none.
    pub(super) fn len(&self) -> usize {
        match &self.value {
            Value::List(nodes) => nodes.len(),
            _ => 0,
        }
    }

    /// Whether this is a list without elements.
    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.value, Value::List(nodes) if nodes.is_empty())
    }

    /// Whether this says "none": zero, or a list without elements.
    pub(super) fn is_off(&self) -> bool {
        match self.value {
            Value::Integer(number) => number == 0,
            Value::Float(number) => number == 0.0,
            _ => self.is_empty(),
        }
    }

    /// What kind of value this is, for messages.
    pub(super) fn kind(&self) -> String {
        match &self.value {
            Value::Text(text) if text.chars().count() <= 40 => format!("the text {text:?}"),
            Value::Text(_) => "a text".into(),
            Value::Integer(number) => format!("the number {number}"),
            Value::Float(number) => format!("the number {number:?}"),
            Value::Boolean(value) => format!("{value}"),
            Value::Date(date) => format!("the date {date}"),
            Value::List(_) => "a list".into(),
            Value::Table(_) => "a table".into(),
        }
    }
}

/// Offsets at which the lines of a text begin.
enum Lines {
    Starts(Vec<usize>),
    /// Every offset stands for this one place.
    Everywhere(Place),
}

impl Lines {
    fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self::Starts(std::iter::once(0).chain(ends.map(|(offset, _)| offset + 1)).collect())
    }

    fn place(&self, offset: usize) -> Place {
        match self {
            Self::Starts(starts) => Place::Line(starts.partition_point(|start| *start <= offset)),
            Self::Everywhere(place) => *place,
        }
    }
}

fn read_table(table: &DeTable<'_>, lines: &Lines, problems: &mut Problems) -> Value {
    let entries = table.iter().map(|(key, value)| Entry {
        key: key.get_ref().to_string(),
        place: lines.place(key.span().start),
        node: read_value(value, lines, problems),
    });
    Value::Table(entries.collect())
}

fn read_list(list: &DeArray<'_>, lines: &Lines, problems: &mut Problems) -> Value {
    Value::List(list.iter().map(|value| read_value(value, lines, problems)).collect())
}

fn read_value(value: &Spanned<DeValue<'_>>, lines: &Lines, problems: &mut Problems) -> Node {
    let place = lines.place(value.span().start);
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(list) => read_list(list, lines, problems),
        DeValue::Table(table) => read_table(table, lines, problems),
        DeValue::Integer(integer) => {
            let number = i128::from_str_radix(integer.as_str(), integer.radix());
            Value::Integer(number.unwrap_or_else(|_| {
                problems.add(place, "", format!("the number {integer} is too large"));
                0
            }))
        }
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or_else(|_| {
            problems.add(place, "", format!("the number {float} can't be read"));
            0.0
        })),
    };
    Node { value, place }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn values_remember_their_lines() {
        let text = "a = 1\n\n[b]\nc = [\n  \"x\",\n  \"y\",\n]\n[[d]]\ne = 0x10\n[[d]]\ne = 2.5\n";
        let mut problems = Problems::new(Path::new("r.toml"), &[]);
        let root = parse(text, &mut problems);
        assert!(problems.is_empty());
        assert_eq!(root.find("a").unwrap().place, Place::Line(1));
        assert_eq!(root.find("b.c.1").unwrap().place, Place::Line(6));
        assert_eq!(root.find("d.1.e").unwrap().place, Place::Line(11));
        assert!(matches!(root.find("d.0.e").unwrap().value, Value::Integer(16)));
        assert!(root.find("d.2.e").is_none());
    }

    #[test]
    fn set_values_are_toml_or_else_text() {
        let mut problems = Problems::new(Path::new("r.toml"), &[]);
        let mut read = |text| parse_value(text, Place::Override(0), &mut problems).value;
        assert!(matches!(read("1e-4"), Value::Float(rate) if rate == 1e-4));
        assert!(matches!(read("12"), Value::Integer(12)));
        assert!(matches!(read("true"), Value::Boolean(true)));
        assert!(matches!(read("cosine"), Value::Text(text) if text == "cosine"));
        assert!(matches!(read("builtin:"), Value::Text(text) if text == "builtin:"));
        assert!(matches!(read("runs/a b"), Value::Text(text) if text == "runs/a b"));
        assert!(matches!(read("2026-01-31"), Value::Text(text) if text == "2026-01-31"));
        assert!(matches!(read("[\"q_proj\"]"), Value::List(list) if list.len() == 1));
    }

    #[test]
    fn set_keys_may_be_quoted() {
        let parts = parse_key("adapter.rank_pattern.\"layers.0\"").unwrap();
        assert_eq!(parts, ["adapter", "rank_pattern", "layers.0"]);
        assert_eq!(parse_key("data.train.0.path").unwrap(), ["data", "train", "0", "path"]);
        assert!(parse_key("train.").is_none());
        assert!(parse_key("").is_none());
    }
}
