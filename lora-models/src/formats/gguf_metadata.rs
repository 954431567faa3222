//! A decoder's configuration as GGUF metadata: the inverse of `gguf_config`. Here is also which number
//! format each tensor of a file gets.

use super::{StoredType, Value};
use crate::decoder_config::{DecoderConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::families;
use crate::modules::NormKind;

/// llama.cpp's version of the block formats.
const QUANTISATION_VERSION: u32 = 2;

/// What GGUF calls the architecture of a decoder.
///
/// # Errors
/// A family that is not written.
pub(crate) fn architecture(config: &DecoderConfig) -> Result<&'static str> {
    let family = families::family(&config.model_type);
    // Mistral's files call themselves llama.
    let same = if config.model_type == "mistral" { families::family("llama") } else { family };
    same.and_then(|family| family.gguf).ok_or_else(|| {
        let written = families::gguf_architectures().join(", ");
        let reason =
            format!("models of the family `{}` are not written as GGUF", config.model_type);
        Error::invalid(reason)
            .with_hint(format!("those that are: {written}; a Hugging Face folder holds any model"))
    })
}

/// Whether the file holds the rows of queries and keys in the order that `gguf_model` describes.
pub(crate) fn rows_are_interleaved(architecture: &str) -> bool {
    architecture == "llama"
}

/// The metadata of a model but its tokenizer, in the order in which llama.cpp's converter writes it.
///
/// # Errors
/// What the format can't say: windows, factors or biases other than those that the architecture has.
pub(crate) fn model_metadata(
    config: &DecoderConfig,
    name: &str,
    stored: StoredType,
) -> Result<Vec<(String, Value)>> {
    let architecture = architecture(config)?;
    refuse_what_the_architecture_has_not(config, architecture)?;
    let size = |number: usize| Value::U32(u32::try_from(number).unwrap_or(u32::MAX));
    let text = |text: &str| Value::String(text.to_owned());
    let mut metadata = vec![
        ("general.architecture".to_owned(), text(architecture)),
        ("general.type".to_owned(), text("model")),
        ("general.name".to_owned(), text(name)),
        ("general.file_type".to_owned(), Value::U32(file_type(stored))),
        ("general.quantization_version".to_owned(), Value::U32(QUANTISATION_VERSION)),
    ];
    let mut put = |key: &str, value: Value| metadata.push((format!("{architecture}.{key}"), value));
    put("block_count", size(config.num_hidden_layers));
    put("context_length", size(config.max_position_embeddings));
    put("embedding_length", size(config.hidden_size));
    put("feed_forward_length", size(config.intermediate_size));
    put("attention.head_count", size(config.num_attention_heads));
    put("attention.head_count_kv", size(config.num_key_value_heads));
    put("attention.key_length", size(config.head_dim));
    put("attention.value_length", size(config.head_dim));
    let epsilon = match config.modules.norm {
        NormKind::Layer => "attention.layer_norm_epsilon",
        NormKind::Rms | NormKind::RmsPlusOne => "attention.layer_norm_rms_epsilon",
    };
    put(epsilon, Value::F32(config.norm_epsilon as f32));
    put("vocab_size", size(config.vocab_size));
    if config.modules.positions.is_none() {
        put("rope.dimension_count", size(config.head_dim));
        put("rope.freq_base", Value::F32(config.rope.theta as f32));
    }
    if let Some(local) = &config.local_rope {
        put("rope.freq_base_swa", Value::F32(local.theta as f32));
    }
    if let RopeScaling::Linear { factor } = config.rope.scaling {
        put("rope.scaling.type", text("linear"));
        put("rope.scaling.factor", Value::F32(factor as f32));
    }
    if let Some(window) = config.windows.iter().flatten().next() {
        put("attention.sliding_window", size(*window));
    }
    for (key, cap) in [
        ("attn_logit_softcapping", config.score_cap),
        ("final_logit_softcapping", config.logit_cap),
    ] {
        if let Some(cap) = cap {
            put(key, Value::F32(cap as f32));
        }
    }
    Ok(metadata)
}

/// Where llama.cpp computes something else than the model, though the file says all of it.
pub(crate) fn differs_in_llama_cpp(config: &DecoderConfig) -> Option<String> {
    let window = config.windows.iter().flatten().min()?;
    let architecture = architecture(config).ok()?;
    // It has phi3's window, but does not use it (ggml-org/llama.cpp#13676).
    if architecture != "phi3" && pattern(architecture).is_some() {
        return None;
    }
    Some(format!(
        "llama.cpp lets this family attend to everything before: past {window} tokens, the model's \
         window, it computes something else"
    ))
}

