//! `lora adapter diff` and `verify`: what adapters are, in numbers.

use std::path::Path;

use lora_core::algebra::{self, Difference, Norms};
use lora_core::config::{LoraConfig, TargetModules};
use lora_core::peft::PeftAdapter;
use lora_models::adaptable;
use serde_json::{Value, json};

use super::super::{inspect, open};
use crate::args::adapter::{DiffArguments, VerifyArguments};
use crate::style;

/// Compares two adapters.
pub(super) fn diff(arguments: &DiffArguments) -> anyhow::Result<()> {
    let first = open::read_adapter(&arguments.first, None, arguments.json)?;
    let second = open::read_adapter(&arguments.second, None, arguments.json)?;
    let layers = algebra::difference(&first, &second)?;
    for (path, adapter) in [(&arguments.first, &first), (&arguments.second, &second)] {
        if !arguments.json && !adapter.extra.is_empty() {
            let (path, beside) = (path.display(), super::beside_pairs(adapter));
            super::warn(&format!("only low-rank pairs are compared; `{path}` also has {beside}"));
        }
    }
    let settings = settings(&first, &second);
    if arguments.json {
        let object = json!({
            "settings": settings.iter().map(|(name, [one, other])| json!({
                "name": name, "first": one, "second": other,
            })).collect::<Vec<_>>(),
            "layers": layers.iter().map(difference_json).collect::<Vec<_>>(),
            "all": difference_json(&together(&layers)),
        });
        style::out_line(&object.to_string())?;
        return Ok(());
    }
    let mut rows = vec![vec!["".to_string(), shown(&arguments.first), shown(&arguments.second)]];
    rows.extend(
        settings.into_iter().map(|(name, [one, other])| vec![name.to_string(), one, other]),
    );
    let mut text = match rows.len() {
        1 => "settings are the same\n".to_string(),
        _ => style::table(&rows),
    };
    text.push('\n');
    text.push_str(&difference_table(&layers));
    style::out(&text)?;
    Ok(())
}

/// Checks an adapter and prints its norms.
pub(super) fn verify(arguments: &VerifyArguments) -> anyhow::Result<()> {
    let (offline, quiet) = (arguments.hub.offline, arguments.json);
    let model = match &arguments.model {
        Some(model) => Some(open::open_checkpoint(model, offline, quiet)?.config),
        None => None,
    };
    let adapter = open::read_adapter(&arguments.adapter, model.as_ref(), quiet)?;
    let fits = match &model {
        Some(config) => {
            let modules = adaptable(config);
            Some((adapter.fit(&modules)?.len(), modules.len()))
        }
        None => None,
    };
    let norms = algebra::verify(&adapter);
    let idle = norms.iter().filter(|layer| layer.update == 0.0).count();
    if arguments.json {
        let object = json!({
            "tensors": 2 * norms.len() + adapter.saved.len() + adapter.extra.len(),
            "layers": norms.iter().map(norms_json).collect::<Vec<_>>(),
            "saved": adapter.saved.iter().map(|tensor| json!({
                "name": tensor.name, "shape": tensor.shape,
            })).collect::<Vec<_>>(),
            "without_effect": idle,
            "fits": fits.map(|(adapted, _)| adapted),
        });
        style::out_line(&object.to_string())?;
        return Ok(());
    }
    let count = 2 * norms.len() + adapter.saved.len() + adapter.extra.len();
    let tensors = style::counted(count as u64, "tensor", "tensors");
    let mut rows = vec![
        ("adapter", shown(&arguments.adapter)),
        (
            "settings",
            format!("rank {}, alpha {}", inspect::ranks(&adapter), adapter.config.lora.alpha),
        ),
        ("tensors", format!("{tensors}: every name, shape and number is as it should be")),
    ];
    if !adapter.saved.is_empty() {
        let names: Vec<&str> = adapter.saved.iter().map(|tensor| tensor.name.as_str()).collect();
        rows.push(("saved whole", names.join(", ")));
    }
    if !adapter.extra.is_empty() {
        rows.push(("beside the pairs", super::beside_pairs(&adapter)));
    }
    match (&arguments.model, fits) {
        (Some(model), Some((adapted, all))) => {
            rows.push(("model", format!("fits `{model}`: {adapted} of {all} modules adapted")));
        }
        _ => rows.push(("model", "not compared; --model checks that it fits".to_string())),
    }
    match idle {
        0 => {}
        _ if idle == norms.len() => {
            rows.push(("note", "every update is zero: this adapter changes nothing".to_string()));
        }
        _ => rows.push(("note", format!("{idle} of {} updates are zero", norms.len()))),
    }
    let mut text = style::fields(&rows);
    text.push('\n');
    text.push_str(&norms_table(&norms));
    style::out(&text)?;
    Ok(())
}

