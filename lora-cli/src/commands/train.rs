//! `lora train` and `lora pretrain`: run a recipe and tell what happens.

use std::process::ExitCode;

use lora_core::placement::Quantize;
use lora_core::profile;
use lora_train::finetune::{self, Event, Outcome, TrainOptions};
use lora_train::recipe::{Command, Method, Run};

use super::open;
use crate::args::RunArguments;
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::progress::Progress;
use crate::style;

/// Fine-tunes.
pub(crate) fn train(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    run(arguments, Command::Train)
}

/// Trains the model itself.
pub(crate) fn pretrain(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    run(arguments, Command::Pretrain)
}

fn run(arguments: &RunArguments, command: Command) -> anyhow::Result<ExitCode> {
    let run = open::read_recipe(&arguments.recipe, &extra(arguments), command)?;
    let interrupt =
        Interrupt::install("stopping after this step; press Ctrl-C again to leave at once")?;
    let quiet = arguments.quiet.quiet;
    let options = TrainOptions {
        resume: arguments.resume,
        stop: interrupt.stop_flag(),
        open: open::open_options(arguments.hub.offline, quiet),
    };
    let mut progress = Progress::new(quiet);
    let defaults = run.notes.iter().filter(|note| is_default(note)).count();
    if defaults > 0 {
        let settings = style::counted(defaults as u64, "setting has its", "settings have their");
        let recipe = arguments.recipe.recipe.display();
        let line = format!("{settings} default value: `lora plan {recipe}` names them, and why");
        progress.line(&style::paint(style::DIM, &line));
    }
    let mut output = Ok(());
    if arguments.profile {
        profile::start();
    }
    let outcome = profile::timed("everything else", || {
        finetune::train(&run, &options, &mut |event| {
            let written = show(&mut progress, &event);
            if output.is_ok() {
                output = written;
            }
        })
    });
    progress.finish();
    if arguments.profile {
        style::say(&time_table(&profile::finish()));
    }
    let outcome = outcome?;
    output?;
    report(&outcome, &run, arguments, command)
}

fn extra(arguments: &RunArguments) -> Vec<String> {
    let output = arguments.output.as_deref().map(|path| path.to_string_lossy());
    let output = output.map(|output| open::override_text("output.folder", &output));
    open::compute_keys(&arguments.compute).into_iter().chain(output).collect()
}

fn show(progress: &mut Progress, event: &Event<'_>) -> std::io::Result<()> {
    match event {
        Event::Note(text) if is_default(text) => {}
        Event::Note(text) => progress.line(&style::paint(style::DIM, text)),
        Event::Report(report) => progress.line(&report.to_string()),
        Event::Data(report) => progress.line(&report.to_string()),
        Event::Step(metrics) => progress.step(metrics),
        Event::Evaluation { step, found } => progress.line(&format!(
            "held out at step {step}: loss {:.4}{}",
            found.loss,
            found
                .measures()
                .into_iter()
                .map(|(name, number)| format!("  {name} {}", style::measure(name, number)))
                .collect::<String>()
        )),
        Event::Checkpoint(path) => {
            progress.line(&style::paint(style::DIM, &format!("saved {}", path.display())));
        }
        Event::Sample { when, prompt, text } => {
            let heading = style::paint(style::HEADING, &format!("{when}: {prompt}"));
            return progress.data(&format!("{heading}\n{}\n", text.trim_end()));
        }
        Event::Finished(_) => {}
    }
    Ok(())
}

/// Whether a note says a default, `train.seed = 0: …`; those are for `lora plan`.
fn is_default(note: &str) -> bool {
    note.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
}

