//! Chat templates as Hugging Face runs them: a conversation becomes the text that the model reads,
//! together with the ranges of it that the model is to learn.
//!
//! Templates are Jinja; what they call beyond it (`raise_exception`, `strftime_now`, `tojson` as
//! Python writes JSON, string methods, `{% generation %}`) is defined here. Tokens are not made here:
//! a template writes BOS itself where the model wants it.

mod learned;
mod python;
mod stored;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use minijinja::value::{Kwargs, Rest};
use minijinja::{Environment, ErrorKind, Value};

pub(crate) use self::stored::{StoredTemplates, TOOL_USE_FILE};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// One message: `role`, `content`, and what else the template knows (`tool_calls`, `name`, ..).
pub type Message = serde_json::Map<String, serde_json::Value>;

/// What is said, and the tools that may be called.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// In the order they were said.
    pub messages: Vec<Message>,
    /// Function descriptions as JSON schema, a list.
    pub tools: Option<serde_json::Value>,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// What the model reads.
    pub text: String,
    /// What of it the model would have to write itself: the assistant's turns with the token that
    /// ends them. Bytes of `text`, in order, not overlapping, none empty.
    pub learned: Vec<Range<usize>>,
}

/// A compiled chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    origin: PathBuf,
    variables: BTreeMap<String, Value>,
    tool_source: Option<String>,
    /// Whether the template marks with `{% generation %}` what is learned.
    marks_learned: bool,
}

const DEFAULT: &str = "chat template";
const TOOL_USE: &str = "chat template for tools";

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the tokens as text, `origin` is named in errors.
    ///
    /// # Errors
    /// A syntax error, with its line.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>, origin: &Path) -> Result<Self> {
        let mut template = Self {
            environment: environment(),
            source: source.to_string(),
            origin: origin.to_path_buf(),
            variables: BTreeMap::new(),
            tool_source: None,
            marks_learned: false,
        };
        template.add(DEFAULT, source)?;
        for (name, token) in [("bos_token", bos), ("eos_token", eos)] {
            if let Some(token) = token {
                template = template.with_variable(name, token);
            }
        }
        Ok(template)
    }

    /// The template of a model folder, where it has one: `chat_template.jinja`, else
    /// `chat_template` in `tokenizer_config.json`, which may be a list with one for tools.
    ///
    /// # Errors
    /// A file that can't be read, or a template that can't be compiled.
    pub fn from_folder(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let Some(stored) = StoredTemplates::read(folder)? else {
            return Ok(None);
        };
        let mut template = Self::new(&stored.default, None, None, &stored.origin)?;
        if let Some(source) = stored.tool_use {
            template.add(TOOL_USE, &source)?;
            template.tool_source = Some(source);
        }
        Ok(Some(template.with_tokens_of(tokenizer)))
    }

    /// Sets `bos_token` and the like to the tokenizer's.
    #[must_use]
    pub fn with_tokens_of(mut self, tokenizer: &Tokenizer) -> Self {
        let special = tokenizer.special();
        for (name, id) in [
            ("bos_token", special.bos),
            ("eos_token", special.eos),
            ("pad_token", special.pad),
            ("unk_token", special.unk),
        ] {
            if let Some(token) = id.and_then(|id| tokenizer.token(id)) {
                self = self.with_variable(name, &token);
            }
        }
        self
    }

    /// Sets a variable that the template may ask for, such as `enable_thinking` or `date_string`.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.variables.insert(name.to_string(), value.into());
        self
    }

    /// The template as written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The template used where a conversation has tools, as written, where it is one of its own.
    pub fn tool_source(&self) -> Option<&str> {
        self.tool_source.as_deref()
    }

    /// The text of a conversation, with `add_generation_prompt` up to where the assistant begins.
    ///
    /// # Errors
    /// What the template raises, or what it can't do with this conversation.
    pub fn render(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let messages = values(&conversation.messages);
        self.render_values(&messages, &tools(conversation), add_generation_prompt, None)
    }

    /// The text of a whole conversation, and which of it the model is to learn.
    ///
    /// With `{% generation %}` tags in the template, the learned text is what they enclose. Otherwise
    /// it is found by rendering parts of the conversation: what an assistant's message adds to the
    /// conversation before it, after the generation prompt, is what the model would have to write.
    /// Whitespace that follows the end of a turn is not learned.
    ///
    /// # Errors
    /// As [`Self::render`]; a template that rewrites earlier turns beyond recognition.
    pub fn render_with_learned(&self, conversation: &Conversation) -> Result<Rendered> {
        learned::render(self, conversation)
    }

    fn add(&mut self, name: &'static str, source: &str) -> Result<()> {
        let (rewritten, tagged) = learned::rewrite_tags(source);
        self.marks_learned |= tagged;
        let added = self.environment.add_template_owned(name, rewritten);
        added.map_err(|error| self.explain(&error))
    }

    /// Renders messages; `marks` surround what `{% generation %}` encloses.
    fn render_values(
        &self,
        messages: &[Value],
        tools: &Value,
        add_generation_prompt: bool,
        marks: Option<(char, char)>,
    ) -> Result<String> {
        let mut variables = self.variables.clone();
        variables.insert("messages".into(), Value::from(messages.to_vec()));
        variables.insert("tools".into(), tools.clone());
        variables.insert("documents".into(), Value::from(()));
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        if let Some((begin, end)) = marks {
            variables.insert(learned::MARKS.into(), Value::from(format!("{begin}{end}")));
        }
        let name = if self.tool_source.is_some() && tools.is_true() { TOOL_USE } else { DEFAULT };
        self.environment
            .get_template(name)
            .and_then(|template| template.render(Value::from(variables)))
            .map_err(|error| self.explain(&error))
    }

    fn explain(&self, error: &minijinja::Error) -> Error {
        let origin = self.origin.display();
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(Raised(message)) = cause.downcast_ref() {
                return Error::invalid(format!(
                    "the chat template of `{origin}` refuses the conversation: {message}"
                ));
            }
            source = cause.source();
        }
        let line = error.line().map_or_else(String::new, |line| format!(", line {line}"));
        let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
        Error::malformed(&self.origin, format!("chat template{line}: {}{detail}", error.kind()))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ChatTemplate")
            .field("origin", &self.origin)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// What a template raises by `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|output, _, value| {
        output.write_str(&python::text(value)).map_err(minijinja::Error::from)
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| python::text(value));
    environment.add_filter(learned::FILTER, learned::mark);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

