//! A data file as rows: JSON lines, a JSON array, or plain text. Where rows start and end is found
//! first; each is then read on its own, so that rows can be read in parallel.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde_json::Value;

use super::formats;
use super::report::counted;
use crate::error::{Error, Result};
use crate::recipe::{DataFile, Format};

/// An opened data file: its bytes, and where each row stands.
#[derive(Debug)]
pub(crate) struct Source {
    /// The file.
    pub(crate) path: PathBuf,
    /// How the rows are written; never [`Format::Auto`].
    pub(crate) format: Format,
    bytes: Vec<u8>,
    layout: Layout,
    rows: Vec<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Lines,
    Array,
    Text,
}

/// Where a row stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    bytes: Range<usize>,
    line: usize,
    /// Counted from 0 in the whole file.
    number: usize,
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

impl Source {
    /// Reads the file, finds its rows, keeps those that are asked for and settles the format.
    pub(crate) fn open(file: &DataFile, format: Format) -> Result<Self> {
        let bytes = lora_core::files::read(&file.path)?;
        Self::from_bytes(file, format, bytes)
    }

    fn from_bytes(file: &DataFile, format: Format, bytes: Vec<u8>) -> Result<Self> {
        let path = &file.path;
        let layout = layout(path, format, &bytes)?;
        let mut rows = match layout {
            Layout::Lines => lines(&bytes),
            Layout::Array => elements(path, &bytes)?,
            Layout::Text => documents(&bytes),
        };
        if rows.is_empty() {
            return Err(Error::malformed(path, "the file holds no rows")
                .with_hint("a data file has one JSON object per line"));
        }
        if let Some(range) = &file.rows {
            if range.is_empty() || range.end > rows.len() {
                let reason = format!(
                    "rows {}..{} do not exist: the file holds {}",
                    range.start,
                    range.end,
                    counted(rows.len(), "row")
                );
                return Err(Error::malformed(path, reason).with_hint(
                    "rows are counted from 0 and the end is not included: `rows = \"0..100\"`",
                ));
            }
            rows.truncate(range.end);
            rows.drain(..range.start);
        }
        let mut source = Self { path: path.clone(), format, bytes, layout, rows };
        source.format = source.settle(format)?;
        Ok(source)
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The line on which a row starts.
    pub(crate) fn line(&self, row: usize) -> usize {
        self.rows[row].line
    }

    /// One row.
    pub(crate) fn read(&self, row: usize) -> Result<Value> {
        let place = &self.rows[row];
        let bytes = &self.bytes[place.bytes.clone()];
        let text = std::str::from_utf8(bytes).map_err(|error| self.not_utf8(place, error))?;
        if self.layout == Layout::Text {
            return Ok(Value::String(text.to_string()));
        }
        serde_json::from_str(text)
            .map_err(|error| Error::malformed(&self.path, invalid_json(&error, place.line)))
    }

    /// What is wrong with a row, with the place where it stands.
    pub(crate) fn wrong(&self, row: usize, error: &Error) -> Error {
        let place = &self.rows[row];
        let at = match self.layout {
            // Arrays are often written on one line.
            Layout::Array => format!("row {} (line {})", place.number, place.line),
            Layout::Lines | Layout::Text => format!("line {}", place.line),
        };
        let mut reason = format!("{at}: {error}");
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            reason.push_str(&format!(": {inner}"));
            cause = inner.source();
        }
        let located = Error::malformed(&self.path, reason);
        match error.hint() {
            Some(hint) => located.with_hint(hint),
            None => located,
        }
    }

    fn settle(&self, format: Format) -> Result<Format> {
        if self.layout == Layout::Text {
            return Ok(Format::Text);
        }
        if format != Format::Auto {
            return Ok(format);
        }
        formats::detect(&self.read(0)?).map_err(|error| self.wrong(0, &error))
    }

    fn not_utf8(&self, place: &Place, error: std::str::Utf8Error) -> Error {
        not_utf8(&self.path, &self.bytes, place.bytes.start + error.valid_up_to())
    }
}

