//! `lora adapter` and `lora analyze`, on the tiny model and adapters made for it.

use std::fs;

use lora_core::algebra::low_rank::updates;
use lora_core::config::{LoraConfig, TargetModules};
use lora_core::peft::{Factor, PeftAdapter, PeftConfig};
use serde_json::Value;

use super::lab::Lab;
use super::tiny;

/// Adapters on queries and on the layers down: `one` and `two` of rank 2, `three` of rank 3.
fn lab() -> Lab {
    let lab = Lab::new();
    tiny::write_model(&lab);
    for (name, rank, seed) in [("one", 2, 1), ("two", 2, 2), ("three", 3, 3)] {
        adapter(rank, seed).save(&lab.path(name)).expect("the adapter is written");
    }
    lab
}

fn adapter(rank: usize, seed: usize) -> PeftAdapter {
    let mut lora = LoraConfig::new(rank, 4.0);
    lora.target = TargetModules::Suffixes(vec!["q_proj".into(), "down_proj".into()]);
    let numbers = |from: usize, count: usize| -> Vec<f32> {
        let number = |i: usize| ((i * i * 29 + i * 13 + from * 71 + seed * 17) as f32 * 0.37).sin();
        (0..count).map(|i| 0.2 * number(i)).collect()
    };
    let mut factors = Vec::new();
    for block in 0..2 {
        for (layer, d_in, d_out) in [("self_attn.q_proj", 16, 16), ("mlp.down_proj", 24, 16)] {
            let (a, b) = (numbers(block, d_in * rank), numbers(block + 5, rank * d_out));
            let path = format!("model.layers.{block}.{layer}");
            factors.push(Factor { path, d_in, d_out, rank, a, b });
        }
    }
    PeftAdapter::new(PeftConfig::new(lora, Some("model".into())), factors)
}

fn succeeds(lab: &Lab, arguments: &[&str]) -> String {
    let shown = lab.lora(arguments);
    assert!(shown.contains("exit status: 0\n"), "{shown}");
    shown
}

#[test]
fn help_explains_every_operation() {
    let lab = Lab::new();
    for operation in [
        "add",
        "scale",
        "linear",
        "cat",
        "svd",
        "ties",
        "dare",
        "magnitude-prune",
        "extract",
        "shrink",
        "diff",
        "verify",
    ] {
        let name = format!("help_adapter_{}", operation.replace('-', "_"));
        lab.check_lora_exactly(&name, &["adapter", operation, "--help"]);
    }
}

#[test]
fn combining() {
    let lab = lab();
    for (name, arguments) in [
        ("add", &["add", "one", "three"][..]),
        ("scale", &["scale", "one", "--by", "-0.5"]),
        ("linear", &["linear", "one=0.5", "two"]),
        ("cat", &["cat", "one=0.5", "two", "three=-1"]),
        ("svd", &["svd", "one", "three=2", "--rank", "4"]),
        ("ties", &["ties", "one", "two", "--density", "0.5", "--signs", "frequency"]),
        ("dare", &["dare", "one", "two", "--density", "0.5", "--then", "ties", "--seed", "3"]),
        ("magnitude_prune", &["magnitude_prune", "one", "two", "--density", "0.5", "--svd"]),
    ] {
        let output = format!("made/{name}");
        let arguments = [&["adapter"], arguments, &["--output", &output]].concat();
        lab.check_lora_exactly(&format!("adapter_{name}"), &arguments);
        // What was made is an adapter of the model.
        succeeds(&lab, &["adapter", "verify", &output, "--model", "model"]);
    }
    // Shrunk to the rank that it really has, a sum is still the sum.
    succeeds(&lab, &["adapter", "add", "one", "one=0.5", "--output", "more"]);
    succeeds(&lab, &["adapter", "shrink", "more", "--rank", "2", "--output", "small"]);
    succeeds(&lab, &["adapter", "scale", "one", "--by", "1.5", "--output", "scaled"]);
    let output = lab.output(&["adapter", "diff", "small", "scaled", "--json"], b"");
    let found: Value = serde_json::from_slice(&output.stdout).expect("diff printed JSON");
    let (apart, norm) = (&found["all"]["distance"], &found["all"]["first"]);
    assert!(apart.as_f64() < norm.as_f64().map(|norm| 1e-6 * norm), "{found}");
}

