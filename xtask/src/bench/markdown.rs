//! The table as Markdown, for the terminal, for `bench.md` and for docs/performance.md.

use anyhow::{Context, Result};

use super::report::{Entry, Measurement, Report};
use super::rows::{LLAMA, OURS, OURS_ADAPTER, PEER, Quantity, Target};
use super::statistics::Spread;

/// Where the table stands in docs/performance.md.
const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// Above this, what others took of the machine is worth a warning.
const NOISY_PERCENT: f64 = 10.0;

/// The whole page.
pub(crate) fn page(report: &Report) -> String {
    format!("# Speed\n\n{}", body(report))
}

/// The page without its title.
pub(crate) fn body(report: &Report) -> String {
    let mut sections = vec![head(report), rows(&report.rows)];
    sections.extend(left_out(report));
    sections.push(format!("Every step of every round:\n\n{}", measurements(&report.measurements)));
    sections.join("\n")
}

/// `page` with the table between its marks replaced.
///
/// # Errors
/// The marks are not there.
pub(crate) fn into_page(page: &str, body: &str) -> Result<String> {
    let parts = page
        .split_once(BEGIN)
        .and_then(|(before, rest)| rest.split_once(END).map(|(_, after)| (before, after)));
    let (before, after) = parts.with_context(|| {
        format!("put a line `{BEGIN}` and below it a line `{END}` into it first")
    })?;
    Ok(format!("{before}{BEGIN}\n\n{body}\n{END}{after}"))
}

fn head(report: &Report) -> String {
    let head = &report.head;
    let rounds = match (head.rounds, head.quick) {
        (1, true) => "1 round, short form (`--quick`)".to_owned(),
        (count, true) => format!("{count} rounds, short form (`--quick`)"),
        (1, false) => "1 round".to_owned(),
        (count, false) => format!("{count} rounds"),
    };
    let versions: Vec<String> =
        head.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let machine = &head.machine;
    let mut parts = vec![machine.processor.clone(), counted(machine.cores, "core")];
    let threads: Vec<String> = report.threads().iter().map(ToString::to_string).collect();
    if !threads.is_empty() {
        parts.push(format!("threads: {}", threads.join(" or ")));
    }
    if !machine.simd.is_empty() {
        parts.push(machine.simd.join(" "));
    }
    parts.extend(machine.load_average.map(|load| format!("load average {load:.2} before")));
    format!(
        "{}; {rounds}; {}.\n{}.\n{}",
        head.date,
        versions.join(", "),
        parts.join(", "),
        noise(report)
    )
}

fn noise(report: &Report) -> String {
    match report.most_by_others() {
        None => String::new(),
        Some(percent) if percent > NOISY_PERCENT => format!(
            "**Noisy:** other programs took up to {percent:.0} % of the machine during a run; close \
             them and measure again.\n"
        ),
        Some(percent) => {
            format!("Other programs took at most {percent:.1} % of the machine during a run.\n")
        }
    }
}

