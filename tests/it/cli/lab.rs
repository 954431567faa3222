//! A folder of its own for each test, in which the binary runs without the person's settings.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A temporary folder, the working directory of the commands.
pub(crate) struct Lab {
    folder: TempDir,
}

impl Lab {
    /// An empty folder.
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A place in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, with the folders above it.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        let parent = path.parent().expect("a file in the lab");
        fs::create_dir_all(parent).expect("a folder in the lab");
        fs::write(path, bytes).expect("a file in the lab");
    }

    /// Runs the binary, and tells what happened as a person would see it.
    pub(crate) fn lora(&self, arguments: &[&str]) -> String {
        self.lora_with_input(arguments, b"")
    }

    /// The same with something on standard input.
    pub(crate) fn lora_with_input(&self, arguments: &[&str], input: &[u8]) -> String {
        shown(arguments, &self.output(arguments, input))
    }

    /// Runs the binary as on a terminal that shows colours.
    pub(crate) fn lora_in_colour(&self, arguments: &[&str]) -> String {
        let mut command = self.command(arguments);
        command.env_remove("NO_COLOR").env("CLICOLOR_FORCE", "1");
        let shown = shown(arguments, &command.output().expect("the binary runs"));
        shown.replace('\u{1b}', "ESC")
    }

    /// The binary in this folder, without the person's settings.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(lora_tests::lora_binary());
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("NO_COLOR", "1")
            .env("COLUMNS", "100")
            .env("HOME", self.folder.path())
            .env("HF_HUB_OFFLINE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the binary.
    pub(crate) fn output(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(arguments).spawn().expect("the binary starts");
        let mut stdin = child.stdin.take().expect("standard input is piped");
        // A command that reads nothing may be gone before it is written to.
        let _ = stdin.write_all(input);
        drop(stdin);
        child.wait_with_output().expect("the binary ends")
    }

    /// Runs and compares with the snapshot `name`, every number too: for what is the same in every run.
    pub(crate) fn check_lora_exactly(&self, name: &str, arguments: &[&str]) {
        let shown = self.lora(arguments);
        self.settings().bind(|| insta::assert_snapshot!(name, shown));
    }

    /// Compares with the snapshot `name`; what differs from run to run is replaced.
    pub(crate) fn check(&self, name: &str, shown: &str) {
        let mut settings = self.settings();
        settings.add_filter(r"lora \d+\.\d+\.\d+", "lora [VERSION]");
        settings.add_filter(r"version \d+\.\d+\.\d+", "version [VERSION]");
        settings.add_filter(r"unmerged: \S+", "unmerged: [DIFFERENCE]");
        settings.add_filter(
            r"(differ by at most|before and after:|logit difference) \d[\d.e-]*",
            "$1 [DIFFERENCE]",
        );
        settings.add_filter(r"the same at \d+ of", "the same at [PLACES] of");
        settings.add_filter(r"(loss|perplexity) \d+\.\d+", "$1 [NUMBER]");
        settings.add_filter(r"\b\d+\.\d{4} (at|before|after)", "[NUMBER] $1");
        settings.add_filter(r"\b\d+\.\d{4} +\d+\.\d{3}\b", "[LOSS]  [PERPLEXITY]");
        settings.add_filter(r"step \d+; everything", "step [STEP]; everything");
        settings.add_filter(r"\.[\w.]+\.partial", "[SCRATCH]");
        settings.add_filter(r"\.merged\.\d+\.tmp", "[SCRATCH]");
        settings.add_filter(r"\b\d+ tokens/s", "[SPEED] tokens/s");
        // Memory as it was measured; sizes of files and of a plan are the same in every run.
        settings.add_filter(r"((?:tokens/s|memory) {2,})\d+(\.\d+)? (kB|MB|GB)\b", "$1[BYTES]");
        settings.add_filter(r"\b(\d+h \d+m|\d+m \d+s|\d+(\.\d+)?s)\b", "[TIME]");
        settings.add_filter(r#""((prompt_)?seconds)":\s*[0-9.eE+-]+"#, r#""$1":[TIME]"#);
        settings.bind(|| insta::assert_snapshot!(name, shown));
    }

    fn settings(&self) -> insta::Settings {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("snapshots");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        let folder = self.folder.path().display().to_string();
        // macOS shows temporary folders below /private.
        settings.add_filter(&format!("(/private)?{}", escape(&folder)), "[LAB]");
        settings
    }

    /// Runs and compares in one go.
    pub(crate) fn check_lora(&self, name: &str, arguments: &[&str]) {
        self.check(name, &self.lora(arguments));
    }

    /// Names of everything in the folder, sorted: bad input must leave nothing behind.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.folder.path())
            .expect("the lab is there")
            .map(|entry| entry.expect("an entry of the lab").file_name().to_string_lossy().into())
            .collect();
        names.sort();
        names
    }
}

/// A finished command as a person sees it.
pub(crate) fn shown(arguments: &[&str], output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let status = output.status.code().map_or("killed".to_string(), |code| code.to_string());
    format!(
        "$ lora {}\nexit status: {status}\n----- stdout -----\n{stdout}\n----- stderr -----\n{stderr}",
        arguments.join(" "),
    )
}

/// The text as a regular expression for itself.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        if !character.is_alphanumeric() && character != '/' {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
