//! What one backend leaves on disk, another goes on with: adapters, and checkpoints of a broken-off run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lora_core::peft::PeftAdapter;
use lora_models::generate::all_logits;
use lora_train::finetune::{Event, Outcome, TrainOptions, train};
use lora_train::recipe::{DataFile, DataSettings, Length, Run, TrainSettings};
use safetensors::SafeTensors;

use crate::case::{Case, Found, Lab, deviation, relative_l2};
use crate::equalities::builtin;

/// Relative L2 of the whole adapter. Three steps on another backend: the worst measured between cpu,
/// ndarray and wgpu is 1.3e-7, two roundings of f32; eight times that.
const RESUMED: f64 = 1e-6;
/// As the logits of the parity rows.
const LOGITS: f64 = 7e-5;

const OTHER: &str = "the other backend";
const STEPS: usize = 6;
const BROKEN_OFF_AFTER: usize = 3;
const TOKENS: [u32; 7] = [5, 17, 300, 42, 9, 800, 77];

/// What every backend leaves: a whole run, one broken off in the middle, and logits of its adapter.
pub(crate) fn leave(own: &Path) -> Vec<Case> {
    let place = own.join("exchange");
    let run = move |lab: &mut Lab| -> Found {
        fs::create_dir_all(&place).unwrap();
        let rows = ["red apples and green pears", "a boat on the lake at noon", "seven birds"];
        let rows: Vec<String> =
            rows.iter().map(|row| serde_json::json!({ "text": row }).to_string()).collect();
        fs::write(place.join("rows.jsonl"), rows.join("\n")).unwrap();
        let whole = carry_out(lab, &place, "whole", false, None);
        carry_out(lab, &place, "broken_off", false, Some(BROKEN_OFF_AFTER));
        let again = place.join("same_backend");
        copy(&place.join("broken_off"), &again);
        let resumed = carry_out(lab, &place, "same_backend", true, None);
        let adapter = factors(&whole.result.unwrap());
        lab.keep("adapter/exchange".into(), adapter.clone());
        let found = logits_of(lab, &place.join("whole/adapter"));
        lab.keep("logits/exchange".into(), found);
        Ok(relative_l2(&factors(&resumed.result.unwrap()), &adapter))
    };
    vec![Case::new("exchange/resumed on the same backend", "itself", 0.0, run)]
}

/// Reads what another backend has left.
pub(crate) fn read(own: &Path, other: &Path) -> Vec<Case> {
    let name =
        other.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let place = own.join("exchange");
    let (from, source) = (name.clone(), other.to_path_buf());
    let resumed = move |lab: &mut Lab| -> Found {
        let theirs = source.join("exchange");
        let folder = place.join(format!("from_{from}"));
        let _ = fs::remove_dir_all(&folder);
        copy(&theirs.join("broken_off"), &folder);
        let outcome = go_on(lab, &theirs, &folder);
        Ok(relative_l2(&factors(&outcome.result.unwrap()), &value(&source, "adapter/exchange")))
    };
    let source = other.to_path_buf();
    let adapter = move |lab: &mut Lab| -> Found {
        let found = logits_of(lab, &source.join("exchange/whole/adapter"));
        Ok(deviation(&found, &value(&source, "logits/exchange")))
    };
    vec![
        Case::new(format!("exchange/{name}/adapter"), OTHER, LOGITS, adapter),
        Case::new(format!("exchange/{name}/run resumed"), OTHER, RESUMED, resumed),
    ]
}

fn carry_out(
    lab: &Lab,
    place: &Path,
    name: &str,
    resume: bool,
    stop_after: Option<usize>,
) -> Outcome {
    execute(lab, place, &place.join(name), resume, stop_after)
}

fn go_on(lab: &Lab, rows: &Path, folder: &Path) -> Outcome {
    execute(lab, rows, folder, true, None)
}

/// Rows are read from `place`; the run stands in `folder`.
fn execute(
    lab: &Lab,
    place: &Path,
    folder: &Path,
    resume: bool,
    stop_after: Option<usize>,
) -> Outcome {
    let rows = fs::canonicalize(place).unwrap().join("rows.jsonl");
    let run = Run {
        device: lab.open.name.clone(),
        precision: lora_core::Precision::F32,
        output: folder.to_path_buf(),
        data: DataSettings {
            train: vec![DataFile::new(rows)],
            max_tokens: 24,
            ..DataSettings::default()
        },
        train: TrainSettings {
            length: Length::Steps(STEPS),
            batch_size: 2,
            learning_rate: 1e-3,
            ..TrainSettings::default()
        },
        ..Run::new("builtin:", "rows.jsonl")
    };
    let stop = Arc::new(AtomicBool::new(false));
    let options = TrainOptions { resume, stop: Arc::clone(&stop), ..TrainOptions::default() };
    let outcome = train(&run, &options, &mut |event| {
        if let Event::Step(step) = event
            && Some(step.step) == stop_after
        {
            stop.store(true, Ordering::Relaxed);
        }
    });
    let outcome = outcome.unwrap_or_else(|error| panic!("{error}: {:?}", error.hint()));
    assert_eq!(outcome.steps, stop_after.unwrap_or(STEPS));
    outcome
}

fn logits_of(lab: &Lab, adapter: &Path) -> Vec<f32> {
    let mut decoder = builtin(&lab.f32());
    decoder.attach_peft("default", &PeftAdapter::load(adapter).unwrap()).unwrap();
    all_logits(&decoder, &TOKENS).unwrap()
}

/// All factors of an adapter, one after another.
fn factors(folder: &Path) -> Vec<f32> {
    let adapter = PeftAdapter::load(folder).unwrap();
    let factors = adapter.factors.into_iter();
    factors.flat_map(|factor| factor.a.into_iter().chain(factor.b)).collect()
}

/// A number list that another backend has kept.
fn value(folder: &Path, name: &str) -> Vec<f32> {
    let bytes = fs::read(folder.join("values.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let four = view.data().chunks_exact(4);
    four.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target: PathBuf = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}
