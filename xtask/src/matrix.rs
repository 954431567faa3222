//! `cargo xtask matrix`: one conformance suite, built for and run on several backends, joined into one
//! table that says which case passes where and how far apart the backends compute.

mod deviation;
mod html;
mod markdown;
mod report;
mod suite;
mod summary;
pub(crate) mod text;

use anyhow::{Context, Result, bail};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{ci, write_file};
use report::{Report, Status};

/// The backends that the suite can be built for; each is a feature of `lora-tests`.
const BACKENDS: [&str; 8] = ["cpu", "ndarray", "wgpu", "vulkan", "metal", "webgpu", "cuda", "rocm"];

const DEFAULT_BACKENDS: &str = "cpu,ndarray,wgpu";

/// How many failures the error names; the pages name all.
const SHOWN_FAILURES: usize = 5;

/// What was asked for on the command line.
#[derive(Debug)]
struct Options {
    backends: Vec<Backend>,
    /// Whether the suites run their short form.
    quick: bool,
    /// Where the suites and the pages go.
    out: PathBuf,
}

/// A backend, or one of its devices: `vulkan`, `vulkan:1`.
#[derive(Debug, Clone, PartialEq)]
struct Backend {
    feature: &'static str,
    device: Option<u32>,
}

impl fmt::Display for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.feature)?;
        self.device.map_or(Ok(()), |device| write!(formatter, ":{device}"))
    }
}

impl Backend {
    /// Whether kernels are chosen by timing them, as real cards want it. On a processor that imitates a
    /// card, as wgpu finds it on a machine without one, that takes minutes for each shape.
    fn autotuned(&self) -> bool {
        matches!(self.feature, "vulkan" | "metal" | "cuda" | "rocm")
    }

    fn parse(text: &str) -> Result<Self> {
        let (name, device) =
            text.split_once(':').map_or((text, None), |(name, device)| (name, Some(device)));
        let Some(feature) = BACKENDS.into_iter().find(|backend| *backend == name) else {
            bail!("there is no backend `{name}`; the backends are {}", BACKENDS.join(", "));
        };
        let number = |device: &str| {
            device.parse().with_context(|| {
                format!("`{text}` names no device; after the colon stands its number: `{name}:0`")
            })
        };
        Ok(Self { feature, device: device.map(number).transpose()? })
    }

    /// The name of its folder among the results.
    fn folder(&self) -> String {
        self.to_string().replace(':', "-")
    }
}

impl Options {
    fn parse(root: &Path, arguments: &[&str]) -> Result<Self> {
        let mut backends = DEFAULT_BACKENDS;
        let mut quick = false;
        let mut out = None;
        let mut rest = arguments;
        while let [argument, tail @ ..] = rest {
            rest = match (*argument, tail) {
                ("--quick", _) => {
                    quick = true;
                    tail
                }
                ("--backends", [value, tail @ ..]) => {
                    backends = value;
                    tail
                }
                ("--out", [value, tail @ ..]) => {
                    out = Some(*value);
                    tail
                }
                ("--backends", []) => {
                    bail!("`--backends` needs a list, such as `{DEFAULT_BACKENDS}`")
                }
                ("--out", []) => bail!("`--out` needs a folder"),
                (other, _) => bail!(
                    "`cargo xtask matrix` knows no `{other}`; it takes --backends LIST, --quick and \
                     --out DIR"
                ),
            };
        }
        let mut chosen: Vec<Backend> = Vec::new();
        for name in backends.split(',') {
            let backend = Backend::parse(name.trim())?;
            if chosen.contains(&backend) {
                bail!("`{backend}` is named twice in `--backends {backends}`");
            }
            chosen.push(backend);
        }
        let out = match out {
            Some(folder) => std::path::absolute(folder)
                .with_context(|| format!("finding the folder `{folder}`"))?,
            None => ci::target_folder(root).join("matrix").join("report"),
        };
        Ok(Self { backends: chosen, quick, out })
    }
}

/// Builds and runs the suites, writes the pages, prints a summary. An error if anything failed or no
/// backend was there.
pub(crate) fn run(root: &Path, arguments: &[&str]) -> Result<()> {
    let options = Options::parse(root, arguments)?;
    let columns = suite::run_all(root, &options)?;
    let now =
        SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    let report = report::join(text::date(now), options.quick, &columns);
    let pages = write_pages(&report, &options.out)?;
    println!("\n{}", summary::render(&report));
    for page in &pages {
        println!("{}", page.display());
    }
    verdict(&report)
}

fn write_pages(report: &Report, out: &Path) -> Result<[PathBuf; 3]> {
    let pages = ["matrix.md", "matrix.html", "matrix.json"].map(|name| out.join(name));
    let mut json = serde_json::to_string_pretty(report).context("writing the report as JSON")?;
    json.push('\n');
    write_file(&pages[0], &markdown::render(report))?;
    write_file(&pages[1], &html::render(report))?;
    write_file(&pages[2], &json)?;
    Ok(pages)
}

/// Whether the run as a whole succeeded.
fn verdict(report: &Report) -> Result<()> {
    if !report.failures.is_empty() {
        let shown: Vec<String> =
            report.failures.iter().take(SHOWN_FAILURES).map(ToString::to_string).collect();
        let more = report.failures.len() - shown.len();
        let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
        bail!(
            "{} failed; the pages say all of it\n  {}{more}",
            text::count(report.failures.len(), "cell"),
            shown.join("\n  ")
        );
    }
    if report.columns.iter().all(|column| column.status == Status::Absent) {
        bail!(
            "no backend ran: every one that was asked for is absent here; `--backends cpu` needs \
             nothing but a processor"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
