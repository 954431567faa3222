//! `lora doctor`: what this machine and this program can do.

use std::env;
use std::path::Path;

use lora_core::device::{self, DeviceSpec, OpenDevice};
use lora_core::placement::DType;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::style;

/// Prints backends, devices, number formats, memory and the hub's settings.
pub(crate) fn run() -> anyhow::Result<()> {
    let refresh = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing())
        .with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(refresh);
    let opened = DeviceSpec::parse("auto")?.open()?;
    let backends: Vec<String> = device::compiled_backends()
        .iter()
        .map(|backend| format!("{backend} ({})", backend.description()))
        .collect();
    let rows = [
        ("version", format!("lora {}", env!("CARGO_PKG_VERSION"))),
        ("system", format!("{} {}", env::consts::OS, env::consts::ARCH)),
        ("backends", backends.join("\n")),
        ("processor", processor(&system)),
        ("devices", devices()),
        ("auto picks", opened.describe()),
        (
            "reads",
            "f32, f16, bf16; GGUF also Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K".to_string(),
        ),
        ("writes", "f32, f16, bf16".to_string()),
        ("memory", memory(&system)),
        ("hub", hub()),
    ];
    style::out(&style::fields(&rows))?;
    Ok(())
}

/// Every device with what it is called and the formats it computes in; one that does not open says so.
fn devices() -> String {
    let lines = device::found_devices().into_iter().map(|found| {
        let spec = DeviceSpec::parse(&found.name);
        match spec.and_then(DeviceSpec::open) {
            Ok(open) => {
                let label = if open.label.is_empty() { "" } else { &format!("{}, ", open.label) };
                let software = if found.software { ", imitated by the processor" } else { "" };
                format!("{}: {label}computes in {}{software}", found.name, formats(&open))
            }
            Err(error) => error.to_string(),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn formats(open: &OpenDevice) -> String {
    let all = [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)];
    let known = all.into_iter().filter(|(_, dtype)| open.supports(*dtype));
    known.map(|(name, _)| name).collect::<Vec<_>>().join(", ")
}

fn processor(system: &System) -> String {
    let brand = system.cpus().first().map_or("", |cpu| cpu.brand()).trim();
    let brand = if brand.is_empty() { "unknown processor" } else { brand };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut text = format!("{brand}, {}", style::counted(threads as u64, "thread", "threads"));
    let features = features();
    if !features.is_empty() {
        text.push_str(&format!("\n{}", features.join(", ")));
    }
    text
}

/// Vector instructions that the matrix products use, where the processor has them.
#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let found = [
        ("AVX2", std::is_x86_feature_detected!("avx2")),
        ("FMA", std::is_x86_feature_detected!("fma")),
        ("AVX-512", std::is_x86_feature_detected!("avx512f")),
        ("AVX-512 BF16", std::is_x86_feature_detected!("avx512bf16")),
    ];
    found.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
}

/// Other processors have one set of vector instructions, always used.
#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

fn memory(system: &System) -> String {
    let (free, total) = (system.available_memory(), system.total_memory());
    format!("{} free of {}", style::bytes(free), style::bytes(total))
}

fn hub() -> String {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string());
    let home = set("HF_HOME").or_else(|| {
        let home = set("HOME").or_else(|| set("USERPROFILE"))?;
        Some(Path::new(&home).join(".cache").join("huggingface").display().to_string())
    });
    let token = if set("HF_TOKEN").is_some() { "set" } else { "not set" };
    let offline = set("HF_HUB_OFFLINE").is_some_and(|value| value != "0");
    format!(
        "{endpoint}{}\nmodels are kept in {}\nHF_TOKEN {token}",
        if offline { ", offline by HF_HUB_OFFLINE" } else { "" },
        home.unwrap_or_else(|| "the current folder".to_string()),
    )
}
