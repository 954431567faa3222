//! The pages from a fixed input, and what is refused on the command line.

use std::path::Path;

use super::report::{Column, Report, Suite, join};
use super::{Options, html, markdown, summary, verdict};

/// Two that ran, of which one fails, and one without its device.
fn report() -> Report {
    let cpu = r#"{"backend":"cpu","device":"a processor","driver":"SIMD","status":"ran","reason":null,
        "seconds":3.25,"cells":[
        {"case":"ops/rms_norm/f32","outcome":"pass","reason":null,"deviation":1.25e-7,
         "tolerance":1.5e-6,"reference":"float64","seconds":0.004},
        {"case":"ops/rms_norm/bf16","outcome":"pass","reason":null,"deviation":3e-3,
         "tolerance":2e-2,"reference":"float64","seconds":0.003},
        {"case":"parity/llama/lora/logits","outcome":"pass","reason":null,"deviation":0.0,
         "tolerance":7e-5,"reference":"PEFT","seconds":0.05},
        {"case":"exchange/wgpu/adapter","outcome":"pass","reason":null,"deviation":5e-7,
         "tolerance":7e-5,"reference":"the other backend","seconds":0.02}]}"#;
    let wgpu = r#"{"backend":"wgpu","device":"llvmpipe <LLVM>","driver":"spirv | wgsl","status":"ran",
        "reason":null,"seconds":161.0,"cells":[
        {"case":"ops/rms_norm/f32","outcome":"fail","reason":"off by NaN, allowed 1.5e-6",
         "deviation":null,"tolerance":1.5e-6,"reference":"float64","seconds":0.21},
        {"case":"ops/rms_norm/bf16","outcome":"skipped","reason":"wgpu:0 has no BF16",
         "deviation":null,"tolerance":2e-2,"reference":"float64","seconds":0.0},
        {"case":"exchange/cpu/adapter","outcome":"pass","reason":null,"deviation":6e-7,
         "tolerance":7e-5,"reference":"the other backend","seconds":1.1}]}"#;
    let cuda = r#"{"backend":"cuda","device":"","driver":"","status":"absent",
        "reason":"no adapter: the NVIDIA driver is missing","seconds":0.0,"cells":[]}"#;
    let values = |logits: &[f32], gradients: &[f32]| {
        let named = [("logits/llama/lora", logits), ("gradients/llama/lora", gradients)];
        named.into_iter().map(|(name, numbers)| (name.to_owned(), numbers.to_vec())).collect()
    };
    let column = |name: &str, text: &str, values| Column {
        name: name.into(),
        suite: serde_json::from_str::<Suite>(text).unwrap(),
        values,
    };
    join(
        "2026-01-02 03:04 UTC".into(),
        false,
        &[
            column("cpu", cpu, Some(values(&[1.0, -4.0], &[3.0, 4.0]))),
            column("wgpu", wgpu, Some(values(&[1.0, -4.002], &[3.0, f32::NAN]))),
            column("cuda", cuda, None),
        ],
    )
}

#[test]
fn pages_of_a_fixed_input() {
    let report = report();
    insta::assert_snapshot!("markdown", markdown::render(&report));
    insta::assert_snapshot!("html", html::render(&report));
    insta::assert_snapshot!("json", serde_json::to_string_pretty(&report).unwrap());
    insta::assert_snapshot!("summary", summary::render(&report));
}

#[test]
fn a_failed_cell_fails_the_run() {
    insta::assert_snapshot!("failed", format!("{:#}", verdict(&report()).unwrap_err()));
}

#[test]
fn arguments_that_are_refused() {
    let refused: Vec<String> = [
        &["--backends", "cpu,tpu"][..],
        &["--backends", "cuda:first"],
        &["--backends", "cpu,cpu"],
        &["--backends"],
        &["--out"],
        &["--fast"],
    ]
    .into_iter()
    .map(|arguments| {
        let error = Options::parse(Path::new("."), arguments).unwrap_err();
        format!("{}: {error:#}", arguments.join(" "))
    })
    .collect();
    insta::assert_snapshot!("refused", refused.join("\n"));
}
