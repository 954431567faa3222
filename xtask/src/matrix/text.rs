//! Numbers, times and reasons as the pages of the matrix show them.

use std::time::Duration;

use super::report::{Entry, Heading, Status, Verdict};

/// Longest reason inside a table; the list of failures and the JSON have it whole.
const LONGEST_REASON: usize = 160;

/// What the numbers between backends are.
pub(crate) const MEASURES: &str = "Logits: the largest difference, relative to the largest value \
    where that exceeds one. Gradients: the L2 distance, relative to the longer of the two. Anything \
    else: the largest difference.";

/// `1.2e-6`.
pub(crate) fn deviation(value: f64) -> String {
    if !value.is_finite() {
        "not finite".to_owned()
    } else if value == 0.0 {
        "0".to_owned()
    } else {
        format!("{value:.1e}")
    }
}

/// `7e-5`: with as many digits as it was set with, up to three.
fn tolerance(value: f64) -> String {
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((digits, "0")) => trimmed(digits).to_owned(),
        Some((digits, exponent)) => format!("{}e{exponent}", trimmed(digits)),
        None => text,
    }
}

fn trimmed(digits: &str) -> &str {
    digits.trim_end_matches('0').trim_end_matches('.')
}

/// The deviation beside its tolerance, as far as the cell has them.
pub(crate) fn measure(entry: &Entry) -> Option<String> {
    match (entry.deviation, entry.tolerance) {
        _ if entry.outcome == Verdict::Skipped => None,
        (Some(value), Some(limit)) => {
            let sign = if value <= limit { '≤' } else { '>' };
            Some(format!("{} {sign} {}", deviation(value), tolerance(limit)))
        }
        (Some(value), None) => Some(deviation(value)),
        (None, Some(limit)) => Some(format!("tolerance {}", tolerance(limit))),
        (None, None) => None,
    }
}

/// `0.12 s`, `3 min 05 s`.
pub(crate) fn seconds(value: f64) -> String {
    // Rounded first, so that 59.999 does not become `60.00 s`.
    let hundredths = (value * 100.0).round() / 100.0;
    if hundredths.is_nan() || hundredths < 60.0 {
        return format!("{hundredths:.2} s");
    }
    let whole = hundredths.round();
    format!("{} min {:02} s", (whole / 60.0).floor(), whole % 60.0)
}

/// `1 cell`, `2 cells`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// The reason of a cell, short enough for a table. A backend that is absent gives the same reason for
/// every cell; its heading has it in full.
pub(crate) fn reason(entry: &Entry, heading: &Heading) -> Option<String> {
    let whole = entry.reason.as_deref()?;
    let line = whole.lines().next().unwrap_or_default();
    if heading.status == Status::Absent {
        return line.split(':').next().map(str::to_owned);
    }
    let mut short: String = line.chars().take(LONGEST_REASON).collect();
    if short.len() < whole.len() {
        short.push('…');
    }
    Some(short)
}

/// The moment as `2026-03-05 14:03 UTC`.
pub(crate) fn date(since_1970: Duration) -> String {
    let minutes = since_1970.as_secs() / 60;
    let (year, month, day) = civil(minutes / (24 * 60));
    let (hour, minute) = (minutes / 60 % 24, minutes % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// Year, month and day, counted from 1970-01-01
/// (<https://howardhinnant.github.io/date_algorithms.html#civil_from_days>).
fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March here, so that the leap day is the last of its year.
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let deviations = [1.23e-6, 0.0, 2.5, f64::INFINITY, f64::NAN].map(deviation);
        assert_eq!(deviations, ["1.2e-6", "0", "2.5e0", "not finite", "not finite"]);
        assert_eq!([7e-5, 1.25e-5, 1.0, 0.0].map(tolerance), ["7e-5", "1.25e-5", "1", "0"]);
        let times = [0.0, 0.124, 59.994, 59.999, 185.4].map(seconds);
        assert_eq!(times, ["0.00 s", "0.12 s", "59.99 s", "1 min 00 s", "3 min 05 s"]);
    }

    #[test]
    fn dates_are_civil() {
        let at = |seconds| date(Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00 UTC");
        assert_eq!(at(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00 UTC");
        assert_eq!(at(1_772_719_380), "2026-03-05 14:03 UTC");
    }
}
