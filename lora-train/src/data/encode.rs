//! A row as tokens, each marked whether it is learned.
//!
//! What the model itself has to write is learned: the assistant's turns as the chat template shows
//! them, a completion, a text. The token that ends it is learned too, or the model would never stop.
//! Marks decide what is a target, never ids, so that padding may share an id with the end of
//! sequence.

use std::ops::Range;

use lora_models::chat_template::{ChatTemplate, Conversation};
use lora_models::tokenizer::Tokenizer;
use serde_json::Value;

use super::Example;
use super::formats::Row;
use crate::error::{Error, Result};
use crate::recipe::{DataSettings, Format, Learn};

/// Turns rows into examples for one model.
#[derive(Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    max_tokens: usize,
    learn: Learn,
    system: Option<&'a str>,
    eos: u32,
    /// Whether the tokens of two texts, put together, are those of the two texts put together.
    joins: bool,
}

/// Tokens and marks, before the beginning of sequence is added and the end is cut.
#[derive(Debug, Default)]
struct Marked {
    tokens: Vec<u32>,
    learned: Vec<bool>,
}

impl<'a> Encoder<'a> {
    /// An encoder for a model's tokenizer and, where it has one, its chat template.
    ///
    /// # Errors
    /// Settings that this model can't follow.
    pub fn new(
        settings: &'a DataSettings,
        tokenizer: &'a Tokenizer,
        template: Option<&'a ChatTemplate>,
    ) -> Result<Self> {
        if settings.max_tokens < 2 {
            let reason = format!("data.max_tokens = {} is too short", settings.max_tokens);
            return Err(Error::invalid(reason)
                .with_hint("a token is learned from the one before it: at least 2 are needed"));
        }
        if settings.system.is_some() && template.is_none() {
            return Err(Error::invalid(
                "data.system needs a chat template, and the model has none",
            )
            .with_hint("remove data.system, or use a model with a chat template"));
        }
        let eos = tokenizer.special().eos.ok_or_else(|| {
            Error::invalid(
                "the tokenizer names no end-of-sequence token: the model could not learn to stop",
            )
            .with_hint("set `eos_token` in tokenizer_config.json")
        })?;
        Ok(Self {
            tokenizer,
            template,
            max_tokens: settings.max_tokens,
            learn: settings.learn,
            system: settings.system.as_deref(),
            eos,
            joins: joins(tokenizer)?,
        })
    }

    /// Reads a row as a file has it and encodes it.
    ///
    /// # Errors
    /// Those of [`Row::parse`] and [`Encoder::encode`].
    pub fn encode_row(&self, row: &Value, format: Format) -> Result<Vec<Example>> {
        self.encode(&Row::parse(row, format, self.template.is_some())?)
    }

    /// The examples of a row: one, or several for a text longer than the maximum. `file` and `line`
    /// are left at 0. An example in which nothing is learned is not an error here.
    ///
    /// # Errors
    /// A conversation that the chat template refuses, or for which there is none.
    pub fn encode(&self, row: &Row) -> Result<Vec<Example>> {
        match row {
            Row::Chat { conversation, learn } => {
                Ok(vec![self.cut(self.chat(conversation, learn)?)])
            }
            Row::Pair { prompt, completion } => Ok(vec![self.cut(self.pair(prompt, completion)?)]),
            Row::Text(text) => Ok(self.continued(self.text(text)?)),
            Row::Labelled { .. } => Err(labels_need_an_encoder()),
        }
    }

    fn chat(&self, conversation: &Conversation, learn: &[bool]) -> Result<Marked> {
        let template = self.template.ok_or_else(|| {
            Error::invalid("a conversation needs a chat template, and the model has none").with_hint(
                "use an instruction-tuned model, put a chat_template.jinja into its folder, or write \
                 the rows as `prompt` and `completion`",
            )
        })?;
        let with_system;
        let (conversation, learn) = match self.system {
            Some(system) if !has_system(conversation) => {
                with_system = inserted(conversation, learn, system);
                (&with_system.0, with_system.1.as_slice())
            }
            _ => (conversation, learn),
        };
        let mut marked = match self.learn {
            Learn::All => {
                let text = template.render(conversation, false)?;
                let all = 0..text.len();
                self.marked(&text, std::slice::from_ref(&all))?
            }
            Learn::Assistant => {
                let rendered = template.render_with_learned(conversation)?;
                let spans = chosen(conversation, learn, &rendered.learned)?;
                let mut marked = self.marked(&rendered.text, &spans)?;
                self.unlearn_space_after_turns(&mut marked)?;
                marked
            }
        };
        if conversation.messages.last().is_some_and(is_assistant) {
            self.end(&mut marked)?;
        }
        Ok(marked)
    }

