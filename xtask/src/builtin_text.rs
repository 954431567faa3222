//! `cargo xtask builtin-text`: the text that the carried model is pre-trained on.
//!
//! A seed and the files in `grammar/` decide every byte. Training text and validation text come
//! from different seeds, and no document of the second stands in the first.

use anyhow::{Context, Result};
use std::collections::HashSet;
use std::path::Path;

use crate::grammar::{Grammar, Names};
use crate::json;
use crate::numbers;
use crate::random::Random;
use crate::write_file;

/// Where the text goes, in the ignored data folder.
pub(crate) const FOLDER: &str = "data/builtin";

const TRAIN_BYTES: usize = 7_000_000;
const VALID_BYTES: usize = 100_000;
const TRAIN_SEED: u64 = 1;
const VALID_SEED: u64 = 2;

/// The kinds of document, and how many of 100 are of each.
const DOMAINS: [(&str, usize); 10] = [
    ("places", 18),
    ("cards", 16),
    ("questions", 14),
    ("stories", 14),
    ("animals", 10),
    ("weather", 9),
    ("dialogues", 7),
    ("arithmetic", 6),
    ("letters", 3),
    ("tasks", 3),
];

/// Writes `train.jsonl` and `valid.jsonl`, one `{"text": …}` a line.
pub(crate) fn run(root: &Path) -> Result<()> {
    let grammar = grammar()?;
    let train = documents(&grammar, TRAIN_SEED, TRAIN_BYTES, &HashSet::new())?;
    let seen = train.iter().cloned().collect();
    let valid = documents(&grammar, VALID_SEED, VALID_BYTES, &seen)?;
    for (name, documents) in [("train.jsonl", train), ("valid.jsonl", valid)] {
        let path = root.join(FOLDER).join(name);
        write_file(&path, &rows(&documents))?;
        let bytes: usize = documents.iter().map(String::len).sum();
        println!("{FOLDER}/{name}: {} documents, {bytes} bytes of text", documents.len());
    }
    Ok(())
}

/// Every rule there is, the quickstart's included.
pub(crate) fn grammar() -> Result<Grammar> {
    let mut grammar = Grammar::default();
    for (name, source) in [
        ("words.txt", include_str!("../grammar/words.txt")),
        ("places.txt", include_str!("../grammar/places.txt")),
        ("weather.txt", include_str!("../grammar/weather.txt")),
        ("animals.txt", include_str!("../grammar/animals.txt")),
        ("arithmetic.txt", include_str!("../grammar/arithmetic.txt")),
        ("stories.txt", include_str!("../grammar/stories.txt")),
        ("dialogues.txt", include_str!("../grammar/dialogues.txt")),
        ("everyday.txt", include_str!("../grammar/everyday.txt")),
        ("quickstart.txt", include_str!("../grammar/quickstart.txt")),
    ] {
        grammar.read(source, name).context("reading xtask/grammar")?;
    }
    numbers::add_rules(&mut grammar)?;
    Ok(grammar)
}

/// Different documents of at least `bytes` together, none of them in `exclude`.
fn documents(
    grammar: &Grammar,
    seed: u64,
    bytes: usize,
    exclude: &HashSet<String>,
) -> Result<Vec<String>> {
    let mut random = Random::new(seed);
    let mut seen = HashSet::new();
    let mut documents = Vec::new();
    let mut written = 0;
    while written < bytes {
        let text = grammar.expand(domain(&mut random), &mut random, &mut Names::new())?;
        if exclude.contains(&text) || !seen.insert(text.clone()) {
            continue;
        }
        written += text.len();
        documents.push(text);
    }
    Ok(documents)
}

fn domain(random: &mut Random) -> &'static str {
    let mut draw = random.below(DOMAINS.iter().map(|(_, share)| share).sum());
    for (domain, share) in DOMAINS {
        if draw < share {
            return domain;
        }
        draw -= share;
    }
    unreachable!("the draw is below the sum of the shares")
}

fn rows(documents: &[String]) -> String {
    let mut rows = String::new();
    for text in documents {
        rows.push_str(&json::object(&[("text", text)]));
        rows.push('\n');
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn every_rule_expands() {
        // A slot that names nothing shows only when it is reached: 20,000 documents reach all.
        let documents = documents(&grammar().unwrap(), 3, 4_000_000, &HashSet::new()).unwrap();
        assert!(documents.len() > 15_000, "{}", documents.len());
        for text in &documents {
            let odd =
                ["  ", "{", "}", "/an", " .", " ,", " ; "].iter().find(|odd| text.contains(**odd));
            assert_eq!(odd, None, "{text}");
        }
    }

    #[test]
    fn the_text_never_holds_the_record_format_of_the_quickstart() {
        let documents = documents(&grammar().unwrap(), 4, 1_000_000, &HashSet::new()).unwrap();
        for text in documents {
            assert!(!text.contains("name: ") && !text.contains("| food:"), "{text}");
        }
    }

    #[test]
    fn the_same_seed_writes_the_same_text() {
        // The carried weights were trained on this text. A change here wants new weights.
        let documents =
            documents(&grammar().unwrap(), TRAIN_SEED, 100_000, &HashSet::new()).unwrap();
        let digest = Sha256::digest(rows(&documents));
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, "46dd0c246e425ab3613ebfa4213e79de8a5bb8dd00ef9e02370ed6f704623b71");
    }

    #[test]
    fn validation_text_is_new() {
        let grammar = grammar().unwrap();
        let train = documents(&grammar, 5, 50_000, &HashSet::new()).unwrap();
        let seen: HashSet<String> = train.into_iter().collect();
        let again = documents(&grammar, 5, 50_000, &seen).unwrap();
        assert!(again.iter().all(|text| !seen.contains(text)));
    }
}
