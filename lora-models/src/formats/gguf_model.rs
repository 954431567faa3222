//! A GGUF file as a Hugging Face checkpoint: names of tensors, and what else differs in them.
//!
//! For the llama architecture GGUF holds the rows of q and k in another order: rotary embedding there
//! turns neighbouring rows (2j, 2j+1) of a head, in Hugging Face's layout rows (j, j + width/2). Norms
//! that multiply by 1 + w are stored as 1 + w, and every matrix is `[d_out, d_in]`.

use std::collections::HashMap;
use std::path::Path;

use lora_core::packed::Blocks;
use serde_json::Value as Json;

use super::gguf::GgufFile;
use super::{TensorInfo, gguf_config, no_tensor, transposed};
use crate::families;
use crate::modules::{HEAD, LLAMA, Modules, NormKind};
use crate::{Error, Result};

/// Names by what a module is: a pair of the Hugging Face path and the GGUF name.
type Names = Vec<(&'static str, &'static str)>;

/// Modules outside of the blocks.
fn outer(modules: &Modules) -> Names {
    let always =
        [(modules.embedding, "token_embd"), (modules.last_norm, "output_norm"), (HEAD, "output")];
    always.into_iter().chain(modules.positions.map(|path| (path, "position_embd"))).collect()
}

/// Modules of a block, behind the block's own path.
fn in_block(modules: &Modules) -> Names {
    let mut names = vec![
        (modules.attention_norm, "attn_norm"),
        (modules.attention_output, "attn_output"),
        (modules.mlp_norm, "ffn_norm"),
        (modules.mlp_output, "ffn_down"),
    ];
    let fused_or_not: [(&[&str], &[&str]); 2] = [
        (
            modules.attention_inputs,
            match modules.attention_inputs {
                [_] => &["attn_qkv"],
                _ => &["attn_q", "attn_k", "attn_v"],
            },
        ),
        (
            modules.mlp_inputs,
            match modules.mlp_inputs {
                [_] => &["ffn_up"],
                _ => &["ffn_gate", "ffn_up"],
            },
        ),
    ];
    for (paths, gguf) in fused_or_not {
        names.extend(paths.iter().copied().zip(gguf.iter().copied()));
    }
    let of_heads = modules.query_key_norms.into_iter().flatten();
    names.extend(of_heads.zip(["attn_q_norm", "attn_k_norm"]));
    names.extend(modules.attention_output_norm.map(|path| (path, "post_attention_norm")));
    names.extend(modules.mlp_output_norm.map(|path| (path, "post_ffw_norm")));
    names
}

/// Rotary frequency divisors: part of the configuration, not of the weights.
pub(crate) const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

/// The weights of a GGUF file under their Hugging Face keys.
#[derive(Debug)]
pub struct GgufWeights {
    file: GgufFile,
    config: Json,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
}

#[derive(Debug)]
struct Tensor {
    name: String,
    stored_name: String,
    shape: Vec<usize>,
    change: Change,
}

/// What lies between the numbers of the file and those of a Hugging Face checkpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    Nothing,
    /// Rows of heads of this width are in another order.
    Heads(usize),
    /// The file has 1 + w.
    LessOne,
    /// The file has the transpose.
    Turned,
}

impl Change {
    /// That of a tensor by its Hugging Face key.
    pub(crate) fn of(
        modules: &Modules,
        architecture: &str,
        key: &str,
        dimensions: usize,
        head_width: usize,
    ) -> Self {
        let rotated = key.contains(".q_proj.") || key.contains(".k_proj.");
        if architecture == "llama" && rotated {
            Self::Heads(head_width)
        } else if modules.norm == NormKind::RmsPlusOne && modules.is_of_norm(key) {
            Self::LessOne
        } else if modules.fan_in_fan_out && key.starts_with(modules.blocks) && dimensions == 2 {
            Self::Turned
        } else {
            Self::Nothing
        }
    }
}

