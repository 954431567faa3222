//! Adapters as llama.cpp reads them: `general.type` is `adapter`, `adapter.lora.alpha` is one α for all,
//! and for each weight there are `<name>.lora_a` of shape `[rank, d_in]` and `<name>.lora_b` of shape
//! `[d_out, rank]`, which it applies as (α/rank)·B·A.
//!
//! So what PEFT says in other ways (α/√r, an α for each module) is folded: into that one α where all modules
//! agree, into B where they do not. Ranks may differ. In the llama architecture queries and keys have
//! their rows in another order (`gguf_model`), and then so has their B.

use std::collections::BTreeMap;
use std::path::Path;

use lora_core::peft::{Factor, PeftAdapter, most_common};

use super::gguf::GgufFile;
use super::gguf_config::shortest;
use super::gguf_metadata::{architecture, rows_are_interleaved};
use super::gguf_model::{gguf_name, hf_name, interleaved_row};
use super::gguf_value::Value;
use super::gguf_write::{tensor_to_write, write_gguf};
use super::{StoredType, no_tensor, transposed};
use crate::decoder_config::DecoderConfig;
use crate::error::{Error, Result};
use crate::linear_infos;
use crate::modules::HEAD;

const A_END: &str = ".lora_a";
const B_END: &str = ".lora_b";
const BASE_NAME: &str = "general.base_model.0.name";

/// Whether a GGUF file holds an adapter.
///
/// # Errors
/// A file missing, unreadable or not GGUF.
pub fn is_gguf_adapter(path: &Path) -> Result<bool> {
    Ok(GgufFile::open(path)?.get_str("general.type")? == Some("adapter"))
}

/// Writes an adapter for a model of this configuration; the file lands whole.
///
/// # Errors
/// An adapter for another model, or one that the format can't carry: whole modules, a head that is the
/// embedding too. The operating system's.
pub fn write_gguf_adapter(
    path: &Path,
    adapter: &PeftAdapter,
    config: &DecoderConfig,
) -> Result<()> {
    let architecture = architecture(config)?;
    refuse_what_it_cannot_carry(adapter, config)?;
    adapter.fit(&linear_infos(config))?;
    let (alpha, shares) = common_alpha(adapter)?;

    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let mut order = Vec::new();
    for (factor, share) in adapter.factors.iter().zip(shares) {
        let name = weight_name(config, &factor.path)?;
        let permuted = permuted_head(&factor.path, architecture, config);
        let a = transposed(&factor.a, factor.d_in);
        let b = rows_of_b(factor, share, permuted);
        order.push(format!("{name}{A_END}"));
        order.push(format!("{name}{B_END}"));
        tensors.insert(format!("{name}{A_END}"), (vec![factor.rank, factor.d_in], a));
        tensors.insert(format!("{name}{B_END}"), (vec![factor.d_out, factor.rank], b));
    }
    let layout = order
        .iter()
        .filter_map(|name| tensors.get_key_value(name))
        .map(|(name, (shape, _))| tensor_to_write(name, shape, StoredType::F32));
    let layout = layout.collect::<Result<Vec<_>>>()?;

    let text = |text: &str| Value::String(text.to_owned());
    let mut metadata = vec![
        ("general.architecture".to_owned(), text(architecture)),
        ("general.type".to_owned(), text("adapter")),
        ("general.file_type".to_owned(), Value::U32(0)),
        ("adapter.type".to_owned(), text("lora")),
        ("adapter.lora.alpha".to_owned(), Value::F32(alpha as f32)),
    ];
    if let Some(base) = &adapter.config.base_model {
        metadata.push(("general.base_model.count".to_owned(), Value::U32(1)));
        metadata.push((BASE_NAME.to_owned(), text(base)));
    }
    write_gguf(path, &metadata, &layout, |name| {
        tensors.get(name).map(|(_, numbers)| numbers.clone()).ok_or_else(|| no_tensor(path, name))
    })
}

