//! A disk that fills up while something is saved: an error that names the file, nothing half-written,
//! and nothing lost. A limit on file sizes stands in for the full disk.
#![cfg(unix)]

use std::fs;
use std::process::{Command, Output};

use super::lab::{Lab, shown};
use super::tiny;

const RECIPE: &str = "\
model = \"model\"

[adapter]
rank = 2
alpha = 4.0

[data]
max_tokens = 64

[[data.train]]
path = \"rows.jsonl\"

[train]
steps = 4
batch_size = 1
checkpoint_every = 2

[output]
folder = \"run\"
";

fn lab() -> Lab {
    let lab = Lab::new();
    tiny::write_model(&lab);
    let row = "{\"prompt\": \"name: The Mill\\n\", \"completion\": \"The Mill is here.\"}\n";
    lab.write("rows.jsonl", row.repeat(3));
    lab.write("recipe.toml", RECIPE);
    lab
}

/// Runs the binary where no file may grow beyond `blocks` of 512 bytes.
fn limited(lab: &Lab, blocks: usize, arguments: &[&str]) -> Output {
    let plain = lab.command(arguments);
    let script = format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$0\" \"$@\"");
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).arg(plain.get_program()).args(plain.get_args());
    command.current_dir(lab.path("")).env_clear();
    for (name, value) in plain.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command.output().expect("the shell starts")
}

#[test]
fn training_can_be_resumed_after_a_full_disk() {
    let lab = lab();
    let arguments = ["train", "recipe.toml", "--quiet"];
    let output = limited(&lab, 4, &arguments);
    lab.check("disk_full_checkpoint", &shown(&arguments, &output));
    let left = fs::read_dir(lab.path("run/checkpoints")).expect("a folder of checkpoints").count();
    assert_eq!(left, 0, "half a checkpoint was left");

    let finish = |arguments: &[&str], folder: &str| {
        let text = lab.lora(arguments);
        assert!(text.contains("exit status: 0\n"), "{text}");
        let adapter = lab.path(folder).join("adapter/adapter_model.safetensors");
        fs::read(adapter).expect("a finished run has an adapter")
    };
    let resumed = finish(&["train", "recipe.toml", "--quiet", "--resume"], "run");
    let whole = finish(&["train", "recipe.toml", "--quiet", "--output", "whole"], "whole");
    assert!(resumed == whole, "resumed after a full disk: another adapter");
}

#[test]
fn a_merge_leaves_nothing_on_a_full_disk() {
    let lab = lab();
    tiny::write_fitting_adapter(&lab, "adapter");
    let arguments = ["merge", "model", "adapter", "--output", "merged"];
    let output = limited(&lab, 4, &arguments);
    lab.check("disk_full_merge", &shown(&arguments, &output));
    assert_eq!(lab.names(), ["adapter", "model", "recipe.toml", "rows.jsonl"]);
}
