//! Adapters as mlx-lm stores them: a folder with `adapter_config.json` and `adapters.safetensors`.
//!
//! For each module there are `<path>.lora_a` `[d_in, rank]` and `<path>.lora_b` `[rank, d_out]`, not
//! transposed, with one rank and one factor `scale` for all: y = x·W₀ + scale·(x·A)·B. Where PEFT's
//! settings say more, the factor of a module goes into its B and a smaller rank is filled up with zeros.
//! Weight-decomposed adapters (DoRA) have their magnitudes besides, `<path>.m` `[d_out]`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files;
use crate::peft::{CONFIG_FILE, Factor, NamedTensor, PeftAdapter, most_common, read_numbers};
use crate::target::is_embedding;

/// Name of the file with the weights.
pub const WEIGHTS_FILE: &str = "adapters.safetensors";

const A_END: &str = ".lora_a";
const B_END: &str = ".lora_b";
const M_END: &str = ".m";
/// What PEFT calls the magnitudes.
const PEFT_M_END: &str = ".lora_magnitude_vector";

/// Whether this is a folder of mlx-lm.
pub fn is_mlx_adapter(folder: &Path) -> bool {
    folder.join(WEIGHTS_FILE).is_file()
}

/// Reads an adapter.
///
/// # Errors
/// A missing or damaged file; weights trained whole, adapters on embeddings and on experts; a tensor
/// without its partner, of another rank or not finite.
pub fn load(folder: &Path) -> Result<PeftAdapter> {
    let config_path = folder.join(CONFIG_FILE);
    let settings = Settings::parse(&files::read_text(&config_path)?, &config_path)?;
    let path = folder.join(WEIGHTS_FILE);
    let bytes = files::read(&path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| {
        Error::malformed(&path, format!("not a whole safetensors file: {error}"))
            .with_hint("copy or download the adapter again")
    })?;
    let mut pairs: BTreeMap<&str, [Option<TensorView>; 2]> = BTreeMap::new();
    let mut magnitudes = BTreeMap::new();
    for (key, view) in file.iter() {
        if let Some(module) = key.strip_suffix(M_END).filter(|_| settings.decomposed) {
            magnitudes.insert(module, read_numbers(key, &view, &path)?);
            continue;
        }
        let (module, which) = match (key.strip_suffix(A_END), key.strip_suffix(B_END)) {
            (Some(module), _) => (module, 0),
            (_, Some(module)) => (module, 1),
            _ => {
                return Err(Error::malformed(
                    &path,
                    format!("tensor `{key}` is unexpected: it is no `{A_END}` and no `{B_END}`"),
                )
                .with_hint(
                    "fuse the adapter with `mlx_lm.fuse` and use the model that it writes",
                ));
            }
        };
        pairs.entry(module).or_default()[which] = Some(view);
    }
    if pairs.is_empty() {
        return Err(Error::malformed(&path, "there are no low-rank weights (`….lora_a`)"));
    }
    let factors = pairs.into_iter().map(|(module, [a, b])| {
        let missing = |end: &str| {
            Error::malformed(
                &path,
                format!("tensor `{module}{end}` is missing, its partner is there"),
            )
            .with_hint("the adapter is incomplete: save or download it again")
        };
        let (a, b) = (a.ok_or_else(|| missing(A_END))?, b.ok_or_else(|| missing(B_END))?);
        Ok((factor(module, &a, &b, &path)?, settings.scale))
    });
    let mut adapter = PeftAdapter::from_scaled(factors.collect::<Result<_>>()?, settings.model);
    adapter.config.lora.dropout = settings.dropout;
    if settings.decomposed {
        adapter.config.lora.use_dora = true;
        for factor in &adapter.factors {
            let module = factor.path.as_str();
            let found = magnitudes.remove(module).filter(|m| m.len() == factor.d_out);
            let Some(data) = found else {
                let reason = format!(
                    "tensor `{module}{M_END}` is missing or not of {} values",
                    factor.d_out
                );
                return Err(Error::malformed(&path, reason));
            };
            if let Some(bad) = data.iter().find(|value| !value.is_finite()) {
                return Err(Error::malformed(
                    &path,
                    format!("tensor `{module}{M_END}` holds {bad}"),
                ));
            }
            let (name, shape) = (format!("{module}{PEFT_M_END}"), vec![factor.d_out]);
            adapter.extra.push(NamedTensor { name, shape, data });
        }
        if let Some(module) = magnitudes.keys().next() {
            let reason = format!("tensor `{module}{M_END}` has no `{module}{A_END}`");
            return Err(Error::malformed(&path, reason));
        }
    }
    Ok(adapter)
}

