//! `lora convert`, and `lora merge` into a GGUF file.

use std::fs;

use lora_core::config::{LoraConfig, TargetModules};
use lora_core::peft::{NamedTensor, PeftAdapter, PeftConfig};
use serde_json::Value;

use super::lab::Lab;
use super::tiny;

/// A lab with the tiny model and an adapter for it.
fn lab() -> Lab {
    let lab = Lab::new();
    tiny::write_model(&lab);
    tiny::write_fitting_adapter(&lab, "adapter");
    lab
}

fn tokens(lab: &Lab, arguments: &[&str]) -> Value {
    let prompt = ["--prompt", "name: The Mill", "--max-tokens", "8", "--json", "--quiet"];
    let arguments = [&["generate"], arguments, &prompt].concat();
    let output = lab.output(&arguments, b"");
    let printed: Value = serde_json::from_slice(&output.stdout).expect("generate printed JSON");
    printed["tokens"].clone()
}

#[test]
fn adapters_go_through_every_format_and_stay_the_same() {
    let lab = lab();
    let to_gguf = ["convert", "adapter", "--model", "model", "--output", "made/adapter.gguf"];
    lab.check_lora("convert_to_gguf", &to_gguf);
    let back = ["convert", "made/adapter.gguf", "--model", "model", "--output", "back"];
    lab.check_lora("convert_from_gguf", &back);
    // The model is the one that the adapter names.
    lab.check_lora("convert_to_mlx", &["convert", "adapter", "--to", "mlx", "--output", "mlx"]);
    lab.check_lora("convert_from_mlx", &["convert", "mlx", "--output", "mlx-back", "--quiet"]);

    let expected = tokens(&lab, &["model", "--adapter", "adapter"]);
    assert_ne!(tokens(&lab, &["model"]), expected);
    for adapter in ["made/adapter.gguf", "back", "mlx", "mlx-back"] {
        assert_eq!(tokens(&lab, &["model", "--adapter", adapter]), expected, "{adapter}");
    }
    let before = PeftAdapter::load(&lab.path("adapter")).expect("the adapter is there");
    for folder in ["back", "mlx-back"] {
        let after = PeftAdapter::load(&lab.path(folder)).expect("what was written is there");
        assert_eq!(after.factors, before.factors, "{folder}");
    }
}

#[test]
fn models_go_from_folder_to_file_and_back() {
    let lab = lab();
    lab.check_lora("convert_model", &["convert", "model", "--output", "model.gguf"]);
    let again = ["convert", "model.gguf", "--output", "again", "--dtype", "bf16"];
    lab.check_lora("convert_model_back", &again);
    lab.check_lora(
        "convert_model_q8",
        &["convert", "model.gguf", "--output", "q8.gguf", "--dtype", "q8_0"],
    );
    lab.check_lora("inspect_converted", &["inspect", "q8.gguf", "--tensors"]);
    let expected = tokens(&lab, &["model"]);
    assert_eq!(tokens(&lab, &["model.gguf"]), expected);

    let merge = ["merge", "model", "adapter", "--output", "merged.gguf"];
    lab.check_lora("merge_gguf", &merge);
    let expected = tokens(&lab, &["model", "--adapter", "adapter"]);
    assert_eq!(tokens(&lab, &["merged.gguf"]), expected);
    let expected = ["adapter", "again", "merged.gguf", "model", "model.gguf", "q8.gguf"];
    assert_eq!(lab.names(), expected, "something was left behind");
}

#[test]
fn what_cannot_be_converted_is_refused_with_the_way_out() {
    let lab = lab();
    lab.write("taken.gguf", "mine");
    let whole = PeftAdapter {
        config: PeftConfig::new(
            LoraConfig {
                target: TargetModules::Suffixes(vec!["q_proj".into()]),
                modules_to_save: vec!["lm_head".into()],
                ..LoraConfig::new(2, 4.0)
            },
            None,
        ),
        saved: vec![NamedTensor {
            name: "lm_head.weight".into(),
            shape: vec![258, 16],
            data: vec![0.5; 258 * 16],
        }],
        ..PeftAdapter::load(&lab.path("adapter")).expect("the adapter is there")
    };
    whole.save(&lab.path("whole")).expect("the adapter is written");
    let cases: [(&str, &[&str]); 9] = [
        ("output_exists", &["convert", "adapter", "--output", "taken.gguf"]),
        ("adapter_to_hf", &["convert", "adapter", "--to", "hf", "--output", "x"]),
        ("model_to_peft", &["convert", "model", "--to", "peft", "--output", "x"]),
        ("without_model", &["convert", "whole", "--output", "x.gguf"]),
        ("whole_modules", &["convert", "whole", "--model", "model", "--output", "x.gguf"]),
        ("whole_modules_mlx", &["convert", "whole", "--to", "mlx", "--output", "x"]),
        ("quantised_folder", &["convert", "model", "--output", "x", "--dtype", "q8_0"]),
        ("not_named_so", &["convert", "model", "--to", "gguf", "--output", "x"]),
        ("adapter_dtype", &["convert", "adapter", "--output", "x", "--dtype", "f16"]),
    ];
    let before = lab.names();
    for (name, arguments) in cases {
        lab.check_lora(&format!("convert_{name}"), arguments);
    }
    lab.check_lora(
        "merge_quantised_folder",
        &["merge", "model", "adapter", "--output", "x", "--dtype", "q4_k"],
    );
    assert_eq!(lab.names(), before, "something was left behind");
    assert_eq!(fs::read(lab.path("taken.gguf")).expect("it is there"), b"mine");
}

#[test]
fn a_gguf_adapter_for_another_model_is_refused() {
    let lab = lab();
    let shown = lab.lora(&["convert", "adapter", "--output", "adapter.gguf", "--quiet"]);
    assert!(shown.contains("exit status: 0\n"), "{shown}");
    lab.check_lora(
        "gguf_adapter_other_model",
        &["generate", "builtin:", "--adapter", "adapter.gguf", "--prompt", "x"],
    );
    lab.check_lora("gguf_adapter_inspect", &["inspect", "adapter.gguf"]);
}
