//! The linear layers of an opened checkpoint, one by one, as matrices to calculate with.

use lora_core::target::{LinearInfo, is_embedding};
use lora_models::checkpoint::Checkpoint;
use lora_models::modules::HEAD;

use crate::style::Problem;

/// The weight of a layer, `[d_in, d_out]` row-major.
pub(crate) fn read(checkpoint: &Checkpoint, linear: &LinearInfo) -> anyhow::Result<Vec<f64>> {
    let (key, weights) = (key(checkpoint, linear), &checkpoint.weights);
    let (d_in, d_out) = (linear.d_in, linear.d_out);
    let straight = is_embedding(&linear.path)
        || (checkpoint.config.modules.fan_in_fan_out && linear.path != HEAD);
    let expected = if straight { [d_in, d_out] } else { [d_out, d_in] };
    let shape = weights.shape(&key);
    if shape.as_deref() != Some(&expected) {
        let reason = match shape {
            Some(shape) => format!("tensor `{key}` has shape {shape:?}, not {expected:?}"),
            None => format!("tensor `{key}` is missing"),
        };
        let path = weights.path().display();
        return Err(Problem::new(format!("`{path}`: {reason}"))
            .with_hint("config.json and the weights do not belong together")
            .into());
    }
    let stored = weights.read_f32(&key)?;
    if straight {
        return Ok(stored.into_iter().map(f64::from).collect());
    }
    let mut turned = Vec::with_capacity(stored.len());
    for input in 0..d_in {
        turned.extend(stored.iter().skip(input).step_by(d_in).map(|&value| f64::from(value)));
    }
    Ok(turned)
}

/// The tensor that holds a layer's weight: for a tied head, the embedding.
pub(crate) fn key(checkpoint: &Checkpoint, linear: &LinearInfo) -> String {
    let config = &checkpoint.config;
    let tied = linear.path == HEAD && config.tie_word_embeddings;
    let path = if tied { config.modules.embedding } else { linear.path.as_str() };
    checkpoint.stored_name(&format!("{path}.weight"))
}

/// The layers whose names end so; without names, all but the output head.
pub(crate) fn chosen(
    linears: Vec<LinearInfo>,
    names: &[String],
) -> anyhow::Result<Vec<LinearInfo>> {
    if names.is_empty() {
        return Ok(linears.into_iter().filter(|linear| !linear.is_output_head).collect());
    }
    let ends = |path: &str, name: &str| {
        path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if let Some(name) = names.iter().find(|name| !linears.iter().any(|it| ends(&it.path, name))) {
        let mut kinds: Vec<&str> = linears.iter().map(|linear| kind(&linear.path)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        return Err(Problem::new(format!("`{name}` in --targets is no linear layer of the model"))
            .with_hint(format!("its layers are called {}", kinds.join(", ")))
            .into());
    }
    let is_chosen = |linear: &LinearInfo| names.iter().any(|name| ends(&linear.path, name));
    Ok(linears.into_iter().filter(is_chosen).collect())
}

/// Last part of a path: what layers of one kind have in common.
pub(crate) fn kind(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The first number in a path: which block it lies in.
pub(crate) fn block(path: &str) -> Option<usize> {
    path.split('.').find_map(|part| part.parse().ok())
}