/// Reads an adapter for a model of this configuration, as PEFT has it.
///
/// # Errors
/// A file missing or malformed; an adapter of another architecture or another model, or of a kind that is
/// not known; a tensor without its partner.
pub fn read_gguf_adapter(path: &Path, config: &DecoderConfig) -> Result<PeftAdapter> {
    let file = GgufFile::open(path)?;
    let architecture = architecture(config)?;
    let alpha = check_metadata(&file, architecture, config)?;
    let malformed = |reason: String| Error::malformed(path, reason);
    let mut names: BTreeMap<&str, [bool; 2]> = BTreeMap::new();
    for tensor in file.tensors() {
        // llama.cpp passes these over too.
        if tensor.name.ends_with("_norm.weight") {
            continue;
        }
        let (name, which) = match (tensor.name.strip_suffix(A_END), tensor.name.strip_suffix(B_END))
        {
            (Some(name), _) => (name, 0),
            (_, Some(name)) => (name, 1),
            _ => {
                let reason = format!("tensor `{}` is no `{A_END}` and no `{B_END}`", tensor.name);
                return Err(malformed(reason));
            }
        };
        names.entry(name).or_default()[which] = true;
    }
    let mut pairs = Vec::with_capacity(names.len());
    for (name, there) in names {
        for (which, end) in there.into_iter().zip([A_END, B_END]) {
            if !which {
                return Err(malformed(format!(
                    "tensor `{name}{end}` is missing, its partner is there"
                ))
                .with_hint("the adapter is incomplete: convert or download it again"));
            }
        }
        let factor = read_factor(&file, name, architecture, config)?;
        let scale = if alpha == 0.0 { 1.0 } else { alpha / factor.rank as f64 };
        pairs.push((factor, scale));
    }
    if pairs.is_empty() {
        return Err(malformed("there are no low-rank weights (`….lora_a`)".to_owned()));
    }
    let base = file.get_str(BASE_NAME)?.map(str::to_owned);
    let adapter = PeftAdapter::from_scaled(pairs, base);
    adapter.fit(&linear_infos(config))?;
    Ok(adapter)
}

/// Checks what the file says about itself; gives its α.
fn check_metadata(file: &GgufFile, architecture: &str, config: &DecoderConfig) -> Result<f64> {
    let malformed = |reason: String| Error::malformed(file.path(), reason);
    if file.get_str("general.type")? != Some("adapter") {
        return Err(malformed("this GGUF file holds a model, not an adapter".to_owned()));
    }
    let kind = file.get_str("adapter.type")?.unwrap_or("none");
    if kind != "lora" {
        return Err(malformed(format!("`adapter.type` is `{kind}`: only `lora` is supported")));
    }
    if file.metadata("adapter.alora.invocation_tokens").is_some() {
        let reason =
            "activated adapters (aLoRA, `adapter.alora.invocation_tokens`) are not supported";
        return Err(malformed(reason.to_owned()));
    }
    let found = file.get_str("general.architecture")?.unwrap_or("none");
    if found != architecture {
        let family = &config.model_type;
        return Err(malformed(format!(
            "the adapter is for a model of the architecture `{found}`, this one is a {family} (`{architecture}`)"
        ))
        .with_hint("name the model that the adapter was made for"));
    }
    let alpha = file.get_f32("adapter.lora.alpha")?.unwrap_or(0.0);
    if !alpha.is_finite() || alpha < 0.0 {
        return Err(malformed(format!("metadata `adapter.lora.alpha` is {alpha}")));
    }
    Ok(shortest(alpha))
}

