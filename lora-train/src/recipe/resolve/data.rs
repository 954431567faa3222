//! The `[data]` section and its lists of files.

use super::super::reader::{BELOW_ONE, POSITIVE};
use super::super::written::Node;
use super::super::{Command, DataFile, DataSettings, Format, Learn, Task, Unlearnable};
use super::{Kind, Resolver};

impl Resolver<'_> {
    pub(super) fn data(&mut self, kind: Kind) -> DataSettings {
        let default = DataSettings::default();
        let pretrains = matches!(kind, Kind::Continue | Kind::Scratch);
        let train = self.files("data.train");
        let needs_files = !matches!(self.command, Command::Evaluate | Command::Inspect);
        let empty = self.reader.root.find("data.train").is_none_or(Node::is_empty);
        if needs_files && empty {
            let what = "names no file to learn from; add `[[data.train]]` and under it \
                        `path = \"rows.jsonl\"`";
            self.reader.problem("data.train", what);
        }
        let validation = self.files("data.validation");
        let reader = &mut self.reader;
        let format = reader.choice("data.format", &Format::ALL);
        let why = "found from the keys of the first row";
        let format = reader.or("data.format", format, default.format, why);
        let max_tokens = reader.count("data.max_tokens", 2);
        let why = "longer rows are cut, and the cuts are counted";
        let max_tokens = reader.or("data.max_tokens", max_tokens, default.max_tokens, why);
        let packing = reader.boolean("data.packing");
        let why = "short rows share a sequence; document masks keep them apart";
        let packing = reader.or("data.packing", packing, default.packing, why);
        let learn = reader.choice("data.learn", &[Learn::Assistant, Learn::All]);
        let learn = if pretrains {
            reader.or("data.learn", learn, Learn::All, "a language model learns every token")
        } else {
            let why = "what the model itself would write, its end-of-turn token included";
            reader.or("data.learn", learn, default.learn, why)
        };
        let unlearnable =
            reader.choice("data.unlearnable_rows", &[Unlearnable::Error, Unlearnable::Skip]);
        let why = "a row without a learned token is most often a mistake";
        let unlearnable = reader.or("data.unlearnable_rows", unlearnable, default.unlearnable, why);
        let task = reader.choice("data.task", &Task::ALL).unwrap_or(default.task);
        let labels = reader.texts("data.labels");
        let twice = labels.iter().enumerate().find(|(at, label)| labels[..*at].contains(label));
        if let Some((_, label)) = twice {
            reader.problem("data.labels", format!("names `{label}` twice"));
        } else if labels.len() > 1 && task == Task::Regression {
            reader.problem("data.labels", "names several; a regression finds one number");
        } else if labels.len() == 1 && task != Task::Regression {
            let what = "names one label; there must be others to tell it from, or \
                        `data.task = \"regression\"`";
            reader.problem("data.labels", what);
        }
        let validation_rows = reader.count("data.validation_rows", 0).unwrap_or(0);
        let fraction = reader.number("data.validation_fraction", &BELOW_ONE).unwrap_or(0.0);
        DataSettings {
            format,
            max_tokens,
            packing,
            learn,
            unlearnable,
            task,
            labels,
            system: reader.text("data.system"),
            train,
            validation,
            validation_rows,
            validation_fraction: fraction,
        }
    }

    fn files(&mut self, list: &str) -> Vec<DataFile> {
        let count = self.reader.root.find(list).map_or(0, Node::len);
        let mut files = Vec::new();
        for index in 0..count {
            let key = format!("{list}.{index}");
            let path_key = format!("{key}.path");
            let weight = self.reader.number(&format!("{key}.weight"), &POSITIVE).unwrap_or(1.0);
            let rows = self.reader.rows(&format!("{key}.rows"));
            if !self.reader.has(&path_key) {
                self.reader.problem(&key, "names no file: add `path = \"rows.jsonl\"`");
            }
            if let Some(path) = self.path(&path_key) {
                files.push(DataFile { path, weight, rows });
            }
        }
        files
    }
}