/// Divisors of the rotary frequencies for `rope_freqs.weight`, where the model has some.
pub(crate) fn rope_divisors(config: &DecoderConfig) -> Option<Vec<f32>> {
    match &config.rope.scaling {
        RopeScaling::Factors(factors) => Some(factors.iter().map(|&f| f as f32).collect()),
        RopeScaling::Llama3 { .. } => {
            let mut plain = config.rope.clone();
            plain.scaling = RopeScaling::Default;
            let plain = plain.inverse_frequencies(config.head_dim);
            let scaled = config.rope.inverse_frequencies(config.head_dim);
            Some(plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect())
        }
        RopeScaling::Default | RopeScaling::Linear { .. } => None,
    }
}

/// The number format of one tensor in a file of `wanted`. Vectors and learned
/// positions stay F32, as llama.cpp has them.
/// Embedding and head, which every token feels, get eight bits where the rest gets four, and so do rows
/// that are no whole blocks of 256; rows that are no blocks at all get F16.
pub(crate) fn stored_as(gguf_name: &str, shape: &[usize], wanted: StoredType) -> StoredType {
    // Positions are added, not multiplied with.
    if shape.len() < 2 || gguf_name == "position_embd.weight" {
        return StoredType::F32;
    }
    let is_vocabulary = matches!(gguf_name, "token_embd.weight" | "output.weight");
    let four_bits = matches!(wanted, StoredType::Q4_0 | StoredType::Q4K);
    let first = if four_bits && is_vocabulary { StoredType::Q8_0 } else { wanted };
    let fits = |stored: &StoredType| stored.bytes_of(shape).is_some();
    [first, StoredType::Q8_0].into_iter().find(fits).unwrap_or(StoredType::F16)
}

/// `LLAMA_FTYPE`: what most tensors are; only shown.
fn file_type(stored: StoredType) -> u32 {
    match stored {
        StoredType::F16 => 1,
        StoredType::Q4_0 => 2,
        StoredType::Q8_0 => 7,
        StoredType::Q4K => 14,
        StoredType::BF16 => 32,
        _ => 0,
    }
}

/// Of so many blocks the last has no window, in the architectures of which llama.cpp knows that some have
/// one; 1 where all do.
fn pattern(architecture: &str) -> Option<usize> {
    match architecture {
        "gemma2" => Some(2),
        "gemma3" => Some(6),
        "phi3" => Some(1),
        _ => None,
    }
}

/// The file says sizes; the rest llama.cpp knows by the architecture.
fn refuse_what_the_architecture_has_not(config: &DecoderConfig, architecture: &str) -> Result<()> {
    let refused = |what: &str| {
        let reason = format!("a GGUF file of {architecture} can't say that {what}");
        Err(Error::invalid(reason).with_hint("write a Hugging Face folder"))
    };
    let window = config.windows.iter().flatten().next().copied();
    let expected = |block: usize| match pattern(architecture) {
        Some(every) if every > 1 && (block + 1).is_multiple_of(every) => None,
        _ => window,
    };
    if config.windows.iter().enumerate().any(|(block, found)| *found != expected(block)) {
        return refused("some blocks have a sliding window and others have not");
    }
    if config.qkv_bias && matches!(architecture, "qwen3" | "gemma" | "gemma2" | "gemma3" | "phi3") {
        return refused("queries, keys and values have biases");
    }
    // The largest of each generation, and only it, scales by the width of a head as if heads filled d.
    let largest =
        matches!((architecture, config.num_hidden_layers), ("gemma2", 46) | ("gemma3", 62));
    let width = match largest {
        true => config.hidden_size / config.num_attention_heads,
        false => config.head_dim,
    };
    let usual = 1.0 / (width as f64).sqrt();
    if (config.scores().scale - usual).abs() > 1e-6 * usual {
        return refused("queries have a factor of their own");
    }
    let wanted =
        if architecture.starts_with("gemma") { (config.hidden_size as f64).sqrt() } else { 1.0 };
    if (config.embedding_scale - wanted).abs() > 1e-6 * wanted {
        return refused("embeddings have a factor of their own");
    }
    if config.local_rope.as_ref().is_some_and(|local| local.scaling != RopeScaling::Default) {
        return refused("blocks with a window have stretched positions");
    }
    Ok(())
}
