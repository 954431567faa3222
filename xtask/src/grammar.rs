//! A grammar that writes text: rules with alternatives, slots that remember what they chose.
//!
//! ```text
//! # comment
//! [rule]
//! one alternative, with {slots}
//! a row ; with several ; fields
//! ```
//!
//! - `{rule}` expands one alternative of `rule`.
//! - `{name:rule}` expands it and keeps it as `name`; never what another name of the text holds now.
//! - `{name}` repeats what `name` holds, `{name.2}` its second field, `{name:rule.0}` keeps and writes
//!   nothing, `{^name}` begins with a capital letter.
//! - `\n` is a line break; `a/an` becomes the article that fits the next word.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

use crate::random::Random;

/// Rules by name.
#[derive(Default)]
pub(crate) struct Grammar {
    rules: BTreeMap<String, Vec<Row>>,
}

/// What the names of one text hold: the expanded fields.
pub(crate) type Names = BTreeMap<String, Vec<String>>;

/// The fields of one alternative; most have one.
type Row = Vec<Vec<Piece>>;

enum Piece {
    Text(String),
    Slot(Slot),
}

struct Slot {
    capital: bool,
    name: String,
    rule: Option<String>,
    /// Counted from 1; 0 writes nothing.
    field: usize,
}

impl Grammar {
    /// Adds the rules of a grammar file; `origin` is its name in messages.
    pub(crate) fn read(&mut self, source: &str, origin: &str) -> Result<()> {
        let mut rule: Option<String> = None;
        for (index, line) in source.lines().enumerate() {
            let at = || format!("{origin}:{}", index + 1);
            if line.is_empty() || line.starts_with("# ") {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                if self.rules.insert(name.to_owned(), Vec::new()).is_some() {
                    bail!("{}: rule `{name}` stands twice", at());
                }
                rule = Some(name.to_owned());
                continue;
            }
            let name = rule.as_ref().with_context(|| format!("{}: no rule is open", at()))?;
            self.add(name, line).with_context(at)?;
        }
        Ok(())
    }

    /// Adds one alternative, written as in a file.
    pub(crate) fn add(&mut self, rule: &str, line: &str) -> Result<()> {
        let row = line.split(" ; ").map(parse).collect::<Result<Row>>()?;
        self.rules.entry(rule.to_owned()).or_default().push(row);
        Ok(())
    }

    /// How many alternatives a rule has.
    pub(crate) fn len(&self, rule: &str) -> Result<usize> {
        Ok(self.rows(rule)?.len())
    }

    /// The expanded fields of one alternative.
    pub(crate) fn row(
        &self,
        rule: &str,
        index: usize,
        random: &mut Random,
        names: &mut Names,
    ) -> Result<Vec<String>> {
        let row = &self.rows(rule)?[index];
        row.iter().map(|field| self.write(field, random, names)).collect()
    }

    /// One text.
    pub(crate) fn expand(
        &self,
        rule: &str,
        random: &mut Random,
        names: &mut Names,
    ) -> Result<String> {
        let text = self.fields(rule, random, names)?.swap_remove(0);
        Ok(with_articles(&text))
    }

    fn rows(&self, rule: &str) -> Result<&[Row]> {
        match self.rules.get(rule) {
            Some(rows) if !rows.is_empty() => Ok(rows),
            Some(_) => bail!("rule `{rule}` has no alternative"),
            None => bail!("there is no rule `{rule}`"),
        }
    }

    fn fields(&self, rule: &str, random: &mut Random, names: &mut Names) -> Result<Vec<String>> {
        let index = random.below(self.len(rule)?);
        self.row(rule, index, random, names).with_context(|| format!("in rule `{rule}`"))
    }

