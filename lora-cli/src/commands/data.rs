//! `lora data`: rows of a recipe as the model will see them, learned tokens marked.

use std::fmt::Write as _;

use lora_models::tokenizer::Tokenizer;
use lora_train::data::{self, Answer, Dataset, Example, PreviewSpan};
use lora_train::recipe::Command;

use super::open;
use crate::args::DataArguments;
use crate::progress::Waiting;
use crate::style::{self, Problem};

/// Prints the first rows and the counts.
pub(crate) fn run(arguments: &DataArguments) -> anyhow::Result<()> {
    let quiet = arguments.quiet.quiet;
    let run = open::read_recipe(&arguments.recipe, &[], Command::Data)?;
    let checkpoint = open::open_run_model(&run, arguments.hub.offline, quiet)?;
    let waiting = Waiting::start("reading the data", quiet);
    let (train, validation) = data::load_for(&run.data, &checkpoint, &checkpoint.config)?;
    let labels = checkpoint.config.encoder.as_ref().map_or(&[][..], |encoder| &encoder.labels);
    drop(waiting);

    let shown = if arguments.validation { &validation } else { &train };
    if arguments.validation && validation.is_empty() {
        let problem = Problem::new("the recipe keeps no validation rows").with_hint(
            "set data.validation_rows or data.validation_fraction, or add [[data.validation]]",
        );
        return Err(problem.into());
    }
    let marks = arguments.plain || !style::stdout_has_colour();
    for example in shown.examples.iter().take(arguments.rows) {
        style::out(&row(shown, example, &checkpoint.tokenizer, labels, marks))?;
    }
    style::out(&counts(&train, &validation))?;
    Ok(())
}

/// One row: where it stands, how many tokens, and the text.
fn row(
    dataset: &Dataset,
    example: &Example,
    tokenizer: &Tokenizer,
    labels: &[String],
    marks: bool,
) -> String {
    let file = dataset.files.get(example.file).map(|path| path.display().to_string());
    let learned = match &example.label {
        None => format!("{} learned", style::count(example.learned_tokens() as u64)),
        Some(label) => match label.answer {
            Answer::Class(number) => labels[number as usize].clone(),
            Answer::Score(score) => score.to_string(),
        },
    };
    let mut heading = format!(
        "{}:{}  {}, {learned}",
        file.unwrap_or_default(),
        example.line,
        style::counted(example.tokens.len() as u64, "token", "tokens"),
    );
    if example.truncated > 0 {
        let _ = write!(heading, ", {} cut off", style::count(example.truncated as u64));
    }
    let mut text = style::paint(style::HEADING, &heading);
    text.push('\n');
    text.push_str(&spans(&data::preview(example, tokenizer), marks));
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push('\n');
    text
}

/// Text with what is learned in green, or between « and ».
fn spans(spans: &[PreviewSpan], marks: bool) -> String {
    let mut text = String::new();
    let mut inside = false;
    for span in spans {
        if marks {
            if span.learned != inside {
                text.push(if span.learned { '«' } else { '»' });
                inside = span.learned;
            }
            text.push_str(&span.text);
        } else if span.learned {
            text.push_str(&paint_lines(style::LEARNED, &span.text));
        } else if span.special {
            text.push_str(&paint_lines(style::DIM, &span.text));
        } else {
            text.push_str(&span.text);
        }
    }
    if inside {
        text.push('»');
    }
    text
}

/// Styles end with their line, so that a pager shows each line in the right colour.
fn paint_lines(look: anstyle::Style, text: &str) -> String {
    let painted: Vec<String> = text
        .split('\n')
        .map(|line| if line.is_empty() { String::new() } else { style::paint(look, line) })
        .collect();
    painted.join("\n")
}

fn counts(train: &Dataset, validation: &Dataset) -> String {
    let mut text = format!("{}\n", train.report);
    if !validation.is_empty() {
        let _ = writeln!(text, "validation: {}", validation.report);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str, learned: bool, special: bool) -> PreviewSpan {
        PreviewSpan { text: text.to_string(), learned, special }
    }

    #[test]
    fn marks_stand_around_runs_of_learned_text() {
        let parts = [
            span("ask ", false, false),
            span("answer", true, false),
            span("<end>", true, true),
            span("\n", false, false),
            span("more", true, false),
        ];
        assert_eq!(spans(&parts, true), "ask «answer<end>»\n«more»");
    }

    #[test]
    fn colour_ends_with_each_line() {
        let painted = spans(&[span("a\nb", true, false)], false);
        assert_eq!(painted.lines().count(), 2);
        assert!(painted.lines().all(|line| line.ends_with("\u{1b}[0m")), "{painted:?}");
    }
}
