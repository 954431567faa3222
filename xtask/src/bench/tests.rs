//! The table from a fixed input, what is refused on the command line, and what becomes of the rest.

use super::child::{Line, Run};
use super::machine::Machine;
use super::programs::Programs;
use super::report::{Head, Report, Skip};
use super::rows::{LLAMA, OURS, PEER, PEER_ADAPTERS, PEER_AUTOCAST, ROWS, WORKS};
use super::{Options, jobs, markdown, progress};
use std::path::Path;

fn options(arguments: &[&str]) -> Options {
    Options::parse(Path::new("."), arguments).unwrap()
}

fn head(rounds: usize) -> Head {
    Head {
        date: "2026-01-02 03:04 UTC".into(),
        rounds,
        quick: false,
        machine: Machine {
            processor: "AMD EPYC".into(),
            cores: 2,
            simd: vec!["avx2".into(), "fma".into()],
            load_average: Some(0.1),
        },
        versions: [("lora", "0.1.0 at abc1234"), ("rustc", "1.95.0")]
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .into(),
    }
}

fn line(text: &str) -> Line {
    serde_json::from_str(text).unwrap()
}

fn train(speeds: &[f64], peak_rss_mb: f64) -> Line {
    let milliseconds: Vec<f64> = speeds.iter().map(|speed| 1_024e3 / speed).collect();
    line(&format!(
        r#"{{"kind":"train","device":"cpu","dtype":"f32","threads":2,"tok_s":{speeds:?},
        "step_ms":{milliseconds:?},"loss_first":10.812,"loss_last":10.79,
        "trainable_parameters":2442240,"start_rss_mb":20,"peak_rss_mb":{peak_rss_mb}}}"#
    ))
}

fn generate(milliseconds: [f64; 3]) -> Line {
    let variants: Vec<String> = ["base", "unmerged", "merged"]
        .iter()
        .zip(milliseconds)
        .map(|(name, time)| {
            let speed = 1e3 / time;
            format!(
                r#"{{"variant":"{name}","tok_s":[{speed}],"step_ms":[{time}],"prompt_ms":[90]}}"#
            )
        })
        .collect();
    line(&format!(
        r#"{{"kind":"generate","device":"cpu","dtype":"f32","threads":2,"variants":[{}],
        "peak_rss_mb":1900}}"#,
        variants.join(",")
    ))
}

fn products(step: f64, inside: f64) -> Line {
    line(&format!(
        r#"{{"kind":"products","device":"cpu","dtype":"f32","threads":2,"peak_rss_mb":2000,
        "variants":[{{"variant":"step","step_ms":[{step}]}},{{"variant":"sum","step_ms":[2000]}},
        {{"variant":"inside","gflop_s":[{inside}]}},{{"variant":"limit","gflop_s":[460]}}]}}"#
    ))
}

fn ran(work: &'static str, by: &'static str, round: usize, line: Line) -> Run {
    Run {
        work,
        by,
        round,
        seconds: 12.5,
        load_average: Some(0.2),
        others_percent: Some(1.25),
        line: Some(line),
        failure: None,
    }
}

/// Three rounds of which the second found the machine slower, a failure and a skip.
fn report() -> Report {
    let mut runs = Vec::new();
    for (round, speed) in [(1, 1.0), (2, 0.5), (3, 0.9)] {
        let at = |speeds: [f64; 3]| speeds.map(|number| number * speed);
        let mut peer = train(&at([250.0, 240.0, 260.0]), 4_800.0);
        peer.versions.insert("torch".into(), "2.15.0".into());
        let change = round as f64 * 10.0;
        runs.extend([
            ran("train-f32", OURS, round, train(&at([710.0 + change, 720.0, 730.0]), 2_100.0)),
            ran("train-f32", PEER, round, peer),
            ran("train-bf16", OURS, round, train(&at([800.0, 810.0, 790.0]), 1_150.0 + change)),
            ran("train-bf16", PEER, round, train(&at([431.0, 430.0, 433.0]), 3_400.0)),
            ran("ways-bf16", PEER_AUTOCAST, round, train(&at([542.0, 541.0, 543.0]), 4_000.0)),
            ran("decode-f32", OURS, round, generate([50.0, 54.0 + change / 10.0, 50.5])),
            ran("merged-f32", OURS, round, generate([50.0, 54.0, 50.5])),
            ran("products-f32", OURS, round, products(2_400.0, 420.0 + change)),
        ]);
    }
    let failed = Run {
        line: None,
        failure: Some("exit status: 1: error: no <memory>\n hint: buy some".into()),
        ..ran("full-f32", OURS, 1, train(&[1.0], 1.0))
    };
    runs.push(failed);
    let skip = |work, by, reason: &str| Skip { work, by, reason: reason.to_owned() };
    let skipped = vec![
        skip("train-bf16", PEER_ADAPTERS, "this processor can't"),
        skip("load-f32", OURS, "`model.gguf` is not there; fetch it"),
        skip("full-bf16", PEER, "this processor can't"),
    ];
    let names = [
        "train-f32",
        "train-bf16",
        "train-bf16-fastest",
        "factored-f32",
        "memory-bf16",
        "decode-f32",
        "unmerged-f32",
        "merged-f32",
        "products-f32",
        "product-limit-f32",
        "load",
    ];
    Report::join(head(3), &names, runs, skipped)
}

#[test]
fn the_table_of_a_fixed_input() {
    let report = report();
    insta::assert_snapshot!("markdown", markdown::page(&report));
    insta::assert_snapshot!("json_rows", serde_json::to_string_pretty(&report.rows).unwrap());
    let lines: Vec<String> = report.runs.iter().map(|run| progress(run, 3)).collect();
    insta::assert_snapshot!("progress", lines.join("\n"));
}

