//! A model of a few kilobytes with a byte tokenizer and a chat template, and adapters for it.

use std::collections::BTreeMap;
use std::fs;

use lora_core::config::{LoraConfig, TargetModules};
use lora_core::peft::{Factor, PeftAdapter, PeftConfig};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::lab::Lab;

const WIDTH: usize = 16;
const INTERMEDIATE: usize = 24;
const BLOCKS: usize = 2;
const HEADS: usize = 2;
const HEAD_WIDTH: usize = 8;
const KEY_HEADS: usize = 1;
/// One token for each byte, then the two special ones.
const VOCABULARY: usize = 258;
const END: &str = "<|end|>";
const TURN: &str = "<|turn|>";

const TEMPLATE: &str = "\
{% for message in messages %}{{ '<|turn|>' + message['role'] + '\\n' + message['content'] + \
'<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\\n' }}{% endif %}";

/// Writes the model into the folder `model`.
pub(crate) fn write_model(lab: &Lab) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": HEAD_WIDTH,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "torch_dtype": "float32",
    });
    lab.write("model/config.json", config.to_string());
    lab.write("model/model.safetensors", weights());
    lab.write("model/tokenizer.json", tokenizer().to_string());
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "chat_template": TEMPLATE,
    });
    lab.write("model/tokenizer_config.json", tokenizer_config.to_string());
}

/// Changes the model's config.json.
pub(crate) fn change_config(lab: &Lab, change: impl FnOnce(&mut Value)) {
    let text = fs::read_to_string(lab.path("model/config.json")).expect("the config is there");
    let mut config: Value = serde_json::from_str(&text).expect("the config is JSON");
    change(&mut config);
    lab.write("model/config.json", config.to_string());
}

/// Writes an adapter on the queries of every block, for a model of width `width`.
pub(crate) fn write_adapter(lab: &Lab, name: &str, width: usize) {
    let rank = 2;
    let mut lora = LoraConfig::new(rank, 4.0);
    lora.target = TargetModules::Suffixes(vec!["q_proj".into()]);
    let factors = (0..BLOCKS)
        .map(|block| Factor {
            path: format!("model.layers.{block}.self_attn.q_proj"),
            d_in: width,
            d_out: width,
            rank,
            a: wave(block, width * rank),
            b: wave(block + 7, rank * width),
        })
        .collect();
    let config = PeftConfig::new(lora, Some("model".into()));
    let adapter = PeftAdapter { config, factors, saved: Vec::new(), extra: Vec::new() };
    adapter.save(&lab.path(name)).expect("the adapter is written");
}

/// Writes an adapter that belongs to the model.
pub(crate) fn write_fitting_adapter(lab: &Lab, name: &str) {
    write_adapter(lab, name, WIDTH);
}

fn weights() -> Vec<u8> {
    let mut shapes: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![VOCABULARY, WIDTH])];
    for block in 0..BLOCKS {
        let path = format!("model.layers.{block}");
        let attention = HEADS * HEAD_WIDTH;
        let keys = KEY_HEADS * HEAD_WIDTH;
        for (module, shape) in [
            ("input_layernorm", vec![WIDTH]),
            ("self_attn.q_proj", vec![attention, WIDTH]),
            ("self_attn.k_proj", vec![keys, WIDTH]),
            ("self_attn.v_proj", vec![keys, WIDTH]),
            ("self_attn.o_proj", vec![WIDTH, attention]),
            ("post_attention_layernorm", vec![WIDTH]),
            ("mlp.gate_proj", vec![INTERMEDIATE, WIDTH]),
            ("mlp.up_proj", vec![INTERMEDIATE, WIDTH]),
            ("mlp.down_proj", vec![WIDTH, INTERMEDIATE]),
        ] {
            shapes.push((format!("{path}.{module}.weight"), shape));
        }
    }
    shapes.push(("model.norm.weight".into(), vec![WIDTH]));
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .enumerate()
        .map(|(index, (name, shape))| {
            let numbers = match shape.as_slice() {
                [_] => vec![1.0; shape[0]],
                _ => wave(index, shape.iter().product()),
            };
            (name, shape, numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view =
            TensorView::new(Dtype::F32, shape.clone(), bytes).expect("shape and bytes agree");
        (name.clone(), view)
    });
    safetensors::serialize(views, None).expect("the weights fit a safetensors file")
}

/// Numbers that differ from tensor to tensor and are the same everywhere.
fn wave(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 37 + seed * 101) % 61) as f32 / 61.0 - 0.5).collect()
}

fn tokenizer() -> Value {
    let mut vocabulary: BTreeMap<String, usize> = BTreeMap::new();
    for (id, letter) in byte_letters().into_iter().enumerate() {
        vocabulary.insert(letter.to_string(), id);
    }
    let special = |id: usize, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(256, END), special(257, TURN)],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}

/// The letter that byte-level BPE writes for each byte: itself where it is printable, else one from
/// U+0100 on.
fn byte_letters() -> Vec<char> {
    let is_printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    (0..256)
        .map(|byte| {
            let code = if is_printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).expect("these code points are letters")
        })
        .collect()
}