/// What came out, and what to do with it next.
fn report(
    outcome: &Outcome,
    run: &Run,
    arguments: &RunArguments,
    command: Command,
) -> anyhow::Result<ExitCode> {
    let Some(result) = outcome.result.as_deref().filter(|_| !outcome.interrupted) else {
        say_how_to_resume(outcome, arguments, command);
        return Ok(ExitCode::from(INTERRUPTED));
    };
    if !arguments.quiet.quiet {
        style::say(&format!("\n{}\n{}", summary(outcome).trim_end(), next_steps(outcome, run)));
    }
    style::out_line(&result.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn summary(outcome: &Outcome) -> String {
    let mut rows = vec![(
        "loss",
        format!(
            "{:.4} at the first step, {:.4} at the last",
            outcome.first_loss, outcome.last_loss
        ),
    )];
    if let (Some(before), Some(after)) = (outcome.validation_before, outcome.validation_after) {
        rows.push(("held out", format!("{before:.4} before, {after:.4} after")));
    }
    let mut steps = style::counted(outcome.steps as u64, "step", "steps");
    if outcome.stopped_early {
        steps.push_str(", stopped early: the held-out loss no longer fell");
    }
    rows.push(("steps", steps));
    rows.push(("time", style::seconds(outcome.seconds)));
    rows.push(("memory", format!("{} at most", style::bytes(outcome.peak_memory))));
    if let Some(best) = &outcome.best {
        rows.push(("best", format!("{}, by held-out loss", best.display())));
    }
    style::fields(&rows)
}

/// Where the time went, the longest part first; the parts add up to the whole.
fn time_table(parts: &[(&str, profile::Part)]) -> String {
    let whole: f64 = parts.iter().map(|(_, part)| part.time.as_secs_f64()).sum();
    let mut rows = vec![["part", "calls", "seconds", "share"].map(str::to_owned).to_vec()];
    for (name, part) in parts {
        let seconds = part.time.as_secs_f64();
        rows.push(vec![
            (*name).to_owned(),
            style::count(part.calls),
            format!("{seconds:.3}"),
            format!("{:.1} %", 100.0 * seconds / whole.max(f64::MIN_POSITIVE)),
        ]);
    }
    rows.push(vec!["together".into(), String::new(), format!("{whole:.3}"), "100.0 %".into()]);
    format!("\n{}", style::table(&rows).trim_end())
}

fn next_steps(outcome: &Outcome, run: &Run) -> String {
    let folder = outcome.folder.display();
    if outcome.classifies {
        let text = "--text 'some text'";
        return match run.method {
            Method::Full => format!("\nnext:\n  lora classify {folder}/model {text}"),
            Method::Lora(_) => {
                let model = &run.model;
                format!("\nnext:\n  lora classify {model} --adapter {folder} {text}")
            }
        };
    }
    if matches!(run.method, Method::Full) {
        return format!("\nnext:\n  lora generate {folder}/model --prompt 'some text'");
    }
    let model = &run.model;
    let rest = match run.quantize {
        Quantize::None => String::new(),
        quantize => format!(" --quantize {quantize}"),
    };
    format!(
        "\nnext:\n  lora generate {model} --adapter {folder}{rest} --prompt 'some text'\n  lora merge \
         {model} {folder} --output {folder}-merged{rest}"
    )
}

/// The command as it was given, with `--resume`.
fn say_how_to_resume(outcome: &Outcome, arguments: &RunArguments, command: Command) {
    let mut words =
        vec![if command == Command::Pretrain { "pretrain" } else { "train" }.to_string()];
    words.push(arguments.recipe.recipe.display().to_string());
    for set in &arguments.recipe.set {
        words.push(format!("--set {}", quoted(set)));
    }
    for (flag, key) in
        [("--device", "device"), ("--precision", "precision"), ("--quantize", "quantize")]
    {
        let keys = open::compute_keys(&arguments.compute);
        let start = format!("{key}=");
        let value = keys.iter().find_map(|set| set.strip_prefix(&start));
        words.extend(value.map(|value| format!("{flag} {}", value.trim_matches('"'))));
    }
    if let Some(output) = &arguments.output {
        words.push(format!("--output {}", quoted(&output.display().to_string())));
    }
    style::say(&format!(
        "stopped after step {}; everything is saved in {}\n\n{} to go on: lora {} --resume",
        outcome.steps,
        outcome.folder.display(),
        style::paint(style::HINT, "hint:"),
        words.join(" "),
    ));
}

/// The text as one word of a shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_=./:+,".contains(c);
    if text.chars().all(is_plain) {
        return text.to_string();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("train.steps=3"), "train.steps=3");
        assert_eq!(quoted("a=[\"b\"]"), "'a=[\"b\"]'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
