//! `lora analyze`: what adapters do to their model, as tables, plots and JSON. Here the numbers are gathered,
//! layer by layer; `tables`, `plots` and `json` show them.

mod json;
mod plots;
mod tables;

use std::collections::BTreeMap;
use std::path::Path;

use lora_core::algebra::LowRank;
use lora_core::algebra::subspace::{Amplification, amplification, similarity};
use lora_core::decompose;
use lora_core::peft::{Factor, PeftAdapter};
use lora_core::target::LinearInfo;
use lora_models::checkpoint::Checkpoint;
use lora_models::{adaptable, linear_infos};

use super::{linear_weights, open};
use crate::args::analyze::AnalyzeArguments;
use crate::progress::Waiting;
use crate::style::{self, Problem};

/// Weights with a smaller side above this are not decomposed whole: each would take minutes.
const LARGEST_SIDE: usize = 2048;

/// All numbers of one analysis.
struct Analysis {
    /// The base model, where one was named.
    model: Option<String>,
    /// The adapters by the names that were given.
    adapters: Vec<String>,
    /// In the order of blocks and names.
    layers: Vec<Layer>,
}

/// The numbers of one layer.
struct Layer {
    path: String,
    d_in: usize,
    d_out: usize,
    base: Option<Base>,
    /// One for each adapter, if it adapts this layer.
    updates: Vec<Option<Update>>,
    /// Of two adapters that both adapt this layer.
    similarity: Option<Similarity>,
}

/// A base weight.
struct Base {
    norm: f64,
    /// Singular values; `None` where the weight is too large.
    values: Option<Vec<f64>>,
}

/// An update ΔW.
struct Update {
    rank: usize,
    values: Vec<f64>,
    amplification: Option<Amplification>,
}

/// How alike the directions of two adapters are: φ(i, j) row by row.
struct Similarity {
    /// Directions of the two: their ranks.
    ranks: [usize; 2],
    /// Of the directions of A, among the inputs.
    inputs: Vec<f64>,
    /// Of the directions of B, among the outputs.
    outputs: Vec<f64>,
}

/// Gathers the numbers, prints tables, and writes plots where asked to.
pub(crate) fn run(arguments: &AnalyzeArguments) -> anyhow::Result<()> {
    check(arguments)?;
    let quiet = arguments.quiet.quiet;
    let model = match &arguments.model {
        Some(model) => Some(open::open_checkpoint(model, arguments.hub.offline, quiet)?),
        None => None,
    };
    let config = model.as_ref().map(|model| &model.config);
    let mut adapters = Vec::new();
    for folder in &arguments.adapter {
        let adapter = open::read_adapter(folder, config, quiet)?;
        if !quiet && !adapter.extra.is_empty() {
            let (folder, beside) = (folder.display(), super::adapter::beside_pairs(&adapter));
            style::say(&format!("`{folder}` also has {beside}; ΔW is s·B·A here, without them"));
        }
        adapters.push(adapter);
    }
    let linears = layers(model.as_ref(), &adapters, &arguments.targets)?;
    let mut layers = Vec::with_capacity(linears.len());
    for (at, linear) in linears.iter().enumerate() {
        let what = format!("layer {} of {}: {}", at + 1, linears.len(), linear.path);
        let waiting = Waiting::start(&what, quiet);
        layers.push(layer(linear, model.as_ref(), &adapters)?);
        drop(waiting);
    }
    let large =
        layers.iter().filter(|it| it.base.as_ref().is_some_and(|base| base.values.is_none()));
    let large = large.count() as u64;
    if large > 0 && !quiet {
        style::say(&format!(
            "{} whose smaller side is above {LARGEST_SIDE}: no spectra of their base weights",
            style::counted(large, "layer", "layers")
        ));
    }
    let analysis = Analysis {
        model: arguments.model.clone(),
        adapters: arguments.adapter.iter().map(|path| path.display().to_string()).collect(),
        layers,
    };
    style::out(&tables::tables(&analysis, arguments.each))?;
    if let Some(folder) = &arguments.output {
        write(&analysis, folder, quiet)?;
    }
    Ok(())
}

fn check(arguments: &AnalyzeArguments) -> anyhow::Result<()> {
    if arguments.model.is_none() && arguments.adapter.is_empty() {
        let problem = Problem::new("there is nothing to analyze");
        return Err(problem.with_hint("name a model, an adapter with --adapter, or both").into());
    }
    if arguments.adapter.len() > 2 {
        let problem =
            Problem::new(format!("{} adapters: two can be compared", arguments.adapter.len()));
        return Err(problem.with_hint("name --adapter once or twice").into());
    }
    match &arguments.output {
        Some(folder) if folder.exists() => {
            let reason = format!("`{}` exists, and nothing is overwritten", folder.display());
            Err(Problem::new(reason).with_hint("name a folder that does not exist").into())
        }
        _ => Ok(()),
    }
}

