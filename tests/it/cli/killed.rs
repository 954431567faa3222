//! A run killed at any moment loses nothing: resumed, it ends with the same adapter, byte for byte.
#![cfg(unix)]

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::lab::Lab;
use super::tiny;

const MOMENTS: u32 = 10;

/// Dropout, shuffling, accumulation and packing: everything that a resumed run has to restore.
const RECIPE: &str = "\
model = \"model\"

[adapter]
rank = 2
alpha = 4.0
dropout = 0.1

[data]
max_tokens = 64
validation_rows = 2

[[data.train]]
path = \"rows.jsonl\"

[train]
steps = 40
batch_size = 1
accumulation = 2
learning_rate = 1e-2
schedule = \"cosine\"
evaluate_every = 7
checkpoint_every = 3
";

const RUN: [&str; 5] = ["train", "recipe.toml", "--resume", "--quiet", "--output"];

fn lab() -> Lab {
    let lab = Lab::new();
    tiny::write_model(&lab);
    let row = |number: usize| {
        format!(
            "{{\"prompt\": \"name: {number}\\n\", \"completion\": \"number {number} is here.\"}}\n"
        )
    };
    lab.write("rows.jsonl", (0..13).map(row).collect::<String>());
    lab.write("recipe.toml", RECIPE);
    lab
}

/// Carries the run on to its end; gives the bytes of its adapter.
fn finish(lab: &Lab, folder: &str) -> Vec<u8> {
    let shown = lab.lora(&[&RUN[..], &[folder]].concat());
    assert!(shown.contains("exit status: 0\n"), "{shown}");
    let adapter = lab.path(folder).join("adapter/adapter_model.safetensors");
    fs::read(adapter).expect("a finished run has an adapter")
}

#[test]
fn killed_at_ten_random_moments_and_resumed() {
    let lab = lab();
    let started = Instant::now();
    let expected = finish(&lab, "whole");
    let whole = started.elapsed();

    // Runs that end before they are killed prove nothing and are not counted; nor would kills that all
    // come before the first checkpoint.
    let random = RandomState::new();
    let mut longest = whole;
    let (mut killed, mut had_checkpoint) = (0, 0);
    for attempt in 0u32.. {
        if killed >= MOMENTS && had_checkpoint >= 2 {
            return;
        }
        assert!(attempt < 100, "{killed} runs killed, {had_checkpoint} of them with a checkpoint");
        let delay = longest.mul_f64((random.hash_one(attempt) % 1000) as f64 / 1000.0);
        let folder = format!("run{attempt}");
        let mut child =
            lab.command(&[&RUN[..], &[&folder]].concat()).spawn().expect("the binary starts");
        sleep(delay);
        child.kill().expect("the process is ours");
        child.wait().expect("the process ends");
        if lab.path(&folder).join("adapter").exists() {
            longest = longest.mul_f64(0.8);
            continue;
        }
        killed += 1;
        let checkpoints = fs::read_dir(lab.path(&folder).join("checkpoints"));
        had_checkpoint += u32::from(checkpoints.is_ok_and(|mut entries| entries.next().is_some()));
        let adapter = finish(&lab, &folder);
        assert!(adapter == expected, "killed after {delay:?}: another adapter");
    }
}

/// Killed while the first of its files was being written: there is nothing to go on from, and nothing to lose.
#[test]
fn killed_before_anything_was_whole() {
    let lab = lab();
    let expected = finish(&lab, "whole");
    fs::create_dir_all(lab.path("early/checkpoints")).expect("a folder");
    lab.write("early/.run.json.4f0RhN.partial", "{\"version\": ");
    assert!(finish(&lab, "early") == expected, "another adapter");
    fs::create_dir_all(lab.path("other")).expect("a folder");
    lab.write("other/letter.txt", "Dear reader");
    let shown = lab.lora(&[&RUN[..], &["other"]].concat());
    assert!(shown.contains("this is no run folder"), "{shown}");
}

/// What a start takes out of the base, what a pass over data finds, norms of columns: a resumed run must come
/// to the same without having it in its checkpoint.
#[test]
fn runs_of_other_methods_are_resumed_to_the_same_end() {
    let lab = lab();
    for (name, settings) in [
        ("dora", &["adapter.dora=true", "adapter.init=pissa"][..]),
        ("eva", &["adapter.init=eva", "train.lora_fa=true"]),
        ("tokens", &["adapter.trainable_tokens=[5,7]", "adapter.init=orthogonal"]),
    ] {
        let set = |steps: &'static str, folder: &str| -> Vec<String> {
            let given = settings.iter().copied().chain([steps, "train.keep_checkpoints=9"]);
            let given = given.flat_map(|it| ["--set".to_owned(), it.to_owned()]);
            RUN.iter().map(ToString::to_string).chain([folder.to_owned()]).chain(given).collect()
        };
        let run = |arguments: Vec<String>| {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let shown = lab.lora(&arguments);
            assert!(shown.contains("exit status: 0\n"), "{shown}");
        };
        let adapter = |folder: &str| {
            fs::read(lab.path(folder).join("adapter/adapter_model.safetensors"))
                .expect("an adapter")
        };
        let [whole, apart] = ["whole", "apart"].map(|it| format!("{name}_{it}"));
        run(set("train.steps=7", &whole));
        run(set("train.steps=7", &apart));
        // Back to the checkpoint after step 3.
        let folder = lab.path(&apart);
        fs::remove_dir_all(folder.join("adapter")).expect("the result");
        for step in ["step-000006", "step-000007"] {
            fs::remove_dir_all(folder.join("checkpoints").join(step)).expect("a checkpoint");
        }
        run(set("train.steps=7", &apart));
        assert!(adapter(&whole) == adapter(&apart), "{name}: another adapter after resuming");
    }
}

#[test]
fn resuming_is_what_makes_them_equal() {
    let lab = lab();
    let expected = finish(&lab, "whole");
    // The newest checkpoint is damaged: the one before it is taken, and the end is the same.
    let stop = Duration::from_secs(60);
    let started = Instant::now();
    let mut child = lab.command(&[&RUN[..], &["run"]].concat()).spawn().expect("the binary starts");
    let checkpoints = || {
        let entries = fs::read_dir(lab.path("run/checkpoints")).into_iter().flatten().flatten();
        let mut found: Vec<_> =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_none()).collect();
        found.sort();
        found
    };
    while checkpoints().len() < 2 {
        assert!(started.elapsed() < stop, "no second checkpoint");
        sleep(Duration::from_millis(5));
    }
    child.kill().expect("the process is ours");
    child.wait().expect("the process ends");
    let newest = checkpoints().pop().expect("a checkpoint").join("trainable.safetensors");
    let mut bytes = fs::read(&newest).expect("the trainable tensors");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&newest, bytes).expect("the damaged tensors");
    assert!(finish(&lab, "run") == expected, "another adapter after a damaged checkpoint");
}