impl GgufWeights {
    /// Opens a file; no tensor is read.
    ///
    /// # Errors
    /// A file missing, unreadable or not GGUF; an architecture that is not known; a tensor that has no
    /// place in it.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(GgufFile::open(path)?)
    }

    /// The same for a file that is open.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn new(file: GgufFile) -> Result<Self> {
        let config = gguf_config::config_json(&file)?;
        let architecture = file.get_str("general.architecture")?.unwrap_or_default();
        let modules = families::of_gguf(architecture).map_or(&LLAMA, |family| family.modules);
        let head_width = config["head_dim"].as_u64().unwrap_or_default() as usize;
        let mut tensors = vec![];
        for info in file.tensors().filter(|info| info.name != ROPE_FREQUENCIES) {
            let Some(name) = hf_name(modules, info.name) else {
                return Err(Error::malformed(
                    file.path(),
                    format!("tensor `{}` has no place in this architecture", info.name),
                )
                .with_hint("only plain models of an architecture are read"));
            };
            let mut shape = info.shape.to_vec();
            let change = Change::of(modules, architecture, &name, shape.len(), head_width);
            if let Change::Turned = change {
                shape.reverse();
            }
            let rows = info.shape.first().copied().unwrap_or(1);
            if let Change::Heads(width) = change
                && !rows.is_multiple_of(width)
            {
                let reason = format!(
                    "tensor `{}` has {rows} rows, which are not heads of width {width}",
                    info.name
                );
                return Err(Error::malformed(file.path(), reason));
            }
            tensors.push(Tensor { name, stored_name: info.name.to_owned(), shape, change });
        }
        let index =
            tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        Ok(Self { file, config, tensors, index })
    }

    /// The file.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// The metadata as a `config.json`, in the spelling of transformers 4. `rope_freqs`, where it is
    /// there, is a divisor for each rotary frequency and takes the place of `rope_scaling`.
    ///
    /// # Errors
    /// None any more; the configuration was checked on opening.
    pub fn config_json(&self) -> Result<Json> {
        Ok(self.config.clone())
    }

    /// All tensors under their Hugging Face keys, in the file's order.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().filter_map(|tensor| self.info(tensor))
    }

    /// One tensor by its Hugging Face key.
    pub fn find(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.info(&self.tensors[*self.index.get(name)?])
    }

    /// A tensor's numbers as f32, row-major, rows in Hugging Face's order.
    ///
    /// # Errors
    /// No such tensor, or one that does not hold floats.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let Some(&index) = self.index.get(name) else {
            return Err(no_tensor(self.file.path(), name));
        };
        let Tensor { stored_name, shape, change, .. } = &self.tensors[index];
        match *change {
            Change::Nothing => self.file.read_f32(stored_name),
            Change::Heads(width) => {
                self.file.read_f32_rows(stored_name, |row| interleaved_row(row, width))
            }
            Change::LessOne => {
                let numbers = self.file.read_f32(stored_name)?;
                Ok(numbers.into_iter().map(|number| number - 1.0).collect())
            }
            Change::Turned => {
                let rows = shape.last().copied().unwrap_or(1);
                Ok(transposed(&self.file.read_f32(stored_name)?, rows))
            }
        }
    }

    /// A linear layer's weight, or a table, in the blocks of the file: `[d_out, d_in]`, whichever way round
    /// its checkpoint has it; `None` where it is not in blocks.
    ///
    /// # Errors
    /// No such tensor.
    pub fn read_blocks(&self, name: &str) -> Result<Option<Blocks>> {
        let Some(&index) = self.index.get(name) else {
            return Err(no_tensor(self.file.path(), name));
        };
        let Tensor { stored_name, change, .. } = &self.tensors[index];
        match *change {
            Change::Nothing | Change::Turned => self.file.read_blocks(stored_name, |row| row),
            Change::Heads(width) => {
                self.file.read_blocks(stored_name, |row| interleaved_row(row, width))
            }
            Change::LessOne => Ok(None),
        }
    }

    fn info<'a>(&'a self, tensor: &'a Tensor) -> Option<TensorInfo<'a>> {
        let Tensor { name, shape, .. } = tensor;
        self.file.find(&tensor.stored_name).map(|info| TensorInfo { name, shape, ..info })
    }
}

/// Where GGUF has the row that Hugging Face has at `row`: within a head, rows j and j + width/2 stand
/// next to each other.
pub fn interleaved_row(row: usize, head_width: usize) -> usize {
    let (head, within) = (row / head_width, row % head_width);
    let half = head_width / 2;
    // An odd width has no pairs; its last row stays.
    if within >= half * 2 {
        return row;
    }
    head * head_width + within % half * 2 + within / half
}

/// The Hugging Face key of a GGUF tensor, in a family with these modules.
pub fn hf_name(modules: &Modules, gguf: &str) -> Option<String> {
    let (module, kind) = parameter(gguf)?;
    if let Some((hf, _)) = outer(modules).into_iter().find(|(_, name)| *name == module) {
        return Some(format!("{hf}.{kind}"));
    }
    let (block, module) = block_number(module.strip_prefix("blk.")?)?;
    let (hf, _) = in_block(modules).into_iter().find(|(_, name)| *name == module)?;
    Some(format!("{}.{hf}.{kind}", modules.block(block)))
}

/// The GGUF name of a Hugging Face key, in a family with these modules.
pub fn gguf_name(modules: &Modules, hf: &str) -> Option<String> {
    let (module, kind) = parameter(hf)?;
    if let Some((_, gguf)) = outer(modules).into_iter().find(|(name, _)| *name == module) {
        return Some(format!("{gguf}.{kind}"));
    }
    let within = module.strip_prefix(modules.blocks)?.strip_prefix('.')?;
    let (block, module) = block_number(within)?;
    let (_, gguf) = in_block(modules).into_iter().find(|(name, _)| *name == module)?;
    Some(format!("blk.{block}.{gguf}.{kind}"))
}

/// "12.rest" to 12 and "rest"; only as a number is written, so that no two names mean one tensor.
fn block_number(text: &str) -> Option<(usize, &str)> {
    let (digits, rest) = text.split_once('.')?;
    let number: usize = digits.parse().ok()?;
    (number.to_string() == digits).then_some((number, rest))
}

/// "module.weight" to "module" and "weight".
fn parameter(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once('.').filter(|(_, parameter)| matches!(*parameter, "weight" | "bias"))
}

#[cfg(test)]
#[path = "gguf_model_tests.rs"]
mod tests;
