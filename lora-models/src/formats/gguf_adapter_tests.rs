//! Tests of GGUF adapters: what the file holds, what comes back, what is refused.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use lora_core::config::{LoraConfig, TargetModules};
use lora_core::peft::{NamedTensor, PeftConfig};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::families::decoder_config;
use crate::formats::gguf_testing::Builder;

fn config(model_type: &str) -> DecoderConfig {
    let json = json!({
        "model_type": model_type, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 16,
        "tie_word_embeddings": true,
    });
    decoder_config(&json, Path::new("config.json")).unwrap()
}

fn factor(path: &str, d_in: usize, d_out: usize, rank: usize) -> Factor {
    let number = |i: usize| (i as f32 * 0.37 + path.len() as f32).sin();
    Factor {
        path: path.to_owned(),
        d_in,
        d_out,
        rank,
        a: (0..d_in * rank).map(number).collect(),
        b: (0..rank * d_out).map(|i| number(i + 100)).collect(),
    }
}

/// Queries, keys and `down_proj` of one block, the last with a rank and an α of its own.
fn adapter() -> PeftAdapter {
    let mut lora = LoraConfig::new(2, 6.0);
    lora.use_rslora = true;
    let names = ["q_proj", "k_proj", "down_proj"].map(str::to_owned);
    lora.target = TargetModules::Suffixes(names.into());
    lora.layers = Some(vec![1]);
    lora.rank_pattern = vec![("down_proj".to_owned(), 3)];
    lora.alpha_pattern = vec![("down_proj".to_owned(), 5.0)];
    let factors = vec![
        factor("model.layers.1.mlp.down_proj", 12, 8, 3),
        factor("model.layers.1.self_attn.k_proj", 8, 4, 2),
        factor("model.layers.1.self_attn.q_proj", 8, 8, 2),
    ];
    let config = PeftConfig::new(lora, Some("the/base".to_owned()));
    PeftAdapter::new(config, factors)
}

fn written(adapter: &PeftAdapter, config: &DecoderConfig) -> (tempfile::TempDir, GgufFile) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    write_gguf_adapter(&path, adapter, config).unwrap();
    let file = GgufFile::open(&path).unwrap();
    (folder, file)
}

#[test]
fn llama_cpp_finds_what_it_looks_for() {
    let (_folder, file) = written(&adapter(), &config("llama"));
    assert_eq!(file.get_str("general.type").unwrap(), Some("adapter"));
    assert_eq!(file.get_str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(file.get_str("adapter.type").unwrap(), Some("lora"));
    // α/√r of the two attention modules as an α over r.
    let alpha = file.get_f32("adapter.lora.alpha").unwrap().unwrap();
    assert_eq!(alpha, 6.0 * 2f32.sqrt());
    let listed: Vec<String> =
        file.tensors().map(|tensor| format!("{} {:?}", tensor.name, tensor.shape)).collect();
    assert_eq!(
        listed,
        [
            "blk.1.ffn_down.weight.lora_a [3, 12]",
            "blk.1.ffn_down.weight.lora_b [8, 3]",
            "blk.1.attn_k.weight.lora_a [2, 8]",
            "blk.1.attn_k.weight.lora_b [4, 2]",
            "blk.1.attn_q.weight.lora_a [2, 8]",
            "blk.1.attn_q.weight.lora_b [8, 2]",
        ]
    );
    // A as PyTorch has it: the transpose of ours.
    let q = &adapter().factors[2];
    let a = file.read_f32("blk.1.attn_q.weight.lora_a").unwrap();
    assert_eq!((a[1], a[8]), (q.a[2], q.a[1]));
    // Row 1 of the file is the first of the second half of the head, row 4 the first of the next head.
    let b = file.read_f32("blk.1.attn_q.weight.lora_b").unwrap();
    let ours = |row: usize| [q.b[row], q.b[8 + row]];
    for (stored, row) in [(0, 0), (1, 2), (2, 1), (3, 3), (4, 4), (5, 6)] {
        assert_eq!(b[stored * 2..stored * 2 + 2], ours(row), "row {stored}");
    }
    // What one α can't say is in B: (5/√3)·3 over 6·√2.
    let share = 5.0 / 3f64.sqrt() * 3.0 / (6.0 * 2f64.sqrt());
    let down = &adapter().factors[0];
    let b = file.read_f32("blk.1.ffn_down.weight.lora_b").unwrap();
    assert_eq!(b[0], (f64::from(down.b[0]) * share) as f32);
}

#[test]
fn what_is_written_is_read_again() {
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        let before = adapter();
        let (folder, _) = written(&before, &config(family));
        let path = folder.path().join("adapter.gguf");
        assert!(is_gguf_adapter(&path).unwrap());
        let after = read_gguf_adapter(&path, &config(family)).unwrap();
        let apart = after.largest_difference(&before).unwrap();
        assert!(apart < 1e-6, "{family}: {apart}");
        assert_eq!(after.factors[2].b, before.factors[2].b, "{family}");
        assert_eq!(after.config.base_model.as_deref(), Some("the/base"));
    }
}