fn read_factor(
    file: &GgufFile,
    name: &str,
    architecture: &str,
    config: &DecoderConfig,
) -> Result<Factor> {
    let malformed = |reason: String| Error::malformed(file.path(), reason);
    let Some(path) = hf_name(config.modules, name)
        .and_then(|key| key.strip_suffix(".weight").map(str::to_owned))
    else {
        return Err(malformed(format!("tensor `{name}{A_END}` has no place in this architecture")));
    };
    if name == "token_embd.weight" {
        let reason = format!("tensor `{name}{A_END}` adapts the embedding, which is not supported");
        return Err(malformed(reason));
    }
    let (name_a, name_b) = (format!("{name}{A_END}"), format!("{name}{B_END}"));
    let shape = |name: &str| match file.find(name).map(|info| info.shape) {
        Some(&[rows, columns]) if rows > 0 && columns > 0 => Ok((rows, columns)),
        other => Err(malformed(format!("tensor `{name}` has shape {other:?}, not two sides"))),
    };
    let ((rank, d_in), (d_out, rank_of_b)) = (shape(&name_a)?, shape(&name_b)?);
    if rank != rank_of_b {
        return Err(malformed(format!(
            "`{name_a}` has rank {rank} but `{name_b}` has {rank_of_b}"
        )));
    }
    let a = file.read_f32(&name_a)?;
    let b = match permuted_head(&path, architecture, config) {
        Some(width) if d_out.is_multiple_of(width) => {
            file.read_f32_rows(&name_b, |row| interleaved_row(row, width))?
        }
        Some(width) => {
            let reason = format!(
                "the adapter is for another model: `{name_b}` has {d_out} rows, which are no heads \
                 of width {width}"
            );
            return Err(malformed(reason));
        }
        None => file.read_f32(&name_b)?,
    };
    if let Some(bad) = a.iter().chain(&b).find(|number| !number.is_finite()) {
        return Err(malformed(format!("tensor `{name_a}` or its partner holds {bad}")));
    }
    let (a, b) = (transposed(&a, rank), transposed(&b, d_out));
    Ok(Factor { path, d_in, d_out, rank, a, b })
}

fn refuse_what_it_cannot_carry(adapter: &PeftAdapter, config: &DecoderConfig) -> Result<()> {
    const MERGE: &str =
        "fold it into the model instead: `lora merge MODEL ADAPTER --output merged.gguf`";
    if let Some(what) = adapter.beside_pairs() {
        return Err(Error::invalid(format!(
            "a GGUF adapter can't carry {what}: it has room for low-rank pairs only"
        ))
        .with_hint(MERGE));
    }
    let head = adapter.factors.iter().find(|factor| factor.path == HEAD);
    if config.tie_word_embeddings && head.is_some() {
        return Err(Error::invalid(
            "a GGUF adapter can't adapt `lm_head` of a model whose head is the embedding: the model's \
             file has no weight of that name",
        )
        .with_hint(MERGE));
    }
    Ok(())
}

/// The α that gives most modules their factor as α/r, and what B of each is multiplied by so that it
/// gives all of them theirs.
fn common_alpha(adapter: &PeftAdapter) -> Result<(f64, Vec<f64>)> {
    let scales = adapter.scales()?;
    let alphas: Vec<f64> = adapter
        .factors
        .iter()
        .zip(scales)
        .map(|(factor, scale)| scale * factor.rank as f64)
        .collect();
    let alpha = most_common(&alphas, |alpha| alpha.to_bits()).unwrap_or(1.0);
    Ok((alpha, alphas.into_iter().map(|own| own / alpha).collect()))
}

fn weight_name(config: &DecoderConfig, path: &str) -> Result<String> {
    gguf_name(config.modules, &format!("{path}.weight")).ok_or_else(|| {
        Error::invalid(format!("GGUF has no name for `{path}`"))
            .with_hint("merge the adapter into the model: `lora merge`")
    })
}

/// Width of a head, where the rows of the module are in another order.
fn permuted_head(path: &str, architecture: &str, config: &DecoderConfig) -> Option<usize> {
    let rotated = path.ends_with(".q_proj") || path.ends_with(".k_proj");
    (rotated && rows_are_interleaved(architecture)).then_some(config.head_dim)
}

/// B as `[d_out, rank]`, times `share`, its rows where the file has them.
fn rows_of_b(factor: &Factor, share: f64, permuted_head: Option<usize>) -> Vec<f32> {
    let mut factor = factor.clone();
    if share != 1.0 {
        factor.scale_b(share);
    }
    let rows = transposed(&factor.b, factor.rank);
    let Some(width) = permuted_head else { return rows };
    let mut placed = vec![0.0; rows.len()];
    for (row, numbers) in rows.chunks_exact(factor.rank).enumerate() {
        let start = interleaved_row(row, width) * factor.rank;
        placed[start..start + factor.rank].copy_from_slice(numbers);
    }
    placed
}

#[cfg(test)]
#[path = "gguf_adapter_tests.rs"]
mod tests;
