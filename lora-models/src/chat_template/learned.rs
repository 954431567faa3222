//! Which text of a rendered conversation the model is to learn: by the template's own
//! `{% generation %}` tags, or by rendering parts of the conversation and comparing. The names of
//! roles and markup are never searched for.

use std::ops::Range;

use minijinja::{Value, context};

use super::{ChatTemplate, Conversation, Message, Rendered, tools, values};
use crate::{Error, Result};

/// Takes the place of `{% generation %}`, which is a block like `{% filter %}`.
pub(super) const FILTER: &str = "_learned";
/// The variable that holds the two characters put around learned text.
pub(super) const MARKS: &str = "_learned_marks";

/// Puts the marks around a block, where there are any.
pub(super) fn mark(body: &str, marks: Option<&str>) -> String {
    let mut marks = marks.unwrap_or_default().chars();
    match (marks.next(), marks.next()) {
        (Some(begin), Some(end)) => format!("{begin}{body}{end}"),
        _ => body.to_string(),
    }
}

/// Rewrites `{% generation %}` and `{% endgeneration %}`, keeping their whitespace control; whether
/// there were any.
pub(super) fn rewrite_tags(source: &str) -> (String, bool) {
    let mut rewritten = String::with_capacity(source.len());
    let mut rest = source;
    let mut found = false;
    while let Some(at) = rest.find("{%") {
        let inside = rest[at + 2..].trim_start_matches(['-', '+']);
        let control = rest.len() - inside.len();
        let word = inside.trim_start();
        let replaced = [
            ("endgeneration", "endfilter".to_string()),
            ("generation", format!("filter {FILTER}({MARKS})")),
        ]
        .into_iter()
        .find_map(|(tag, instead)| {
            let after = word.strip_prefix(tag)?;
            let close = after.trim_start().trim_start_matches(['-', '+']);
            close.starts_with("%}").then_some((after, instead))
        });
        let Some((after, instead)) = replaced else {
            rewritten.push_str(&rest[..at + 2]);
            rest = &rest[at + 2..];
            continue;
        };
        found = true;
        rewritten.push_str(&rest[..control]);
        rewritten.push(' ');
        rewritten.push_str(&instead);
        // Lines stay where they are for error messages.
        let between = &inside[..inside.len() - word.len()];
        rewritten.extend(between.chars().filter(|character| *character == '\n'));
        rest = after;
    }
    rewritten.push_str(rest);
    (rewritten, found)
}

pub(super) fn render(template: &ChatTemplate, conversation: &Conversation) -> Result<Rendered> {
    let renderer =
        Renderer { template, messages: values(&conversation.messages), tools: tools(conversation) };
    let text = renderer.render(&renderer.messages, false)?;
    if template.marks_learned {
        return renderer.by_tags(text);
    }
    let mut learned: Vec<Range<usize>> = Vec::new();
    for (index, message) in conversation.messages.iter().enumerate() {
        if message.get("role").and_then(serde_json::Value::as_str) != Some("assistant") {
            continue;
        }
        let found = match renderer.by_prefix(&text, index) {
            Some(span) => Some(span),
            None => renderer.by_marker(&text, index)?,
        };
        let after_last = learned.last().map_or(0, |last| last.end);
        let span = found.filter(|span| span.start >= after_last).ok_or_else(|| {
            renderer.unclear(format!("message {} is rendered differently in the whole", index + 1))
        })?;
        let span = without_trailing_space(&text, span, message);
        if !span.is_empty() {
            learned.push(span);
        }
    }
    Ok(Rendered { text, learned })
}

struct Renderer<'a> {
    template: &'a ChatTemplate,
    messages: Vec<Value>,
    tools: Value,
}

