//! The keys of a recipe, section by section, and what other tools call them.

use super::problems::{Problems, join, suggestion};
use super::written::{Entry, Node, Place, Value};

/// Every key, under its section; `*` stands for the index of a list.
pub(super) const KEYS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "model",
            "method",
            "device",
            "precision",
            "quantize",
            "adapter",
            "data",
            "train",
            "output",
            "sample",
            "pretrain",
        ],
    ),
    (
        "adapter",
        &[
            "rank",
            "alpha",
            "dropout",
            "scaling",
            "targets",
            "target_modules",
            "target_regex",
            "exclude",
            "layers",
            "layers_pattern",
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
            "ensure_weight_tying",
            "trainable_tokens",
            "init",
            "dora",
            "bias",
            "lora_bias",
            "resume_from",
        ],
    ),
    (
        "data",
        &[
            "format",
            "max_tokens",
            "packing",
            "learn",
            "unlearnable_rows",
            "task",
            "labels",
            "system",
            "validation_rows",
            "validation_fraction",
            "train",
            "validation",
        ],
    ),
    ("data.train.*", &["path", "weight", "rows"]),
    ("data.validation.*", &["path", "rows"]),
    (
        "train",
        &[
            "epochs",
            "steps",
            "batch_size",
            "accumulation",
            "learning_rate",
            "schedule",
            "warmup_steps",
            "warmup_fraction",
            "minimum_learning_rate",
            "weight_decay",
            "decay_vectors",
            "beta1",
            "beta2",
            "epsilon",
            "clip_norm",
            "lora_plus_ratio",
            "lora_fa",
            "seed",
            "shuffle",
            "recompute",
            "loss_chunk_tokens",
            "evaluate_every",
            "patience",
            "keep_best",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
        ],
    ),
    ("output", &["folder", "dtype"]),
    ("sample", &["prompts", "max_tokens"]),
    ("pretrain", &["config", "tokenizer", "tokenizer_vocab"]),
];

/// What PEFT, transformers, TRL, Axolotl and others call our keys.
pub(super) const OTHER_NAMES: &[(&str, &str)] = &[
    ("base_model", "model"),
    ("model_name_or_path", "model"),
    ("model_id", "model"),
    ("load_in_4bit", "quantize"),
    ("load_in_8bit", "quantize"),
    ("quantization", "quantize"),
    ("quantization_bit", "quantize"),
    ("r", "adapter.rank"),
    ("lora_r", "adapter.rank"),
    ("lora_rank", "adapter.rank"),
    ("lora_alpha", "adapter.alpha"),
    ("lora_dropout", "adapter.dropout"),
    ("use_rslora", "adapter.scaling"),
    ("init_lora_weights", "adapter.init"),
    ("use_dora", "adapter.dora"),
    ("peft_use_dora", "adapter.dora"),
    ("lora_use_dora", "adapter.dora"),
    ("trainable_token_indices", "adapter.trainable_tokens"),
    ("lora_target_modules", "adapter.target_modules"),
    ("exclude_modules", "adapter.exclude"),
    ("layers_to_transform", "adapter.layers"),
    ("lora_modules_to_save", "adapter.modules_to_save"),
    ("adapter_path", "adapter.resume_from"),
    ("lora", "adapter"),
    ("dataset", "data"),
    ("datasets", "data"),
    ("max_length", "data.max_tokens"),
    ("max_seq_length", "data.max_tokens"),
    ("max_seq_len", "data.max_tokens"),
    ("cutoff_len", "data.max_tokens"),
    ("sequence_len", "data.max_tokens"),
    ("sample_packing", "data.packing"),
    ("train_on_inputs", "data.learn"),
    ("system_prompt", "data.system"),
    ("problem_type", "data.task"),
    ("label_names", "data.labels"),
    ("id2label", "data.labels"),
    ("val_set_size", "data.validation_fraction"),
    ("eval_set_size", "data.validation_rows"),
    ("training", "train"),
    ("lr", "train.learning_rate"),
    ("min_lr", "train.minimum_learning_rate"),
    ("lr_scheduler", "train.schedule"),
    ("lr_scheduler_type", "train.schedule"),
    ("num_epochs", "train.epochs"),
    ("num_train_epochs", "train.epochs"),
    ("max_steps", "train.steps"),
    ("iters", "train.steps"),
    ("micro_batch_size", "train.batch_size"),
    ("per_device_train_batch_size", "train.batch_size"),
    ("gradient_accumulation_steps", "train.accumulation"),
    ("grad_accumulation_steps", "train.accumulation"),
    ("warmup", "train.warmup_steps"),
    ("warmup_ratio", "train.warmup_fraction"),
    ("adam_beta1", "train.beta1"),
    ("adam_beta2", "train.beta2"),
    ("adam_epsilon", "train.epsilon"),
    ("eps", "train.epsilon"),
    ("max_grad_norm", "train.clip_norm"),
    ("gradient_clipping", "train.clip_norm"),
    ("loraplus_lr_ratio", "train.lora_plus_ratio"),
    ("gradient_checkpointing", "train.recompute"),
    ("grad_checkpoint", "train.recompute"),
    ("eval_steps", "train.evaluate_every"),
    ("early_stopping_patience", "train.patience"),
    ("load_best_model_at_end", "train.keep_best"),
    ("save_steps", "train.checkpoint_every"),
    ("save_every", "train.checkpoint_every"),
    ("save_total_limit", "train.keep_checkpoints"),
    ("logging_steps", "train.log_every"),
    ("output_dir", "output.folder"),
    ("out_dir", "output.folder"),
    ("vocab_size", "pretrain.tokenizer_vocab"),
];

