//! `cargo xtask tidy`: the house rules that rustfmt and clippy do not know. All findings at once.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::quickstart_data;

const MOST_LINES: usize = 600;
const MOST_BYTES: u64 = 4 << 20;

/// Folders whose sources are tests; the limit on lines is for the others.
const TEST_FOLDERS: [&str; 3] = ["tests/", "benches/", "examples/"];

/// Features that choose a backend.
const BACKENDS: [&str; 12] = [
    "flex", "ndarray", "wgpu", "vulkan", "metal", "webgpu", "cuda", "rocm", "cpu", "tch", "fusion",
    "autotune",
];

/// What a crate may not depend on: data flows one way, and xtask knows no crate of the project.
const LAYERS: [(&str, &[&str]); 4] = [
    ("lora-core/Cargo.toml", &["lora-models", "lora-train", "lora-cli"]),
    ("lora-models/Cargo.toml", &["lora-train", "lora-cli"]),
    ("lora-train/Cargo.toml", &["lora-cli"]),
    ("xtask/Cargo.toml", &["burn", "lora-core", "lora-models", "lora-train", "lora-cli"]),
];

/// Beginnings of paths that exist on one machine only; spelled in two parts so that this file passes.
const MACHINE_PATHS: [&str; 5] = [
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("C:\\Us", "ers\\"),
];

const BACKEND_PARAMETER: &str = concat!("B: ", "Backend");

/// Checks every file that git tracks or would add.
pub(crate) fn run(root: &Path) -> Result<()> {
    let files = files(root)?;
    let mut findings = Vec::new();
    for name in &files {
        let path = root.join(name);
        // A file that is deleted and not yet staged is still listed.
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.len() > MOST_BYTES {
            findings.push(format!("{name}: {} bytes; the limit is 4 MiB", metadata.len()));
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("reading `{name}`"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            check_text(name, &text, &mut findings);
        }
    }
    findings.extend(quickstart_data::differences(root)?);
    if findings.is_empty() {
        println!("tidy: {} files", files.len());
        return Ok(());
    }
    for finding in &findings {
        println!("{finding}");
    }
    bail!("tidy found {} things to mend", findings.len());
}

fn files(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("starting `git ls-files`; tidy needs git")?;
    if !output.status.success() {
        bail!("`git ls-files` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let list = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let mut files: Vec<String> =
        list.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    files.sort_unstable();
    files.dedup();
    Ok(files)
}

fn check_text(name: &str, text: &str, findings: &mut Vec<String>) {
    check_whitespace(name, text, findings);
    if name != "Cargo.lock" {
        check_machine_paths(name, text, findings);
    }
    if name.ends_with(".rs") {
        check_rust(name, text, findings);
    }
    if name.ends_with("Cargo.toml") {
        check_manifest(name, text, findings);
    }
}

fn check_whitespace(name: &str, text: &str, findings: &mut Vec<String>) {
    // Snapshots, recorded data and the carried model are what a program wrote, byte for byte.
    if [".snap", ".jinja", ".jsonl"].iter().any(|end| name.ends_with(end))
        || ["/fixtures/", "/assets/"].iter().any(|folder| name.contains(folder))
    {
        return;
    }
    for (line, content) in numbered(text) {
        if content.ends_with([' ', '\t']) {
            findings.push(format!("{name}:{line}: white space at the end of the line"));
        }
        if content.ends_with('\r') {
            findings.push(format!("{name}:{line}: carriage return"));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        findings.push(format!("{name}: no line break at the end"));
    }
}

fn check_machine_paths(name: &str, text: &str, findings: &mut Vec<String>) {
    for (line, content) in numbered(text) {
        for path in MACHINE_PATHS {
            if begins_a_path(content, path) {
                findings.push(format!("{name}:{line}: `{path}` is a path of one machine"));
            }
        }
    }
}

/// Whether `path` stands in the line and is not the middle of a longer path or of an address.
fn begins_a_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        !line[..at].ends_with(|before: char| before.is_alphanumeric() || "._-~}".contains(before))
    })
}

fn check_rust(name: &str, text: &str, findings: &mut Vec<String>) {
    if !text.starts_with("//!") {
        findings.push(format!("{name}:1: begins without `//!` saying what is here"));
    }
    let lines = lines_before_tests(text);
    let is_test = TEST_FOLDERS
        .iter()
        .any(|folder| name.starts_with(folder) || name.contains(&format!("/{folder}")));
    if lines > MOST_LINES && !is_test {
        findings.push(format!("{name}: {lines} lines without tests; the limit is {MOST_LINES}"));
    }
    if name == "lora-core/src/device.rs" || name.starts_with("lora-core/src/ops/") {
        return;
    }
    for (line, content) in numbered(text) {
        if let Some(backend) = backend_feature(content) {
            findings.push(format!(
                "{name}:{line}: `cfg(feature = \"{backend}\")` belongs into lora-core/src/device.rs \
                 or lora-core/src/ops/"
            ));
        }
        if content.contains(BACKEND_PARAMETER) {
            findings.push(format!(
                "{name}:{line}: `{BACKEND_PARAMETER}`; outside lora-core/src/ops/ a backend is a value"
            ));
        }
    }
}

fn backend_feature(line: &str) -> Option<&'static str> {
    let (_, feature) = line.split_once("feature = \"")?;
    let (feature, _) = feature.split_once('"')?;
    BACKENDS.into_iter().find(|backend| *backend == feature)
}