#[test]
fn nothing_is_overwritten_unless_asked_to() {
    let lab = lab();
    let add = ["adapter", "add", "one", "two", "--output"];
    let before =
        fs::read(lab.path("three/adapter_model.safetensors")).expect("the adapter is there");
    lab.check_lora_exactly("adapter_output_exists", &[&add[..], &["three"]].concat());
    lab.check_lora_exactly(
        "adapter_output_is_no_adapter",
        &[&add[..], &["model", "--force"]].concat(),
    );
    let after = fs::read(lab.path("three/adapter_model.safetensors")).expect("it is still there");
    assert!(before == after && lab.path("model/config.json").is_file());
    lab.write("three/notes.txt", "mine");
    succeeds(&lab, &[&add[..], &["three", "--force"]].concat());
    let after = fs::read(lab.path("three/adapter_model.safetensors")).expect("a new one is there");
    assert!(before != after && lab.path("three/notes.txt").is_file());
    // An mlx-lm adapter has a settings file of the same name; it would be left half of each.
    succeeds(
        &lab,
        &["convert", "one", "--to", "mlx", "--model", "model", "--output", "mlx", "--quiet"],
    );
    let shown = lab.lora(&[&add[..], &["mlx", "--force"]].concat());
    assert!(shown.contains("is no PEFT adapter folder"), "{shown}");
    fs::remove_dir_all(lab.path("mlx")).expect("the folder is there");
    // One of the adapters may be the place of the result.
    succeeds(
        &lab,
        &["adapter", "scale", "one", "--by", "2", "--output", "one", "--force", "--quiet"],
    );
    assert_eq!(lab.names(), ["model", "one", "three", "two"]);
}

#[test]
fn mistakes_are_named() {
    let lab = lab();
    for (name, arguments) in [
        ("one_adapter", &["add", "one", "--output", "x"][..]),
        ("missing", &["add", "one", "nowhere", "--output", "x"]),
        ("rank_too_large", &["svd", "one", "two", "--rank", "99999999999999", "--output", "x"]),
        ("too_large", &["add", "one=1e300", "two", "--output", "x"]),
        ("bad_weight", &["add", "one=much", "two", "--output", "x"]),
        ("ranks_differ", &["linear", "one", "three", "--output", "x"]),
        ("density_out_of_range", &["ties", "one", "two", "--density", "1.5", "--output", "x"]),
        ("density_missing", &["dare", "one", "two", "--output", "x"]),
        (
            "rank_without_svd",
            &["ties", "one", "two", "--density", "1", "--rank", "3", "--output", "x"],
        ),
        ("scale_by_zero", &["scale", "one", "--by", "0", "--output", "x"]),
        ("rank_and_energy", &["shrink", "one", "--rank", "1", "--energy", "0.5", "--output", "x"]),
        ("neither_rank_nor_energy", &["shrink", "one", "--output", "x"]),
        ("extract_same", &["extract", "model", "model", "--rank", "2", "--output", "x"]),
        (
            "extract_unknown_target",
            &[
                "extract",
                "model",
                "model",
                "--rank",
                "2",
                "--targets",
                "q_proj,gate",
                "--output",
                "x",
            ],
        ),
        ("no_operation", &[]),
    ] {
        let arguments = [&["adapter"], arguments].concat();
        lab.check_lora_exactly(&format!("adapter_{name}"), &arguments);
    }
    assert_eq!(lab.names(), ["model", "one", "three", "two"]);
}

#[test]
fn shrinking_says_what_is_lost() {
    let lab = lab();
    lab.check_lora_exactly(
        "adapter_shrink",
        &["adapter", "shrink", "three", "--rank", "2", "--output", "small"],
    );
    lab.check_lora_exactly(
        "adapter_shrink_energy",
        &["adapter", "shrink", "three", "--energy", "0.7", "--output", "smaller"],
    );
    succeeds(
        &lab,
        &["generate", "model", "--adapter", "smaller", "--prompt", "a", "--max-tokens", "2"],
    );
}