/// Settings that differ, each with both values.
fn settings(first: &PeftAdapter, second: &PeftAdapter) -> Vec<(&'static str, [String; 2])> {
    let both = [first, second];
    let of = |show: &dyn Fn(&PeftAdapter) -> String| both.map(show);
    let lora = |show: &dyn Fn(&LoraConfig) -> String| both.map(|it| show(&it.config.lora));
    let patterns = |it: &LoraConfig| match (it.rank_pattern.len(), it.alpha_pattern.len()) {
        (0, 0) => "none".to_string(),
        (ranks, alphas) => format!("{ranks} for rank, {alphas} for alpha"),
    };
    let all = vec![
        ("base", of(&|it| it.config.base_model.clone().unwrap_or_else(|| "not said".to_string()))),
        ("rank", of(&inspect::ranks)),
        ("alpha", lora(&|it| it.alpha.to_string())),
        ("scale", lora(&|it| if it.use_rslora { "α/√r" } else { "α/r" }.to_string())),
        ("patterns", lora(&patterns)),
        ("dropout", lora(&|it| it.dropout.to_string())),
        ("targets", lora(&targets)),
        ("layers", of(&|it| it.factors.len().to_string())),
        ("saved whole", of(&|it| it.saved.len().to_string())),
    ];
    all.into_iter().filter(|(_, [one, other])| one != other).collect()
}

fn targets(lora: &LoraConfig) -> String {
    match &lora.target {
        TargetModules::AllLinear => "all linear layers".to_string(),
        TargetModules::Suffixes(names) if names.len() > 8 => format!("{} names", names.len()),
        TargetModules::Suffixes(names) => {
            let mut names = names.clone();
            names.sort_unstable();
            names.join(", ")
        }
        TargetModules::Regex(pattern) => format!("regex {pattern}"),
    }
}

/// All layers as one: norms and distances as of one long vector.
fn together(layers: &[Difference]) -> Difference {
    let root = |of: &dyn Fn(&Difference) -> f64| {
        layers.iter().map(|layer| of(layer).powi(2)).sum::<f64>().sqrt()
    };
    let first = root(&|layer| layer.first.unwrap_or(0.0));
    let second = root(&|layer| layer.second.unwrap_or(0.0));
    let inner: f64 = layers
        .iter()
        .map(|it| it.cosine.unwrap_or(0.0) * it.first.unwrap_or(0.0) * it.second.unwrap_or(0.0))
        .sum();
    Difference {
        path: "all".to_string(),
        first: Some(first),
        second: Some(second),
        distance: root(&|layer| layer.distance),
        cosine: (first * second > 0.0).then(|| inner / (first * second)),
    }
}

fn difference_table(layers: &[Difference]) -> String {
    let head = ["layer", "‖ΔW₁‖", "‖ΔW₂‖", "‖ΔW₁−ΔW₂‖", "of ‖ΔW₁‖", "cosine"];
    let mut rows = vec![head.map(str::to_string).to_vec()];
    let all = together(layers);
    for layer in layers.iter().chain([&all]) {
        let norm = |norm: Option<f64>| norm.map_or("–".to_string(), style::number);
        let relative = layer.first.filter(|&norm| norm > 0.0);
        rows.push(vec![
            layer.path.clone(),
            norm(layer.first),
            norm(layer.second),
            style::number(layer.distance),
            relative.map_or("–".to_string(), |norm| {
                format!("{:.2} %", 100.0 * layer.distance / norm)
            }),
            layer.cosine.map_or("–".to_string(), |cosine| format!("{cosine:.4}")),
        ]);
    }
    style::table(&rows)
}

fn norms_table(norms: &[Norms]) -> String {
    let head = ["layer", "in × out", "rank", "scale", "‖A‖", "‖B‖", "‖ΔW‖", "largest"];
    let mut rows = vec![head.map(str::to_string).to_vec()];
    rows.extend(norms.iter().map(|layer| {
        vec![
            layer.path.clone(),
            format!("{} × {}", layer.d_in, layer.d_out),
            layer.rank.to_string(),
            style::number(layer.scaling),
            style::number(layer.a),
            style::number(layer.b),
            style::number(layer.update),
            style::number(f64::from(layer.largest)),
        ]
    }));
    style::table(&rows)
}

fn difference_json(layer: &Difference) -> Value {
    json!({
        "layer": layer.path, "first": layer.first, "second": layer.second, "distance": layer.distance,
        "cosine": layer.cosine,
    })
}

fn norms_json(layer: &Norms) -> Value {
    json!({
        "layer": layer.path, "d_in": layer.d_in, "d_out": layer.d_out, "rank": layer.rank,
        "scale": layer.scaling, "a": layer.a, "b": layer.b, "update": layer.update,
        "largest": layer.largest,
    })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
