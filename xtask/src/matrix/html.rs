//! The matrix as `matrix.html`: one page that needs nothing beside it, in the reader's light or dark.

use super::deviation::Deviation;
use super::report::{Counts, Entry, Group, Heading, Report, Status, Verdict};
use super::text;

const STYLE: &str = include_str!("page.css");

/// The whole page.
pub(crate) fn render(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Conformance matrix, {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        escape(&report.date)
    );
    page.push_str(&head(report));
    page.push_str(&backends(&report.columns));
    if !report.failures.is_empty() {
        page.push_str(&failures(report));
    }
    page.push_str(&cases(report));
    page.push_str(&deviations(&report.deviations));
    page.push_str("</body>\n</html>\n");
    page
}

fn head(report: &Report) -> String {
    let quick = if report.quick { ", short form (<code>--quick</code>)" } else { "" };
    let Counts { passed, failed, skipped } = report.totals;
    format!(
        "<header>\n<h1>Conformance matrix</h1>\n<p class=\"soft\">{}{quick}</p>\n\
         <div class=\"totals\"><span class=\"pass\">{passed} passed</span>\
         <span class=\"fail\">{failed} failed</span>\
         <span class=\"skipped\">{skipped} skipped</span></div>\n</header>\n",
        escape(&report.date)
    )
}

fn backends(columns: &[Heading]) -> String {
    let names = ["backend", "device", "driver", "result", "time"];
    let rows: Vec<String> = columns.iter().map(backend).collect();
    format!("<h2>Backends</h2>\n{}<tbody>\n{}</tbody>\n</table>\n", table(&names), rows.concat())
}

fn backend(column: &Heading) -> String {
    let device = match (column.status, &column.reason) {
        (Status::Absent, Some(reason)) => format!("absent: {}", escape(reason)),
        (Status::Absent, None) => "absent".to_owned(),
        (Status::Failed, _) => "did not run".to_owned(),
        (Status::Ran, _) => optional(column.device.as_deref()),
    };
    let Counts { passed, failed, skipped } = column.counts;
    format!(
        "<tr><th scope=\"row\"><b>{}</b></th><td>{device}</td><td>{}</td>\
         <td>{passed} passed, {failed} failed, {skipped} skipped{}</td>\
         <td class=\"number\">{}</td></tr>\n",
        escape(&column.backend),
        optional(column.driver.as_deref()),
        bar(column.counts),
        text::seconds(column.seconds)
    )
}

/// The counts as lengths.
fn bar(counts: Counts) -> String {
    let parts = [counts.passed, counts.failed, counts.skipped]
        .map(|part| format!("<i style=\"flex:{part}\"></i>"));
    format!("<div class=\"bar\" aria-hidden=\"true\">{}</div>", parts.concat())
}

fn failures(report: &Report) -> String {
    let mut list = String::from("<h2>Failures</h2>\n<ul class=\"failures\">\n");
    for failure in &report.failures {
        let (case, backend) = (escape(&failure.case), escape(&failure.backend));
        let reason = escape(&failure.reason);
        list.push_str(&format!("<li><code>{case}</code> on {backend}: {reason}</li>\n"));
    }
    list.push_str("</ul>\n");
    list
}

fn cases(report: &Report) -> String {
    let mut heads = String::from("<th scope=\"col\">case</th>");
    for column in &report.columns {
        let device = column.device.as_deref().map_or(String::new(), |device| {
            format!("<small title=\"{0}\">{0}</small>", escape(device))
        });
        let name = escape(&column.backend);
        heads.push_str(&format!("<th scope=\"col\">{name}{device}</th>"));
    }
    let groups: Vec<String> =
        report.groups.iter().map(|group| group_body(group, &report.columns)).collect();
    format!(
        "<h2>Cases</h2>\n<table>\n<thead><tr>{heads}</tr></thead>\n{}</table>\n",
        groups.concat()
    )
}

fn group_body(group: &Group, columns: &[Heading]) -> String {
    let mut body = format!(
        "<tbody>\n<tr><th scope=\"rowgroup\" colspan=\"{}\">{}</th></tr>\n",
        columns.len() + 1,
        escape(&group.name)
    );
    for row in &group.rows {
        let reference = row.reference.as_deref().map_or(String::new(), |reference| {
            format!(" <small>against {}</small>", escape(reference))
        });
        let label = escape(row.label());
        body.push_str(&format!("<tr><th scope=\"row\"><code>{label}</code>{reference}</th>"));
        for (entry, column) in row.cells.iter().zip(columns) {
            body.push_str(&cell(entry, column));
        }
        body.push_str("</tr>\n");
    }
    body.push_str("</tbody>\n");
    body
}

fn cell(entry: &Entry, column: &Heading) -> String {
    let word = match entry.outcome {
        Verdict::None => return "<td>–</td>".to_owned(),
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Skipped => "skipped",
        Verdict::Missing => "missing",
    };
    let mut text = format!("<td class=\"{word}\"><b>{word}</b>");
    if let Some(measure) = text::measure(entry) {
        text.push_str(&format!("<span>{}</span>", escape(&measure)));
    }
    if let Some(seconds) = entry.seconds {
        text.push_str(&format!("<small>{}</small>", text::seconds(seconds)));
    }
    if let Some(reason) = text::reason(entry, column) {
        let whole = escape(entry.reason.as_deref().unwrap_or_default());
        let reason = escape(&reason);
        let element = if entry.outcome == Verdict::Skipped { "span" } else { "p" };
        text.push_str(&format!("<{element} title=\"{whole}\">{reason}</{element}>"));
    }
    text.push_str("</td>");
    text
}

fn deviations(deviations: &[Deviation]) -> String {
    let head = "<h2>Deviation between backends</h2>\n";
    if deviations.is_empty() {
        return format!("{head}<p>Fewer than two backends ran; there is nothing to compare.</p>\n");
    }
    let names = ["kind", "backends", "largest", "worst tensor", "compared", "failed"];
    let rows: Vec<String> = deviations.iter().map(deviation).collect();
    format!(
        "{head}{}<tbody>\n{}</tbody>\n</table>\n<p class=\"soft\">{}</p>\n",
        table(&names),
        rows.concat(),
        text::MEASURES
    )
}

fn deviation(deviation: &Deviation) -> String {
    let failed = match deviation.failures.len() {
        0 => "<td class=\"number\">0</td>".to_owned(),
        failed => format!("<td class=\"number fail\"><b>{failed} failed</b></td>"),
    };
    let tensor = deviation
        .tensor
        .as_ref()
        .map_or("–".to_owned(), |tensor| format!("<code>{}</code>", escape(tensor)));
    format!(
        "<tr><th scope=\"row\">{}</th><td>{} and {}</td><td class=\"number\">{}</td>\
         <td>{tensor}</td><td class=\"number\">{}</td>{failed}</tr>\n",
        escape(&deviation.kind),
        escape(&deviation.left),
        escape(&deviation.right),
        deviation.largest.map_or("–".to_owned(), text::deviation),
        deviation.compared
    )
}

/// The beginning of a table.
fn table(names: &[&str]) -> String {
    let heads: Vec<String> =
        names.iter().map(|name| format!("<th scope=\"col\">{name}</th>")).collect();
    format!("<table>\n<thead><tr>{}</tr></thead>\n", heads.concat())
}

fn optional(text: Option<&str>) -> String {
    text.map_or("–".to_owned(), escape)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
