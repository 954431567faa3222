//! How the program speaks: colours, errors with their causes and hints, numbers for people. Data
//! goes to standard output, everything else to standard error; colour follows `NO_COLOR` and pipes.

pub(crate) use lora_train::plan::bytes;

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use anstyle::{AnsiColor, Style};

/// The word `error`.
pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();
/// Warnings and what is wrong in an argument.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// The word `hint`.
pub(crate) const HINT: Style = AnsiColor::Cyan.on_default().bold();
/// Headings.
pub(crate) const HEADING: Style = Style::new().bold();
/// Commands and values to type as they stand.
pub(crate) const LITERAL: Style = AnsiColor::Cyan.on_default();
/// Text that a model learns to write.
pub(crate) const LEARNED: Style = AnsiColor::Green.on_default();
/// What matters less.
pub(crate) const DIM: Style = Style::new().dimmed();

/// An error of the command line itself, with the way out.
#[derive(Debug)]
pub(crate) struct Problem {
    reason: String,
    hint: Option<String>,
}

impl Problem {
    /// Something the person can correct.
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: None }
    }

    /// The same with the next thing to do.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.reason)
    }
}

impl StdError for Problem {}

/// Writes data: to standard output, with styles where a terminal shows them.
pub(crate) fn out(text: &str) -> io::Result<()> {
    let mut stdout = anstream::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes a line of data.
pub(crate) fn out_line(text: &str) -> io::Result<()> {
    let mut stdout = anstream::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// Writes a line that is not data. What standard error does not take is lost on purpose.
pub(crate) fn say(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// What a person should know but need not act upon.
pub(crate) fn warning(text: &str) -> String {
    format!("{} {text}", paint(WARNING, "warning:"))
}

/// Whether standard output shows colours.
pub(crate) fn stdout_has_colour() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// `text` in `style`, to be written through [`out`] or [`say`].
pub(crate) fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Prints an error with its causes and its hint.
pub(crate) fn print_error(error: &anyhow::Error) {
    say(&render_error(error));
}

/// `error: …`, a `caused by: …` for each cause that says something new, and after an empty line
/// `hint: …` if one is known.
fn render_error(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut said = String::new();
    for (index, cause) in error.chain().enumerate() {
        let message = sentence(cause);
        if index == 0 {
            let _ = write!(text, "{} {message}", paint(ERROR, "error:"));
        } else if !said.contains(&message) {
            let _ = write!(text, "\n  {} {message}", paint(ERROR, "caused by:"));
        }
        said = message;
    }
    if let Some(hint) = error.chain().find_map(hint_of) {
        let _ = write!(text, "\n\n{} {hint}", paint(HINT, "hint:"));
    }
    text
}

/// The libraries say what was being done (``read `x` ``); a person wants to hear that it failed.
fn sentence(error: &(dyn StdError + 'static)) -> String {
    let message = error.to_string();
    let is_deed = ["read `", "write `"].iter().any(|deed| message.starts_with(deed));
    if is_deed { format!("cannot {message}") } else { message }
}

fn hint_of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a str> {
    if let Some(error) = error.downcast_ref::<Problem>() {
        return error.hint.as_deref();
    }
    if let Some(error) = error.downcast_ref::<lora_train::Error>() {
        return error.hint();
    }
    if let Some(error) = error.downcast_ref::<lora_models::Error>() {
        return error.hint();
    }
    error.downcast_ref::<lora_core::Error>().and_then(lora_core::Error::hint)
}

/// A measure of an evaluation, as its name wants it.
pub(crate) fn measure(name: &str, number: f64) -> String {
    match name {
        _ if !number.is_finite() => "undefined".to_string(),
        "accuracy" => format!("{:.1} %", number * 100.0),
        "perplexity" => format!("{number:.3}"),
        _ => format!("{number:.4}"),
    }
}

/// A count with separators: `139,400,064`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 row`, `2,000 rows`.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A measured number in four digits: `0.0312`, `17.25`, `1.3e-7`.
pub(crate) fn number(number: f64) -> String {
    let size = number.abs();
    if number == 0.0 {
        "0".to_string()
    } else if !(1e-3..1e5).contains(&size) {
        format!("{number:.3e}")
    } else {
        let decimals = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
        format!("{number:.decimals$}")
    }
}

/// A time span: `3.2s`, `1m 05s`, `2h 03m`.
pub(crate) fn seconds(seconds: f64) -> String {
    let Ok(span) = Duration::try_from_secs_f64(seconds) else {
        return "?".to_string();
    };
    let whole = span.as_secs_f64().round() as u64;
    match whole {
        0..10 => format!("{seconds:.1}s"),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
    }
}

/// Rows of cells in columns: the first column to the left, the others to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max()
        })
        .map(|width| width.unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                let _ = write!(line, "{cell:<width$}");
            } else {
                let _ = write!(line, "  {cell:>width$}");
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Labels and values below each other: labels padded to one width, values after them.
pub(crate) fn fields(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (label, value) in rows {
        let mut lines = value.lines();
        let first = lines.next().unwrap_or("");
        let padding = " ".repeat(width - label.chars().count());
        let _ = writeln!(text, "{}{padding}  {first}", paint(HEADING, label));
        for line in lines {
            let _ = writeln!(text, "{}  {line}", " ".repeat(width));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn an_error_shows_causes_and_the_hint_once() {
        let missing = io::Error::new(io::ErrorKind::NotFound, "no such file");
        let error = Err::<(), _>(lora_core::Error::read("model/config.json", missing))
            .context("cannot open `model`");
        let Err(error) = error else { return };
        assert_eq!(
            plain(&render_error(&error)),
            "error: cannot open `model`\n  caused by: cannot read `model/config.json`\n  \
             caused by: no such file"
        );
        let error = anyhow::Error::from(lora_models::Error::from(
            lora_core::Error::invalid("rank is 0").with_hint("use 8"),
        ));
        assert_eq!(plain(&render_error(&error)), "error: rank is 0\n\nhint: use 8");
        let error = anyhow::Error::from(Problem::new("no").with_hint("yes"));
        assert_eq!(plain(&render_error(&error)), "error: no\n\nhint: yes");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(139_400_064), "139,400,064");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(98_362_432), "98.4 MB");
        assert_eq!(bytes(3_400_000_000), "3.4 GB");
        let numbers = [0.0, 0.03125, 17.2468, 1.25e-7, -250.0, 123_456.0, 1.0].map(number);
        assert_eq!(numbers, ["0", "0.03125", "17.25", "1.250e-7", "-250.0", "1.235e5", "1.000"]);
        assert_eq!(seconds(3.24), "3.2s");
        assert_eq!(seconds(59.7), "1m 00s");
        assert_eq!(seconds(65.0), "1m 05s");
        assert_eq!(seconds(7380.0), "2h 03m");
        assert_eq!(seconds(f64::NAN), "?");
        assert_eq!(counted(1, "row", "rows"), "1 row");
    }

    #[test]
    fn tables_align() {
        let rows =
            [vec!["a".to_string(), "10".to_string()], vec!["long".to_string(), "7".to_string()]];
        assert_eq!(table(&rows), "a     10\nlong   7\n");
        assert_eq!(
            plain(&fields(&[("a", "1\n2".to_string()), ("bc", "3".to_string())])),
            "a   1\n    2\nbc  3\n"
        );
    }
}
