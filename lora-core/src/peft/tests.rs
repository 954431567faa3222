//! Tests of reading and writing adapters, on adapters of two layers made here.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::*;
use crate::config::Init;

mod damaged;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

const Q0_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const Q0_B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

pub(crate) fn factor(path: &str, d_in: usize, d_out: usize, rank: usize) -> Factor {
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

fn adapter() -> PeftAdapter {
    let mut lora = LoraConfig::new(2, 16.0);
    lora.target = TargetModules::Suffixes(vec!["q_proj".into(), "down_proj".into()]);
    let factors = vec![
        factor("model.layers.0.mlp.down_proj", 5, 3, 2),
        factor("model.layers.0.self_attn.q_proj", 3, 4, 2),
        factor("model.layers.1.self_attn.q_proj", 3, 4, 2),
    ];
    let config = PeftConfig::new(lora, Some("base".into()));
    PeftAdapter { config, factors, saved: Vec::new(), extra: Vec::new() }
}

/// The adapter on disk, for tests that then damage it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn of(adapter: &PeftAdapter) -> Self {
        let folder = tempfile::tempdir().unwrap();
        adapter.save(folder.path()).unwrap();
        Self(folder)
    }

    fn settings(&self) -> PathBuf {
        self.0.path().join(CONFIG_FILE)
    }

    fn weights(&self) -> PathBuf {
        self.0.path().join(WEIGHTS_FILE)
    }

    fn with_settings(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Self {
        let folder = Self::of(&adapter());
        let text = fs::read_to_string(folder.settings()).unwrap();
        let mut value: Value = serde_json::from_str(&text).unwrap();
        change(value.as_object_mut().unwrap());
        fs::write(folder.settings(), value.to_string()).unwrap();
        folder
    }

    fn with_setting(key: &str, value: Value) -> Self {
        Self::with_settings(|keys| {
            keys.insert(key.to_owned(), value);
        })
    }

    fn tensors(&self) -> Tensors {
        let bytes = fs::read(self.weights()).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let own = |(name, view): (&str, TensorView)| {
            (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        file.iter().map(own).collect()
    }

    fn with_tensors(change: impl FnOnce(&mut Tensors)) -> Self {
        let folder = Self::of(&adapter());
        let mut tensors = folder.tensors();
        change(&mut tensors);
        let view =
            |(name, (dtype, shape, data))| (name, TensorView::new(dtype, shape, data).unwrap());
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            view((name, (*dtype, shape.clone(), data.as_slice())))
        });
        fs::write(folder.weights(), safetensors::serialize(views, None).unwrap()).unwrap();
        folder
    }

    fn load(&self) -> Result<PeftAdapter> {
        PeftAdapter::load(self.0.path())
    }

    /// The message with its hint, without the folder.
    fn failure(&self) -> String {
        let error = self.load().unwrap_err();
        let folder = format!("{}/", self.0.path().display());
        format!("{error}\n{}", error.hint().unwrap_or_default()).replace(&folder, "")
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn what_is_saved_is_loaded_again() {
    let mut before = adapter();
    let lora = &mut before.config.lora;
    lora.dropout = 0.05;
    lora.use_rslora = true;
    lora.init = Init::Gaussian;
    lora.exclude = vec!["layers.1.mlp".into()];
    lora.layers = Some(vec![0, 1]);
    lora.layers_pattern = vec!["layers".into()];
    lora.rank_pattern = vec![("z".into(), 9), ("down_proj".into(), 2), ("a".into(), 1)];
    lora.alpha_pattern = vec![("q_proj".into(), 2.5), ("b".into(), 4.0)];
    lora.modules_to_save = vec!["lm_head".into()];
    let data: Vec<f32> = (0..12_u8).map(f32::from).collect();
    before.saved = vec![NamedTensor { name: "lm_head.weight".into(), shape: vec![4, 3], data }];
    assert_eq!(Folder::of(&before).load().unwrap(), before);
}

/// An adapter with everything that methods put beside the pairs.
fn with_extras() -> PeftAdapter {
    let mut adapter = adapter();
    let vector = |name: &str, count: u8| NamedTensor {
        name: name.to_owned(),
        shape: vec![count.into()],
        data: (0..count).map(f32::from).collect(),
    };
    let lora = &mut adapter.config.lora;
    lora.use_dora = true;
    lora.bias = Bias::All;
    lora.init = Init::Olora;
    lora.trainable_tokens = vec![("embed_tokens".into(), vec![7, 2])];
    let rows = "model.embed_tokens.token_adapter.trainable_tokens_delta";
    adapter.extra = vec![
        NamedTensor { name: rows.into(), shape: vec![2, 3], data: vec![0.5; 6] },
        vector("model.layers.0.mlp.down_proj.lora_magnitude_vector", 3),
        vector("model.layers.0.self_attn.q_proj.base_layer.bias", 4),
        vector("model.layers.0.self_attn.q_proj.lora_magnitude_vector", 4),
        vector("model.layers.1.self_attn.q_proj.lora_magnitude_vector", 4),
        vector("model.norm.bias", 3),
    ];
    adapter
}

#[test]
fn what_methods_add_is_loaded_again() {
    assert_eq!(Folder::of(&with_extras()).load().unwrap().extra.len(), 6);
    let sorted = |mut adapter: PeftAdapter| {
        adapter.extra.sort_by(|a, b| a.name.cmp(&b.name));
        adapter
    };
    assert_eq!(sorted(Folder::of(&with_extras()).load().unwrap()), sorted(with_extras()));
    let names: Vec<String> = Folder::of(&with_extras()).tensors().into_keys().collect();
    let names = names.join("\n").replace("base_model.model.model.", "");
    insta::assert_snapshot!(names, @"
    embed_tokens.token_adapter.trainable_tokens_delta
    layers.0.mlp.down_proj.lora_A.weight
    layers.0.mlp.down_proj.lora_B.weight
    layers.0.mlp.down_proj.lora_magnitude_vector
    layers.0.self_attn.q_proj.base_layer.bias
    layers.0.self_attn.q_proj.lora_A.weight
    layers.0.self_attn.q_proj.lora_B.weight
    layers.0.self_attn.q_proj.lora_magnitude_vector
    layers.1.self_attn.q_proj.lora_A.weight
    layers.1.self_attn.q_proj.lora_B.weight
    layers.1.self_attn.q_proj.lora_magnitude_vector
    norm.bias
    ");

    let mut embedding = adapter();
    embedding.config.lora.target =
        TargetModules::Suffixes(["q_proj", "down_proj", "embed_tokens"].map(str::to_owned).into());
    embedding.factors.insert(0, factor("model.embed_tokens", 8, 3, 2));
    let folder = Folder::of(&embedding);
    assert_eq!(folder.load().unwrap(), embedding);
    let tensors = folder.tensors();
    let of = |end: &str| tensors[&format!("base_model.model.model.embed_tokens.{end}")].1.clone();
    assert_eq!((of("lora_embedding_A"), of("lora_embedding_B")), (vec![2, 8], vec![3, 2]));
}

#[test]
fn a_tied_head_is_stored_with_its_embedding_as_peft_does() {
    let mut adapter = adapter();
    adapter.config.lora.ensure_weight_tying = true;
    adapter.config.lora.target =
        TargetModules::Suffixes(["q_proj", "down_proj", "embed_tokens"].map(str::to_owned).into());
    adapter.factors.insert(0, factor("model.embed_tokens", 8, 3, 2));
    let tied = adapter.clone().with_tied_copies("model.embed_tokens", "lm_head");
    let folder = Folder::of(&tied);
    let tensors = folder.tensors();
    assert_eq!(
        tensors["base_model.model.lm_head.lora_A.weight"].2,
        transposed(&tensors["base_model.model.model.embed_tokens.lora_embedding_B"], 3, 2),
        "the head's A is the embedding's B, transposed",
    );
    let loaded = folder.load().unwrap();
    assert!(loaded.is_tied_copy("lm_head") && !loaded.is_tied_copy("model.embed_tokens"));
    adapter.config.lora.ensure_weight_tying = false;
    assert!(
        adapter.with_tied_copies("model.embed_tokens", "lm_head").save(folder.0.path()).is_err()
    );
}

fn transposed(
    (_, _, bytes): &(Dtype, Vec<usize>, Vec<u8>),
    rows: usize,
    columns: usize,
) -> Vec<u8> {
    let four = bytes.as_chunks::<4>().0;
    (0..columns).flat_map(|c| (0..rows).flat_map(move |r| four[r * columns + c])).collect()
}

#[test]
fn what_methods_add_must_be_asked_for_and_whole() {
    let refused = |change: &dyn Fn(&mut PeftAdapter)| {
        let mut adapter = with_extras();
        change(&mut adapter);
        adapter.save(tempfile::tempdir().unwrap().path()).unwrap_err().to_string()
    };
    let messages = [
        refused(&|it| it.config.lora.use_dora = false),
        refused(&|it| it.config.lora.bias = Bias::None),
        refused(&|it| it.config.lora.bias = Bias::LoraOnly),
        refused(&|it| it.config.lora.trainable_tokens.clear()),
        refused(&|it| it.config.lora.trainable_tokens[0].1.push(9)),
        refused(&|it| drop(it.extra.remove(1))),
        refused(&|it| drop(it.extra.remove(0))),
        refused(&|it| it.extra[1].data[0] = f32::NAN),
        refused(&|it| (it.extra[1].shape, it.extra[1].data) = (vec![2], vec![1.0; 2])),
        refused(&|it| it.extra[3].name = "model.layers.3.q_proj.lora_magnitude_vector".into()),
    ];
    let messages =
        messages.map(|it| it.split_once("`: ").map_or(it.clone(), |(_, it)| it.to_owned()));
    let messages = messages.join("\n").replace("base_model.model.model.", "");
    insta::assert_snapshot!(messages, @"
    tensor `layers.0.mlp.down_proj.lora_magnitude_vector` is unexpected: `use_dora` is off in adapter_config.json
    tensor `layers.0.self_attn.q_proj.base_layer.bias` is unexpected: `bias` is `none` in adapter_config.json
    tensor `norm.bias` is unexpected: no setting names it
    tensor `embed_tokens.token_adapter.trainable_tokens_delta` is unexpected: `trainable_token_indices` does not name its module in adapter_config.json
    tensor `embed_tokens.token_adapter.trainable_tokens_delta` has 2 rows, but `trainable_token_indices` of adapter_config.json names 3 tokens
    tensor `layers.0.mlp.down_proj.lora_magnitude_vector` is missing, which `use_dora` asks for
    the rows of `embed_tokens`, which `trainable_token_indices` names, are missing
    tensor `layers.0.mlp.down_proj.lora_magnitude_vector` holds NaN
    tensor `layers.0.mlp.down_proj.lora_magnitude_vector` has shape [2], not [3]
    tensor `layers.3.q_proj.lora_magnitude_vector` is unexpected: its module is not adapted
    ");
}

#[test]
fn keys_and_layout_on_disk_are_pefts() {
    let folder = Folder::of(&adapter());
    let tensors = folder.tensors();
    assert_eq!(tensors.len(), 6);
    assert_eq!(tensors[Q0_A].1, [2, 3]);
    assert_eq!(tensors[Q0_B].1, [4, 2]);
    let q0 = &adapter().factors[1];
    let a: Vec<f32> = [0, 2, 4, 1, 3, 5].map(|i| q0.a[i]).to_vec();
    assert_eq!(tensors[Q0_A].2, floats(&a), "row r of lora_A is column r of A");
    let bytes = fs::read(folder.weights()).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn the_settings_file_is_pefts() {
    let mut adapter = adapter();
    adapter.config.lora.target = TargetModules::AllLinear;
    adapter.config.lora.alpha_pattern = vec![("q_proj".into(), 2.5), ("down_proj".into(), 4.0)];
    let folder = Folder::of(&adapter);
    insta::assert_snapshot!(fs::read_to_string(folder.settings()).unwrap());
    let loaded = folder.load().unwrap();
    let names = vec!["down_proj".to_owned(), "q_proj".to_owned()];
    assert_eq!(loaded.config.lora.target, TargetModules::Suffixes(names));
}

#[test]
fn half_precision_weights_are_read() {
    let folder = Folder::with_tensors(|tensors| {
        let half: Vec<u8> = [0.5, -2.0, 1.0, 0.0, 0.25, 8.0]
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect();
        let brain: Vec<u8> =
            (0..8_u8).flat_map(|v| bf16::from_f32(v.into()).to_le_bytes()).collect();
        tensors.insert(Q0_A.into(), (Dtype::F16, vec![2, 3], half));
        tensors.insert(Q0_B.into(), (Dtype::BF16, vec![4, 2], brain));
    });
    let loaded = folder.load().unwrap();
    let q0 = &loaded.factors[1];
    assert_eq!(q0.a, [0.5, 0.0, -2.0, 0.25, 1.0, 8.0]);
    assert_eq!(q0.b, [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
}

#[test]
fn damaged_weights_are_named() {
    let folder = Folder::of(&adapter());
    let bytes = fs::read(folder.weights()).unwrap();
    fs::write(folder.weights(), &bytes[..bytes.len() - 1]).unwrap();
    assert!(folder.failure().contains("adapter_model.safetensors`: not a whole safetensors file"));
    fs::write(folder.weights(), b"").unwrap();
    assert!(folder.failure().contains("not a whole safetensors file"));
    fs::remove_file(folder.weights()).unwrap();
    assert!(matches!(folder.load(), Err(Error::Read { path, .. }) if path == folder.weights()));
    fs::write(folder.0.path().join("adapter_model.bin"), b"pickle").unwrap();
    assert!(folder.failure().contains("safe_serialization=True"));
}

#[test]
fn missing_unexpected_and_misshapen_tensors_are_named() {
    let four = |shape: Vec<usize>| {
        let values = vec![1.0; shape.iter().product()];
        (Dtype::F32, shape, floats(&values))
    };
    let messages = [
        Folder::with_tensors(|it| drop(it.remove(Q0_B))),
        Folder::with_tensors(|it| drop(it.remove(Q0_A))),
        Folder::with_tensors(|it| drop(it.insert("model.norm.weight".into(), four(vec![3])))),
        Folder::with_tensors(|it| {
            drop(it.insert("base_model.model.lm_head.weight".into(), four(vec![4, 3])));
        }),
        Folder::with_tensors(|it| drop(it.insert(Q0_A.into(), four(vec![3, 3])))),
        Folder::with_tensors(|it| drop(it.insert(Q0_A.into(), four(vec![2, 3, 1])))),
        Folder::with_tensors(|it| {
            it.insert(Q0_A.into(), four(vec![3, 3]));
            it.insert(Q0_B.into(), four(vec![4, 3]));
        }),
        Folder::with_tensors(|it| {
            drop(it.insert(Q0_A.into(), (Dtype::I32, vec![2, 3], vec![0; 24])));
        }),
        Folder::with_tensors(|it| {
            let values = [1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0];
            it.insert(Q0_A.into(), (Dtype::F32, vec![2, 3], floats(&values)));
        }),
        Folder::with_tensors(|it| {
            for (end, shape) in [("lora_A", vec![2, 3]), ("lora_B", vec![4, 2])] {
                it.insert(
                    format!("base_model.model.model.layers.0.k_proj.{end}.weight"),
                    four(shape),
                );
            }
        }),
        Folder::with_tensors(BTreeMap::clear),
    ]
    .map(|folder| folder.failure())
    .join("\n\n");
    insta::assert_snapshot!(messages);
}

#[test]
fn what_other_variants_store_is_named() {
    let messages = [
        "q_proj.lora_magnitude_vector",
        "embed_tokens.lora_embedding_A",
        "words.lora_embedding_A",
        "q_proj.lora_B.bias",
        "embed_tokens.base_layer.weight",
        "q_proj.base_layer.bias",
        "embed_tokens.token_adapter.trainable_tokens_delta",
        "q_proj.lora_magnitude_vector.default.weight",
        "q_proj.lora_A.default.weight",
        "q_proj.lora_diag",
    ]
    .map(|name| {
        let key = format!("base_model.model.model.{name}");
        let tensor = (Dtype::F32, vec![1], vec![0; 4]);
        Folder::with_tensors(|tensors| drop(tensors.insert(key, tensor))).failure()
    })
    .join("\n\n");
    insta::assert_snapshot!(messages);
}

#[test]
fn settings_that_change_the_mathematics_are_refused() {
    let messages = [
        ("peft_type", json!("LOHA")),
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("lora_bias", json!(true)),
        ("bias", json!("some")),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("trainable_token_indices", json!([1, 2])),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("alora_invocation_tokens", json!([7])),
        ("use_something_new", json!(true)),
        ("something_new_config", json!({"strength": 2})),
        ("lora_scale", json!(0.5)),
        ("init_lora_weights", json!("corda")),
    ]
    .map(|(key, value)| Folder::with_setting(key, value).failure())
    .join("\n");
    insta::assert_snapshot!(messages);
}

#[test]
fn settings_of_the_wrong_kind_are_named() {
    let missing = ["target_modules", "peft_type"]
        .map(|key| Folder::with_settings(|keys| drop(keys.remove(key))).failure());
    let wrong = [
        ("r", json!(0)),
        ("r", json!("eight")),
        ("r", json!(4)),
        ("lora_alpha", json!(-1)),
        ("lora_dropout", json!(1.5)),
        ("target_modules", json!(["q_proj", 3])),
        ("rank_pattern", json!({"q_proj": 2.5})),
        ("rank_pattern", json!({"(?=q)q_proj": 2})),
        ("layers_to_transform", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("use_rslora", json!("yes")),
        ("init_lora_weights", json!(3)),
    ]
    .map(|(key, value)| Folder::with_setting(key, value).failure());
    insta::assert_snapshot!([&missing[..], &wrong[..]].concat().join("\n"));
    let folder = Folder::of(&adapter());
    fs::write(folder.settings(), "{\"r\": 8,").unwrap();
    assert!(folder.failure().contains("adapter_config.json`: not JSON: "));
    fs::write(folder.settings(), "[]").unwrap();
    assert!(folder.failure().contains("not a JSON object"));
}

#[test]
fn harmless_settings_are_dropped_and_said() {
    let folder = Folder::with_settings(|keys| {
        keys.insert("comment".into(), json!("made by hand"));
        keys.insert("fan_in_fan_out".into(), json!(true));
        keys.insert("init_lora_weights".into(), json!("eva"));
        keys.insert("use_something_new".into(), json!(false));
        keys.shift_remove("rank_pattern");
        keys.shift_remove("use_dora");
    });
    let loaded = folder.load().unwrap();
    assert_eq!(loaded.config.warnings, ["`comment` is ignored", "`use_something_new` is ignored",]);
    assert!(loaded.config.fan_in_fan_out, "kept for PEFT");
    assert_eq!(loaded.factors, adapter().factors);
    assert!(Folder::of(&adapter()).load().unwrap().config.warnings.is_empty());
}

/// Every key that PEFT 0.21.2 writes, switched off or harmless, is passed over in silence; the defaults
/// for what is missing are PEFT's.
#[test]
fn every_key_of_peft_is_known() {
    let folder = Folder::with_settings(|keys| {
        for (key, value) in [
            ("alora_invocation_tokens", json!([])),
            ("auto_mapping", json!({"base_model_class": "LlamaForCausalLM"})),
            ("corda_config", json!({"corda_method": "ipm"})),
            ("eva_config", json!({"rho": 2.0})),
            ("loftq_config", json!({"loftq_bits": 4})),
            ("lora_ga_config", json!({"scale": "stable"})),
            ("megatron_core", json!("megatron.core")),
            ("peft_version", json!("0.99.0")),
            ("qalora_group_size", json!(16)),
            ("revision", json!("main")),
            ("runtime_config", json!({"ephemeral_gpu_offload": false})),
            ("task_type", json!("CAUSAL_LM")),
        ] {
            keys.insert(key.into(), value);
        }
    });
    assert_eq!(folder.load().unwrap().config.warnings, [""; 0]);
    let folder = Folder::with_settings(|keys| {
        keys.shift_remove("lora_alpha");
    });
    let loaded = folder.load().unwrap();
    assert_eq!(loaded.config.lora.alpha, 8.0);
    assert_eq!(loaded.config.warnings, ["`lora_alpha` is missing: PEFT's default of 8 is taken"]);
}

#[test]
fn targets_may_be_an_expression_or_a_number_or_all() {
    let regex = Folder::with_setting("target_modules", json!(r".*\.(q|down)_proj")).load().unwrap();
    assert_eq!(regex.config.lora.target, TargetModules::Regex(r".*\.(q|down)_proj".into()));
    let all = Folder::with_setting("target_modules", json!("All-Linear")).load().unwrap();
    assert_eq!(all.config.lora.target, TargetModules::AllLinear);
    let narrow = Folder::with_setting("target_modules", json!(r".*\.q_proj"));
    assert!(narrow.failure().contains("mlp.down_proj.lora_A.weight` is unexpected"));
    let layer = Folder::with_setting("layers_to_transform", json!(0));
    assert!(layer.failure().contains("layers.1.self_attn.q_proj.lora_A.weight` is unexpected"));
}

#[test]
fn expressions_of_pythons_own_are_read_off_the_weights() {
    let paths: Vec<String> = adapter().factors.into_iter().map(|factor| factor.path).collect();
    for (key, value) in [
        ("target_modules", json!("^(?!.*vision).*(q_proj|down_proj)$")),
        ("exclude_modules", json!(r".*\.1\.mlp\..*")),
    ] {
        let loaded = Folder::with_setting(key, value).load().unwrap();
        assert_eq!(loaded.config.lora.target, TargetModules::Suffixes(paths.clone()), "{key}");
        assert!(loaded.config.warnings[0].contains("taken from the names of the weights"));
        let again = Folder::of(&loaded).load().unwrap();
        assert_eq!(again.factors, loaded.factors);
    }
}

#[test]
fn classifiers_may_name_a_head_they_do_not_have() {
    let mut adapter = adapter();
    adapter.config.lora.modules_to_save = vec!["classifier".into(), "score".into()];
    let data = vec![1.0; 3];
    adapter.saved =
        vec![NamedTensor { name: "classifier.dense.bias".into(), shape: vec![3], data }];
    assert!(adapter.save(tempfile::tempdir().unwrap().path()).is_err());
    adapter.config.task_type = Some("SEQ_CLS".into());
    assert_eq!(Folder::of(&adapter).load().unwrap(), adapter);
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    let refused = |change: &dyn Fn(&mut PeftAdapter)| {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("adapter");
        let mut adapter = adapter();
        change(&mut adapter);
        let message = adapter.save(&folder).unwrap_err().to_string();
        assert!(!folder.exists(), "{message}");
        message
    };
    assert!(refused(&|it| it.factors[0].b[1] = f32::INFINITY).contains("lora_B.weight` holds inf"));
    assert!(refused(&|it| it.factors[0].rank = 3).contains("says 2"));
    assert!(refused(&|it| it.factors[0].a.truncate(9)).contains("9 and 6 values"));
    assert!(refused(&|it| it.factors[0] = it.factors[1].clone()).contains("there twice"));
    assert!(refused(&|it| it.factors.clear()).contains("no low-rank weights"));
    assert!(refused(&|it| it.config.lora.alpha = 0.0).contains("alpha"));
}

#[test]
fn a_failed_save_keeps_the_old_adapter() {
    let folder = Folder::of(&adapter());
    let before = fs::read(folder.weights()).unwrap();
    let mut broken = adapter();
    broken.factors[2].a[0] = f32::NAN;
    assert!(broken.save(folder.0.path()).is_err());
    assert_eq!(fs::read(folder.weights()).unwrap(), before);
}

fn model() -> Vec<LinearInfo> {
    let layer = |path: &str, d_in, d_out| LinearInfo {
        path: path.to_owned(),
        d_in,
        d_out,
        is_output_head: false,
    };
    vec![
        layer("model.layers.0.self_attn.q_proj", 3, 4),
        layer("model.layers.0.mlp.down_proj", 5, 3),
        layer("model.layers.1.self_attn.q_proj", 3, 4),
        layer("model.layers.1.mlp.up_proj", 3, 5),
    ]
}

#[test]
fn an_adapter_fits_its_base_in_the_order_of_the_model() {
    let adapter = adapter();
    let pairs = adapter.fit(&model()).unwrap();
    let paths: Vec<&str> = pairs.iter().map(|(module, _)| module.path.as_str()).collect();
    let expected =
        ["layers.0.self_attn.q_proj", "layers.0.mlp.down_proj", "layers.1.self_attn.q_proj"];
    assert!(paths.iter().zip(expected).all(|(path, end)| path.ends_with(end)), "{paths:?}");
    assert!(pairs.iter().all(|(module, factor)| module.path == factor.path));
    assert_eq!(pairs[0].0.scaling, 8.0);
}

#[test]
fn an_adapter_for_another_base_is_refused() {
    let failure = |linears: &[LinearInfo]| {
        let error = adapter().fit(linears).unwrap_err();
        format!("{error}\n{}", error.hint().unwrap_or_default())
    };
    let mut bigger = model();
    bigger[0].d_in = 6;
    let mut longer = model();
    longer.push(LinearInfo { path: "model.layers.2.mlp.down_proj".into(), ..model()[1].clone() });
    insta::assert_snapshot!([failure(&bigger), failure(&longer), failure(&model()[1..])].join("\n"), @"
    the adapter is for another model: its `model.layers.0.self_attn.q_proj` is 3 × 4, the model's 6 × 4
    it was trained on `base`
    the adapter is for another model: it has no weights for `model.layers.2.mlp.down_proj`, which its settings name
    it was trained on `base`
    the adapter is for another model: it has weights for `model.layers.0.self_attn.q_proj`, which is no linear layer here
    it was trained on `base`
    ");
}