#[test]
fn a_disturbed_machine_is_said() {
    let mut run = ran("train-f32", OURS, 1, train(&[700.0], 2_100.0));
    run.others_percent = Some(31.0);
    let report = Report::join(head(1), &["train-f32"], vec![run], Vec::new());
    let page = markdown::page(&report);
    assert!(page.contains("**Noisy:** other programs took up to 31 % of the machine"), "{page}");
    let row = page.lines().find(|line| line.contains("(`train-f32`)")).unwrap();
    assert!(row.ends_with("| - | 700 tokens/s | - | ≥ 2.80 | - |"), "{row}");
}

#[test]
fn a_target_without_another_is_a_number() {
    let loaded = |milliseconds: f64| {
        let text = format!(
            r#"{{"kind":"load","device":"cpu","dtype":"f32","threads":2,"step_ms":[{milliseconds}],
            "peak_rss_mb":700}}"#
        );
        let run = ran("load-f32", OURS, 1, line(&text));
        let page = markdown::page(&Report::join(head(1), &["load"], vec![run], Vec::new()));
        page.lines().find(|line| line.contains("(`load`)")).unwrap().to_owned()
    };
    assert!(loaded(1_240.0).ends_with("| - | 1.24 s | - | ≤ 1.50 s | yes |"));
    assert!(loaded(1_640.0).ends_with("| - | 1.64 s | - | ≤ 1.50 s | **no** |"));
}

#[test]
fn the_table_goes_between_its_marks() {
    let page = "# Text\n\n<!-- bench:begin -->\nold\n<!-- bench:end -->\n\nMore.\n";
    let written = markdown::into_page(page, "new\n").unwrap();
    assert_eq!(written, "# Text\n\n<!-- bench:begin -->\n\nnew\n\n<!-- bench:end -->\n\nMore.\n");
    assert_eq!(markdown::into_page(&written, "new\n").unwrap(), written);
    let error = markdown::into_page("# Text\n", "new\n").unwrap_err().to_string();
    assert!(error.contains("<!-- bench:begin -->"), "{error}");
}

#[test]
fn arguments_that_are_refused() {
    let refused: Vec<String> = [
        &["--only", "train-f32,speed"][..],
        &["--only"],
        &["--only", "--quick"],
        &["--runs", "0"],
        &["--runs", "many"],
        &["--runs"],
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
    let plain = options(&[]);
    assert!(!plain.peer && !plain.quick && !plain.write_docs && plain.out.ends_with("bench"));
    assert_eq!((plain.rounds, plain.only.len()), (3, ROWS.len()));
    assert_eq!(options(&["--quick"]).rounds, 1);

    let all = ["--peer", "--only", "load, train-bf16", "--quick", "--runs", "5", "--out", "there"];
    let all = options(&all);
    assert!(all.peer && all.quick && all.out.is_absolute() && all.out.ends_with("there"));
    assert_eq!((all.rounds, all.only), (5, vec!["load", "train-bf16"]));
    assert!(options(&["--write-docs"]).write_docs);
}

/// What would run, and what would not.
fn planned(arguments: &[&str], peer: bool, machine: &Machine) -> String {
    let folder = tempfile::tempdir().unwrap();
    let programs = Programs {
        ours: "lora".into(),
        burn: "burn".into(),
        peer: peer.then(|| "python".into()),
        llama: Err("no llama".into()),
        models: "out".into(),
        threads: 2,
    };
    let (jobs, skipped) = jobs(folder.path(), &options(arguments), &programs, machine);
    let mut lines: Vec<String> =
        jobs.iter().map(|job| format!("{}, {}", job.work.name, job.by)).collect();
    let skips = skipped.iter().map(|skip| format!("{}, {}: {}", skip.work, skip.by, skip.reason));
    lines.extend(skips);
    lines.join("\n")
}

#[test]
fn a_round_holds_what_its_rows_need() {
    let old = head(1).machine;
    let new = Machine { simd: vec!["avx2".into(), "avx512_bf16".into()], ..old.clone() };
    let plans = [
        planned(&["--only", "factored-bf16,apply-lora,memory-apply-lora"], false, &old),
        planned(&["--only", "train-bf16-fastest", "--peer"], true, &new),
        planned(&["--only", "train-bf16-fastest", "--peer"], true, &old),
        planned(
            &["--only", "memory-1024,memory-2048,load,decode-llama-q8", "--quick"],
            false,
            &old,
        ),
    ];
    insta::assert_snapshot!("plans", plans.join("\n\n"));
}

#[test]
fn peers_are_told_what_we_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(crate::fetch::SMOLLM2_GGUF);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "").unwrap();
    let programs = Programs {
        ours: "lora".into(),
        burn: "burn".into(),
        peer: Some("python".into()),
        llama: Ok("llama".into()),
        models: "out".into(),
        threads: 2,
    };
    let shown = |work: &str, by: &str| {
        let work = WORKS.iter().find(|found| found.name == work).unwrap();
        let command = programs.command(folder.path(), work, by, false).unwrap();
        let words = [command.get_program()].into_iter().chain(command.get_args());
        words.map(|word| word.display().to_string()).collect::<Vec<_>>().join(" ")
    };
    let commands = [
        shown("train-bf16", OURS),
        shown("train-bf16", PEER),
        shown("train-bf16", PEER_AUTOCAST),
        shown("decode-f32", PEER),
        shown("load-f32", OURS),
        shown("decode-gguf-bf16", OURS),
        shown("decode-gguf-q8", LLAMA),
        shown("products-bf16", OURS),
    ];
    insta::assert_snapshot!("commands", commands.join("\n"));
}
