//! `--set key=value`: one setting from the command line, put over the recipe before it is read.

use super::keys::EXCLUSIVE;
use super::problems::Problems;
use super::written::{Entry, Node, Place, Value, parse_key, parse_value};

/// Puts each override over the recipe; returns what was displaced, as notes.
///
/// An override displaces the keys that exclude it: `--set train.steps=100` over a recipe with
/// `train.epochs` is no contradiction.
pub(super) fn apply(root: &mut Node, overrides: &[String], problems: &mut Problems) -> Vec<String> {
    let mut notes = Vec::new();
    for (index, text) in overrides.iter().enumerate() {
        let place = Place::Override(index);
        let Some((key, value)) = text.split_once('=') else {
            problems.add(place, "", "expected key=value, such as train.learning_rate=1e-4");
            continue;
        };
        let Some(parts) = parse_key(key.trim()) else {
            problems.add(place, "", format!("`{key}` is not a key"));
            continue;
        };
        let value = parse_value(value, place, problems);
        if let Err(what) = set(root, &parts, "", value) {
            problems.add(place, parts.join("."), what);
            continue;
        }
        displace(root, &parts.join("."), &mut notes);
    }
    notes
}

fn displace(root: &mut Node, key: &str, notes: &mut Vec<String>) {
    let belongs = |member: &str| {
        key.strip_prefix(member).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    for group in EXCLUSIVE.iter().filter(|group| group.iter().any(|member| belongs(member))) {
        for member in group.iter().filter(|member| !belongs(member)) {
            if let Some(Place::Line(line)) = root.find(member).map(|node| node.place) {
                root.remove(member);
                notes.push(format!("--set {key} replaces `{member}` of line {line}"));
            }
        }
    }
}

/// Sets the value under `parts`, making the tables on the way.
fn set(node: &mut Node, parts: &[String], above: &str, new: Node) -> Result<(), String> {
    let Some((first, rest)) = parts.split_first() else {
        *node = new;
        return Ok(());
    };
    let place = new.place;
    let here = if above.is_empty() { first.clone() } else { format!("{above}.{first}") };
    let fresh = || {
        let is_list = matches!(here.as_str(), "data.train" | "data.validation");
        let value = if is_list { Value::List(Vec::new()) } else { Value::Table(Vec::new()) };
        Node { value, place }
    };
    match &mut node.value {
        Value::Table(entries) => {
            let index = entries.iter().position(|entry| entry.key == *first);
            let index = index.unwrap_or_else(|| {
                entries.push(Entry { key: first.clone(), place, node: fresh() });
                entries.len() - 1
            });
            entries[index].place = if rest.is_empty() { place } else { entries[index].place };
            set(&mut entries[index].node, rest, &here, new)
        }
        Value::List(nodes) => {
            let index: usize = first.parse().map_err(|_| {
                format!("`{above}` is a list: `{first}` must be a number, the first is 0")
            })?;
            if index > nodes.len() {
                return Err(format!("`{above}` has only {} entries; the first is 0", nodes.len()));
            }
            if index == nodes.len() {
                nodes.push(Node::table(place));
            }
            set(&mut nodes[index], rest, &here, new)
        }
        _ => Err(format!("`{above}` is {}, which has no key `{first}`", node.kind())),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::written::parse;

    fn applied(text: &str, overrides: &[&str]) -> (Node, Vec<String>, Option<String>) {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let mut problems = Problems::new(Path::new("r.toml"), &overrides);
        let mut root = parse(text, &mut problems);
        let notes = apply(&mut root, &overrides, &mut problems);
        let error = (!problems.is_empty()).then(|| problems.into_error().to_string());
        (root, notes, error)
    }

    #[test]
    fn values_are_replaced_and_made() {
        let text = "[train]\nsteps = 1\n[[data.train]]\npath = \"a\"\n";
        let overrides =
            ["train.steps=5", "adapter.rank=4", "data.train.0.path=b", "data.train.1.path=c"];
        let (root, notes, error) = applied(text, &overrides);
        assert_eq!(error, None);
        assert!(notes.is_empty());
        assert!(matches!(root.find("train.steps").unwrap().value, Value::Integer(5)));
        assert!(matches!(root.find("adapter.rank").unwrap().value, Value::Integer(4)));
        assert_eq!(root.find("adapter.rank").unwrap().place, Place::Override(1));
        assert_eq!(root.find("data.train.0.path").unwrap().kind(), "the text \"b\"");
        assert_eq!(root.find("data.train.1.path").unwrap().kind(), "the text \"c\"");
    }

    #[test]
    fn an_override_displaces_what_excludes_it() {
        let (root, notes, _) = applied("[train]\nepochs = 3\n", &["train.steps=5"]);
        assert!(root.find("train.epochs").is_none());
        assert_eq!(notes, ["--set train.steps replaces `train.epochs` of line 2"]);
        let text = "[data]\nvalidation_rows = 3\n";
        let (root, _, _) = applied(text, &["data.validation.0.path=v.jsonl"]);
        assert!(root.find("data.validation_rows").is_none());
    }

    #[test]
    fn overrides_that_fit_nowhere_are_named() {
        let overrides = ["train.steps", "=3", "model.name=x", "data.train.4.path=b"];
        let (_, _, error) = applied("model = \"m\"\n", &overrides);
        let error = error.unwrap();
        assert!(error.contains("--set train.steps: expected key=value"), "{error}");
        assert!(error.contains("--set =3: `` is not a key"), "{error}");
        assert!(error.contains("`model` is the text \"m\", which has no key `name`"), "{error}");
        assert!(error.contains("`data.train` has only 0 entries"), "{error}");
    }
}