fn rows(entries: &[Entry]) -> String {
    let mut text = "| what | peer | ours | ratio | target | met |\n\
                    | --- | ---: | ---: | ---: | ---: | --- |\n"
        .to_owned();
    for entry in entries {
        let cells = [
            format!("{} (`{}`)", entry.what, entry.name),
            other(entry),
            entry.ours.map_or("-".to_owned(), |ours| number(entry.quantity, ours)),
            ratio(entry),
            entry.target.map_or("-".to_owned(), |wanted| target(entry, wanted)),
            entry.met.map_or("-", |met| if met { "yes" } else { "**no**" }).to_owned(),
        ];
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

/// The number that ours is compared with, and whose it is where that is not plain.
fn other(entry: &Entry) -> String {
    let Some(value) = entry.other else { return "-".to_owned() };
    let shown = number(entry.quantity, value);
    match entry.other_by {
        Some(PEER) if entry.has_choice => format!("{shown} (default)"),
        Some(PEER) | None => shown,
        Some(by @ (OURS | OURS_ADAPTER | LLAMA)) => format!("{shown} ({by})"),
        Some(by) => format!("{shown} ({})", by.strip_prefix("peer, ").unwrap_or(by)),
    }
}

/// The ratio, its standard error where it has one, and those of the rounds that were least and most.
fn ratio(entry: &Entry) -> String {
    let Some(ratio) = entry.ratio else { return "-".to_owned() };
    let [median, min, max] =
        [ratio.median, ratio.min, ratio.max].map(|value| format!("{value:.2}"));
    let error = entry.error.map_or(String::new(), |error| format!(" ± {error:.2}"));
    let range = if min == max { String::new() } else { format!(" ({min} to {max})") };
    format!("{median}{error}{range}")
}

fn target(entry: &Entry, target: Target) -> String {
    let shown = |limit: f64| match entry.is_absolute {
        true => number(entry.quantity, limit),
        false => format!("{limit:.2}"),
    };
    match target {
        Target::AtLeast(limit) => format!("≥ {}", shown(limit)),
        Target::AtMost(limit) => format!("≤ {}", shown(limit)),
    }
}

/// What failed and what was skipped, with the reasons.
fn left_out(report: &Report) -> Option<String> {
    let mut lines: Vec<String> = report
        .failures()
        .into_iter()
        .map(|(work, by, reason)| format!("- **failed**: `{work}`, {by}: {}\n", plain(reason)))
        .collect();
    // In the order in which the reasons came up.
    let mut reasons: Vec<&str> = Vec::new();
    for skip in &report.skipped {
        if !reasons.contains(&skip.reason.as_str()) {
            reasons.push(&skip.reason);
        }
    }
    lines.extend(reasons.into_iter().map(|reason| {
        let skips = report.skipped.iter().filter(|skip| skip.reason == reason);
        let names: Vec<String> =
            skips.map(|skip| format!("`{}` ({})", skip.work, skip.by)).collect();
        format!("- skipped, since {}: {}\n", plain(reason), names.join(", "))
    }));
    (!lines.is_empty()).then(|| lines.concat())
}

fn measurements(all: &[Measurement]) -> String {
    let mut text = "| work | by | tokens/s | peak memory | before the model | loss |\n\
                    | --- | --- | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    for found in all {
        let work = match found.variant.as_str() {
            "" => format!("`{}`", found.work),
            variant => format!("`{}`, {variant}", found.work),
        };
        let loss = found.loss.map(|(first, last)| format!("{first:.3} to {last:.3}"));
        let memory = |megabytes: Option<f64>| {
            megabytes.map_or("-".to_owned(), |number| self::number(Quantity::Memory, number))
        };
        // The rows above say all there is of it.
        if found.tok_s.is_none() && found.peak_rss_mb.is_none() {
            continue;
        }
        let cells = [
            work,
            found.by.to_owned(),
            found.tok_s.map_or("-".to_owned(), |speed| spread(speed, digits)),
            memory(found.peak_rss_mb),
            memory(found.start_rss_mb),
            loss.unwrap_or("-".to_owned()),
        ];
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

/// `2.87 (2.80 to 2.91)`; the middle alone where all look the same.
fn spread(spread: Spread, shown: impl Fn(f64) -> String) -> String {
    let [median, min, max] = [spread.median, spread.min, spread.max].map(shown);
    if min == max { median } else { format!("{median} ({min} to {max})") }
}

/// A number with its unit.
pub(crate) fn number(quantity: Quantity, value: f64) -> String {
    match quantity {
        Quantity::Speed => format!("{} tokens/s", digits(value)),
        Quantity::TokenTime => format!("{} ms/token", digits(value)),
        Quantity::StepTime => format!("{} ms", digits(value)),
        Quantity::Rate => format!("{} GFLOP/s", digits(value)),
        Quantity::Memory => format!("{:.2} GB", value / 1e3),
        Quantity::Time => format!("{value:.2} s"),
    }
}

/// With a tenth where that says something.
fn digits(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Text of a program as one line that breaks no page.
fn plain(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ").replace('<', "&lt;")
}
