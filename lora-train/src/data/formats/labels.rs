//! Texts with a label: `{"text", "label"}`, or a pair, `{"text", "text_pair", "label"}`.

use serde_json::{Map, Value};

use super::{Row, optional_text, required, text, wrong_type};
use crate::error::Result;

pub(super) fn labelled(row: &Map<String, Value>) -> Result<Row> {
    let label = required(row, "label")?;
    if !matches!(label, Value::String(_) | Value::Number(_) | Value::Bool(_)) {
        return Err(wrong_type("label", label, "a label: a text or a number"));
    }
    Ok(Row::Labelled {
        text: text(row, "text")?.to_owned(),
        second: optional_text(row, "text_pair")?.map(str::to_owned),
        label: label.clone(),
    })
}
