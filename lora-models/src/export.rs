//! A whole model out: the Hugging Face folder that transformers loads.

use std::path::Path;

use lora_core::files::write_whole;
use serde_json::{Map, Value, json};

use crate::chat_template::{ChatTemplate, TOOL_USE_FILE};
use crate::checkpoint::Checkpoint;
use crate::decoder::Decoder;
use crate::encoder::EncoderConfig;
use crate::error::{Error, Result};
use crate::families;
use crate::formats::{StoredType, write_safetensors};

/// Writes `decoder`, as it stands, with the configuration and tokenizer of `checkpoint`.
///
/// The folder is made beside its place and renamed, so that it is there whole or not at all.
///
/// # Errors
/// A folder that exists, a disk that is full, an adapter that no merge brings into the weights.
pub fn save_model(
    checkpoint: &Checkpoint,
    decoder: &Decoder,
    folder: &Path,
    stored: StoredType,
) -> Result<()> {
    if folder.exists() {
        return Err(Error::invalid(format!("`{}` exists already", folder.display()))
            .with_hint("name another folder, or remove this one first"));
    }
    decoder.check_storable()?;
    let scratch = scratch_beside(folder)?;
    let written = write_files(checkpoint, decoder, &scratch, stored).and_then(|()| {
        std::fs::rename(&scratch, folder).map_err(|error| Error::write(folder, error))
    });
    if written.is_err() {
        // What is left would only take the space that is missing.
        let _ = std::fs::remove_dir_all(&scratch);
    }
    written
}

fn write_files(
    checkpoint: &Checkpoint,
    decoder: &Decoder,
    folder: &Path,
    stored: StoredType,
) -> Result<()> {
    let config = config_json(checkpoint, decoder, stored);
    write_json(&folder.join("config.json"), &config)?;
    let generation = match &checkpoint.generation_json {
        Some(json) => Some(json.clone()),
        None if decoder.config().encoder.is_some() => None,
        None => Some(json!({ "eos_token_id": checkpoint.eos_tokens })),
    };
    if let Some(generation) = generation {
        write_json(&folder.join("generation_config.json"), &generation)?;
    }
    let template = checkpoint.chat_template.as_ref();
    checkpoint.tokenizer.save(folder, template.map(ChatTemplate::source))?;
    if let Some(source) = template.and_then(ChatTemplate::tool_source) {
        write_tool_template(folder, source)?;
    }
    let path = folder.join("model.safetensors");
    write_safetensors(&path, &decoder.tensor_layout(), stored, &[("format", "pt")], |name| {
        Ok(decoder.tensor(name))
    })
}

fn write_tool_template(folder: &Path, source: &str) -> Result<()> {
    let path = folder.join(TOOL_USE_FILE);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|error| Error::write(parent, error))?;
    }
    Ok(write_whole(&path, source.as_bytes())?)
}

/// The checkpoint's `config.json` with what the merge may have changed.
fn config_json(checkpoint: &Checkpoint, decoder: &Decoder, stored: StoredType) -> Value {
    let mut config = checkpoint.config_json.clone();
    let Some(object) = config.as_object_mut() else { return config };
    let dtype = match stored {
        StoredType::BF16 => "bfloat16",
        StoredType::F16 => "float16",
        _ => "float32",
    };
    // Both spellings: transformers 4 reads the first, 5 the second.
    object.insert("torch_dtype".into(), dtype.into());
    object.insert("dtype".into(), dtype.into());
    let tied = decoder.config_with_own_head().tie_word_embeddings;
    object.insert("tie_word_embeddings".into(), tied.into());
    object.remove("quantization_config");
    if let Some(encoder) = &decoder.config().encoder {
        label_config(object, encoder);
        // What is written has a classifier, whatever was read.
        object.remove("architectures");
    }
    if !object.contains_key("architectures") {
        let family = families::family(&decoder.config().model_type);
        let classes: Vec<&str> = family.map(|family| family.class).into_iter().collect();
        object.insert("architectures".into(), json!(classes));
    }
    config
}

/// What transformers reads of a classifier's labels.
fn label_config(object: &mut Map<String, Value>, encoder: &EncoderConfig) {
    let names = encoder.labels.iter().enumerate();
    let by_number: Map<String, Value> =
        names.clone().map(|(index, name)| (index.to_string(), json!(name))).collect();
    let by_name: Map<String, Value> =
        names.map(|(index, name)| (name.clone(), json!(index))).collect();
    let problem = if encoder.regression { "regression" } else { "single_label_classification" };
    object.insert("id2label".into(), Value::Object(by_number));
    object.insert("label2id".into(), Value::Object(by_name));
    object.insert("problem_type".into(), problem.into());
    object.remove("num_labels");
}

fn write_json(path: &Path, json: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(json)
        .map_err(|error| Error::malformed(path, error.to_string()))?;
    text.push('\n');
    Ok(write_whole(path, text.as_bytes())?)
}

fn scratch_beside(folder: &Path) -> Result<std::path::PathBuf> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or("model");
    let scratch = folder.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    std::fs::create_dir_all(&scratch).map_err(|error| Error::write(&scratch, error))?;
    Ok(scratch)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::chat_template::Conversation;
    use crate::checkpoint::OpenOptions;

    #[test]
    fn both_templates_go_out_and_come_back() {
        let source = tempfile::tempdir().unwrap();
        std::fs::create_dir(source.path().join("additional_chat_templates")).unwrap();
        std::fs::write(source.path().join("chat_template.jinja"), "plain").unwrap();
        std::fs::write(source.path().join(TOOL_USE_FILE), "tools").unwrap();
        let mut checkpoint = Checkpoint::open("builtin:", &OpenOptions::default()).unwrap();
        checkpoint.chat_template =
            ChatTemplate::from_folder(source.path(), &checkpoint.tokenizer).unwrap();
        let decoder =
            checkpoint.load(&lora_core::Placement::f32(burn::tensor::Device::flex())).unwrap();
        let folder = source.path().join("merged");
        save_model(&checkpoint, &decoder, &folder, StoredType::BF16).unwrap();

        let saved = Checkpoint::open(folder.to_str().unwrap(), &OpenOptions::default()).unwrap();
        let template = saved.chat_template.unwrap();
        let with_tools = Conversation { messages: Vec::new(), tools: Some(json!([1])) };
        assert_eq!(template.render(&Conversation::default(), false).unwrap(), "plain");
        assert_eq!(template.render(&with_tools, false).unwrap(), "tools");
    }
}