fn layout(path: &Path, format: Format, bytes: &[u8]) -> Result<Layout> {
    let extension = path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
    let extension = extension.as_ref().and_then(|extension| extension.to_str()).unwrap_or("");
    let packed = [b"\x1f\x8b".as_slice(), b"PAR1", b"ARROW1", b"PK\x03\x04", b"\x28\xb5\x2f\xfd"];
    if packed.iter().any(|magic| bytes.starts_with(magic)) {
        return Err(Error::malformed(path, "this is a binary file, not JSON lines")
            .with_hint("unpack it, or convert it to one JSON object per line"));
    }
    match (extension, format) {
        ("txt", Format::Auto | Format::Text) => Ok(Layout::Text),
        ("txt", _) => Err(Error::malformed(path, "a .txt file holds plain text, not rows")
            .with_hint("set data.format to \"text\" or rename the file to .jsonl")),
        ("json" | "jsonl" | "ndjson", _) => Ok(json_layout(bytes)),
        (_, Format::Text) if !starts_with_json(bytes) => Ok(Layout::Text),
        ("csv" | "tsv" | "md", _) => {
            Err(Error::malformed(path, format!("files of type .{extension} are not read"))
                .with_hint(
                    "convert it to one JSON object per line, or set data.format to \"text\"",
                ))
        }
        _ => Ok(json_layout(bytes)),
    }
}

fn json_layout(bytes: &[u8]) -> Layout {
    if first_byte(bytes) == Some(b'[') { Layout::Array } else { Layout::Lines }
}

fn starts_with_json(bytes: &[u8]) -> bool {
    matches!(first_byte(bytes), Some(b'[' | b'{'))
}

fn first_byte(bytes: &[u8]) -> Option<u8> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    bytes.trim_ascii_start().first().copied()
}

/// Bytes of each line, without its end, and its number from 1.
fn all_lines(bytes: &[u8]) -> impl Iterator<Item = (Range<usize>, usize)> {
    let mut start = if bytes.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    bytes.split_inclusive(|&byte| byte == b'\n').zip(1..).map(move |(line, number)| {
        // The mark belongs to no line.
        let skipped = if number == 1 { start } else { 0 };
        let from = start;
        start += line.len() - skipped;
        (from..start, number)
    })
}

fn lines(bytes: &[u8]) -> Vec<Place> {
    let filled = all_lines(bytes).filter(|(line, _)| !bytes[line.clone()].trim_ascii().is_empty());
    let places = filled.enumerate();
    places.map(|(number, (bytes, line))| Place { bytes, line, number }).collect()
}

/// Blank lines part the documents; in a file without any, each line is a document.
fn documents(bytes: &[u8]) -> Vec<Place> {
    let mut all = Vec::new();
    let mut parted = false;
    // The document being read, and whether a blank line stands after it.
    let mut gap = true;
    for place in all_lines(bytes) {
        let blank = bytes[place.0.clone()].trim_ascii().is_empty();
        if blank {
            gap = true;
            continue;
        }
        parted |= gap && !all.is_empty();
        all.push((place, gap));
        gap = false;
    }
    let mut rows: Vec<Place> = Vec::new();
    for ((line, number), first) in all {
        let end = line.start + bytes[line.clone()].trim_ascii_end().len();
        match rows.last_mut() {
            Some(row) if parted && !first => row.bytes.end = end,
            _ => rows.push(Place { bytes: line.start..end, line: number, number: rows.len() }),
        }
    }
    rows
}