/// The layers to look at: those of the adapters, or all of a model without one.
fn layers(
    model: Option<&Checkpoint>,
    adapters: &[PeftAdapter],
    targets: &[String],
) -> anyhow::Result<Vec<LinearInfo>> {
    if let Some(model) = model {
        let modules = adaptable(&model.config);
        for adapter in adapters {
            adapter.fit(&modules)?;
        }
    }
    let linears = match model {
        Some(model) if adapters.is_empty() => linear_infos(&model.config),
        _ => adapted(adapters)?,
    };
    let mut linears = linear_weights::chosen(linears, targets)?;
    linears.sort_by_key(|linear| (linear_weights::block(&linear.path), linear.path.clone()));
    Ok(linears)
}

/// The layers that any of the adapters adapts.
fn adapted(adapters: &[PeftAdapter]) -> anyhow::Result<Vec<LinearInfo>> {
    let mut layers: BTreeMap<&str, LinearInfo> = BTreeMap::new();
    for Factor { path, d_in, d_out, .. } in adapters.iter().flat_map(|adapter| &adapter.factors) {
        let (d_in, d_out) = (*d_in, *d_out);
        let found = layers.entry(path).or_insert_with(|| LinearInfo {
            path: path.clone(),
            d_in,
            d_out,
            is_output_head: false,
        });
        if (found.d_in, found.d_out) != (d_in, d_out) {
            let reason = format!(
                "the adapters are for different models: `{path}` is {} × {} in one and {d_in} × {d_out} in the \
                 other",
                found.d_in, found.d_out
            );
            let hint = "compare adapters of one base model";
            return Err(Problem::new(reason).with_hint(hint).into());
        }
    }
    Ok(layers.into_values().collect())
}

fn layer(
    linear: &LinearInfo,
    model: Option<&Checkpoint>,
    adapters: &[PeftAdapter],
) -> anyhow::Result<Layer> {
    let &LinearInfo { d_in, d_out, .. } = linear;
    let weight = match model {
        Some(model) => Some(linear_weights::read(model, linear)?),
        None => None,
    };
    let base = weight.as_ref().map(|weight| Base {
        norm: weight.iter().map(|value| value * value).sum::<f64>().sqrt(),
        values: (d_in.min(d_out) <= LARGEST_SIDE).then(|| decompose::svd(weight, d_in, d_out).s),
    });
    let values = base.as_ref().and_then(|base| base.values.as_deref());
    let factors: Vec<Option<&Factor>> = adapters
        .iter()
        .map(|adapter| adapter.factors.iter().find(|factor| factor.path == linear.path))
        .collect();
    let updates = adapters.iter().zip(&factors).map(|(adapter, factor)| {
        let factor = (*factor)?;
        let scaling = adapter.config.lora.scaling_for(&factor.path);
        let found = LowRank::of(factor, scaling).decompose();
        let amplification = weight.as_ref().map(|weight| amplification(&found, weight, values));
        Some(Update { rank: factor.rank, values: found.values, amplification })
    });
    let updates = updates.collect();
    let similarity = match factors.as_slice() {
        [Some(first), Some(second)] => Some(compared(first, second)),
        _ => None,
    };
    Ok(Layer { path: linear.path.clone(), d_in, d_out, base, updates, similarity })
}

/// The directions of A with those of A, and of B with those of B, the strongest first.
fn compared(first: &Factor, second: &Factor) -> Similarity {
    let both = [first, second];
    let counts = both.map(|factor| factor.rank.min(factor.d_in).min(factor.d_out));
    let directions = |at: usize| {
        let pair = LowRank::of(both[at], 1.0);
        let inputs = decompose::svd(&pair.a, pair.d_in, pair.rank).u;
        let turned = decompose::svd(&pair.b, pair.rank, pair.d_out);
        let outputs = decompose::transposed(&turned.vt, turned.s.len(), pair.d_out);
        let first = |all: &[f64], d: usize| -> Vec<f64> {
            all.chunks_exact(all.len() / d).flat_map(|row| &row[..counts[at]]).copied().collect()
        };
        (first(&inputs, pair.d_in), first(&outputs, pair.d_out))
    };
    let (ours, theirs) = (directions(0), directions(1));
    Similarity {
        ranks: counts,
        inputs: similarity(&ours.0, &theirs.0, first.d_in),
        outputs: similarity(&ours.1, &theirs.1, first.d_out),
    }
}

/// Writes plots and numbers into a new folder, whole.
fn write(analysis: &Analysis, folder: &Path, quiet: bool) -> anyhow::Result<()> {
    let waiting = Waiting::start("drawing", quiet);
    let plots = plots::plots(analysis);
    lora_core::files::create_folder_whole(folder, |scratch| {
        for (name, picture) in &plots {
            let file = |extension: &str| scratch.join(format!("{name}.{extension}"));
            lora_core::files::write_whole(&file("svg"), crate::plot::svg(picture).as_bytes())?;
            lora_core::files::write_whole(&file("png"), &crate::plot::png(picture)?)?;
        }
        let text = format!("{:#}\n", json::json(analysis));
        lora_core::files::write_whole(&scratch.join("analysis.json"), text.as_bytes())?;
        Ok::<_, anyhow::Error>(())
    })?;
    drop(waiting);
    for (name, _) in &plots {
        style::out_line(&folder.join(format!("{name}.svg")).display().to_string())?;
        style::out_line(&folder.join(format!("{name}.png")).display().to_string())?;
    }
    style::out_line(&folder.join("analysis.json").display().to_string())?;
    Ok(())
}
