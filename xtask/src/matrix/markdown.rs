//! The matrix as `matrix.md`: tables with one row per case.

use super::deviation::Deviation;
use super::report::{Entry, Group, Heading, Report, Status, Verdict};
use super::text;

/// The whole page.
pub(crate) fn render(report: &Report) -> String {
    let mut sections = vec![head(report), backends(&report.columns)];
    if !report.failures.is_empty() {
        sections.push(failures(report));
    }
    sections.extend(report.groups.iter().map(|group| cases(group, &report.columns)));
    sections.push(deviations(&report.deviations));
    sections.join("\n")
}

fn head(report: &Report) -> String {
    let quick = if report.quick { ", short form (`--quick`)" } else { "" };
    let totals = report.totals;
    format!(
        "# Conformance matrix\n\n{}{quick}: {} passed, {} failed, {} skipped.\n",
        report.date, totals.passed, totals.failed, totals.skipped
    )
}

fn backends(columns: &[Heading]) -> String {
    let rows = columns.iter().map(|column| {
        let device = match (column.status, &column.reason) {
            (Status::Absent, Some(reason)) => format!("absent: {}", escape(reason)),
            (Status::Absent, None) => "absent".to_owned(),
            (Status::Failed, _) => "did not run".to_owned(),
            (Status::Ran, _) => optional(column.device.as_deref()),
        };
        vec![
            column.backend.clone(),
            device,
            optional(column.driver.as_deref()),
            column.counts.passed.to_string(),
            column.counts.failed.to_string(),
            column.counts.skipped.to_string(),
            text::seconds(column.seconds),
        ]
    });
    let names = ["backend", "device", "driver", "passed", "failed", "skipped", "time"];
    table(&names, "---rrrr", rows)
}

fn failures(report: &Report) -> String {
    let lines: Vec<String> = report
        .failures
        .iter()
        .map(|failure| {
            let reason = escape(&failure.reason);
            format!("- `{}` on {}: {reason}\n", failure.case, failure.backend)
        })
        .collect();
    format!("## Failures\n\n{}", lines.concat())
}

fn cases(group: &Group, columns: &[Heading]) -> String {
    let mut names = vec!["case", "reference"];
    names.extend(columns.iter().map(|column| column.backend.as_str()));
    let rows = group.rows.iter().map(|row| {
        let mut texts = vec![format!("`{}`", row.label()), optional(row.reference.as_deref())];
        texts.extend(row.cells.iter().zip(columns).map(|(entry, column)| cell(entry, column)));
        texts
    });
    format!("## {}\n\n{}", group.name, table(&names, "", rows))
}

fn cell(entry: &Entry, column: &Heading) -> String {
    let reason = text::reason(entry, column).map(|reason| escape(&reason));
    let word = match entry.outcome {
        Verdict::None => return "–".to_owned(),
        Verdict::Missing => return "**missing**".to_owned(),
        Verdict::Pass => "pass",
        Verdict::Fail => "**FAIL**",
        Verdict::Skipped => "skipped",
    };
    let parts = [text::measure(entry), entry.seconds.map(text::seconds)];
    let mut line = word.to_owned();
    for part in parts.into_iter().flatten() {
        line.push_str(", ");
        line.push_str(&part);
    }
    if let Some(reason) = reason {
        line.push_str(": ");
        line.push_str(&reason);
    }
    line
}

fn deviations(deviations: &[Deviation]) -> String {
    let head = "## Deviation between backends\n\n";
    if deviations.is_empty() {
        return format!("{head}Fewer than two backends ran; there is nothing to compare.\n");
    }
    let rows = deviations.iter().map(|deviation| {
        let failed = match deviation.failures.len() {
            0 => "0".to_owned(),
            failed => format!("**{failed}**"),
        };
        vec![
            deviation.kind.clone(),
            format!("{} and {}", deviation.left, deviation.right),
            deviation.largest.map_or("–".to_owned(), text::deviation),
            deviation.tensor.as_ref().map_or("–".to_owned(), |tensor| format!("`{tensor}`")),
            deviation.compared.to_string(),
            failed,
        ]
    });
    let names = ["kind", "backends", "largest", "worst tensor", "compared", "failed"];
    format!("{head}{}\n{}\n", table(&names, "--r-rr", rows), text::MEASURES)
}

/// A table; `sides` has an `r` for each column that is aligned to the right.
fn table(names: &[&str], sides: &str, rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut sides = sides.chars();
    let rules: Vec<&str> =
        names.iter().map(|_| if sides.next() == Some('r') { "---:" } else { "---" }).collect();
    let mut text = format!("| {} |\n| {} |\n", names.join(" | "), rules.join(" | "));
    for row in rows {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    text
}

fn optional(text: Option<&str>) -> String {
    text.map_or("–".to_owned(), escape)
}

/// Text that breaks neither a table nor a line of a list.
fn escape(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ").replace('|', "\\|").replace('<', "&lt;")
}
