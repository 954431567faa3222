//! The plots of an analysis.

use std::collections::BTreeMap;

use lora_core::algebra::spectrum::effective_rank;
use lora_core::algebra::subspace::Amplification;

use super::super::linear_weights::{block, kind};
use super::{Analysis, Layer, Similarity, Update};
use crate::plot::{Chart, HeatMap, Picture, Point, Series, heat_map, lines};

/// Every plot that there are numbers for, with the name of its file.
pub(super) fn plots(analysis: &Analysis) -> Vec<(String, Picture)> {
    let layers = &analysis.layers;
    let mut plots = Vec::new();
    let mut add = |name: String, chart: Chart| {
        if chart.series.iter().any(|series| !series.points.is_empty()) {
            plots.push((name, lines(&chart)));
        }
    };
    if let Some(model) = analysis.model.as_deref().map(short) {
        let base = |layer: &Layer| layer.base.as_ref()?.values.clone();
        let title = format!("Singular values of the base weights, {model}");
        add("base_spectra".to_string(), spectra(layers, base, title, "σ (W), mean over layers"));
    }
    for (at, name) in analysis.adapters.iter().map(|name| short(name)).enumerate() {
        let number =
            if analysis.adapters.len() > 1 { format!("_{}", at + 1) } else { String::new() };
        let update = |layer: &Layer| layer.updates[at].as_ref().map(|it| it.values.clone());
        let title = format!("Singular values of the updates, {name}");
        add(
            format!("update_spectra{number}"),
            spectra(layers, update, title, "σ (ΔW), mean over layers"),
        );
        let of = |measure: fn(&Update) -> Option<f64>| {
            by_block(layers, move |layer| measure(layer.updates[at].as_ref()?))
        };
        let chart = |title: String, y: &str, series: Vec<Series>| Chart {
            title,
            x: "block".to_string(),
            y: y.to_string(),
            logarithmic: false,
            series,
        };
        let ranks = of(|update| Some(effective_rank(&update.values)));
        let title = format!("Effective rank of the updates, {name}");
        add(format!("effective_rank{number}"), chart(title, "effective rank of ΔW", ranks));
        let factors = of(|update| {
            update.amplification.as_ref().filter(|it| it.rank > 0).map(Amplification::factor)
        });
        let title = format!("Amplification, {name}");
        add(format!("amplification{number}"), chart(title, "‖ΔW‖ / ‖UᵀWV‖", factors));
    }
    plots.extend(similarities(analysis));
    plots
}

/// A line for each kind of module: the mean of its layers' singular values.
fn spectra(
    layers: &[Layer],
    values: impl Fn(&Layer) -> Option<Vec<f64>>,
    title: String,
    y: &str,
) -> Chart {
    let mut kinds: BTreeMap<&str, Vec<Vec<f64>>> = BTreeMap::new();
    for layer in layers {
        if let Some(values) = values(layer) {
            kinds.entry(kind(&layer.path)).or_default().push(values);
        }
    }
    let series = kinds.into_iter().map(|(name, spectra)| {
        let longest = spectra.iter().map(Vec::len).max().unwrap_or(0);
        let point = |at: usize| {
            let there: Vec<f64> = spectra.iter().filter_map(|it| it.get(at).copied()).collect();
            (at as f64 + 1.0, there.iter().sum::<f64>() / there.len() as f64)
        };
        Series { name: name.to_string(), points: (0..longest).map(point).collect() }
    });
    let series = series.collect();
    Chart {
        title,
        x: "number of the singular value".to_string(),
        y: y.to_string(),
        logarithmic: true,
        series,
    }
}

/// A line for each kind of module, over the blocks of the model.
fn by_block(layers: &[Layer], measure: impl Fn(&Layer) -> Option<f64>) -> Vec<Series> {
    let mut kinds: BTreeMap<&str, Vec<Point>> = BTreeMap::new();
    for layer in layers {
        if let (Some(block), Some(value)) = (block(&layer.path), measure(layer)) {
            kinds.entry(kind(&layer.path)).or_default().push((block as f64, value));
        }
    }
    let series = |(name, points): (&str, Vec<Point>)| Series { name: name.to_string(), points };
    kinds.into_iter().map(series).collect()
}

/// A map for each kind of module: φ(i, j) of A, the mean over its layers of equal ranks.
fn similarities(analysis: &Analysis) -> Vec<(String, Picture)> {
    let [first, second] = analysis.adapters.as_slice() else { return Vec::new() };
    let (first, second) = (short(first), short(second));
    let mut kinds: BTreeMap<&str, Vec<&Similarity>> = BTreeMap::new();
    for layer in &analysis.layers {
        if let Some(found) = &layer.similarity {
            let alike = kinds.entry(kind(&layer.path)).or_default();
            if alike.first().is_none_or(|first| first.ranks == found.ranks) {
                alike.push(found);
            }
        }
    }
    let map = |(name, layers): (&str, Vec<&Similarity>)| {
        let mean =
            |at: usize| layers.iter().map(|it| it.inputs[at]).sum::<f64>() / layers.len() as f64;
        let map = HeatMap {
            title: format!("Subspace similarity of A, {name}"),
            x: format!("first j directions of {second}"),
            y: format!("first i directions of {first}"),
            scale: "φ (i, j)".to_string(),
            columns: layers[0].ranks[1],
            values: (0..layers[0].inputs.len()).map(mean).collect(),
        };
        (format!("similarity_{name}"), heat_map(&map))
    };
    kinds.into_iter().map(map).collect()
}

/// The last two parts of a path: a title has no room for more.
fn short(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.rmatch_indices('/').nth(1).map_or(path, |(at, _)| &path[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_name_the_end_of_a_path() {
        let names =
            ["runs/first", "first", "a/runs/first/adapter/", "org/name", "builtin:"].map(short);
        assert_eq!(names, ["runs/first", "first", "first/adapter", "org/name", "builtin:"]);
    }
}
