//! Letters as strokes, for pictures made of pixels: no font of the machine is needed, and the picture is the same
//! everywhere.

use super::{Anchor, Point, Text};

/// Width of the strokes of a text of this size.
pub(crate) fn stroke(size: f64) -> f64 {
    size * 0.095
}

/// The strokes of a text, in the coordinates of its picture.
pub(crate) fn strokes(text: &Text) -> Vec<Vec<Point>> {
    let (across, up) = (text.size * ACROSS, text.size * UP);
    let glyphs: Vec<Vec<Vec<Point>>> = text.text.chars().map(glyph).collect();
    let widths: Vec<f64> = glyphs.iter().map(|glyph| width(glyph) * across).collect();
    let whole = widths.iter().sum::<f64>() - GAP * across;
    let mut start = match text.anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => -whole / 2.0,
        Anchor::End => -whole,
    };
    let mut strokes = Vec::new();
    for (glyph, width) in glyphs.into_iter().zip(widths) {
        for line in glyph {
            let place = |(x, y): Point| {
                let (right, above) = (start + x * across, (y - BASELINE) * up);
                match text.upwards {
                    true => (text.at.0 - above, text.at.1 - right),
                    false => (text.at.0 + right, text.at.1 - above),
                }
            };
            strokes.push(line.into_iter().map(place).collect());
        }
        start += width;
    }
    strokes
}

/// Letters stand on a grid of five columns and ten rows, of which the third is the baseline; capitals reach
/// the ninth, small letters the seventh.
const BASELINE: f64 = 2.0;
/// A column and a row of the grid, as shares of the size.
const ACROSS: f64 = 0.108;
const UP: f64 = 0.121;
/// Columns between two letters, and of a space.
const GAP: f64 = 1.7;
const SPACE: f64 = 1.3;

fn width(glyph: &[Vec<Point>]) -> f64 {
    let columns = glyph.iter().flatten().map(|point| point.0);
    columns.reduce(f64::max).unwrap_or(SPACE) + GAP
}

fn glyph(letter: char) -> Vec<Vec<Point>> {
    let lines = path(letter).split(' ').filter(|line| !line.is_empty());
    let digit = |byte: u8| f64::from(byte - b'0');
    lines
        .map(|line| {
            line.as_bytes().chunks_exact(2).map(|pair| (digit(pair[0]), digit(pair[1]))).collect()
        })
        .collect()
}