    fn pair(&self, prompt: &str, completion: &str) -> Result<Marked> {
        let text = format!("{prompt}{completion}");
        let learned = prompt.len()..text.len();
        let mut marked = self.marked(&text, &[learned])?;
        if self.learn == Learn::All {
            marked.learned.fill(true);
        }
        self.append_end(&mut marked);
        Ok(marked)
    }

    fn text(&self, text: &str) -> Result<Marked> {
        let tokens = self.tokenizer.encode(text)?;
        let mut marked = Marked { learned: vec![true; tokens.len()], tokens };
        self.append_end(&mut marked);
        Ok(marked)
    }

    /// The tokens of a text, learned where they belong to a span.
    ///
    /// The model will see what stands before a span as tokens of its own, so the text is cut there
    /// before it is encoded, if the tokenizer allows it. If not, a token belongs to a span if it
    /// begins in it, or if all it has from before the span is space.
    fn marked(&self, text: &str, spans: &[Range<usize>]) -> Result<Marked> {
        let mut starts = vec![0];
        if self.joins {
            starts.extend(spans.iter().map(|span| span.start).filter(|&start| start > 0));
        }
        let ends = starts.iter().skip(1).copied().chain([text.len()]);
        let mut marked = Marked::default();
        let mut spans = spans.iter().peekable();
        for (start, end) in starts.iter().zip(ends) {
            let (tokens, offsets) = self.tokenizer.encode_with_offsets(&text[*start..end])?;
            marked.tokens.extend(tokens);
            for (from, to) in offsets {
                let (from, to) = (start + from, start + to);
                while spans.next_if(|span| span.end <= from).is_some() {}
                marked.learned.push(spans.peek().is_some_and(|span| {
                    span.contains(&from)
                        || to > span.start && blank(text.get(from..span.start).unwrap_or("x"))
                }));
            }
        }
        Ok(marked)
    }

    /// Space between the token that ends a turn and the next turn is the template's, not the model's.
    fn unlearn_space_after_turns(&self, marked: &mut Marked) -> Result<()> {
        let mut at = marked.tokens.len();
        while at > 0 {
            at -= 1;
            let ends_span = marked.learned[at] && !marked.learned.get(at + 1).is_some_and(|&l| l);
            if !ends_span {
                continue;
            }
            let last = at;
            while at > 0 && marked.learned[at] && self.is_blank(marked.tokens[at])? {
                at -= 1;
            }
            if marked.learned[at] && self.is_special(marked.tokens[at]) {
                marked.learned[at + 1..=last].fill(false);
            }
        }
        Ok(())
    }

    /// A template that ends a turn without a special token would never let the model learn to stop.
    fn end(&self, marked: &mut Marked) -> Result<()> {
        let mut last = marked.tokens.len();
        while last > 0 && self.is_blank(marked.tokens[last - 1])? {
            last -= 1;
        }
        if last > 0 && !self.is_special(marked.tokens[last - 1]) {
            marked.tokens.truncate(last);
            marked.learned.truncate(last);
            let learned = marked.learned[last - 1];
            marked.tokens.push(self.eos);
            marked.learned.push(learned);
        }
        Ok(())
    }

    fn append_end(&self, marked: &mut Marked) {
        if marked.tokens.last() != Some(&self.eos) {
            marked.tokens.push(self.eos);
            marked.learned.push(true);
        }
    }