    fn write(&self, field: &[Piece], random: &mut Random, names: &mut Names) -> Result<String> {
        let mut text = String::new();
        for piece in field {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Slot(slot) => {
                    let value = self.fill(slot, random, names)?;
                    if slot.capital {
                        push_capitalised(&mut text, &value);
                    } else {
                        text.push_str(&value);
                    }
                }
            }
        }
        Ok(text)
    }

    fn fill(&self, slot: &Slot, random: &mut Random, names: &mut Names) -> Result<String> {
        let fields = match &slot.rule {
            Some(rule) => {
                let fields = self.unused(rule, random, names)?;
                names.insert(slot.name.clone(), fields.clone());
                fields
            }
            None => match names.get(&slot.name) {
                Some(fields) => fields.clone(),
                None => self.fields(&slot.name, random, names)?,
            },
        };
        let Some(index) = slot.field.checked_sub(1) else {
            return Ok(String::new());
        };
        let value = fields.get(index).with_context(|| {
            format!("`{}` has {} fields, not {}", slot.name, fields.len(), slot.field)
        })?;
        Ok(value.clone())
    }

    /// An expansion that no name holds yet, if a few tries find one.
    fn unused(&self, rule: &str, random: &mut Random, names: &mut Names) -> Result<Vec<String>> {
        let mut fields = self.fields(rule, random, names)?;
        for _ in 0..16 {
            if !names.values().any(|held| held[0] == fields[0]) {
                break;
            }
            fields = self.fields(rule, random, names)?;
        }
        Ok(fields)
    }
}

fn parse(source: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = source;
    while let Some((text, after)) = rest.split_once('{') {
        let (slot, after) = after.split_once('}').context("`{` without `}`")?;
        if !text.is_empty() {
            pieces.push(Piece::Text(text.replace("\\n", "\n")));
        }
        pieces.push(Piece::Slot(parse_slot(slot)?));
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.replace("\\n", "\n")));
    }
    Ok(pieces)
}

fn parse_slot(source: &str) -> Result<Slot> {
    let (capital, source) =
        source.strip_prefix('^').map_or((false, source), |source| (true, source));
    let (source, field) = match source.split_once('.') {
        Some((source, field)) => {
            (source, field.parse().with_context(|| format!("`{field}` is not a field number"))?)
        }
        None => (source, 1),
    };
    let (name, rule) = match source.split_once(':') {
        Some((name, rule)) => (name, Some(rule.to_owned())),
        None => (source, None),
    };
    Ok(Slot { capital, name: name.to_owned(), rule, field })
}

fn push_capitalised(text: &mut String, value: &str) {
    let mut letters = value.chars();
    if let Some(first) = letters.next() {
        text.extend(first.to_uppercase());
        text.push_str(letters.as_str());
    }
}

/// Puts `a` or `an` where `a/an` stands, by the first letter of the next word.
fn with_articles(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("/an ") {
        let (before, after) = (&rest[..at], &rest[at + "/an ".len()..]);
        result.push_str(before);
        let vowel = after.starts_with(|letter: char| "aeiouAEIOU".contains(letter));
        result.push_str(if vowel { "n " } else { " " });
        rest = after;
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grammar(source: &str) -> Grammar {
        let mut grammar = Grammar::default();
        grammar.read(source, "test").unwrap();
        grammar
    }

    fn text(source: &str) -> Result<String> {
        grammar(source).expand("text", &mut Random::new(1), &mut Names::new())
    }

    #[test]
    fn names_repeat_what_they_hold() {
        let source = "[text]\n{x:letter.0}{x} {x.2} {^x} {x}\n[letter]\nb ; second\nc ; second\n";
        let text = text(source).unwrap();
        let letter = &text[..1];
        assert_eq!(text, format!("{letter} second {} {letter}", letter.to_uppercase()));
    }

    #[test]
    fn two_names_never_hold_the_same() {
        let grammar = grammar("[text]\n{a:letter}{b:letter}\n[letter]\nx\ny\n");
        let mut random = Random::new(5);
        for _ in 0..100 {
            let text = grammar.expand("text", &mut random, &mut Names::new()).unwrap();
            assert!(text == "xy" || text == "yx", "{text}");
        }
    }

    #[test]
    fn articles_fit_the_next_word() {
        assert_eq!(
            text("[text]\nA/an owl and a/an fox\\nand a/an ant").unwrap(),
            "An owl and a fox\nand an ant"
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (source, message) in [
            ("[text]\n{nobody}\n", "there is no rule `nobody`"),
            ("[text]\n{x:letter.2}\n[letter]\na\n", "`x` has 1 fields, not 2"),
            ("[text]\n", "rule `text` has no alternative"),
        ] {
            let error = format!("{:#}", text(source).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
        let read = |source| format!("{:#}", Grammar::default().read(source, "file").unwrap_err());
        assert_eq!(read("loose\n"), "file:1: no rule is open");
        assert_eq!(read("[a]\nx\n[a]\n"), "file:3: rule `a` stands twice");
        assert_eq!(read("[a]\n{x\n"), "file:2: `{` without `}`");
    }
}