impl Renderer<'_> {
    fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String> {
        self.template.render_values(messages, &self.tools, add_generation_prompt, None)
    }

    /// Renders once more with marks, and takes them out again.
    fn by_tags(&self, text: String) -> Result<Rendered> {
        let (begin, end) = unused_characters(&text);
        let marked =
            self.template.render_values(&self.messages, &self.tools, false, Some((begin, end)))?;
        let mut unmarked = String::with_capacity(text.len());
        let mut learned = Vec::new();
        let mut open = None;
        for character in marked.chars() {
            if character == begin {
                open.get_or_insert(unmarked.len());
            } else if character == end {
                if let Some(start) = open.take()
                    && start < unmarked.len()
                {
                    learned.push(start..unmarked.len());
                }
            } else {
                unmarked.push(character);
            }
        }
        if unmarked != text || open.is_some() {
            return Err(self.unclear("text in `{% generation %}` is used more than once".into()));
        }
        Ok(Rendered { text, learned })
    }

    /// What message `index` adds to those before it and their generation prompt, where the whole
    /// conversation begins with exactly that.
    fn by_prefix(&self, text: &str, index: usize) -> Option<Range<usize>> {
        // A template may refuse a part of a conversation, such as an empty one.
        let before = self.render(&self.messages[..index], true).ok()?;
        if !text.starts_with(&before) {
            return None;
        }
        if index + 1 == self.messages.len() {
            return Some(before.len()..text.len());
        }
        let with = self.render(&self.messages[..=index], false).ok()?;
        (with.starts_with(&before) && text.starts_with(&with)).then_some(before.len()..with.len())
    }

    /// For templates that change earlier turns when later ones come (thinking is dropped, the system
    /// message moves): renders the whole conversation with a marker as the content of message
    /// `index`. What comes before and after the marker is where it was, so the rest is the content.
    fn by_marker(&self, text: &str, index: usize) -> Result<Option<Range<usize>>> {
        let (begin, end) = unused_characters(text);
        let marker = format!("{begin}content{end}");
        let mut messages = self.messages.clone();
        messages[index] = context! { role => "assistant", content => &marker };
        let around = |rendered: &str| -> Option<(String, String)> {
            let (before, after) = rendered.split_once(&marker)?;
            (!after.contains(begin)).then(|| (before.to_string(), after.to_string()))
        };
        let whole = self.render(&messages, false)?;
        let Some((before, after)) = around(&whole) else {
            return Ok(None);
        };
        if !text.starts_with(&before)
            || !text.ends_with(&after)
            || before.len() + after.len() > text.len()
        {
            return Ok(None);
        }
        // As the last message it shows what ends a turn.
        let last = self.render(&messages[..=index], false)?;
        let Some((before_last, turn_end)) = around(&last) else {
            return Ok(None);
        };
        let turn_end = if after.starts_with(&turn_end) { &turn_end } else { turn_end.trim_end() };
        if !after.starts_with(turn_end) {
            return Ok(None);
        }
        // What stands between the generation prompt and the content is the model's too.
        let prompt = self.render(&self.messages[..index], true).ok();
        let own = prompt.as_deref().and_then(|prompt| before_last.strip_prefix(prompt));
        let own = own.filter(|own| before.ends_with(own)).unwrap_or_default();
        Ok(Some(before.len() - own.len()..text.len() - after.len() + turn_end.len()))
    }

    fn unclear(&self, reason: String) -> Error {
        let origin = self.template.origin.display();
        Error::invalid(format!(
            "the chat template of `{origin}` does not show what the assistant writes: {reason}"
        ))
        .with_hint(
            "put `{% generation %}` and `{% endgeneration %}` around the assistant's text in the \
             template, or learn all text",
        )
    }
}

/// Two private-use characters that the text lacks.
fn unused_characters(text: &str) -> (char, char) {
    let mut unused = ('\u{e000}'..='\u{f8ff}').filter(|character| !text.contains(*character));
    let begin = unused.next().unwrap_or('\u{e000}');
    (begin, unused.next().unwrap_or('\u{e001}'))
}

/// Whitespace after the markup that ends a turn belongs to the template. Where whitespace alone ends
/// a turn it stays: nothing else would.
fn without_trailing_space(text: &str, span: Range<usize>, message: &Message) -> Range<usize> {
    let learned = &text[span.clone()];
    let trimmed = learned.trim_end();
    let content = match message.get("content") {
        Some(serde_json::Value::String(content)) => content.as_str(),
        Some(serde_json::Value::Array(parts)) => {
            parts.last().and_then(|part| part.get("text")?.as_str()).unwrap_or_default()
        }
        _ => "",
    };
    let content = content.trim();
    if !content.is_empty() && trimmed.ends_with(content) {
        return span;
    }
    span.start..span.start + trimmed.len()
}
