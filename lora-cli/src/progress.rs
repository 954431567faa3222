//! Progress on standard error: a bar where it is a terminal, plain lines every so many steps where
//! it is not, nothing when asked to be quiet.

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lora_models::hub::HubProgress;
use lora_train::StepMetrics;

use crate::style;

/// Without a terminal, a run says about this many lines.
const PLAIN_LINES: usize = 20;

/// How the steps of a training run are shown.
pub(crate) struct Progress {
    quiet: bool,
    bar: Option<ProgressBar>,
    is_terminal: bool,
}

impl Progress {
    /// Shows nothing until the first step.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet, bar: None, is_terminal: std::io::stderr().is_terminal() }
    }

    /// Shows one step.
    pub(crate) fn step(&mut self, metrics: &StepMetrics) {
        if self.quiet {
            return;
        }
        if self.is_terminal {
            let bar = self.bar.get_or_insert_with(|| step_bar(metrics.total_steps));
            bar.set_length(metrics.total_steps as u64);
            bar.set_position(metrics.step as u64);
            bar.set_message(summary(metrics));
        } else if is_plain_line(metrics.step, metrics.total_steps) {
            let width = metrics.total_steps.to_string().len();
            style::say(&format!(
                "step {:>width$}/{}  {}",
                metrics.step,
                metrics.total_steps,
                summary(metrics)
            ));
        }
    }

    /// Says a line above the bar.
    pub(crate) fn line(&self, text: &str) {
        if self.quiet {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| style::say(text)),
            None => style::say(text),
        }
    }

    /// Writes data to standard output without tearing the bar.
    pub(crate) fn data(&self, text: &str) -> std::io::Result<()> {
        match &self.bar {
            Some(bar) => bar.suspend(|| style::out_line(text)),
            None => style::out_line(text),
        }
    }

    /// Leaves the bar as it stands.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}

/// A spinner for work without a count, gone when the returned value is dropped.
pub(crate) struct Waiting {
    bar: Option<ProgressBar>,
}

impl Waiting {
    /// Shows what is being done, on a terminal, unless asked to be quiet.
    pub(crate) fn start(what: &str, quiet: bool) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self { bar: None };
        }
        let bar = ProgressBar::new_spinner().with_message(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar: Some(bar) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Shows files as they come from the hub: a bar for each on a terminal, else a line for each.
pub(crate) fn download() -> Arc<dyn Fn(HubProgress) + Send + Sync> {
    let is_terminal = std::io::stderr().is_terminal();
    let current: Mutex<Option<(String, ProgressBar)>> = Mutex::new(None);
    Arc::new(move |progress: HubProgress| {
        let is_done = progress.bytes_done >= progress.bytes_total;
        if !is_terminal {
            if is_done {
                let size = style::bytes(progress.bytes_total);
                style::say(&format!("fetched {} ({size})", progress.file));
            }
            return;
        }
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|(file, _)| *file != progress.file) {
            *current = Some((progress.file.clone(), file_bar(&progress)));
        }
        if let Some((_, bar)) = current.as_ref() {
            bar.set_position(progress.bytes_done);
            if is_done {
                bar.finish();
            }
        }
    })
}

fn file_bar(progress: &HubProgress) -> ProgressBar {
    let draw = ProgressDrawTarget::stderr();
    let bar = ProgressBar::with_draw_target(Some(progress.bytes_total), draw)
        .with_message(progress.file.clone());
    const LOOK: &str =
        "{bar:24.cyan/blue} {bytes}/{total_bytes}  {wide_msg}  {bytes_per_sec}  {eta} left";
    if let Ok(look) = ProgressStyle::with_template(LOOK) {
        bar.set_style(look.progress_chars("━━╌"));
    }
    bar
}

fn step_bar(total: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
    if let Ok(look) = ProgressStyle::with_template("{bar:24.cyan/blue} {pos}/{len}  {wide_msg}") {
        bar.set_style(look.progress_chars("━━╌"));
    }
    bar
}

fn is_plain_line(step: usize, total: usize) -> bool {
    step <= 1 || step == total || step.is_multiple_of(total.div_ceil(PLAIN_LINES).max(1))
}

fn summary(metrics: &StepMetrics) -> String {
    let mut parts = vec![
        format!("loss {:.4}", metrics.loss),
        format!("lr {:.2e}", metrics.learning_rate),
        format!("{:.0} tokens/s", metrics.tokens_per_second),
    ];
    if metrics.memory_bytes > 0 {
        parts.push(style::bytes(metrics.memory_bytes));
    }
    if metrics.step < metrics.total_steps {
        parts.push(format!("{} left", style::seconds(metrics.seconds_left)));
    }
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_are_few_and_hold_both_ends() {
        let shown: Vec<usize> = (1..=1000).filter(|&step| is_plain_line(step, 1000)).collect();
        assert_eq!(shown.first(), Some(&1));
        assert_eq!(shown.last(), Some(&1000));
        assert_eq!(shown.len(), PLAIN_LINES + 1);
        assert_eq!((1..=5).filter(|&step| is_plain_line(step, 5)).count(), 5);
    }
}
