//! Combinations and analyses of adapters against PEFT's and torch's numbers (`fixtures/make_algebra.py`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use lora_core::algebra::low_rank::{Decomposed, updates};
use lora_core::algebra::spectrum::effective_rank;
use lora_core::algebra::subspace::{amplification, similarity};
use lora_core::algebra::{
    Combination, Election, Keep, LowRank, Merge, Weighted, combine, difference, scale, shrink,
};
use lora_core::decompose;
use lora_core::peft::{Factor, PeftAdapter};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Of the largest element: float32 factors, multiplied in another order. A whole update passes through a
/// singular value decomposition in float32 at PEFT.
const FACTORS: f64 = 1e-6;
const UPDATES: f64 = 1e-5;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/algebra")
}

fn adapter(name: &str) -> PeftAdapter {
    PeftAdapter::load(&folder().join(name)).unwrap()
}

/// Shape and numbers of every tensor of a file.
fn tensors(name: &str) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let bytes = std::fs::read(folder().join(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |view: &safetensors::tensor::TensorView<'_>| match view.dtype() {
        Dtype::F32 => {
            let (four, _) = view.data().as_chunks::<4>();
            four.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect()
        }
        Dtype::F64 => {
            let (eight, _) = view.data().as_chunks::<8>();
            eight.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
        }
        other => panic!("{other:?}"),
    };
    file.iter()
        .map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), numbers(&view))))
        .collect()
}

