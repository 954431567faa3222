//! A whole model out: the one GGUF file that llama.cpp loads, tokenizer and chat template inside.

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::decoder::Decoder;
use crate::decoder_config::DecoderConfig;
use crate::error::{Error, Result};
use crate::formats::gguf_metadata::{self, architecture, stored_as};
use crate::formats::gguf_model::{Change, ROPE_FREQUENCIES, gguf_name, interleaved_row};
use crate::formats::gguf_tokenizer_write::tokenizer_metadata;
use crate::formats::{StoredType, Value, Weights, tensor_to_write, transposed, write_gguf};

/// Writes `decoder`, as it stands, with the tokenizer and chat template of `checkpoint`. Matrices are
/// stored as `stored` where that is possible: in a file of four bits, embedding and head have eight, and
/// so have rows that are no whole blocks; norms and biases stay F32.
///
/// The file lands whole or not at all.
///
/// # Errors
/// A file that exists, a disk that is full; an adapter that no merge brings into the weights; a family, a tokenizer or a setting that GGUF has no word for.
pub fn save_gguf(
    checkpoint: &Checkpoint,
    decoder: &Decoder,
    path: &Path,
    stored: StoredType,
) -> Result<()> {
    if path.exists() {
        return Err(Error::invalid(format!("`{}` exists already", path.display()))
            .with_hint("name another file, or remove this one first"));
    }
    decoder.check_storable()?;
    let config = decoder.config_with_own_head();
    let mut metadata = gguf_metadata::model_metadata(&config, name(checkpoint), stored)?;
    metadata.extend(tokenizer(checkpoint, config.vocab_size)?);
    let layout = layout(decoder, &config)?;
    let tensors = layout
        .iter()
        .map(|tensor| {
            tensor_to_write(
                &tensor.name,
                &tensor.shape,
                stored_as(&tensor.name, &tensor.shape, stored),
            )
        })
        .collect::<Result<Vec<_>>>()?;
    write_gguf(path, &metadata, &tensors, |name| {
        let found = layout.iter().find(|tensor| tensor.name == name);
        Ok(found.map(|tensor| tensor.read(decoder)).unwrap_or_default())
    })
}

/// Where llama.cpp computes something else than this model, though the file says all of it.
pub fn differs_in_llama_cpp(config: &DecoderConfig) -> Option<String> {
    gguf_metadata::differs_in_llama_cpp(config)
}

/// A tensor of the file.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    source: Source,
}

enum Source {
    /// A tensor of the model, by its Hugging Face key, and what the file has otherwise.
    Model(String, Change),
    /// What the configuration says in numbers.
    Given(Vec<f32>),
}

impl Tensor {
    fn read(&self, decoder: &Decoder) -> Vec<f32> {
        let (key, change) = match &self.source {
            Source::Given(numbers) => return numbers.clone(),
            Source::Model(key, change) => (key, *change),
        };
        let numbers = decoder.tensor(key);
        match change {
            Change::Nothing => numbers,
            Change::LessOne => numbers.into_iter().map(|number| number + 1.0).collect(),
            // The model has it the other way round: as many rows as the file has columns.
            Change::Turned => transposed(&numbers, self.shape.last().copied().unwrap_or(1)),
            Change::Heads(head_width) => {
                let columns: usize = self.shape.iter().skip(1).product();
                let mut placed = vec![0.0; numbers.len()];
                for (row, numbers) in numbers.chunks_exact(columns).enumerate() {
                    let start = interleaved_row(row, head_width) * columns;
                    placed[start..start + columns].copy_from_slice(numbers);
                }
                placed
            }
        }
    }
}

fn layout(decoder: &Decoder, config: &DecoderConfig) -> Result<Vec<Tensor>> {
    let (architecture, modules) = (architecture(config)?, config.modules);
    let mut tensors = Vec::new();
    for (key, mut shape) in decoder.tensor_layout() {
        let Some(name) = gguf_name(modules, &key) else {
            return Err(Error::invalid(format!("GGUF has no name for `{key}`"))
                .with_hint("write a Hugging Face folder"));
        };
        let change = Change::of(modules, architecture, &key, shape.len(), config.head_dim);
        if let Change::Turned = change {
            shape.reverse();
        }
        tensors.push(Tensor { name, shape, source: Source::Model(key, change) });
    }
    if let Some(divisors) = gguf_metadata::rope_divisors(config) {
        let shape = vec![divisors.len()];
        let source = Source::Given(divisors);
        tensors.push(Tensor { name: ROPE_FREQUENCIES.to_owned(), shape, source });
    }
    Ok(tensors)
}

/// What a GGUF file says about its tokenizer is copied; other tokenizers are put into its words.
fn tokenizer(checkpoint: &Checkpoint, rows: usize) -> Result<Vec<(String, Value)>> {
    if let Weights::Gguf(weights) = &checkpoint.weights {
        let all = weights.file().all_metadata();
        let told = all.filter(|(key, _)| key.starts_with("tokenizer."));
        return Ok(told.map(|(key, value)| (key.to_owned(), value.clone())).collect());
    }
    tokenizer_metadata(&checkpoint.tokenizer, checkpoint.chat_template.as_ref(), rows)
}