    /// Puts the beginning of sequence first, where the model wants it and it is not there already.
    fn begun(&self, mut marked: Marked) -> Marked {
        let special = self.tokenizer.special();
        if let Some(bos) = special.bos.filter(|_| special.add_bos)
            && marked.tokens.first() != Some(&bos)
        {
            marked.tokens.insert(0, bos);
            marked.learned.insert(0, false);
        }
        // Nothing stands before the first token from which it could be predicted.
        if let Some(first) = marked.learned.first_mut() {
            *first = false;
        }
        marked
    }

    fn cut(&self, marked: Marked) -> Example {
        let Marked { mut tokens, mut learned } = self.begun(marked);
        let truncated = tokens.len().saturating_sub(self.max_tokens);
        tokens.truncate(self.max_tokens);
        learned.truncate(self.max_tokens);
        Example { tokens, learned, truncated, ..Example::default() }
    }

    /// A long text goes on in the next example, which begins with the last token of the one before:
    /// every token is a target once.
    fn continued(&self, marked: Marked) -> Vec<Example> {
        let Marked { tokens, learned } = self.begun(marked);
        let mut examples = Vec::new();
        let mut start = 0;
        loop {
            let end = (start + self.max_tokens).min(tokens.len());
            let mut learned = learned[start..end].to_vec();
            if let Some(first) = learned.first_mut() {
                *first = false;
            }
            let tokens_here = tokens[start..end].to_vec();
            examples.push(Example { tokens: tokens_here, learned, ..Example::default() });
            if end == tokens.len() {
                return examples;
            }
            start = end - 1;
        }
    }

    fn is_blank(&self, token: u32) -> Result<bool> {
        Ok(!self.is_special(token) && blank(&self.tokenizer.decode(&[token], false)?))
    }

    fn is_special(&self, token: u32) -> bool {
        token == self.eos || self.tokenizer.is_special(token)
    }
}

/// What a language model can't learn.
pub(super) fn labels_need_an_encoder() -> Error {
    Error::invalid("rows with labels are for encoders (bert, roberta); this model writes text")
        .with_hint("write the rows as `prompt` and `completion`, with the label as the completion")
}

fn blank(text: &str) -> bool {
    text.trim().is_empty()
}

/// Byte-level tokenizers encode a text the same wherever it stands; those that put a space before
/// every text do not.
fn joins(tokenizer: &Tokenizer) -> Result<bool> {
    let mut together = tokenizer.encode("a\n")?;
    together.extend(tokenizer.encode("b")?);
    Ok(tokenizer.decode(&together, false)? == "a\nb")
}

fn role(message: &lora_models::chat_template::Message) -> Option<&str> {
    message.get("role").and_then(Value::as_str)
}

fn is_assistant(message: &lora_models::chat_template::Message) -> bool {
    role(message) == Some("assistant")
}

fn has_system(conversation: &Conversation) -> bool {
    let systems = ["system", "developer"].map(Some);
    conversation.messages.iter().any(|message| systems.contains(&role(message)))
}

fn inserted(
    conversation: &Conversation,
    learn: &[bool],
    system: &str,
) -> (Conversation, Vec<bool>) {
    let mut conversation = conversation.clone();
    conversation.messages.insert(0, super::formats::simple("system", system));
    let learn = std::iter::once(false).chain(learn.iter().copied()).collect();
    (conversation, learn)
}

/// The spans of those messages that may be learned.
fn chosen(
    conversation: &Conversation,
    learn: &[bool],
    spans: &[Range<usize>],
) -> Result<Vec<Range<usize>>> {
    let turns =
        conversation.messages.iter().zip(learn).filter(|(message, _)| is_assistant(message));
    let turns: Vec<bool> = turns.map(|(_, &learn)| learn).collect();
    if turns.iter().all(|&learn| learn) {
        return Ok(spans.to_vec());
    }
    if turns.iter().all(|&learn| !learn) {
        return Ok(Vec::new());
    }
    if turns.len() != spans.len() {
        return Err(Error::invalid(format!(
            "only some of the {} assistant messages are to be learned, but the chat template writes \
             them as {} texts",
            turns.len(),
            spans.len()
        ))
        .with_hint("learn all of them, or keep the row to one assistant message"));
    }
    Ok(spans.iter().zip(turns).filter(|(_, learn)| *learn).map(|(span, _)| span.clone()).collect())
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
