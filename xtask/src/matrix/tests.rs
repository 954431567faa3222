//! The pages from a fixed input, and what is refused on the command line.

use std::path::Path;

use super::report::{Column, Report, Status, Suite, join};
use super::{Backend, Options, html, markdown, summary, verdict};

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

#[test]
fn arguments_are_read() {
    let options = Options::parse(Path::new("."), &[]).unwrap();
    let names: Vec<String> = options.backends.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["cpu", "ndarray", "wgpu"]);
    assert!(!options.quick && options.out.ends_with("matrix/report"));

    let arguments = ["--out", "there", "--quick", "--backends", "cpu,vulkan:0,cuda:1"];
    let options = Options::parse(Path::new("."), &arguments).unwrap();
    let folders: Vec<String> = options.backends.iter().map(Backend::folder).collect();
    assert_eq!(folders, ["cpu", "vulkan-0", "cuda-1"]);
    assert!(options.quick && options.out.is_absolute() && options.out.ends_with("there"));
}

fn column(status: Status, cells: &str) -> Column {
    let text = format!(
        r#"{{"backend":"cpu","status":"ran","reason":"no adapter: why","seconds":1,"cells":[{cells}]}}"#
    );
    let suite = Suite { status, ..serde_json::from_str(&text).unwrap() };
    Column { name: "cpu".into(), suite, values: None }
}

#[test]
fn a_run_without_any_device_fails() {
    let passed = r#"{"case":"a/b","outcome":"pass"}"#;
    let absent = join(String::new(), false, &[column(Status::Absent, passed)]);
    assert_eq!((absent.totals.passed, absent.totals.skipped), (0, 1));
    let error = verdict(&absent).unwrap_err().to_string();
    assert!(error.starts_with("no backend ran"), "{error}");

    let columns = [column(Status::Ran, passed), column(Status::Absent, "")];
    verdict(&join(String::new(), false, &columns)).unwrap();
}

#[test]
fn a_suite_that_did_not_run_fails_once() {
    let cells = r#"{"case":"a/b","outcome":"pass"},{"case":"a/c","outcome":"pass"}"#;
    let suite = Suite::failed("cuda", "build", "no compiler\nat all".into());
    let failed = Column { name: "cuda".into(), suite, values: None };
    let report = join(String::new(), false, &[column(Status::Ran, cells), failed]);
    let totals = report.totals;
    assert_eq!((totals.passed, totals.failed, totals.skipped), (2, 1, 2));
    assert_eq!(report.failures[0].to_string(), "build on cuda: no compiler");
    assert!(markdown::render(&report).contains("| `build` | – | – | **FAIL**: no compiler… |"));
}

#[test]
fn the_page_needs_nothing_else() {
    let page = html::render(&report());
    for outside in ["http", "<script", "<link", "url(", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
}
