//! Bad checkpoints and bad adapters.

use std::fs;

use serde_json::json;

use super::lab::Lab;
use super::tiny::{self, change_config};

/// A lab with the tiny model.
fn lab() -> Lab {
    let lab = Lab::new();
    tiny::write_model(&lab);
    lab
}

#[test]
fn a_config_that_is_not_known() {
    let lab = lab();
    change_config(&lab, |config| config["model_type"] = json!("mamba"));
    lab.check_lora("model_unknown_type", &["inspect", "model"]);
    lab.write("model/config.json", "{\"model_type\": ");
    lab.check_lora("model_config_not_json", &["inspect", "model"]);
    fs::remove_file(lab.path("model/config.json")).expect("the config is there");
    lab.check_lora("model_config_missing", &["inspect", "model"]);
    lab.check_lora("model_missing", &["inspect", "nowhere"]);
}

#[test]
fn weights_that_do_not_fit_the_config() {
    let lab = lab();
    let use_it = &["generate", "model", "--prompt", "a"];
    change_config(&lab, |config| config["intermediate_size"] = json!(8));
    lab.check_lora("model_wrong_shape", use_it);
    let lab = self::lab();
    change_config(&lab, |config| config["num_hidden_layers"] = json!(9));
    lab.check_lora("model_missing_key", use_it);
    let lab = self::lab();
    change_config(&lab, |config| config["num_hidden_layers"] = json!(1));
    lab.check_lora("model_extra_key", use_it);
}

#[test]
fn safetensors_that_lie() {
    let lab = Lab::new();
    let file = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; data]);
        bytes
    };
    let tensor = |from: usize, to: usize| {
        format!("{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[{from},{to}]}}")
    };
    let overlapping = format!("{{\"a\":{},\"b\":{}}}", tensor(0, 8), tensor(4, 12));
    let outside = format!("{{\"a\":{}}}", tensor(0, 8));
    let cases: [(&str, Vec<u8>); 6] = [
        ("empty", Vec::new()),
        ("oversized_header", [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        ("truncated_header", file(&outside, 8)[..20].to_vec()),
        ("overlapping", file(&overlapping, 12)),
        ("out_of_range", file(&outside, 4)),
        ("not_json", file("{\"a\": nonsense}", 8)),
    ];
    for (name, bytes) in cases {
        lab.write("weights.safetensors", bytes);
        lab.check_lora(&format!("safetensors_{name}"), &["inspect", "weights.safetensors"]);
    }
}

#[test]
fn shards_that_are_missing() {
    let lab = lab();
    fs::remove_file(lab.path("model/model.safetensors")).expect("the weights are there");
    lab.check_lora("model_without_weights", &["inspect", "model"]);
    let index = json!({"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}});
    lab.write("model/model.safetensors.index.json", index.to_string());
    lab.check_lora("model_shard_missing", &["inspect", "model"]);
}

#[test]
fn gguf_that_lies() {
    let lab = Lab::new();
    let number = |value: u64| value.to_le_bytes();
    let cases: [(&str, Vec<u8>); 4] = [
        ("wrong_magic", b"GGML\x03\0\0\0".to_vec()),
        ("unknown_version", [b"GGUF\x63\0\0\0".as_slice(), &number(0), &number(0)].concat()),
        ("absurd_counts", [b"GGUF\x03\0\0\0".as_slice(), &number(1 << 60), &number(0)].concat()),
        ("truncated", b"GGUF\x03\0".to_vec()),
    ];
    for (name, bytes) in cases {
        lab.write("model.gguf", bytes);
        lab.check_lora(&format!("gguf_{name}"), &["inspect", "model.gguf"]);
    }
    let mut tensor = b"GGUF\x03\0\0\0".to_vec();
    tensor.extend(number(1));
    tensor.extend(number(0));
    tensor.extend(number(1));
    tensor.extend(b"a\x01\0\0\0");
    tensor.extend(number(32));
    tensor.extend(99u32.to_le_bytes());
    tensor.extend(number(0));
    lab.write("model.gguf", tensor);
    lab.check_lora("gguf_unknown_tensor_type", &["inspect", "model.gguf"]);
}

#[test]
fn adapters_that_do_not_fit() {
    let lab = lab();
    let generate =
        |adapter: &str| lab.lora(&["generate", "model", "--prompt", "a", "--adapter", adapter]);
    lab.check("adapter_not_found", &generate("nowhere"));
    lab.check("adapter_folder_without_one", &generate("model"));
    tiny::write_adapter(&lab, "other", 32);
    lab.check("adapter_of_another_base", &generate("other"));
    tiny::write_fitting_adapter(&lab, "adapter");
    let config = fs::read_to_string(lab.path("adapter/adapter_config.json")).expect("a config");
    let weights = fs::read(lab.path("adapter/adapter_model.safetensors")).expect("the weights");
    lab.write("adapter/adapter_config.json", config.replace("\"LORA\"", "\"IA3\""));
    lab.check("adapter_not_lora", &generate("adapter"));
    lab.write("adapter/adapter_config.json", config.replace("\"r\": 2", "\"r\": 3"));
    lab.check("adapter_wrong_rank", &generate("adapter"));
    lab.write("adapter/adapter_config.json", &config);
    lab.write("adapter/adapter_model.safetensors", &weights[..weights.len() / 2]);
    lab.check("adapter_truncated", &generate("adapter"));
    fs::remove_file(lab.path("adapter/adapter_model.safetensors")).expect("the weights are there");
    lab.check("adapter_without_weights", &generate("adapter"));
}

#[test]
fn merging_never_overwrites() {
    let lab = lab();
    tiny::write_fitting_adapter(&lab, "adapter");
    lab.write("merged/notes.txt", "mine");
    lab.check_lora("merge_output_exists", &["merge", "model", "adapter", "--output", "merged"]);
    assert!(lab.path("merged/notes.txt").is_file());
}
