//! The end of the run on the terminal: who passed what, and how far apart the backends are.

use super::report::{Report, Status};
use super::text;

/// One line per backend, then one per two backends and kind.
pub(crate) fn render(report: &Report) -> String {
    let mut text = format!("{:<12} {:>7} {:>7} {:>8}\n", "backend", "passed", "failed", "skipped");
    for column in &report.columns {
        let counts = column.counts;
        text.push_str(&format!(
            "{:<12} {:>7} {:>7} {:>8}",
            column.backend, counts.passed, counts.failed, counts.skipped
        ));
        match column.status {
            Status::Ran => {}
            Status::Absent => {
                text.push_str("   absent: ");
                text.push_str(column.reason.as_deref().unwrap_or("no reason given"));
            }
            Status::Failed => text.push_str("   did not run"),
        }
        text.push('\n');
    }
    if !report.deviations.is_empty() {
        text.push_str(&format!("\n{:<12} {:<20} {:>10}\n", "deviation", "backends", "largest"));
    }
    for deviation in &report.deviations {
        let pair = format!("{} and {}", deviation.left, deviation.right);
        let largest = deviation.largest.map_or("none".to_owned(), text::deviation);
        text.push_str(&format!("{:<12} {pair:<20} {largest:>10}", deviation.kind));
        if !deviation.failures.is_empty() {
            text.push_str(&format!(
                "   {} failed",
                text::count(deviation.failures.len(), "tensor")
            ));
        }
        text.push('\n');
    }
    text
}
