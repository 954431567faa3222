//! A parity fixture: a tiny model, a PEFT adapter on it, and the numbers that PyTorch gets.

use std::path::{Path, PathBuf};

use lora_models::families::model_types;
use lora_train::data::Batch;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// One variant of one model.
pub struct Fixture {
    /// `llama/rslora`.
    pub name: String,
    /// Folder of the base model.
    pub base: PathBuf,
    /// Folder of the adapter and the expected numbers.
    pub folder: PathBuf,
    /// `meta.json`.
    pub meta: Value,
    expected: Vec<u8>,
}

/// The fixtures that can run, and those that can't, each with its reason.
pub struct Fixtures {
    /// To be run.
    pub run: Vec<Fixture>,
    /// Name and reason.
    pub skipped: Vec<(String, String)>,
}

/// The committed fixtures, or those of the folder that `LORA_FIXTURES` names.
pub fn fixtures() -> Fixtures {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/parity");
    let root = std::env::var_os("LORA_FIXTURES").map_or(committed, PathBuf::from);
    let mut found = Fixtures { run: Vec::new(), skipped: Vec::new() };
    for model in folders(&root) {
        for folder in folders(&model) {
            if !folder.join("expected.safetensors").is_file() {
                continue;
            }
            let name = format!("{}/{}", file_name(&model), file_name(&folder));
            match unsupported(&model, &folder) {
                Some(reason) => found.skipped.push((name, reason)),
                None => found.run.push(Fixture {
                    name,
                    base: model.join("base"),
                    meta: read_json(&folder.join("meta.json")),
                    expected: read(&folder.join("expected.safetensors")),
                    folder,
                }),
            }
        }
    }
    found
}

impl Fixture {
    /// Shape and numbers of an expected tensor.
    pub fn tensor(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        self.find(name).unwrap_or_else(|| panic!("{}: no tensor `{name}`", self.name))
    }

    /// As [`Self::tensor`], where it is there.
    pub fn find(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let file = SafeTensors::deserialize(&self.expected).expect("expected.safetensors");
        let view = file.tensor(name).ok()?;
        let numbers = match view.dtype() {
            Dtype::F32 => {
                let four = view.data().chunks_exact(4);
                four.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Dtype::I64 => {
                let eight = view.data().chunks_exact(8);
                eight
                    .map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")) as f32)
                    .collect()
            }
            other => panic!("{}: `{name}` is {other:?}", self.name),
        };
        Some((view.shape().to_vec(), numbers))
    }

    /// Names of the expected tensors that begin with `prefix`, without it.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.expected).expect("expected.safetensors");
        let names = file.names().into_iter().filter_map(|name| name.strip_prefix(prefix));
        let mut names: Vec<_> = names.map(str::to_owned).collect();
        names.sort();
        names
    }

    /// A number of `meta.json`, by path.
    pub fn number(&self, pointer: &str) -> f64 {
        let found = self.meta.pointer(pointer).and_then(Value::as_f64);
        found.unwrap_or_else(|| panic!("{}: no number `{pointer}` in meta.json", self.name))
    }

    /// A list of numbers of `meta.json`, by path.
    pub fn numbers(&self, pointer: &str) -> Option<Vec<f64>> {
        let list = self.meta.pointer(pointer)?.as_array()?;
        Some(list.iter().map(|value| value.as_f64().expect("a number")).collect())
    }

    /// The batch whose tensors begin with `prefix` (empty or `padded.`), the rows given.
    pub fn batch(&self, prefix: &str, rows: std::ops::Range<usize>) -> Batch {
        let (shape, ids) = self.tensor(&format!("{prefix}input_ids"));
        let (_, mask) = self.tensor(&format!("{prefix}attention_mask"));
        let (_, labels) = self.tensor(&format!("{prefix}labels"));
        let columns = shape[1];
        let mut batch = Batch {
            rows: rows.len(),
            columns,
            tokens: Vec::new(),
            targets: Vec::new(),
            positions: Vec::new(),
            documents: Vec::new(),
            ..Batch::default()
        };
        let of_texts = labels.len() < ids.len();
        let config = read_json(&self.base.join("config.json"));
        let of_numbers = config["problem_type"] == "regression";
        let segments = self.find("token_type_ids").map(|(_, segments)| segments);
        for row in rows {
            for column in 0..columns {
                let at = row * columns + column;
                batch.tokens.push(ids[at] as i32);
                batch.segments.extend(segments.iter().map(|segments| segments[at] as i32));
                if of_numbers && column == 0 {
                    batch.scores.push(labels[row]);
                }
                batch.positions.push(column as i32);
                batch.documents.push(if mask[at] == 0.0 { -1 } else { 0 });
                // Labels are as transformers takes them: unshifted, -100 where nothing is learned.
                let target = match of_texts {
                    // Of a whole text: the first token stands for it.
                    true if column == 0 && of_numbers => 0,
                    true if column == 0 => labels[row] as i32,
                    false if column + 1 < columns => labels[at + 1] as i32,
                    _ => -100,
                };
                batch.targets.push(if target == -100 { -1 } else { target });
                batch.learned_tokens += usize::from(target != -100);
            }
        }
        batch
    }

    /// Number of rows of the batch.
    pub fn rows(&self) -> usize {
        self.tensor("input_ids").0[0]
    }
}

/// Why a fixture can't run, if it can't.
fn unsupported(model: &Path, folder: &Path) -> Option<String> {
    let config = read_json(&model.join("base/config.json"));
    let family = config["model_type"].as_str().unwrap_or("none");
    if !model_types().contains(&family) {
        return Some(format!("family `{family}` is not there"));
    }
    lora_core::peft::PeftAdapter::load(folder).err().map(|error| error.to_string())
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path);
    let entries = entries.unwrap_or_else(|error| panic!("read `{}`: {error}", path.display()));
    let mut folders: Vec<_> = entries.map(|entry| entry.expect("a folder entry").path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    folders
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("read `{}`: {error}", path.display()))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&read(path))
        .unwrap_or_else(|error| panic!("`{}`: {error}", path.display()))
}
