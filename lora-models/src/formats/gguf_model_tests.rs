//! Tests of GGUF files as models, on a tiny one written here.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use serde_json::json;

use super::*;
use crate::formats::gguf_testing::{Builder, fetched_smollm2};
use crate::formats::{Array, StoredType, Value};

/// Two heads of width 4, one of keys, width 8, one block, vocabulary 3.
fn tiny(architecture: &str) -> Builder {
    let key = |key: &str| format!("{architecture}.{key}");
    let count = |number: u32| Value::U32(number);
    Builder::new()
        .metadata("general.architecture", Value::String(architecture.to_owned()))
        .metadata(&key("block_count"), count(1))
        .metadata(&key("context_length"), count(64))
        .metadata(&key("embedding_length"), count(8))
        .metadata(&key("feed_forward_length"), count(2))
        .metadata(&key("attention.head_count"), count(2))
        .metadata(&key("attention.head_count_kv"), count(1))
        .metadata(&key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5))
        .metadata(&key("rope.freq_base"), Value::F32(100_000.0))
        .metadata("tokenizer.ggml.bos_token_id", count(1))
        .metadata("tokenizer.ggml.eos_token_id", count(2))
        .f32("token_embd.weight", &[3, 8], &(0..24).map(|i| i as f32).collect::<Vec<_>>())
        .f32("output_norm.weight", &[8], &[1.0; 8])
        .f32("blk.0.attn_q.weight", &[8, 2], &(0..16).map(|i| i as f32).collect::<Vec<_>>())
        .f32("blk.0.attn_k.weight", &[4, 2], &(0..8).map(|i| i as f32).collect::<Vec<_>>())
        .f32("blk.0.attn_v.weight", &[4, 2], &(0..8).map(|i| i as f32).collect::<Vec<_>>())
}

/// GPT-2 of width 4, one block, vocabulary 3; without the matrices of its block.
fn tiny_gpt2() -> Builder {
    Builder::new()
        .metadata("general.architecture", Value::String("gpt2".to_owned()))
        .metadata("gpt2.block_count", Value::U32(1))
        .metadata("gpt2.context_length", Value::U32(16))
        .metadata("gpt2.embedding_length", Value::U32(4))
        .metadata("gpt2.feed_forward_length", Value::U32(8))
        .metadata("gpt2.attention.head_count", Value::U32(2))
        .metadata("gpt2.attention.layer_norm_epsilon", Value::F32(1e-5))
        .f32("token_embd.weight", &[3, 4], &[0.5; 12])
        .f32("position_embd.weight", &[16, 4], &[0.5; 64])
        .f32("output_norm.bias", &[4], &[1.0; 4])
}

fn open(builder: Builder) -> Result<GgufWeights> {
    GgufWeights::new(GgufFile::from_bytes(builder.build(), Path::new("tiny.gguf"))?)
}

fn error(builder: Builder) -> String {
    open(builder).unwrap_err().to_string()
}

#[test]
fn configuration_of_a_llama() {
    let config = open(tiny("llama")).unwrap().config_json().unwrap();
    assert_eq!(
        config,
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 8,
            "intermediate_size": 2,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "vocab_size": 3,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "rope_scaling": null,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": true,
            "sliding_window": null,
            "use_sliding_window": false,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": null,
            "initializer_range": 0.02,
            "torch_dtype": "float32",
        })
    );
}

#[test]
fn variations_of_the_configuration() {
    let config = |builder| open(builder).unwrap().config_json().unwrap();
    let untied = tiny("llama").f32("output.weight", &[3, 8], &[0.0; 24]);
    assert_eq!(config(untied)["tie_word_embeddings"], false);
    let window = config(tiny("llama").metadata("llama.attention.sliding_window", Value::U32(6)));
    assert_eq!((&window["model_type"], &window["sliding_window"]), (&json!("mistral"), &json!(6)));
    let biased = config(tiny("qwen2").f32("blk.0.attn_q.bias", &[8], &[0.0; 8]));
    assert_eq!((&biased["model_type"], &biased["attention_bias"]), (&json!("qwen2"), &json!(true)));
    let wide = config(tiny("qwen3").metadata("qwen3.attention.key_length", Value::U32(2)));
    assert_eq!(wide["head_dim"], 2);
    let turn = config(tiny("llama").metadata("tokenizer.ggml.eot_token_id", Value::U32(0)));
    assert_eq!(turn["eos_token_id"], json!([2, 0]));
    let linear = tiny("llama")
        .metadata("llama.rope.scaling.type", Value::String("linear".to_owned()))
        .metadata("llama.rope.scaling.factor", Value::F32(2.0));
    assert_eq!(config(linear)["rope_scaling"], json!({"rope_type": "linear", "factor": 2.0}));
}

