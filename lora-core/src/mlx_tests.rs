//! Tests of mlx-lm's adapters: what the files hold, what comes back, what is refused.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;
use crate::config::{LoraConfig, TargetModules};
use crate::peft::tests::factor;
use crate::peft::{NamedTensor, PeftConfig};

fn adapter() -> PeftAdapter {
    let mut lora = LoraConfig::new(2, 40.0);
    lora.dropout = 0.1;
    lora.target = TargetModules::Suffixes(vec!["q_proj".into(), "down_proj".into()]);
    lora.rank_pattern = vec![("down_proj".to_owned(), 1)];
    lora.alpha_pattern = vec![("down_proj".to_owned(), 3.0)];
    let factors = vec![
        factor("model.layers.0.mlp.down_proj", 5, 3, 1),
        factor("model.layers.0.self_attn.q_proj", 3, 4, 2),
        factor("model.layers.1.self_attn.q_proj", 3, 4, 2),
    ];
    PeftAdapter::new(PeftConfig::new(lora, Some("base".into())), factors)
}

#[test]
fn what_is_saved_is_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let before = adapter();
    save(&before, folder.path()).unwrap();
    assert!(is_mlx_adapter(folder.path()));
    let after = load(folder.path()).unwrap();
    let apart = after.largest_difference(&before).unwrap();
    assert!(apart < 1e-6, "{apart}");
    assert_eq!(after.config.base_model.as_deref(), Some("base"));
    assert_eq!(after.config.lora.dropout, 0.1);
    assert_eq!((after.config.lora.rank, after.config.lora.alpha), (2, 40.0));
}

#[test]
fn magnitudes_go_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut before = adapter();
    before.config.lora.use_dora = true;
    for factor in &before.factors {
        let name = format!("{}.lora_magnitude_vector", factor.path);
        let data = (0..factor.d_out).map(|i| 1.0 + i as f32).collect();
        before.extra.push(NamedTensor { name, shape: vec![factor.d_out], data });
    }
    save(&before, folder.path()).unwrap();
    let after = load(folder.path()).unwrap();
    assert!(after.config.lora.use_dora);
    assert!(after.largest_difference(&before).unwrap() < 1e-6);
    after.save(&folder.path().join("peft")).unwrap();
}

#[test]
fn the_files_are_those_of_mlx_lm() {
    let folder = tempfile::tempdir().unwrap();
    save(&adapter(), folder.path()).unwrap();
    let text = fs::read_to_string(folder.path().join(CONFIG_FILE)).unwrap();
    insta::assert_snapshot!(text);
    let bytes = fs::read(folder.path().join(WEIGHTS_FILE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut shapes: Vec<_> =
        file.iter().map(|(name, view)| format!("{name} {:?}", view.shape())).collect();
    shapes.sort();
    insta::assert_snapshot!(shapes.join("\n"), @r"
    model.layers.0.mlp.down_proj.lora_a [5, 2]
    model.layers.0.mlp.down_proj.lora_b [2, 3]
    model.layers.0.self_attn.q_proj.lora_a [3, 2]
    model.layers.0.self_attn.q_proj.lora_b [2, 4]
    model.layers.1.self_attn.q_proj.lora_a [3, 2]
    model.layers.1.self_attn.q_proj.lora_b [2, 4]
    ");
}

#[test]
fn what_cannot_be_carried_or_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("new");
    let mut whole = adapter();
    let name = "lm_head.weight".to_owned();
    whole.saved = vec![NamedTensor { name, shape: vec![1], data: vec![0.0] }];
    let mut messages = vec![save(&whole, &place).unwrap_err().to_string()];
    assert!(!place.exists());

    save(&adapter(), &place).unwrap();
    let mut fails = |settings: &str, tensors: &[(&str, &[usize])]| {
        fs::write(place.join(CONFIG_FILE), settings).unwrap();
        let zeros = vec![0u8; 4096];
        let views: Vec<_> = tensors
            .iter()
            .map(|(name, shape)| {
                let bytes = &zeros[..4 * shape.iter().product::<usize>()];
                (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
            })
            .collect();
        let weights = safetensors::serialize(views, None).unwrap();
        fs::write(place.join(WEIGHTS_FILE), weights).unwrap();
        let error = load(&place).unwrap_err().to_string();
        messages.push(error.replace(&format!("{}/", place.display()), ""));
    };
    let good = r#"{"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 20.0}}"#;
    fails("[]", &[]);
    fails(r#"{"fine_tune_type": "full"}"#, &[]);
    fails(r#"{"lora_parameters": {"alpha": 16}}"#, &[]);
    fails(good, &[]);
    fails(good, &[("a.lora_a", &[3, 2])]);
    fails(good, &[("a.lora_a", &[3, 2]), ("a.lora_b", &[3, 4])]);
    fails(good, &[("a.lora_a", &[3]), ("a.lora_b", &[2, 4])]);
    fails(good, &[("a.m", &[3])]);
    let decomposed = r#"{"fine_tune_type": "dora", "lora_parameters": {"rank": 2, "scale": 20.0}}"#;
    fails(decomposed, &[("a.lora_a", &[3, 2]), ("a.lora_b", &[2, 4])]);
    fails(decomposed, &[("a.lora_a", &[3, 2]), ("a.lora_b", &[2, 4]), ("a.m", &[3])]);
    let pair: [(&str, &[usize]); 3] = [("a.lora_a", &[3, 2]), ("a.lora_b", &[2, 4]), ("a.m", &[4])];
    fails(decomposed, &[&pair[..], &[("b.m", &[4])]].concat());
    fails(good, &[("model.embed_tokens.lora_a", &[3, 2]), ("model.embed_tokens.lora_b", &[2, 4])]);
    insta::assert_snapshot!(messages.join("\n"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]

    /// Whatever is in the files, reading gives an adapter or an error.
    #[test]
    fn damaged_files_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), in_settings in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        save(&adapter(), folder.path()).unwrap();
        let name = if in_settings { CONFIG_FILE } else { WEIGHTS_FILE };
        let mut bytes = fs::read(folder.path().join(name)).unwrap();
        let count = bytes.len();
        for (at, value) in changes {
            bytes[at.index(count)] = value;
        }
        fs::write(folder.path().join(name), bytes).unwrap();
        let _ = load(folder.path());
    }
}
