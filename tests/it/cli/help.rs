//! The words of `--help`.

use super::lab::Lab;

const COMMANDS: [&str; 15] = [
    "train", "pretrain", "data", "plan", "evaluate", "generate", "chat", "classify", "merge",
    "convert", "adapter", "analyze", "inspect", "init", "doctor",
];

#[test]
fn every_command_explains_itself() {
    let lab = Lab::new();
    lab.check_lora("help", &["--help"]);
    lab.check_lora("help_short", &["-h"]);
    for command in COMMANDS {
        lab.check_lora(&format!("help_{command}"), &[command, "--help"]);
    }
}

#[test]
fn no_command_shows_the_help_and_fails() {
    let lab = Lab::new();
    let output = lab.output(&[], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "data went to standard output");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Usage: lora <COMMAND>"));
}

#[test]
fn version_is_one_line() {
    let lab = Lab::new();
    lab.check_lora("version", &["--version"]);
}

#[test]
fn help_to_a_closed_pipe_is_no_error() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(lora_tests::lora_binary())
        .args(["train", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the binary ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
