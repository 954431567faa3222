//! Files with anything in them: reading gives an adapter or an error, never a panic.

use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;

use super::super::{render, settings, tensors};
use super::adapter;

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    /// Whatever is in the weights file, reading gives an adapter or an error.
    #[test]
    fn damaged_weights_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
        let bytes = tensors::serialize(&adapter().factors, &[], &[]);
        let mut damaged = bytes.clone();
        for (at, value) in changes {
            damaged[at.index(bytes.len())] = value;
        }
        let _ = tensors::read(&damaged, Path::new("x"));
        let _ = tensors::read(&damaged[..cut.index(bytes.len())], Path::new("x"));
    }

    /// Whatever is in the settings file, reading gives settings or an error.
    #[test]
    fn damaged_settings_never_panic(key in 0_usize..40, value in "[\\[\\]{}\":,a-z0-9.]{0,12}|null|true|-1|1e400|\"[(]\"") {
        let text = render::settings(&adapter().config, &adapter().factors);
        let keys: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        let lines: Vec<String> = keys
            .iter()
            .enumerate()
            .map(|(i, (name, old))| if i == key { format!("\"{name}\":{value}") } else { format!("\"{name}\":{old}") })
            .collect();
        let _ = settings::parse(&format!("{{{}}}", lines.join(",")), Path::new("x"));
    }
}