/// The elements of a JSON array, which is first read whole so that what stands between them is right.
fn elements(path: &Path, bytes: &[u8]) -> Result<Vec<Place>> {
    let text =
        std::str::from_utf8(bytes).map_err(|error| not_utf8(path, bytes, error.valid_up_to()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str::<IgnoredAny>(text)
        .map_err(|error| Error::malformed(path, invalid_json(&error, 1)))?;

    let offset = bytes.len() - text.len();
    let mut rows = Vec::new();
    let (mut depth, mut line, mut quoted, mut escaped) = (0usize, 1, false, false);
    // First and last byte of the element being read.
    let mut element: Option<(usize, usize, usize)> = None;
    for (at, &byte) in text.as_bytes().iter().enumerate() {
        let outer = depth;
        if quoted {
            quoted = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else {
            match byte {
                b'"' => quoted = true,
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth = depth.saturating_sub(1),
                b'\n' => line += 1,
                _ => {}
            }
        }
        let ends = !quoted && (depth == 0 || outer == 1 && depth == 1 && byte == b',');
        if ends {
            if let Some((start, end, line)) = element.take() {
                let bytes = offset + start..offset + end + 1;
                rows.push(Place { bytes, line, number: rows.len() });
            }
        } else if !byte.is_ascii_whitespace() && (outer != 0 || depth != 1) {
            element = Some(element.map_or((at, at, line), |(start, _, line)| (start, at, line)));
        }
    }
    Ok(rows)
}

fn invalid_json(error: &serde_json::Error, first_line: usize) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    let line = first_line + error.line().saturating_sub(1);
    format!("line {line}, column {}: invalid JSON: {what}", error.column())
}

fn not_utf8(path: &Path, bytes: &[u8], at: usize) -> Error {
    let before = &bytes[..at];
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    Error::malformed(path, format!("line {line}: not UTF-8 (byte {} of the line)", at - start + 1))
        .with_hint("save the file as UTF-8")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn open(name: &str, format: Format, bytes: &[u8]) -> Result<Source> {
        Source::from_bytes(&DataFile::new(name), format, bytes.to_vec())
    }

    fn rows(source: &Source) -> Vec<(usize, Value)> {
        (0..source.len()).map(|row| (source.line(row), source.read(row).unwrap())).collect()
    }

    fn message(error: &Error) -> String {
        match error.hint() {
            Some(hint) => format!("{error} | {hint}"),
            None => error.to_string(),
        }
    }

    #[test]
    fn json_lines_skip_blank_lines_and_keep_their_numbers() {
        let bytes = b"\xef\xbb\xbf{\"text\": \"a\"}\r\n\n  \n{\"text\": \"b\"}";
        let source = open("a.jsonl", Format::Auto, bytes).unwrap();
        assert_eq!(source.format, Format::Text);
        assert_eq!(rows(&source), [(1, json!({"text": "a"})), (4, json!({"text": "b"}))]);
    }

    #[test]
    fn arrays_give_elements_with_their_lines() {
        let bytes = br#" [{"text": "a ], \" } ,"},
            {"text": ["x", {"y": 1}]}
            , 5, "s,"
        ]
        "#;
        let source = open("a.json", Format::Text, bytes).unwrap();
        assert_eq!(
            rows(&source),
            [
                (1, json!({"text": "a ], \" } ,"})),
                (2, json!({"text": ["x", {"y": 1}]})),
                (3, json!(5)),
                (3, json!("s,")),
            ]
        );
    }

    #[test]
    fn json_lines_may_be_called_json() {
        let source = open("a.json", Format::Auto, b"{\"text\": \"a\"}\n{\"text\": \"b\"}").unwrap();
        assert_eq!(source.len(), 2);
    }

    #[test]
    fn text_is_parted_by_blank_lines_where_there_are_any() {
        let parted = open("a.txt", Format::Auto, b"\none\ntwo \n\n \nthree\n\n").unwrap();
        assert_eq!(rows(&parted), [(2, json!("one\ntwo")), (6, json!("three"))]);
        let lines = open("a.txt", Format::Text, b"one\r\ntwo\n\n").unwrap();
        assert_eq!(rows(&lines), [(1, json!("one")), (2, json!("two"))]);
    }

    #[test]
    fn row_ranges_are_half_open_and_must_exist() {
        let bytes = b"{\"text\": 0}\n{\"text\": 1}\n{\"text\": 2}\n";
        let mut file = DataFile::new("a.jsonl");
        file.rows = Some(1..3);
        let source = Source::from_bytes(&file, Format::Auto, bytes.to_vec()).unwrap();
        assert_eq!(rows(&source), [(2, json!({"text": 1})), (3, json!({"text": 2}))]);
        file.rows = Some(1..4);
        let error = Source::from_bytes(&file, Format::Auto, bytes.to_vec()).unwrap_err();
        insta::assert_snapshot!(message(&error), @r#"`a.jsonl`: rows 1..4 do not exist: the file holds 3 rows | rows are counted from 0 and the end is not included: `rows = "0..100"`"#);
    }

    #[test]
    fn errors_name_the_line() {
        let wrong_json = open("a.jsonl", Format::Text, b"{\"text\": 1}\n{\"text\": }\n").unwrap();
        let wrong_text = open("a.jsonl", Format::Text, b"{}\n\n{\"a\": \"b\xff\"}").unwrap();
        let all = [
            wrong_json.read(1).unwrap_err(),
            wrong_text.read(1).unwrap_err(),
            open("a.json", Format::Auto, b"[\n{\"text\": 1}\n{\"text\": 2}]").unwrap_err(),
            open("a.json", Format::Auto, b"[\n\"\xff\"]").unwrap_err(),
            open("a.json", Format::Auto, b" [ ] ").unwrap_err(),
            open("a.jsonl", Format::Auto, b"\n \n").unwrap_err(),
            open("a.csv", Format::Auto, b"a,b\n").unwrap_err(),
            open("a.parquet", Format::Auto, b"PAR1....").unwrap_err(),
            open("a.txt", Format::Alpaca, b"text").unwrap_err(),
            open("a.jsonl", Format::Auto, b"\n{\"question\": 1, \"answer\": 2}").unwrap_err(),
        ];
        let all: Vec<String> = all.iter().map(message).collect();
        insta::assert_snapshot!(all.join("\n"), @r#"
        `a.jsonl`: line 2, column 10: invalid JSON: expected value
        `a.jsonl`: line 3: not UTF-8 (byte 9 of the line) | save the file as UTF-8
        `a.json`: line 3, column 1: invalid JSON: expected `,` or `]`
        `a.json`: line 2: not UTF-8 (byte 2 of the line) | save the file as UTF-8
        `a.json`: the file holds no rows | a data file has one JSON object per line
        `a.jsonl`: the file holds no rows | a data file has one JSON object per line
        `a.csv`: files of type .csv are not read | convert it to one JSON object per line, or set data.format to "text"
        `a.parquet`: this is a binary file, not JSON lines | unpack it, or convert it to one JSON object per line
        `a.txt`: a .txt file holds plain text, not rows | set data.format to "text" or rename the file to .jsonl
        `a.jsonl`: line 2: the row is of no known format: it has `question`, `answer` | known are `messages`; `conversations`; `prompt` and `completion`; `instruction` and `output`; `text`
        "#);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Source::open(&DataFile::new("missing/rows.jsonl"), Format::Auto).unwrap_err();
        assert!(error.to_string().contains("missing/rows.jsonl"), "{error}");
    }

    /// Bytes that look like rows now and then.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..8),
            "[\\[\\]{},:\"\\\\ \n\r0-9a-z]{0,12}".prop_map(String::into_bytes),
            Just(b"{\"text\": \"a\"}\n".to_vec()),
            Just(BYTE_ORDER_MARK.to_vec()),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_bytes_give_rows_or_an_error(bytes in bytes(), name in "a\\.(jsonl|json|txt|x)") {
            for format in [Format::Auto, Format::Text, Format::Messages] {
                let Ok(source) = open(&name, format, &bytes) else { continue };
                prop_assert!(source.len() > 0);
                let mut last = 0;
                for row in 0..source.len() {
                    prop_assert!(source.line(row) >= last);
                    last = source.line(row);
                    match source.read(row) {
                        Ok(value) => drop(formats::Row::parse(&value, format, true)),
                        Err(error) => prop_assert!(error.to_string().contains("line ")),
                    }
                }
            }
        }

        #[test]
        fn arrays_read_as_serde_json_reads_them(
            values in prop::collection::vec("[\\[\\]{},\"\\\\ \na-zé]{0,6}", 1..6),
            pretty: bool,
        ) {
            let values: Vec<Value> =
                values.into_iter().map(|text| json!({"text": text, "more": [1, [text]]})).collect();
            let bytes = if pretty {
                serde_json::to_vec_pretty(&values).unwrap()
            } else {
                serde_json::to_vec(&values).unwrap()
            };
            let source = open("a.json", Format::Auto, &bytes).unwrap();
            let read: Vec<Value> = rows(&source).into_iter().map(|(_, value)| value).collect();
            prop_assert_eq!(read, values);
        }
    }
}