#[test]
fn only_llama_has_its_rows_in_another_order() {
    let (_folder, file) = written(&adapter(), &config("qwen2"));
    let q = &adapter().factors[2];
    let b = file.read_f32("blk.1.attn_q.weight.lora_b").unwrap();
    assert_eq!(b[2..4], [q.b[1], q.b[9]]);
}

#[test]
fn what_the_format_cannot_carry_is_refused_with_the_way_out() {
    let path = Path::new("adapter.gguf");
    let fails = |adapter: PeftAdapter| {
        let error = write_gguf_adapter(path, &adapter, &config("llama")).unwrap_err();
        format!("{error}\n  {}", error.hint().unwrap_or("no hint"))
    };
    let mut whole = adapter();
    whole.saved = vec![NamedTensor {
        name: "lm_head.weight".to_owned(),
        shape: vec![16, 8],
        data: vec![0.0; 128],
    }];
    let head = PeftAdapter::from_scaled(vec![(factor("lm_head", 8, 16, 2), 1.0)], None);
    let other =
        PeftAdapter::from_scaled(vec![(factor("model.layers.7.mlp.up_proj", 8, 12, 2), 1.0)], None);
    insta::assert_snapshot!([fails(whole), fails(head), fails(other)].join("\n"));
    assert!(!path.exists());
}

#[test]
fn damaged_and_foreign_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let text = |text: &str| Value::String(text.to_owned());
    let good = || {
        Builder::new()
            .metadata("general.architecture", text("llama"))
            .metadata("general.type", text("adapter"))
            .metadata("adapter.type", text("lora"))
            .metadata("adapter.lora.alpha", Value::F32(4.0))
    };
    let fails = |builder: Builder| {
        std::fs::write(&path, builder.build()).unwrap();
        let error = read_gguf_adapter(&path, &config("llama")).unwrap_err().to_string();
        error.replace(&format!("`{}`: ", path.display()), "")
    };
    let up = "blk.0.ffn_up.weight";
    let messages = [
        fails(Builder::new().metadata("general.type", text("model"))),
        fails(Builder::new().metadata("general.type", text("adapter"))),
        fails(
            Builder::new()
                .metadata("general.type", text("adapter"))
                .metadata("adapter.type", text("lora"))
                .metadata("general.architecture", text("gemma3")),
        ),
        fails(good()),
        fails(good().f32("blk.0.ffn_up.weight", &[1], &[1.0])),
        fails(good().f32(&format!("{up}.lora_a"), &[2, 8], &[0.5; 16])),
        fails(good().f32(&format!("{up}.lora_a"), &[2, 8], &[0.5; 16]).f32(
            &format!("{up}.lora_b"),
            &[12, 3],
            &[0.5; 36],
        )),
        fails(good().f32("token_embd.weight.lora_a", &[2, 16], &[0.5; 32]).f32(
            "token_embd.weight.lora_b",
            &[8, 2],
            &[0.5; 16],
        )),
        fails(good().f32(&format!("{up}.lora_a"), &[2, 8], &[f32::NAN; 16]).f32(
            &format!("{up}.lora_b"),
            &[12, 2],
            &[0.5; 24],
        )),
        fails(good().f32(&format!("{up}.lora_a"), &[2, 9], &[0.5; 18]).f32(
            &format!("{up}.lora_b"),
            &[12, 2],
            &[0.5; 24],
        )),
        fails(good().metadata(
            "adapter.alora.invocation_tokens",
            Value::Array(crate::formats::Array::U32(vec![1])),
        )),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn an_alpha_of_zero_is_a_factor_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let text = |text: &str| Value::String(text.to_owned());
    let file = Builder::new()
        .metadata("general.architecture", text("llama"))
        .metadata("general.type", text("adapter"))
        .metadata("adapter.type", text("lora"))
        .f32("blk.0.ffn_up.weight.lora_a", &[2, 8], &[0.5; 16])
        .f32("blk.0.ffn_up.weight.lora_b", &[12, 2], &[0.5; 24])
        .f32("blk.0.attn_norm.weight", &[8], &[1.0; 8]);
    std::fs::write(&path, file.build()).unwrap();
    let adapter = read_gguf_adapter(&path, &config("llama")).unwrap();
    assert_eq!(adapter.scales().unwrap(), [1.0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]

    /// Whatever is in the file, reading gives an adapter or an error.
    #[test]
    fn damaged_files_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
        let (folder, _) = written(&adapter(), &config("llama"));
        let path = folder.path().join("adapter.gguf");
        let bytes = std::fs::read(&path).unwrap();
        let mut damaged = bytes.clone();
        for (at, value) in changes {
            // Most of what can go wrong is in the header.
            damaged[at.index(bytes.len().min(900))] = value;
        }
        for content in [&damaged[..], &damaged[..cut.index(bytes.len())]] {
            // A new file: the other one may still be mapped.
            let path = folder.path().join("damaged.gguf");
            let _ = std::fs::remove_file(&path);
            std::fs::write(&path, content).unwrap();
            let _ = read_gguf_adapter(&path, &config("llama"));
        }
    }
}