/// Writes the adapter into the folder, which is created if need be. Each file lands whole, and neither is
/// put in place before both are written.
///
/// # Errors
/// The operating system's; weights trained whole, for which mlx-lm has no place beside factors.
pub fn save(adapter: &PeftAdapter, folder: &Path) -> Result<()> {
    // A clone without what has a place of its own here.
    let mut rest = adapter.clone();
    rest.extra.retain(|tensor| !tensor.name.ends_with(PEFT_M_END));
    if let Some(what) = rest.beside_pairs() {
        return Err(Error::invalid(format!(
            "an adapter of mlx-lm can't carry {what}: it has room for low-rank pairs and \
             magnitudes only"
        ))
        .with_hint("fold it into the model instead: `lora merge MODEL ADAPTER --output merged`"));
    }
    let scales = adapter.scales()?;
    let scale = most_common(&scales, |scale| scale.to_bits()).unwrap_or(1.0);
    let rank = adapter.factors.iter().map(|factor| factor.rank).max().unwrap_or(1);
    let mut tensors = BTreeMap::new();
    for (factor, own) in adapter.factors.iter().zip(&scales) {
        let mut factor = factor.clone();
        if *own != scale {
            factor.scale_b(own / scale);
        }
        fill_up(&mut factor, rank);
        let Factor { path, d_in, d_out, a, b, .. } = factor;
        tensors.insert(format!("{path}{A_END}"), (vec![d_in, rank], le_bytes(&a)));
        tensors.insert(format!("{path}{B_END}"), (vec![rank, d_out], le_bytes(&b)));
    }
    for NamedTensor { name, shape, data } in &adapter.extra {
        let module = name.strip_suffix(PEFT_M_END).unwrap_or(name);
        tensors.insert(format!("{module}{M_END}"), (shape.clone(), le_bytes(data)));
    }
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name.as_str(), view))
    });
    let refused = |error: safetensors::SafeTensorError| {
        Error::invalid(format!("the adapter can't be saved to `{}`: {error}", folder.display()))
    };
    let views: Vec<_> = views.collect::<std::result::Result<_, _>>().map_err(refused)?;
    let metadata = [("format".to_owned(), "mlx".to_owned())].into();
    let weights = safetensors::serialize(views, Some(metadata)).map_err(refused)?;
    fs::create_dir_all(folder).map_err(|error| Error::write(folder, error))?;
    let weights = files::stage(&folder.join(WEIGHTS_FILE), &weights)?;
    let settings = settings(adapter, rank, scale);
    let settings = files::stage(&folder.join(CONFIG_FILE), settings.as_bytes())?;
    weights.commit()?;
    settings.commit()
}

/// `adapter_config.json`. Modules are named by their whole path, which mlx-lm looks up in the model, so
/// that nothing depends on how many of the last blocks are meant.
fn settings(adapter: &PeftAdapter, rank: usize, scale: f64) -> String {
    let keys: Vec<&str> = adapter.factors.iter().map(|factor| factor.path.as_str()).collect();
    let mut object = json!({
        "fine_tune_type": if adapter.config.lora.use_dora { "dora" } else { "lora" },
        "lora_parameters": {
            "dropout": adapter.config.lora.dropout,
            "keys": keys,
            "rank": rank,
            "scale": scale,
        },
        "num_layers": -1,
    });
    if let Some(model) = &adapter.config.base_model {
        object["model"] = json!(model);
    }
    format!("{object:#}\n")
}