/// Lists of which at most one key may be written.
pub(super) const EXCLUSIVE: &[&[&str]] = &[
    &["train.epochs", "train.steps"],
    &["train.warmup_steps", "train.warmup_fraction"],
    &["adapter.targets", "adapter.target_modules", "adapter.target_regex"],
    &["data.validation", "data.validation_rows", "data.validation_fraction"],
    &["pretrain.tokenizer", "pretrain.tokenizer_vocab"],
];

/// The keys of a section.
pub(super) fn of(section: &str) -> &'static [&'static str] {
    KEYS.iter().find(|(name, _)| *name == section).map_or(&[], |(_, keys)| keys)
}

/// Reports unknown keys, sections that are no tables, and keys that exclude each other.
pub(super) fn check(root: &Node, problems: &mut Problems) {
    check_table(root, "", "", problems);
    for group in EXCLUSIVE {
        let written: Vec<(&str, Place)> = group
            .iter()
            .filter_map(|key| root.find(key).filter(|node| !node.is_off()).map(|n| (*key, n.place)))
            .collect();
        if let [(first, _), .., (last, place)] = written.as_slice() {
            let what = format!("can't stand together with `{first}`; keep one of them");
            problems.add(*place, *last, what);
        }
    }
}

/// `section` addresses the table, `pattern` is the same with `*` for indices.
fn check_table(node: &Node, section: &str, pattern: &str, problems: &mut Problems) {
    let Some((_, known)) = KEYS.iter().find(|(name, _)| *name == pattern) else {
        return;
    };
    let Value::Table(entries) = &node.value else {
        let what = format!("expected a table, found {}", node.kind());
        problems.add(node.place, section, what);
        return;
    };
    for Entry { key, place, node } in entries {
        let full = join(section, key);
        if !known.contains(&key.as_str()) {
            let near = suggestion(pattern, key).map(|near| near.replace('*', "0"));
            let near = near.map_or_else(
                || format!("; known here: {}", known.join(", ")),
                |near| format!(" (did you mean `{near}`?)"),
            );
            problems.add(*place, full, format!("unknown key{near}"));
        } else if matches!(full.as_str(), "data.train" | "data.validation") {
            check_files(node, &full, problems);
        } else {
            check_table(node, &full, &full, problems);
        }
    }
}

fn check_files(node: &Node, key: &str, problems: &mut Problems) {
    let Value::List(files) = &node.value else {
        let what = format!(
            "expected a list of files, found {}; write `[[{key}]]` and under it `path = \"…\"`",
            node.kind()
        );
        problems.add(node.place, key, what);
        return;
    };
    for (index, file) in files.iter().enumerate() {
        check_table(file, &format!("{key}.{index}"), &format!("{key}.*"), problems);
    }
}