/// The last part of what was opened.
fn name(checkpoint: &Checkpoint) -> &str {
    let source = checkpoint.source.trim_end_matches(['/', ':']);
    let last = source.rsplit(['/', '\\']).next().unwrap_or(source);
    last.strip_suffix(".gguf").unwrap_or(last)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use lora_core::Placement;
    use serde_json::json;

    use super::*;
    use crate::checkpoint::OpenOptions;
    use crate::families::decoder_config;
    use crate::generate::all_logits;

    fn placement() -> Placement {
        Placement::f32(burn::tensor::Device::flex())
    }

    fn builtin() -> Checkpoint {
        Checkpoint::open("builtin:", &OpenOptions::default()).unwrap()
    }

    /// A model of this configuration with the carried model's tokenizer.
    fn random(config: serde_json::Value) -> (Checkpoint, Decoder) {
        let mut checkpoint = builtin();
        checkpoint.config = decoder_config(&config, Path::new("config.json")).unwrap();
        let decoder = Decoder::random(&checkpoint.config, 3, &placement()).unwrap();
        (checkpoint, decoder)
    }

    fn reopened(checkpoint: &Checkpoint, decoder: &Decoder, stored: StoredType) -> Checkpoint {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        save_gguf(checkpoint, decoder, &path, stored).unwrap();
        // The file stays mapped.
        let opened = Checkpoint::open(path.to_str().unwrap(), &OpenOptions::default()).unwrap();
        drop(folder);
        opened
    }

    #[test]
    fn f32_files_give_the_same_logits_bit_for_bit() {
        let plain = json!({
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 1030,
            "rope_theta": 500000.0, "max_position_embeddings": 256,
        });
        let with = |changes: serde_json::Value| {
            let mut config = plain.clone();
            for (key, value) in changes.as_object().unwrap() {
                config[key] = value.clone();
            }
            config
        };
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        });
        for config in [
            with(json!({"tie_word_embeddings": true})),
            with(json!({"attention_bias": true, "mlp_bias": true})),
            with(json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}})),
            with(json!({"rope_scaling": llama3})),
            with(json!({"model_type": "mistral", "sliding_window": 6})),
            with(json!({"model_type": "qwen2"})),
            with(json!({"model_type": "qwen3", "head_dim": 16})),
            with(json!({"model_type": "gemma"})),
            with(json!({"model_type": "gemma2", "sliding_window": 6, "query_pre_attn_scalar": 8})),
            with(json!({
                "model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 6,
                "query_pre_attn_scalar": 8, "rope_local_base_freq": 5000.0,
            })),
            with(json!({"model_type": "phi3", "sliding_window": 6})),
            json!({
                "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
                "vocab_size": 1030,
            }),
        ] {
            let (checkpoint, decoder) = random(config);
            let opened = reopened(&checkpoint, &decoder, StoredType::F32);
            let tokens = checkpoint.tokenizer.encode("Once upon a time there was a mill").unwrap();
            let expected = all_logits(&decoder, &tokens).unwrap();
            let found = all_logits(&opened.load(&placement()).unwrap(), &tokens).unwrap();
            let family = &checkpoint.config;
            let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Llama 3's divisors go through f32 once more, and so do norms that are stored as 1 + w.
            let same = family.rope.scaling == opened.config.rope.scaling
                && family.modules.norm != crate::modules::NormKind::RmsPlusOne;
            let bound = if same { 0.0 } else { 1e-5 };
            assert!(apart <= bound, "{apart}: {family:?}, read as {:?}", opened.config);
        }
    }

    #[test]
    fn the_tokenizer_comes_back() {
        let checkpoint = builtin();
        let decoder = checkpoint.load(&placement()).unwrap();
        let opened = reopened(&checkpoint, &decoder, StoredType::Q8_0);
        let text = "The Mill, 12345 tables'll be <|end|>\n\n  and näïve 雪 ones.";
        let ids = checkpoint.tokenizer.encode(text).unwrap();
        assert_eq!(opened.tokenizer.encode(text).unwrap(), ids);
        assert_eq!(opened.tokenizer.decode(&ids, false).unwrap(), text);
        assert_eq!(opened.tokenizer.special(), checkpoint.tokenizer.special());
        assert_eq!(opened.eos_tokens, checkpoint.eos_tokens);
        // And once more, copied.
        let again = reopened(&opened, &decoder, StoredType::F16);
        assert_eq!(again.tokenizer.encode(text).unwrap(), ids);
    }

    #[test]
    fn four_bit_files_keep_what_matters_in_eight() {
        let checkpoint = builtin();
        let decoder = checkpoint.load(&placement()).unwrap();
        let opened = reopened(&checkpoint, &decoder, StoredType::Q4_0);
        let stored = |name: &str| opened.weights.stored_type(name).unwrap();
        assert_eq!(stored("model.embed_tokens.weight"), StoredType::Q8_0);
        assert_eq!(stored("model.layers.0.mlp.up_proj.weight"), StoredType::Q4_0);
        assert_eq!(stored("model.norm.weight"), StoredType::F32);
        // Rows of 128 and 352 are no blocks of 256.
        let opened = reopened(&checkpoint, &decoder, StoredType::Q4K);
        assert_eq!(
            opened.weights.stored_type("model.layers.0.mlp.up_proj.weight").unwrap(),
            StoredType::Q8_0
        );
    }

    #[test]
    fn what_gguf_has_no_word_for_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let (checkpoint, decoder) = random(json!({
            "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 1030, "use_sliding_window": true,
            "sliding_window": 4, "max_window_layers": 1,
        }));
        let error = save_gguf(&checkpoint, &decoder, &path, StoredType::F32).unwrap_err();
        insta::assert_snapshot!(
            error,
            @"a GGUF file of qwen2 can't say that some blocks have a sliding window and others have not"
        );
        let checkpoint = builtin();
        let decoder = checkpoint.load(&placement()).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(save_gguf(&checkpoint, &decoder, &path, StoredType::F32).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