/// What the settings say that the weights do not.
struct Settings {
    /// Magnitudes and directions are apart.
    decomposed: bool,
    scale: f64,
    dropout: f64,
    model: Option<String>,
}

impl Settings {
    fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::malformed(path, reason);
        let keys: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| wrong(format!("not a JSON object: {error}")))?;
        let kind = keys.get("fine_tune_type").and_then(Value::as_str).unwrap_or("lora");
        let what = match kind {
            "lora" | "dora" => None,
            "full" => Some("weights trained whole"),
            _ => Some("adapters of that kind"),
        };
        if let Some(what) = what {
            return Err(wrong(format!("`fine_tune_type` is `{kind}`: {what} are not read"))
                .with_hint(
                    "fuse the adapter with `mlx_lm.fuse` and use the model that it writes",
                ));
        }
        let parameters = keys.get("lora_parameters").and_then(Value::as_object);
        let number = |key: &str| parameters.and_then(|keys| keys.get(key)).and_then(Value::as_f64);
        let Some(scale) = number("scale").filter(|scale| scale.is_finite()) else {
            return Err(wrong("`lora_parameters.scale` is missing or no number".to_owned())
                .with_hint(
                    "the adapter can't be used without it: take the file that mlx-lm wrote",
                ));
        };
        Ok(Self {
            decomposed: kind == "dora",
            scale,
            dropout: number("dropout").filter(|share| (0.0..1.0).contains(share)).unwrap_or(0.0),
            model: keys.get("model").and_then(Value::as_str).map(str::to_owned),
        })
    }
}

fn factor(module: &str, a: &TensorView, b: &TensorView, path: &Path) -> Result<Factor> {
    let wrong = |reason: String| Error::malformed(path, reason);
    if is_embedding(module) {
        let reason = format!("`{module}{A_END}` adapts an embedding, which is not supported");
        return Err(wrong(reason)
            .with_hint("fuse the adapter with `mlx_lm.fuse` and use the model that it writes"));
    }
    let (&[d_in, rank], &[rank_of_b, d_out]) = (a.shape(), b.shape()) else {
        return Err(wrong(format!(
            "`{module}` has factors of shape {:?} and {:?}, not [inputs, rank] and [rank, outputs]",
            a.shape(),
            b.shape()
        )));
    };
    if rank != rank_of_b || [rank, d_in, d_out].contains(&0) {
        return Err(wrong(format!(
            "`{module}` has factors of shape {:?} and {:?}, which are no pair",
            a.shape(),
            b.shape()
        )));
    }
    let (a, b) = (
        read_numbers(&format!("{module}{A_END}"), a, path)?,
        read_numbers(&format!("{module}{B_END}"), b, path)?,
    );
    if let Some(bad) = a.iter().chain(&b).find(|value| !value.is_finite()) {
        return Err(wrong(format!("a factor of `{module}` holds {bad}")));
    }
    Ok(Factor { path: module.to_owned(), d_in, d_out, rank, a, b })
}

/// Makes the rank larger with zeros.
fn fill_up(factor: &mut Factor, rank: usize) {
    let own = factor.rank;
    if own == rank {
        return;
    }
    let mut a = vec![0.0; factor.d_in * rank];
    for (wide, row) in a.chunks_exact_mut(rank).zip(factor.a.chunks_exact(own)) {
        wide[..own].copy_from_slice(row);
    }
    factor.a = a;
    factor.b.resize(rank * factor.d_out, 0.0);
    factor.rank = rank;
}

fn le_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[cfg(test)]
#[path = "mlx_tests.rs"]
mod tests;