/// Lines above the unit tests, which stand at the end of a file.
fn lines_before_tests(text: &str) -> usize {
    text.lines().take_while(|line| *line != "#[cfg(test)]").count()
}

fn check_manifest(name: &str, text: &str, findings: &mut Vec<String>) {
    if name == "Cargo.toml" {
        check_reasons(name, text, findings);
    } else if name != "xtask/Cargo.toml"
        && !name.starts_with("fuzz/")
        && !name.starts_with("benches/")
        && !text.contains("[lints]\nworkspace = true")
    {
        findings.push(format!("{name}: does not inherit the lints of the workspace"));
    }
    for (manifest, forbidden) in LAYERS.iter().filter(|(manifest, _)| *manifest == name) {
        for (line, content) in numbered(text) {
            let key = dependency_name(content);
            if forbidden.iter().any(|forbidden| key == Some(forbidden)) {
                findings
                    .push(format!("{manifest}:{line}: may not depend on `{}`", key.unwrap_or("")));
            }
        }
    }
}

/// Every dependency of the workspace has its reason in a comment above it. Siblings (`rand`,
/// `rand_chacha`) may share one; the crates of the project need none.
fn check_reasons(name: &str, text: &str, findings: &mut Vec<String>) {
    let mut inside = false;
    let mut explained: Option<&str> = None;
    let mut comment = false;
    for (line, content) in numbered(text) {
        if content.starts_with('[') {
            inside = content == "[workspace.dependencies]";
        }
        if !inside || content.starts_with('[') {
            continue;
        }
        if content.starts_with('#') {
            comment = true;
        } else if let Some(dependency) = dependency_name(content) {
            let sibling = explained
                .is_some_and(|first| first.len() >= 3 && dependency.starts_with(&first[..3]));
            if comment {
                explained = Some(dependency);
            } else if !sibling && !content.contains("path = ") {
                findings.push(format!(
                    "{name}:{line}: no comment above says what `{dependency}` is for"
                ));
            }
            comment = false;
        } else {
            comment = false;
            explained = None;
        }
    }
}

/// `name` of `name = …` and `name.workspace = …`.
fn dependency_name(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim().split('.').next()?;
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
    (!key.is_empty() && key.chars().all(plain)).then_some(key)
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split('\n').enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(name: &str, text: &str) -> String {
        let mut findings = Vec::new();
        check_text(name, text, &mut findings);
        findings.join("\n")
    }

    #[test]
    fn a_clean_file_passes() {
        assert_eq!(findings("a/src/b.rs", "//! What is here.\n\nfn main() {}\n"), "");
    }

    #[test]
    fn white_space_is_found() {
        assert_eq!(
            findings("a.md", "x \ny"),
            "a.md:1: white space at the end of the line\na.md: no line break at the end"
        );
        assert_eq!(findings("a.snap", "x \ny"), "");
    }

    #[test]
    fn rust_files_say_what_they_hold_and_stay_short() {
        let long = "fn a() {}\n".repeat(MOST_LINES + 1);
        let found = findings("a/src/b.rs", &long);
        assert!(found.contains("begins without `//!`"), "{found}");
        assert!(found.contains("601 lines without tests"), "{found}");
        let tests = format!("//! x\n#[cfg(test)]\n{long}");
        assert_eq!(findings("a/src/b.rs", &tests), "");
        assert_eq!(findings("tests/it/b.rs", &format!("//! x\n{long}")), "");
    }

    #[test]
    fn backends_stay_where_they_belong() {
        let cfg = "//! x\n#[cfg(feature = \"cuda\")]\nfn a() {}\n";
        assert!(
            findings("lora-train/src/step.rs", cfg)
                .contains("step.rs:2: `cfg(feature = \"cuda\")`")
        );
        assert_eq!(findings("lora-core/src/device.rs", cfg), "");
        assert_eq!(findings("lora-core/src/ops/linear.rs", cfg), "");
        let generic = format!("//! x\nfn a<{BACKEND_PARAMETER}>() {{}}\n");
        assert!(findings("lora-models/src/decoder.rs", &generic).contains("a backend is a value"));
    }

    #[test]
    fn machine_paths_are_found_and_addresses_are_not() {
        let path = MACHINE_PATHS[1];
        assert!(findings("a.md", &format!("see {path}x\n")).contains("a.md:1"));
        assert_eq!(
            findings("a.md", &format!("see https://example.org{path}x and runs{path}x\n")),
            ""
        );
    }

    #[test]
    fn dependencies_have_reasons() {
        let manifest = "[workspace.dependencies]\nours = { path = \"ours\" }\n# Numbers.\nrand = \"1\"\n\
                        rand_chacha = \"1\"\nserde = \"1\"\n\n[profile.dev]\nopt-level = 1\n";
        assert_eq!(
            findings("Cargo.toml", manifest),
            "Cargo.toml:6: no comment above says what `serde` is for"
        );
    }

    #[test]
    fn layers_point_one_way() {
        let manifest = "[lints]\nworkspace = true\n\n[dependencies]\nlora-train.workspace = true\n";
        assert_eq!(
            findings("lora-core/Cargo.toml", manifest),
            "lora-core/Cargo.toml:5: may not depend on `lora-train`"
        );
        assert_eq!(
            findings("lora-core/Cargo.toml", "[dependencies]\n"),
            "lora-core/Cargo.toml: does not inherit the lints of the workspace"
        );
    }
}
