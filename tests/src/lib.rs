//! Helpers of the integration tests.

pub mod fixture;

use std::path::PathBuf;

/// The `lora` binary of the same build as the running test.
///
/// # Panics
/// If it has not been built: `cargo test` builds the packages it tests, and this binary is in
/// another one.
pub fn lora_binary() -> PathBuf {
    let test = std::env::current_exe().expect("the running test knows its own path");
    let profile = test.ancestors().nth(2).expect("tests lie in target/<profile>/deps");
    let binary = profile.join(format!("lora{}", std::env::consts::EXE_SUFFIX));
    assert!(
        binary.is_file(),
        "`{}` is missing: run `cargo build -p lora-cli` first, or `cargo xtask ci`",
        binary.display()
    );
    binary
}

/// The best device compiled in, in f32.
///
/// # Panics
/// Where it does not open.
pub fn placement() -> lora_core::Placement {
    let open = lora_core::device::DeviceSpec::Auto.open().expect("a device");
    lora_core::Placement::f32(open.device)
}

/// The decoder's input of a batch.
pub fn input_of(batch: &lora_train::data::Batch) -> lora_models::Input {
    lora_models::Input {
        rows: batch.rows,
        columns: batch.columns,
        tokens: batch.tokens.clone(),
        positions: batch.positions.clone(),
        documents: batch.documents.clone(),
        segments: batch.segments.clone(),
    }
}