fn cases() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(folder().join("cases.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    json["cases"].as_object().unwrap().clone()
}

/// What the arguments of `add_weighted_adapter` ask for.
fn combination(case: &Value) -> Combination {
    let density = case["density"].as_f64().unwrap_or(f64::NAN);
    let election = match case["majority_sign_method"].as_str() {
        Some("frequency") => Election::Frequency,
        _ => Election::Total,
    };
    let seed = 1;
    let kind = case["combination_type"].as_str().unwrap();
    let merge = match kind.trim_end_matches("_svd") {
        "cat" => return Combination::Beside,
        "linear" | "svd" => Merge::Sum,
        "ties" => Merge::Ties { density, election },
        "dare_linear" => Merge::DareSum { density, seed },
        "dare_ties" => Merge::DareTies { density, election, seed },
        "magnitude_prune" => Merge::PrunedSum { density },
        other => panic!("{other}"),
    };
    if !kind.ends_with("svd") {
        return Combination::OnFactors(merge);
    }
    let rank = case["svd_rank"].as_u64().map(|rank| rank as usize);
    Combination::OnUpdates { merge, rank, clamp: case["svd_clamp"].as_f64() }
}

fn combined(case: &Value) -> PeftAdapter {
    let given = case["adapters"].as_object().unwrap();
    let adapters: Vec<PeftAdapter> = given.keys().map(|name| adapter(name)).collect();
    let weighted: Vec<Weighted<'_>> = given
        .iter()
        .zip(&adapters)
        .map(|((name, weight), adapter)| Weighted {
            name,
            adapter,
            weight: weight.as_f64().unwrap(),
        })
        .collect();
    combine(&weighted, &combination(case)).unwrap().adapter
}

/// Largest difference as a share of the largest element. Theirs is transposed.
fn distance(ours: &[f64], rows: usize, columns: usize, theirs: &(Vec<usize>, Vec<f64>)) -> f64 {
    assert_eq!(theirs.0, [columns, rows], "shape");
    let theirs = decompose::transposed(&theirs.1, columns, rows);
    relative(ours, &theirs)
}

fn relative(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(f64::MIN_POSITIVE, |most, value| most.max(value.abs()));
    let apart = ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs());
    apart.fold(0.0, f64::max) / largest
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

#[test]
fn every_combination_is_pefts() {
    let expected = tensors("expected.safetensors");
    let (mut worst_factor, mut worst_update): (f64, f64) = (0.0, 0.0);
    let cases = cases();
    assert!(cases.len() > 20, "{} cases", cases.len());
    for (name, case) in &cases {
        if case.get("svd_clamp").is_some() {
            continue;
        }
        let found = combined(case);
        let rank = case["r"].as_u64().unwrap() as usize;
        assert_eq!(
            (found.config.lora.rank, found.config.lora.alpha),
            (rank, rank as f64),
            "{name}"
        );
        let layers = expected
            .keys()
            .filter(|key| key.starts_with(&format!("{name}/")) && key.ends_with(".lora_A.weight"));
        assert_eq!(found.factors.len(), layers.count(), "{name}");
        for (factor, update) in found.factors.iter().zip(updates(&found)) {
            let Factor { path, d_in, d_out, rank, a, b } = factor;
            let theirs =
                |end: &str| &expected[&format!("{name}/base_model.model.{path}.{end}.weight")];
            let whole = &expected[&format!("{name}/{path}")];
            let apart = distance(&update.dense(), *d_in, *d_out, whole);
            worst_update = worst_update.max(apart);
            assert!(apart < UPDATES, "{name} {path}: {apart:.1e}");
            if !case["combination_type"].as_str().unwrap().ends_with("svd") {
                let apart = distance(&wide(a), *d_in, *rank, theirs("lora_A")).max(distance(
                    &wide(b),
                    *rank,
                    *d_out,
                    theirs("lora_B"),
                ));
                worst_factor = worst_factor.max(apart);
                assert!(apart < FACTORS, "{name} {path}: {apart:.1e}");
            }
        }
    }
    println!("largest deviation: {worst_factor:.1e} of factors, {worst_update:.1e} of updates");
}

/// Signs of singular vectors are free, and clamping is not the same for both: PEFT's own vectors are clamped.
#[test]
fn clamping_is_pefts() {
    let expected = tensors("expected.safetensors");
    let quantile = cases()["svd_clamp"]["svd_clamp"].as_f64().unwrap();
    for path in adapter("first").factors.iter().map(|factor| &factor.path) {
        let theirs = |case: &str| {
            let tensor =
                |end: &str| &expected[&format!("{case}/base_model.model.{path}.{end}.weight")];
            let (a, b) = (tensor("lora_A"), tensor("lora_B"));
            let (rank, d_in, d_out) = (a.0[0], a.0[1], b.0[0]);
            let a = decompose::transposed(&a.1, rank, d_in);
            LowRank { d_in, d_out, rank, a, b: decompose::transposed(&b.1, d_out, rank) }
        };
        let mut ours = theirs("svd");
        let clamped = theirs("svd_clamp");
        assert!(ours != clamped, "the quantile cuts nothing");
        lora_core::algebra::combine::clamp(&mut ours, quantile);
        let apart = relative(&ours.a, &clamped.a).max(relative(&ours.b, &clamped.b));
        assert!(apart < FACTORS, "{path}: {apart:.1e}");
    }
}

/// An adapter that PEFT scaled is the one that we scale, and a sum that we made is the sum.
#[test]
fn scaling_and_adding_agree_with_peft() {
    let expected = tensors("expected.safetensors");
    let scaled = scale(adapter("first"), -0.5).unwrap();
    for (factor, update) in scaled.factors.iter().zip(updates(&scaled)) {
        let theirs = &expected[&format!("linear_one/{}", factor.path)];
        let apart = distance(&update.dense(), factor.d_in, factor.d_out, theirs);
        assert!(apart < FACTORS, "{}: {apart:.1e}", factor.path);
    }
    let (one, other) = (adapter("first"), adapter("wide"));
    let weighted = [("first", &one, 1.0), ("wide", &other, 1.0), ("first again", &one, -1.0)]
        .map(|(name, adapter, weight)| Weighted { name, adapter, weight });
    let sum = combine(&weighted, &Combination::Beside).unwrap().adapter;
    for layer in difference(&sum, &other).unwrap() {
        assert!(layer.distance < 1e-5 * layer.second.unwrap(), "{layer:?}");
    }
}

#[test]
fn what_is_dropped_at_random_comes_back_on_average() {
    let (first, second) = (adapter("first"), adapter("second"));
    let weighted = [("first", &first, 0.7), ("second", &second, 1.5)]
        .map(|(name, adapter, weight)| Weighted { name, adapter, weight });
    let update = |merge: Merge| {
        let how = Combination::OnUpdates { merge, rank: Some(9), clamp: None };
        updates(&combine(&weighted, &how).unwrap().adapter)[0].dense()
    };
    let exact = update(Merge::Sum);
    const DRAWS: u64 = 400;
    let mut mean = vec![0.0; exact.len()];
    for seed in 0..DRAWS {
        let drawn = update(Merge::DareSum { density: 0.5, seed });
        mean.iter_mut().zip(drawn).for_each(|(mean, value)| *mean += value / DRAWS as f64);
    }
    // Each element varies by about its own size: its mean by a twentieth of that.
    let apart: f64 = mean.iter().zip(&exact).map(|(mean, exact)| (mean - exact).powi(2)).sum();
    let whole: f64 = exact.iter().map(|exact| exact * exact).sum();
    let relative = (apart / whole).sqrt();
    assert!((0.005..0.1).contains(&relative), "{relative}");
}

#[test]
fn spectra_amplification_and_similarity_are_torchs() {
    let expected = tensors("analysis.safetensors");
    let adapters = ["first", "wide"].map(adapter);
    let mut worst: f64 = 0.0;
    let mut check = |what: &str, ours: &[f64], theirs: &[f64]| {
        let apart = relative(ours, theirs);
        worst = worst.max(apart);
        // Both in float64 from the same float32 factors.
        assert!(apart < 1e-10, "{what}: {apart:.1e}");
    };
    for first in &adapters[0].factors {
        let Factor { path, d_in, d_out, .. } = first;
        let (d_in, d_out) = (*d_in, *d_out);
        let stored = &expected[&format!("{path}.weight")].1;
        let weight = decompose::transposed(stored, d_out, d_in);
        let values = Decomposed::of(&weight, d_in, d_out).values;
        check("base", &values, &expected[&format!("{path}.spectrum")].1);
        let mut sides = [Vec::new(), Vec::new()];
        for (name, adapter) in ["first", "wide"].iter().zip(&adapters) {
            let at = adapter.factors.iter().position(|factor| factor.path == *path).unwrap();
            let update = updates(adapter)[at].decompose();
            check("update", &update.values, &expected[&format!("{path}.{name}.spectrum")].1);
            let found = amplification(&update, &weight, Some(&values));
            let numbers = [
                found.update,
                effective_rank(&update.values),
                found.base_in_update,
                found.base_in_base.unwrap(),
                found.factor(),
            ];
            check("numbers", &numbers, &expected[&format!("{path}.{name}.numbers")].1);
            let pair = LowRank::of(&adapter.factors[at], 1.0);
            sides[0].push(decompose::svd(&pair.a, d_in, pair.rank).u);
            let vt = decompose::svd(&pair.b, pair.rank, d_out).vt;
            sides[1].push(decompose::transposed(&vt, pair.rank, d_out));
        }
        for (kind, d, side) in [("a", d_in, &sides[0]), ("b", d_out, &sides[1])] {
            let theirs = &expected[&format!("{path}.similarity_{kind}")].1;
            check("similarity", &similarity(&side[0], &side[1], d), theirs);
        }
    }
    println!("largest deviation: {worst:.1e}");
}

#[test]
fn what_can_not_be_combined_is_named() {
    let (first, wide, third) = (adapter("first"), adapter("wide"), adapter("third"));
    let mut other_shape = first.clone();
    other_shape.factors[0].d_in += 1;
    let mut saving = first.clone();
    saving.config.lora.modules_to_save = vec!["head".into()];
    let head = lora_core::peft::NamedTensor {
        name: "head.weight".into(),
        shape: vec![1],
        data: vec![1.0],
    };
    saving.saved = vec![head];
    let failure = |pairs: &[(&str, &PeftAdapter, f64)], how: Combination| {
        let weighted: Vec<Weighted<'_>> = pairs
            .iter()
            .map(|&(name, adapter, weight)| Weighted { name, adapter, weight })
            .collect();
        let error = combine(&weighted, &how).unwrap_err();
        format!("{error}\n  hint: {}", error.hint().unwrap_or("none"))
    };
    let svd = |merge, rank, clamp| Combination::OnUpdates { merge, rank, clamp };
    let both: [(&str, &PeftAdapter, f64); 2] = [("first", &first, 1.0), ("third", &third, 1.0)];
    let messages = [
        failure(&[], Combination::Beside),
        failure(&[("first", &first, f64::NAN)], Combination::Beside),
        failure(
            &[("first", &first, 1.0), ("wide", &wide, 1.0)],
            Combination::OnFactors(Merge::Sum),
        ),
        failure(&[("first", &first, 1.0), ("other", &other_shape, 1.0)], Combination::Beside),
        failure(&[("one", &saving, 1.0), ("two", &saving, 1.0)], Combination::Beside),
        failure(&both, Combination::OnFactors(Merge::PrunedSum { density: 0.0 })),
        failure(&both, svd(Merge::Sum, Some(0), None)),
        failure(&both, svd(Merge::Sum, None, Some(0.2))),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

/// What a method stores beside its pairs neither adds up nor scales.
#[test]
fn methods_with_more_than_pairs_are_refused() {
    let messages =
        ["llama/dora", "llama/tokens", "llama/pissa", "qwen2/lora_bias", "qwen2/bias_all"].map(
            |name| {
                let parity = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/parity");
                let adapter = PeftAdapter::load(&parity.join(name)).unwrap();
                let weighted = [Weighted { name, adapter: &adapter, weight: 1.0 }];
                let reason = combine(&weighted, &Combination::Beside).unwrap_err().to_string();
                let shrunk = shrink(&adapter, Keep::Rank(1)).unwrap_err().to_string();
                assert_eq!(shrunk, scale(adapter, 2.0).unwrap_err().to_string());
                reason
            },
        );
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn targets_are_those_of_all_and_the_result_can_be_read() {
    let (first, third) = (adapter("first"), adapter("third"));
    let mut saving = third.clone();
    saving.config.lora.modules_to_save = vec!["head".into()];
    let head = lora_core::peft::NamedTensor {
        name: "head.weight".into(),
        shape: vec![2],
        data: vec![1.0, 2.0],
    };
    saving.saved = vec![head];
    saving.config.base_model = Some("another".into());
    let weighted = [("first", &first), ("third", &saving)].map(|(name, adapter)| Weighted {
        name,
        adapter,
        weight: 0.5,
    });
    let combined = combine(&weighted, &Combination::Beside).unwrap();
    assert_eq!(
        combined.notes,
        [
            "`head.weight` taken from `third` as it is, whatever its weight",
            "the adapters name different base models: an unnamed model and `another`",
        ]
    );
    let folder = tempfile::tempdir().unwrap();
    combined.adapter.save(folder.path()).unwrap();
    let read = PeftAdapter::load(folder.path()).unwrap();
    assert_eq!((read.factors.len(), read.saved.len()), (4, 1));
    // Exclusions that differ leave only the paths themselves.
    let mut excluding = first.clone();
    excluding.config.lora.exclude = vec!["blocks.0.q_proj".into()];
    excluding.factors.retain(|factor| factor.path != "blocks.0.q_proj");
    let weighted = [("first", &first), ("excluding", &excluding)].map(|(name, adapter)| Weighted {
        name,
        adapter,
        weight: 1.0,
    });
    let combined = combine(&weighted, &Combination::OnFactors(Merge::Sum)).unwrap();
    combined.adapter.save(folder.path()).unwrap();
    assert_eq!(PeftAdapter::load(folder.path()).unwrap().factors.len(), 4);
}
