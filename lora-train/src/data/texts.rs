//! The bare texts of the training rows, for training a tokenizer on them.

use super::formats::Row;
use super::source::Source;
use crate::error::Result;
use crate::recipe::DataSettings;

/// Every text of the training files: plain rows as they are, prompts and completions one after another,
/// messages by their content.
///
/// # Errors
/// A file that can't be read or a row that is wrong.
pub fn texts(settings: &DataSettings) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for file in &settings.train {
        let source = Source::open(file, settings.format)?;
        for row in 0..source.len() {
            let parsed = Row::parse(&source.read(row)?, source.format, false);
            match parsed.map_err(|error| source.wrong(row, &error))? {
                Row::Text(text) => texts.push(text),
                Row::Labelled { text, second, .. } => {
                    texts.extend(std::iter::once(text).chain(second));
                }
                Row::Pair { prompt, completion } => texts.extend([prompt, completion]),
                Row::Chat { conversation, .. } => {
                    let contents = conversation.messages.iter().filter_map(|m| m.get("content"));
                    texts.extend(contents.filter_map(|c| c.as_str()).map(str::to_owned));
                }
            }
        }
    }
    Ok(texts)
}