/// Lines of a letter: column and row of each point.
fn path(letter: char) -> &'static str {
    match letter {
        ' ' => "",
        'A' => "022842 1434",
        'B' => "02083847463505 3544433202",
        'C' => "4738180703123243",
        'D' => "02082846442202",
        'E' => "48080242 0535",
        'F' => "480802 0535",
        'G' => "47381807031232434525",
        'H' => "0208 4248 0545",
        'I' => "0208",
        'J' => "4843321203",
        'K' => "0208 4804 1542",
        'L' => "080242",
        'M' => "0208254842",
        'N' => "02084248",
        'O' | '0' => "183847433212030718",
        'P' => "02083847463505",
        'Q' => "183847433212030718 2442",
        'R' => "02083847463505 2542",
        'S' => "473818070615354443321203",
        'T' => "0848 2822",
        'U' => "080312324348",
        'V' => "082248",
        'W' => "0812263248",
        'X' => "0248 0842",
        'Y' => "082548 2522",
        'Z' => "08480242",
        'a' => "4642 4536160503123243",
        'b' => "0802 0516364543321203",
        'c' => "4536160503123243",
        'd' => "4842 4536160503123243",
        'e' => "04444536160503123243",
        'f' => "38281712 0636",
        'g' => "46413010 4536160503123243",
        'h' => "0802 0516364542",
        'i' => "0602 0808",
        'j' => "161100 1818",
        'k' => "0802 3604 1432",
        'l' => "0802",
        'm' => "0602 05162522 25364542",
        'n' => "0602 0516364542",
        'o' => "163645433212030516",
        'p' => "0600 0516364543321203",
        'q' => "4640 4536160503123243",
        'r' => "0602 051636",
        's' => "45361605143443321203",
        't' => "18132232 0636",
        'u' => "0603123243 4642",
        'v' => "062246",
        'w' => "0612253246",
        'x' => "0642 0246",
        'y' => "0622 4610",
        'z' => "06460242",
        '1' => "062822",
        '2' => "07183847460242",
        '3' => "0718384746354443321203 1535",
        '4' => "32380444",
        '5' => "480805354443321203",
        '6' => "473818070312324344351504",
        '7' => "084812",
        '8' => "15060718384746351504031232434435",
        '9' => "031232434738180706153546",
        '.' => "0202",
        ',' => "1201",
        ':' => "0202 0505",
        ';' => "1201 1515",
        '-' => "0535",
        '–' | '−' => "0545",
        '+' => "0545 2723",
        '=' => "0444 0646",
        '/' => "0248",
        '(' => "19070311",
        ')' => "09171301",
        '[' => "19090111",
        ']' => "09191101",
        '<' => "470543",
        '>' => "074503",
        '%' => "0248 0807171808 3332424333",
        '_' => "0141",
        '|' => "0901",
        '‖' => "0901 2921",
        '\'' => "0907",
        '"' => "0907 2927",
        '!' => "0804 0202",
        '?' => "07183847462524 2222",
        '*' => "2824 0745 4705",
        '·' => "0505",
        '×' => "0347 0743",
        'Δ' => "02284202",
        'σ' => "461605031232434536",
        'φ' => "163645433212030516 2820",
        '²' => "0819280626",
        'ᵀ' => "0929 1916",
        '₁' => "031411",
        '₂' => "0314230121",
        // A frame: better seen than left out.
        _ => "0208484202",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(words: &str, anchor: Anchor, upwards: bool) -> Text {
        Text { at: (100.0, 50.0), text: words.into(), size: 12.0, anchor, colour: [0; 3], upwards }
    }

    fn ends(text: &Text) -> [f64; 4] {
        let strokes = strokes(text);
        let points = || strokes.iter().flatten();
        let least = |of: fn(&Point) -> f64| points().map(of).fold(f64::INFINITY, f64::min);
        let most = |of: fn(&Point) -> f64| points().map(of).fold(f64::NEG_INFINITY, f64::max);
        [least(|p| p.0), most(|p| p.0), least(|p| p.1), most(|p| p.1)]
    }

    #[test]
    fn every_letter_is_whole_lines_on_the_grid() {
        for letter in (' '..='~').chain("‖Δσφᵀ²₁₂×·–€".chars()) {
            for line in path(letter).split(' ') {
                let is_even = line.len().is_multiple_of(2) && line.len() != 2;
                assert!(
                    is_even && line.bytes().all(|byte| byte.is_ascii_digit()),
                    "{letter}: {line}"
                );
                let columns = line.bytes().step_by(2);
                assert!(columns.into_iter().all(|byte| byte <= b'4'), "{letter}: {line}");
            }
        }
    }

    #[test]
    fn letters_that_charts_use_are_not_frames() {
        let used = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;-–+/()‖ΔWσφᵀ²₁₂×·_%=";
        assert!(used.chars().all(|letter| path(letter) != path('€')));
    }

    #[test]
    fn text_is_anchored() {
        let [left, right, top, bottom] = ends(&text("HH", Anchor::Start, false));
        assert!((left - 100.0).abs() < 1e-9 && (bottom - 50.0).abs() < 1e-9, "{left} {bottom}");
        assert!((top - (50.0 - 6.0 * 12.0 * UP)).abs() < 1e-9);
        let width = right - left;
        let [left, right, ..] = ends(&text("HH", Anchor::End, false));
        assert!((right - 100.0).abs() < 1e-9 && (right - left - width).abs() < 1e-9);
        let [left, right, ..] = ends(&text("HH", Anchor::Middle, false));
        assert!(((left + right) / 2.0 - 100.0).abs() < 1e-9);
        let [.., top, bottom] = ends(&text("HH", Anchor::Start, true));
        assert!((bottom - 50.0).abs() < 1e-9 && (bottom - top - width).abs() < 1e-9);
    }
}