#[test]
fn comparing_and_verifying() {
    let lab = lab();
    lab.check_lora_exactly("adapter_diff", &["adapter", "diff", "one", "three"]);
    lab.check_lora_exactly("adapter_diff_same", &["adapter", "diff", "one", "one"]);
    lab.check_lora_exactly("adapter_verify", &["adapter", "verify", "one", "--model", "model"]);
    lab.check_lora_exactly("adapter_verify_json", &["adapter", "verify", "three", "--json"]);
    let mut idle = adapter(2, 4);
    idle.factors[0].b.fill(0.0);
    idle.save(&lab.path("idle")).expect("the adapter is written");
    lab.check_lora_exactly("adapter_verify_idle", &["adapter", "verify", "idle"]);
    tiny::write_adapter(&lab, "other", 32);
    lab.check_lora_exactly(
        "adapter_verify_other_model",
        &["adapter", "verify", "other", "--model", "model"],
    );
    let weights = lab.path("one/adapter_model.safetensors");
    let mut bytes = fs::read(&weights).expect("the weights are there");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).expect("the weights are damaged");
    lab.check_lora_exactly("adapter_verify_not_finite", &["adapter", "verify", "one"]);
}

#[test]
fn an_adapter_that_was_merged_is_extracted_again() {
    let lab = lab();
    succeeds(&lab, &["merge", "model", "one", "--output", "tuned", "--dtype", "f32"]);
    let extract = ["adapter", "extract", "model", "tuned"];
    lab.check_lora_exactly(
        "adapter_extract",
        &[&extract[..], &["--energy", "0.99999", "--output", "learned"]].concat(),
    );
    let learned = PeftAdapter::load(&lab.path("learned")).expect("an adapter was extracted");
    let before = adapter(2, 1);
    for factor in &before.factors {
        let at = learned.factors.iter().position(|it| it.path == factor.path);
        let found = &updates(&learned)[at.expect("every layer is there")];
        let was = before.factors.iter().position(|it| it.path == factor.path).unwrap();
        let expected = &updates(&before)[was];
        let apart =
            lora_core::algebra::LowRank::sum(&[found.clone(), expected.clone().times(-1.0)]);
        // The merged weights are float32 near ±0.5.
        assert!(apart.norm() < 1e-5 * expected.norm(), "{}", apart.norm() / expected.norm());
    }
    lab.check_lora_exactly(
        "adapter_extract_targets",
        &[&extract[..], &["--rank", "1", "--targets", "q_proj", "--output", "queries"]].concat(),
    );
}

#[test]
fn analyzing() {
    let lab = lab();
    lab.check_lora_exactly("analyze_model", &["analyze", "model", "--targets", "q_proj,down_proj"]);
    lab.check_lora_exactly("analyze_adapter", &["analyze", "--adapter", "one", "--each"]);
    let both = ["analyze", "model", "--adapter", "one", "--adapter", "three"];
    lab.check_lora_exactly("analyze_both", &[&both[..], &["--output", "report"]].concat());
    let text = fs::read_to_string(lab.path("report/analysis.json")).expect("the numbers are there");
    let numbers: Value = serde_json::from_str(&text).expect("they are JSON");
    assert_eq!(numbers["layers"].as_array().map(Vec::len), Some(4));
    let similarity = &numbers["layers"][0]["similarity"]["a"];
    assert_eq!(
        (similarity.as_array().map(Vec::len), similarity[1].as_array().map(Vec::len)),
        (Some(2), Some(3))
    );
    for name in ["base_spectra", "update_spectra_1", "amplification_2", "similarity_q_proj"] {
        let svg = fs::read_to_string(lab.path(&format!("report/{name}.svg"))).expect("a plot");
        assert!(svg.starts_with("<svg ") && svg.contains("<text"), "{name}");
        let png = fs::read(lab.path(&format!("report/{name}.png"))).expect("a plot");
        assert!(png.starts_with(b"\x89PNG") && png.len() > 2000, "{name}: {} bytes", png.len());
    }
    lab.check_lora_exactly("analyze_output_exists", &[&both[..], &["--output", "report"]].concat());
    let three = [&both[..], &["--adapter", "two"]].concat();
    lab.check_lora_exactly("analyze_three_adapters", &three);
    lab.check_lora_exactly("analyze_nothing", &["analyze"]);
}
