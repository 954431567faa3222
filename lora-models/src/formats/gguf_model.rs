//! A GGUF file as a Hugging Face checkpoint: names of tensors, and the order of their rows.
//!
//! For the llama architecture GGUF holds the rows of q and k in another order: rotary embedding there
//! turns neighbouring rows (2j, 2j+1) of a head, in Hugging Face's layout rows (j, j + width/2).

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value as Json;

use super::gguf::GgufFile;
use super::{TensorInfo, gguf_config, no_tensor};
use crate::{Error, Result};

/// Tensors outside of the blocks: Hugging Face key, GGUF name.
const OUTER: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Modules of a block: Hugging Face key behind `model.layers.N.`, GGUF name behind `blk.N.`.
const IN_BLOCK: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

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
    /// Width of a head whose rows have to be put into Hugging Face's order.
    permuted_head: Option<usize>,
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
        let permuted = file.get_str("general.architecture")? == Some("llama");
        let head_width = config["head_dim"].as_u64().unwrap_or_default() as usize;
        let mut tensors = vec![];
        for info in file.tensors().filter(|info| info.name != ROPE_FREQUENCIES) {
            let Some(name) = hf_name(info.name) else {
                return Err(Error::malformed(
                    file.path(),
                    format!("tensor `{}` has no place in this architecture", info.name),
                )
                .with_hint("only plain llama, mistral, qwen2 and qwen3 models are read"));
            };
            let rotated = name.contains(".q_proj.") || name.contains(".k_proj.");
            let permuted_head = (permuted && rotated).then_some(head_width);
            let rows = info.shape.first().copied().unwrap_or(1);
            if let Some(width) = permuted_head
                && !rows.is_multiple_of(width)
            {
                let reason = format!(
                    "tensor `{}` has {rows} rows, which are not heads of width {width}",
                    info.name
                );
                return Err(Error::malformed(file.path(), reason));
            }
            tensors.push(Tensor { name, stored_name: info.name.to_owned(), permuted_head });
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
        let tensor = &self.tensors[index];
        match tensor.permuted_head {
            None => self.file.read_f32(&tensor.stored_name),
            Some(width) => {
                self.file.read_f32_rows(&tensor.stored_name, |row| interleaved_row(row, width))
            }
        }
    }

    fn info<'a>(&'a self, tensor: &'a Tensor) -> Option<TensorInfo<'a>> {
        self.file.find(&tensor.stored_name).map(|info| TensorInfo { name: &tensor.name, ..info })
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

/// The Hugging Face key of a GGUF tensor.
pub fn hf_name(gguf: &str) -> Option<String> {
    if let Some((hf, _)) = OUTER.iter().find(|(_, name)| *name == gguf) {
        return Some((*hf).to_owned());
    }
    let (block, rest) = block_number(gguf.strip_prefix("blk.")?)?;
    let (module, parameter) = parameter(rest)?;
    let (hf, _) = IN_BLOCK.iter().find(|(_, name)| *name == module)?;
    Some(format!("model.layers.{block}.{hf}.{parameter}"))
}

/// The GGUF name of a Hugging Face key.
pub fn gguf_name(hf: &str) -> Option<String> {
    if let Some((_, gguf)) = OUTER.iter().find(|(name, _)| *name == hf) {
        return Some((*gguf).to_owned());
    }
    let (block, rest) = block_number(hf.strip_prefix("model.layers.")?)?;
    let (module, parameter) = parameter(rest)?;
    let (_, gguf) = IN_BLOCK.iter().find(|(name, _)| *name == module)?;
    Some(format!("blk.{block}.{gguf}.{parameter}"))
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
