//! `cargo xtask quickstart-data`: records of restaurants and the sentences that say the same, after
//! the E2E experiment of the LoRA paper (section 5.4). The files are committed; `tidy` compares them.

use anyhow::{Context, Result};
use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::builtin_text;
use crate::grammar::{Grammar, Names};
use crate::json;
use crate::random::Random;
use crate::write_file;

const TRAIN: &str = "recipes/data/quickstart_train.jsonl";
const HELDOUT: &str = "recipes/data/quickstart_heldout.jsonl";
const TRAIN_ROWS: usize = 2_000;
const HELDOUT_ROWS: usize = 100;
const HELDOUT_NAMES: usize = 80;
const SEED: u64 = 20;

/// Writes both files.
pub(crate) fn run(root: &Path) -> Result<()> {
    for (path, text) in files()? {
        write_file(&root.join(path), &text)?;
        println!("{path}: {} rows", text.lines().count());
    }
    Ok(())
}

/// What differs between the committed files and what the generator writes.
pub(crate) fn differences(root: &Path) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    for (path, text) in files()? {
        let committed = fs::read_to_string(root.join(path)).unwrap_or_default();
        if committed != text {
            differences.push(format!(
                "{path}: differs from what the generator writes; run `cargo xtask quickstart-data`"
            ));
        }
    }
    Ok(differences)
}

/// The files with their text. No name of a held-out record occurs in a training record.
fn files() -> Result<[(&'static str, String); 2]> {
    let grammar = builtin_text::grammar()?;
    let mut random = Random::new(SEED);
    let mut names = place_names(&grammar, &mut random)?;
    random.shuffle(&mut names);
    let (heldout, train) =
        names.split_at_checked(HELDOUT_NAMES).context("the grammar has too few names")?;
    let train = rows(&grammar, train, TRAIN_ROWS, &mut random)?;
    let heldout = rows(&grammar, heldout, HELDOUT_ROWS, &mut random)?;
    Ok([(TRAIN, train), (HELDOUT, heldout)])
}

fn place_names(grammar: &Grammar, random: &mut Random) -> Result<Vec<String>> {
    let mut place_names = Vec::new();
    for adjective in 0..grammar.len("adjective_name")? {
        for noun in 0..grammar.len("noun_name")? {
            let names = &mut Names::new();
            let adjective = grammar.row("adjective_name", adjective, random, names)?.swap_remove(0);
            let noun = grammar.row("noun_name", noun, random, names)?.swap_remove(0);
            place_names.push(format!("The {adjective} {noun}"));
        }
    }
    Ok(place_names)
}

fn rows(
    grammar: &Grammar,
    place_names: &[String],
    count: usize,
    random: &mut Random,
) -> Result<String> {
    let mut seen = HashSet::new();
    let mut rows = String::new();
    while seen.len() < count {
        let mut names = Names::new();
        let name = &place_names[random.below(place_names.len())];
        names.insert("name".to_owned(), vec![name.clone()]);
        for field in ["food", "price", "area"] {
            let index = random.below(grammar.len(field)?);
            let row = grammar.row(field, index, random, &mut Names::new())?;
            names.insert(field.to_owned(), row);
        }
        let family = ["yes", "no"][random.below(2)];
        let prompt = format!(
            "name: {name} | food: {} | price: {} | area: {} | family: {family}\n",
            names["food"][0], names["price"][0], names["area"][0]
        );
        let completion = grammar.expand(&format!("sentence_{family}"), random, &mut names)?;
        if seen.insert(prompt.clone()) {
            rows.push_str(&json::object(&[("prompt", &prompt), ("completion", &completion)]));
            rows.push('\n');
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(row: &str) -> &str {
        row.split("name: ").nth(1).unwrap().split(" | ").next().unwrap()
    }

    #[test]
    fn heldout_names_are_new_and_rows_are_complete() {
        let [(_, train), (_, heldout)] = files().unwrap();
        assert_eq!((train.lines().count(), heldout.lines().count()), (TRAIN_ROWS, HELDOUT_ROWS));
        let known: HashSet<&str> = train.lines().map(name).collect();
        for row in heldout.lines() {
            assert!(!known.contains(name(row)), "{row}");
        }
        for row in train.lines().chain(heldout.lines()) {
            let (prompt, completion) = row.split_once(r#"\n", "completion": ""#).unwrap();
            let food = prompt.split(" | food: ").nth(1).unwrap().split(" | ").next().unwrap();
            assert!(completion.contains(name(row)) && completion.contains(food), "{row}");
        }
    }
}
