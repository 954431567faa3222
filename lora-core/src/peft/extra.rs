//! What methods beyond the plain pair store beside it: magnitudes, biases, rows of single tokens, copies of
//! the base. Each tensor must be one that the settings ask for.

use super::{CONFIG_FILE, Factor, NamedTensor, PeftAdapter, tensors};
use crate::config::{Bias, LoraConfig};
use crate::target::is_embedding;

/// What a tensor is, by the end of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// DoRA's m, `[d_out]`.
    Magnitude,
    /// Bias of the low-rank branch, `[d_out]`.
    BranchBias,
    /// Bias of an adapted layer, `[d_out]`.
    AdaptedBias,
    /// Rows of single tokens, `[n, d]`.
    TokenRows,
    /// The base's own weight, which PEFT adds where a head or an embedding is adapted.
    BaseWeight,
}

const ENDS: [(&str, Kind); 5] = [
    (".lora_magnitude_vector", Kind::Magnitude),
    (".lora_B.bias", Kind::BranchBias),
    (".base_layer.bias", Kind::AdaptedBias),
    (".token_adapter.trainable_tokens_delta", Kind::TokenRows),
    (".base_layer.weight", Kind::BaseWeight),
];

/// What the tensor is and the module it belongs to; `None` for all that is not of this file.
pub(super) fn kind_of(name: &str) -> Option<(Kind, &str)> {
    ENDS.iter().find_map(|(end, kind)| Some((*kind, name.strip_suffix(end)?)))
}

impl PeftAdapter {
    /// Whether a factor (by its path) or a saved tensor (by its name) only repeats what there is for the
    /// embedding: with `ensure_weight_tying` PEFT stores the tied head as well.
    pub fn is_tied_copy(&self, name: &str) -> bool {
        let of_embedding = || match name {
            "lm_head" => self.factors.iter().any(|factor| is_embedding(&factor.path)),
            "lm_head.weight" => self
                .saved
                .iter()
                .any(|tensor| tensor.name.strip_suffix(".weight").is_some_and(is_embedding)),
            _ => false,
        };
        self.config.lora.ensure_weight_tying && of_embedding()
    }

    /// The adapter with what its embedding has once more for the tied head, as PEFT stores it.
    #[must_use]
    pub fn with_tied_copies(mut self, embedding: &str, head: &str) -> Self {
        let copies: Vec<Factor> = self
            .factors
            .iter()
            .filter(|factor| factor.path == embedding)
            .map(|Factor { d_in, d_out, rank, a, b, .. }| Factor {
                path: head.to_owned(),
                d_in: *d_out,
                d_out: *d_in,
                rank: *rank,
                a: tensors::transpose(b, *rank, *d_out),
                b: tensors::transpose(a, *d_in, *rank),
            })
            .collect();
        self.factors.extend(copies);
        let saved = self.saved.iter().find(|tensor| tensor.name == format!("{embedding}.weight"));
        let copy =
            saved.cloned().map(|tensor| NamedTensor { name: format!("{head}.weight"), ..tensor });
        self.saved.extend(copy);
        self
    }
}

/// Whether settings and tensors ask for each other.
pub(super) fn check(
    lora: &LoraConfig,
    factors: &[Factor],
    extra: &[NamedTensor],
) -> Result<(), String> {
    for tensor in extra {
        check_one(lora, factors, tensor)?;
    }
    let has = |path: &str, wanted: Kind| {
        extra.iter().any(|tensor| kind_of(&tensor.name) == Some((wanted, path)))
    };
    let wanted = [
        (lora.use_dora, Kind::Magnitude, "lora_magnitude_vector", "use_dora"),
        (lora.lora_bias, Kind::BranchBias, "lora_B.bias", "lora_bias"),
    ];
    for (on, kind, end, setting) in wanted {
        let linears = factors.iter().filter(|factor| on && !is_embedding(&factor.path));
        let without = linears.into_iter().find(|factor| !has(&factor.path, kind));
        if let Some(factor) = without {
            let key = tensors::key_of_saved(&format!("{}.{end}", factor.path));
            return Err(format!("tensor `{key}` is missing, which `{setting}` asks for"));
        }
    }
    for (module, _) in &lora.trainable_tokens {
        let rows = |tensor: &NamedTensor| {
            kind_of(&tensor.name)
                .is_some_and(|(kind, path)| kind == Kind::TokenRows && means(module, path))
        };
        if !extra.iter().any(rows) {
            return Err(format!(
                "the rows of `{module}`, which `trainable_token_indices` names, are missing"
            ));
        }
    }
    Ok(())
}

fn check_one(lora: &LoraConfig, factors: &[Factor], tensor: &NamedTensor) -> Result<(), String> {
    let key = tensors::key_of_saved(&tensor.name);
    super::whole(tensor)?;
    let Some((kind, path)) = kind_of(&tensor.name) else {
        // Any other bias is one of the base.
        let fits = lora.bias == Bias::All && tensor.name.ends_with(".bias");
        return if fits { Ok(()) } else { Err(unexpected(&key, "no setting names it")) };
    };
    let factor = factors.iter().find(|factor| factor.path == path);
    let (asked, setting) = match kind {
        Kind::Magnitude => (lora.use_dora, "`use_dora` is off"),
        Kind::BranchBias => (lora.lora_bias, "`lora_bias` is off"),
        Kind::AdaptedBias => (lora.bias != Bias::None, "`bias` is `none`"),
        Kind::TokenRows => {
            let named = lora.trainable_tokens.iter().find(|(module, _)| means(module, path));
            let count = named.map(|(_, tokens)| tokens.len());
            if let (Some(count), &[rows, _]) = (count, &tensor.shape[..])
                && rows != count
            {
                return Err(format!(
                    "tensor `{key}` has {rows} rows, but `trainable_token_indices` of {CONFIG_FILE} \
                     names {count} tokens"
                ));
            }
            if count.is_some() && tensor.shape.len() != 2 {
                return Err(format!(
                    "tensor `{key}` has shape {:?}, not [tokens, width]",
                    tensor.shape
                ));
            }
            (count.is_some(), "`trainable_token_indices` does not name its module")
        }
        Kind::BaseWeight => (true, ""),
    };
    if !asked {
        return Err(unexpected(&key, &format!("{setting} in {CONFIG_FILE}")));
    }
    if kind == Kind::TokenRows {
        return Ok(());
    }
    let Some(factor) = factor else {
        let why = match kind {
            Kind::BaseWeight => {
                "its module is not adapted, so the vocabulary was resized (PEFT leaves it out with \
                 `save_embedding_layers=False`)"
            }
            _ => "its module is not adapted",
        };
        return Err(unexpected(&key, why));
    };
    if kind != Kind::BaseWeight && tensor.shape != [factor.d_out] {
        let shape = &tensor.shape;
        return Err(format!("tensor `{key}` has shape {shape:?}, not [{}]", factor.d_out));
    }
    Ok(())
}

/// Whether tokens of `module` are rows of the embedding at this path; a bare list means any embedding.
fn means(module: &str, path: &str) -> bool {
    path.ends_with(module) || (module == "embed_tokens" && is_embedding(path))
}

fn unexpected(key: &str, why: &str) -> String {
    format!("tensor `{key}` is unexpected: {why}")
}