fn raise_exception(message: &Value) -> std::result::Result<Value, minijinja::Error> {
    let message = python::text(message);
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone())
        .with_source(Raised(message)))
}

fn strftime_now(format: &str) -> std::result::Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}"))
    })
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`: by position the first
/// is the indent, as in Jinja.
fn to_json(
    value: &Value,
    Rest(positional): Rest<Value>,
    named: Kwargs,
) -> std::result::Result<String, minijinja::Error> {
    let invalid = |text: String| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {text}"))
    };
    if value.is_undefined() {
        return Err(invalid("the value is undefined".into()));
    }
    let indent = match named.get::<Option<Value>>("indent")? {
        Some(indent) => Some(indent),
        None => positional.first().cloned(),
    };
    let indent = indent
        .filter(|indent| !indent.is_none() && !indent.is_undefined())
        .map(usize::try_from)
        .transpose()?;
    let separators = match named.get::<Option<Vec<String>>>("separators")? {
        Some(separators) => {
            let [item, key] = <[String; 2]>::try_from(separators)
                .map_err(|_| invalid("`separators` are two texts".into()))?;
            (item, key)
        }
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let style = python::JsonStyle {
        indent,
        separators,
        ensure_ascii: named.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: named.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    named.assert_all_used()?;
    let json = serde_json::to_value(value).map_err(|error| invalid(error.to_string()))?;
    Ok(python::json(&json, &style))
}

fn values(messages: &[Message]) -> Vec<Value> {
    messages.iter().map(Value::from_serialize).collect()
}

fn tools(conversation: &Conversation) -> Value {
    conversation.tools.as_ref().map_or(Value::from(()), Value::from_serialize)
}

#[cfg(test)]
#[path = "chat_template/tests.rs"]
mod tests;