#[test]
fn llama3_rope_is_recognised_and_others_are_kept_as_factors() {
    let with =
        |divisors: &[f32], heads: u32| {
            let builder = tiny("llama")
                .metadata("llama.attention.key_length", Value::U32(heads))
                .f32("rope_freqs.weight", &[divisors.len()], divisors);
            open(builder).unwrap().config_json().unwrap()
        };
    assert_eq!(with(&[1.0, 1.0], 4)["rope_scaling"], json!(null));
    let kept = with(&[1.0, 2.5], 4);
    assert_eq!(kept["rope_freqs"], json!([1.0, 2.5]));
    assert_eq!(kept["rope_scaling"], json!(null));

    // Divisors as the converter computes them for factor 32, original length 32 and theta 100000.
    let width = 8;
    let divisors: Vec<f32> = (0..width / 2)
        .map(|index| {
            let wavelength =
                std::f64::consts::TAU * 100_000f64.powf(2.0 * f64::from(index) / f64::from(width));
            if wavelength < 32.0 / 4.0 {
                1.0
            } else if wavelength > 32.0 {
                32.0
            } else {
                let smooth = (32.0 / wavelength - 1.0) / 3.0;
                (1.0 / ((1.0 - smooth) / 32.0 + smooth)) as f32
            }
        })
        .collect();
    // No wavelength between the borders: nothing to tell the original length from.
    assert_eq!(divisors, [1.0, 32.0, 32.0, 32.0]);
    let factors = |theta: f64, original: f64| -> Vec<f32> {
        (0..32)
            .map(|index| {
                let wavelength = std::f64::consts::TAU * theta.powf(f64::from(index) / 32.0);
                let smooth = ((original / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
                (1.0 / ((1.0 - smooth) / 8.0 + smooth)) as f32
            })
            .collect()
    };
    let builder = |divisors: &[f32]| {
        Builder::new()
            .metadata("general.architecture", Value::String("llama".to_owned()))
            .metadata("llama.block_count", Value::U32(1))
            .metadata("llama.context_length", Value::U32(64))
            .metadata("llama.embedding_length", Value::U32(64))
            .metadata("llama.feed_forward_length", Value::U32(2))
            .metadata("llama.attention.head_count", Value::U32(1))
            .metadata("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5))
            .metadata("llama.rope.freq_base", Value::F32(500_000.0))
            .f32("token_embd.weight", &[1, 64], &[0.0; 64])
            .f32("rope_freqs.weight", &[32], divisors)
    };
    let config = open(builder(&factors(500_000.0, 8192.0))).unwrap().config_json().unwrap();
    assert_eq!(
        config["rope_scaling"],
        json!({
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        })
    );
    assert_eq!(config.get("rope_freqs"), None);
    let other = open(builder(&factors(10_000.0, 8192.0))).unwrap().config_json().unwrap();
    assert!(other.get("rope_freqs").is_some());
}

#[test]
fn what_we_would_compute_wrongly_is_refused() {
    let text = |text: &str| Value::String(text.to_owned());
    let cases = [
        (tiny("bloom"), "architecture `bloom` is not supported"),
        (tiny("llama").metadata("general.type", text("adapter")), "holds `adapter`, not a model"),
        (tiny("llama").metadata("split.count", Value::U32(3)), "this is one of 3 parts"),
        (tiny("llama").metadata("llama.expert_count", Value::U32(8)), "a mixture of 8 experts"),
        (
            tiny("llama").metadata("llama.attention.scale", Value::F32(0.5)),
            "metadata `llama.attention.scale` is 0.5",
        ),
        (
            tiny("llama").metadata("llama.rope.dimension_count", Value::U32(2)),
            "rotary embedding on a part of each head",
        ),
        (
            tiny("llama").f32("blk.0.attn_sinks.weight", &[2], &[0.0; 2]),
            "tensor `blk.0.attn_sinks.weight` has no place",
        ),
        (
            tiny("llama").metadata("llama.attention.key_length", Value::U32(3)),
            "tensor `blk.0.attn_q.weight` has 8 rows, which are not heads of width 3",
        ),
        (
            tiny("llama").f32("rope_freqs.weight", &[5], &[1.0; 5]),
            "tensor `rope_freqs.weight` has shape [5], not [2]",
        ),
        (
            tiny("llama").f32("rope_freqs.weight", &[2], &[1.0, f32::NAN]),
            "tensor `rope_freqs.weight` holds NaN",
        ),
        (Builder::new(), "metadata `general.architecture` is missing"),
        (
            Builder::new().metadata("general.architecture", text("llama")),
            "metadata `llama.embedding_length` is missing",
        ),
        (
            Builder::new()
                .metadata("general.architecture", text("llama"))
                .metadata("llama.embedding_length", Value::U32(8))
                .metadata("llama.attention.head_count", Value::Array(Array::U32(vec![2, 3]))),
            "metadata `llama.attention.head_count` differs from block to block",
        ),
    ];
    for (builder, expected) in cases {
        let found = error(builder);
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn rows_of_q_and_k_are_put_back_for_llama_only() {
    // Head of width 4, rows in the file: pairs (0, 2), (1, 3) of the Hugging Face order.
    let weights =
        open(tiny("llama").f32("blk.0.attn_q.bias", &[8], &[0., 1., 2., 3., 4., 5., 6., 7.]))
            .unwrap();
    let read = |name: &str| weights.read_f32(&format!("model.layers.0.self_attn.{name}")).unwrap();
    assert_eq!(
        read("q_proj.weight"),
        [0., 1., 4., 5., 2., 3., 6., 7., 8., 9., 12., 13., 10., 11., 14., 15.]
    );
    assert_eq!(read("k_proj.weight"), [0., 1., 4., 5., 2., 3., 6., 7.]);
    assert_eq!(read("v_proj.weight"), [0., 1., 2., 3., 4., 5., 6., 7.]);
    assert_eq!(read("q_proj.bias"), [0., 2., 1., 3., 4., 6., 5., 7.]);
    let qwen = open(tiny("qwen2")).unwrap();
    let k = qwen.read_f32("model.layers.0.self_attn.k_proj.weight").unwrap();
    assert_eq!(k, [0., 1., 2., 3., 4., 5., 6., 7.]);
}

#[test]
fn gemma_files_hold_norms_with_one_added_and_leave_out_what_llama_cpp_knows() {
    let weights = open(
        tiny("gemma3")
            .metadata("gemma3.attention.sliding_window", Value::U32(4))
            .f32("blk.0.attn_q_norm.weight", &[4], &[1.25, 1.0, 0.5, 1.0])
            .f32("blk.0.post_attention_norm.weight", &[8], &[1.0; 8])
            .f32("blk.0.ffn_norm.weight", &[8], &[1.0; 8])
            .f32("blk.0.post_ffw_norm.weight", &[8], &[1.0; 8]),
    )
    .unwrap();
    let norm = weights.read_f32("model.layers.0.self_attn.q_norm.weight").unwrap();
    assert_eq!(norm, [0.25, 0.0, -0.5, 0.0]);
    assert_eq!(weights.read_f32("model.norm.weight").unwrap(), [0.0; 8]);
    for norm in ["post_attention", "pre_feedforward", "post_feedforward"] {
        assert!(weights.find(&format!("model.layers.0.{norm}_layernorm.weight")).is_some());
    }
    let config = weights.config_json().unwrap();
    assert_eq!(config["model_type"], "gemma3_text");
    assert_eq!(config["hidden_activation"], "gelu_pytorch_tanh");
    assert_eq!(config["query_pre_attn_scalar"], 4);
    assert_eq!(config["rope_local_base_freq"], 10_000.0);
    let decoder = families::decoder_config(&config, Path::new("tiny.gguf")).unwrap();
    assert_eq!(decoder.windows, [Some(4)]);
    assert_eq!(decoder.query_scale, Some(0.5));

    let older = open(tiny("gemma2")).unwrap().config_json().unwrap();
    let decoder = families::decoder_config(&older, Path::new("tiny.gguf")).unwrap();
    assert_eq!((decoder.score_cap, decoder.logit_cap), (Some(50.0), Some(30.0)));
    assert_eq!(decoder.windows, [Some(4096)]);
}

#[test]
fn gpt2_files_hold_the_transposes_of_its_matrices() {
    let numbers: Vec<f32> = (0..32).map(|number| number as f32).collect();
    let weights = open(tiny_gpt2().f32("blk.0.ffn_up.weight", &[8, 4], &numbers)).unwrap();
    let up = "transformer.h.0.mlp.c_fc.weight";
    assert_eq!(weights.find(up).unwrap().shape, [4, 8]);
    assert_eq!(weights.read_f32(up).unwrap()[..9], [0., 4., 8., 12., 16., 20., 24., 28., 1.]);
    let positions = weights.find("transformer.wpe.weight").unwrap();
    assert_eq!(
        (positions.shape, weights.find("transformer.ln_f.bias").is_some()),
        ([16, 4].as_slice(), true)
    );
    let config = weights.config_json().unwrap();
    let decoder = families::decoder_config(&config, Path::new("tiny.gguf")).unwrap();
    assert_eq!((decoder.hidden_size, decoder.max_position_embeddings), (4, 16));
    assert_eq!((decoder.intermediate_size, decoder.norm_epsilon), (8, 1e-5));
}

/// The blocks of a matrix are its numbers: rows of heads in Hugging Face's order, and of GPT-2 the way round that
/// the file has.
#[test]
fn blocks_are_the_numbers_of_their_tensor() {
    let blocks_of = |kind: u32, rows: usize, columns: usize| {
        let (numbers, bytes) = StoredType::from_gguf(kind).unwrap().block();
        let mut data: Vec<u8> =
            (0..rows * columns / numbers * bytes).map(|at| (at * 89) as u8).collect();
        // Scales that are numbers.
        for block in data.chunks_exact_mut(bytes) {
            block[..4].copy_from_slice(&[0x20, 0x21, 0x22, 0x23]);
        }
        data
    };
    const Q8_0: u32 = 8;
    const Q4_K: u32 = 12;
    let llama = open(
        tiny("llama")
            .tensor("blk.1.attn_q.weight", Q4_K, &[8, 512], blocks_of(Q4_K, 8, 512))
            .tensor("blk.1.attn_v.weight", Q8_0, &[4, 64], blocks_of(Q8_0, 4, 64)),
    )
    .unwrap();
    let unpacked = |weights: &GgufWeights, name: &str| {
        let blocks = weights.read_blocks(name).unwrap().unwrap();
        let [rows, columns] = blocks.shape();
        let mut numbers = vec![0.0; rows * columns];
        blocks.unpack(&mut numbers);
        (blocks.shape(), numbers)
    };
    for (name, shape) in [("q_proj", [8, 512]), ("v_proj", [4, 64])] {
        let name = format!("model.layers.1.self_attn.{name}.weight");
        assert_eq!(unpacked(&llama, &name), (shape, llama.read_f32(&name).unwrap()), "{name}");
    }
    let in_file = llama.file().read_f32("blk.1.attn_q.weight").unwrap();
    assert_ne!(unpacked(&llama, "model.layers.1.self_attn.q_proj.weight").1, in_file);
    assert!(llama.read_blocks("model.layers.0.self_attn.q_proj.weight").unwrap().is_none());

    let gpt2 =
        open(tiny_gpt2().tensor("blk.0.ffn_up.weight", Q8_0, &[3, 64], blocks_of(Q8_0, 3, 64)))
            .unwrap();
    let up = "transformer.h.0.mlp.c_fc.weight";
    let (shape, numbers) = unpacked(&gpt2, up);
    assert_eq!((shape, gpt2.find(up).unwrap().shape), ([3, 64], [64, 3].as_slice()));
    assert_eq!(transposed(&numbers, 3), gpt2.read_f32(up).unwrap());
}

#[test]
fn interleaving_undoes_the_converters_permutation() {
    // The converter: [heads, 2, width/2] to [heads, width/2, 2].
    let (heads, width) = (3, 8);
    let mut converted = vec![0; heads * width];
    for head in 0..heads {
        for side in 0..2 {
            for pair in 0..width / 2 {
                converted[head * width + pair * 2 + side] =
                    head * width + side * (width / 2) + pair;
            }
        }
    }
    for row in 0..heads * width {
        assert_eq!(converted[interleaved_row(row, width)], row);
    }
}

#[test]
fn names_both_ways() {
    for architecture in families::gguf_architectures() {
        let modules = families::of_gguf(architecture).unwrap().modules;
        let of_blocks =
            in_block(modules).into_iter().map(|(hf, _)| format!("{}.{hf}", modules.block(17)));
        let all = outer(modules).into_iter().map(|(hf, _)| hf.to_owned()).chain(of_blocks);
        for name in all.flat_map(|path| ["weight", "bias"].map(|kind| format!("{path}.{kind}"))) {
            let gguf = gguf_name(modules, &name).unwrap();
            assert_eq!(hf_name(modules, &gguf).as_deref(), Some(&*name), "{architecture}");
        }
    }
    let gguf = |name: &str| gguf_name(&LLAMA, name);
    assert_eq!(gguf("model.layers.3.mlp.up_proj.weight").unwrap(), "blk.3.ffn_up.weight");
    for name in ["blk.01.ffn_up.weight", "blk.x.ffn_up.weight", "blk.1.ffn_up", "blk.1.ffn_up.x"] {
        assert_eq!(hf_name(&LLAMA, name), None, "{name}");
    }
}

#[test]
fn tensors_are_listed_under_their_hugging_face_keys() {
    let weights = open(tiny("llama")).unwrap();
    let names: Vec<&str> = weights.tensors().map(|tensor| tensor.name).collect();
    assert_eq!(
        names,
        [
            "model.embed_tokens.weight",
            "model.norm.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.0.self_attn.v_proj.weight",
        ]
    );
    let found = weights.find("model.embed_tokens.weight").unwrap();
    assert_eq!((found.shape, found.dtype), ([3usize, 8].as_slice(), StoredType::F32));
    assert_eq!(weights.find("token_embd.weight"), None);
    let error = weights.read_f32("lm_head.weight").unwrap_err().to_string();
    assert_eq!(error, "`tiny.gguf`: there is no tensor `lm_head.weight`");
}

/// The real SmolLM2: sums over tensors as the `gguf` package of llama.cpp dequantises them.
///
/// The file is fetched, not committed: see `tests/it/smollm2.rs`.
#[test]
fn smollm2() {
    let Some(path) = fetched_smollm2() else { return };
    let weights = GgufWeights::open(&path).unwrap();
    assert_eq!(weights.tensors().count(), 272);
    let sums = |name: &str| {
        let numbers = weights.read_f32(name).unwrap();
        let absolute: f64 = numbers.iter().map(|&number| f64::from(number).abs()).sum();
        let weighted: f64 =
            numbers.iter().enumerate().map(|(i, &n)| f64::from(n) * (i % 1009) as f64).sum();
        (absolute, weighted)
    };
    for (name, absolute, weighted) in SMOLLM2_SUMS {
        let found = sums(name);
        assert!((found.0 - absolute).abs() < 1e-6 * absolute, "{name}: {found:?}");
        assert!((found.1 - weighted).abs() < 1e-6 * absolute * 1009.0, "{name}: {found:?}");
    }
    let mut config = weights.config_json().unwrap();
    assert_eq!(config["rope_theta"].take(), json!(100_000.0));
    assert_eq!(config["head_dim"].take(), json!(64));
    assert_eq!(config["vocab_size"].take(), json!(49_152));
    assert_eq!(config["tie_word_embeddings"].take(), json!(true));
}

/// Key, sum of magnitudes, sum of each number times (its position modulo 1009).
const SMOLLM2_SUMS: [(&str, f64, f64); 5] = [
    ("model.embed_tokens.weight", 2802153.619805813, -7804811.753322601),
    ("model.norm.weight", 1045.09765625, 298738.12109375),
    ("model.layers.0.self_attn.q_proj.weight", 63395.39872741699, 31941.975143432617),
    ("model.layers.29.self_attn.k_proj.weight", 11157.1625289917, 42832.04042816162),
    ("model.layers.7.mlp.down_proj.weight", 131425.78338623047, -98460.48640441895),
];
