//! The conformance suite: the same cases on whatever backend this binary was built with.
//!
//! Without arguments it runs on the best device and prints what failed. `cargo xtask matrix` runs it
//! once for each backend with `--phase run`, then with `--phase exchange`, which reads what the others
//! have left, and puts the results beside each other.
#![recursion_limit = "256"]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests may panic and print"
)]
#![expect(clippy::exit, reason = "the exit status is the result")]

mod case;
mod equalities;
mod exchange;
mod ops;
mod packed;
mod parity;
#[allow(
    dead_code,
    unused_imports,
    reason = "its tests run in the other binary, which has a harness"
)]
mod reference;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lora_core::device::{DeviceSpec, OpenDevice};
use safetensors::tensor::{Dtype, TensorView};

use crate::case::{Case, Cell, Column, Lab, Outcome};

/// As in the binary: glibc gives the pages of every tensor back, which halves the speed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Default)]
struct Arguments {
    exchange: bool,
    device: Option<String>,
    out: Option<PathBuf>,
    others: Vec<PathBuf>,
    quick: bool,
    only: Option<String>,
}

fn main() {
    let arguments = arguments();
    // A panic is a failed cell, told there.
    std::panic::set_hook(Box::new(|_| {}));
    let scratch = tempfile::tempdir().unwrap();
    let out = arguments.out.clone().unwrap_or_else(|| scratch.path().join("column"));
    fs::create_dir_all(&out).unwrap();
    let name = arguments.device.as_deref().unwrap_or("auto");
    let open = match DeviceSpec::parse(name).and_then(DeviceSpec::open) {
        Ok(open) => open,
        Err(error) => return absent(name, &error.to_string(), &out),
    };
    let failed = match arguments.exchange {
        true => exchange_phase(open, &arguments, &out),
        false => run_phase(open, &arguments, &out),
    };
    // `cargo xtask matrix` reads the cells; a person who runs this alone sees the status.
    if failed > 0 && arguments.out.is_none() {
        std::process::exit(1);
    }
}

fn run_phase(open: OpenDevice, arguments: &Arguments, out: &Path) -> usize {
    let mut cases = ops::cases();
    cases.extend(equalities::cases());
    cases.extend(packed::cases());
    cases.extend(parity::cases());
    cases.extend(exchange::leave(out));
    let (driver, device) = (driver(&open), label(&open));
    let (cells, values, seconds) = run(open, arguments, cases);
    save_values(&values, out);
    let failed = failures(&cells);
    let column = Column {
        backend: arguments.device.clone().unwrap_or_else(|| "auto".into()),
        device,
        driver,
        status: "ran".into(),
        reason: None,
        seconds,
        cells,
    };
    save(&column, out);
    failed
}

fn exchange_phase(open: OpenDevice, arguments: &Arguments, out: &Path) -> usize {
    let cases = arguments.others.iter().flat_map(|other| exchange::read(out, other)).collect();
    let (cells, _, seconds) = run(open, arguments, cases);
    let failed = failures(&cells);
    let bytes = fs::read(out.join("cells.json")).unwrap();
    let mut column: Column = serde_json::from_slice(&bytes).unwrap();
    column.cells.extend(cells);
    column.seconds += seconds;
    save(&column, out);
    failed
}

fn run(
    open: OpenDevice,
    arguments: &Arguments,
    cases: Vec<Case>,
) -> (Vec<Cell>, BTreeMap<String, Vec<f32>>, f64) {
    let started = Instant::now();
    let mut lab = Lab { open, values: BTreeMap::new() };
    let mut cells = Vec::new();
    for case in cases {
        let wanted = arguments.only.as_deref().is_none_or(|only| case.name.contains(only));
        // Each method once: the trajectories of the other fixtures take the most time.
        let long = case.name.starts_with("parity/") && !case.name.starts_with("parity/llama/");
        if wanted && !(arguments.quick && long) {
            let cell = case.cell(&mut lab);
            if cell.outcome == Outcome::Fail {
                println!("FAILED {}: {}", cell.case, cell.reason.as_deref().unwrap_or_default());
            }
            cells.push(cell);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let count = |outcome| cells.iter().filter(|cell| cell.outcome == outcome).count();
    println!(
        "{} ({}): {} passed, {} failed, {} skipped, {seconds:.1} s",
        lab.open.name,
        label(&lab.open),
        count(Outcome::Pass),
        count(Outcome::Fail),
        count(Outcome::Skipped),
    );
    (cells, lab.values, seconds)
}

fn failures(cells: &[Cell]) -> usize {
    cells.iter().filter(|cell| cell.outcome == Outcome::Fail).count()
}

/// A device that is not there has no cells: the matrix shows them as skipped.
fn absent(name: &str, reason: &str, out: &Path) {
    println!("{name}: {reason}");
    let column = Column {
        backend: name.into(),
        device: String::new(),
        driver: String::new(),
        status: "absent".into(),
        reason: Some(format!("no adapter: {reason}")),
        seconds: 0.0,
        cells: Vec::new(),
    };
    save(&column, out);
}

fn save(column: &Column, out: &Path) {
    let text = serde_json::to_string_pretty(column).unwrap();
    fs::write(out.join("cells.json"), text).unwrap();
}

fn save_values(values: &BTreeMap<String, Vec<f32>>, out: &Path) {
    let bytes: BTreeMap<&String, Vec<u8>> = values
        .iter()
        .map(|(name, numbers)| (name, numbers.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = bytes.iter().map(|(name, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &out.join("values.safetensors")).unwrap();
}

/// What the device is called; for a processor, its model.
fn label(open: &OpenDevice) -> String {
    if !open.label.is_empty() {
        return open.label.clone();
    }
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name"));
    model.map_or_else(
        || "processor".into(),
        |model| model.trim_start_matches([' ', '\t', ':']).into(),
    )
}

fn driver(open: &OpenDevice) -> String {
    match open.target.as_str() {
        "" => open.backend.description().into(),
        target => format!("{}, {target}", open.backend.description()),
    }
}

fn arguments() -> Arguments {
    let mut found = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value =
            || words.next().unwrap_or_else(|| usage(&format!("`{word}` needs a value")));
        match word.as_str() {
            "--phase" => match value().as_str() {
                "run" => found.exchange = false,
                "exchange" => found.exchange = true,
                other => usage(&format!("there is no phase `{other}`")),
            },
            "--device" => found.device = Some(value()),
            "--out" => found.out = Some(value().into()),
            "--others" => found.others.push(value().into()),
            "--quick" => found.quick = true,
            "--only" => found.only = Some(value()),
            other => usage(&format!("unknown argument `{other}`")),
        }
    }
    found
}

fn usage(problem: &str) -> ! {
    eprintln!(
        "{problem}\nusage: conformance [--device NAME] [--only TEXT] [--quick] [--out DIR] \
         [--phase run|exchange] [--others DIR]..."
    );
    std::process::exit(2)
}
