//! The recipe that `lora init` writes: every key, with what it does.

/// A recipe with every key and what it does. Lines that begin with `#` and a key, without a space
/// between, are settings that can be turned on.
pub const TEMPLATE: &str = r#"# A recipe for `lora train`. Only `model` and one file under [[data.train]] are needed; all other
# keys show their default, or, where they are commented out, an example.
# Any key can also be set on the command line: lora train RECIPE --set train.learning_rate=1e-4
# Look at it before you run it: `lora plan RECIPE` (size, memory, steps), `lora data RECIPE` (rows).

# A folder in Hugging Face format, a .gguf file, a hub id org/name[@revision], or "builtin:", the
# small model inside this program.
model = "builtin:"
# "lora" trains a small adapter beside the frozen model, "full" trains the model itself.
method = "lora"
# "auto" takes the best device; `lora doctor` lists them: "cpu", "cuda", "vulkan:1" for the second.
device = "auto"
# "auto" takes bf16 on cards that compute in it, else f32; or "f32", "bf16", "f16". The adapter is f32.
precision = "auto"
# How the frozen model rests: "none" as it is computed with, "nf4" in 4 bits (QLoRA), "int8" in 8, "keep" in
# the blocks of a GGUF file. Less memory, a little slower; the adapter learns what the rounding lost.
quantize = "none"

[adapter]
# Rank of the update: capacity, and size of the adapter. 8 to 64 is usual.
rank = 16
# The update is scaled by alpha / rank.
alpha = 32.0
# Part of the adapter's inputs dropped in training; helps on small data over many epochs.
dropout = 0.0
# "standard" scales by alpha / rank, "rslora" by alpha / sqrt(rank), for ranks from 64 on.
scaling = "standard"
# How the adapter starts. "kaiming" as in PEFT, "gaussian": A random, B zero. "orthogonal": both random,
# their product zero. "pissa", "olora": as the strongest part of the base; "pissa_niter_4" is faster. "eva":
# A from what the layers' inputs vary most along, in a pass over the data. "loftq": as what quantize lost.
init = "kaiming"
# Trains direction and length of each weight column apart (DoRA): closer to full fine-tuning, slower.
dora = false
# Biases of the base trained as well: "none", "lora_only" (of adapted layers) or "all".
bias = "none"
# A bias of its own on the low-rank branch.
lora_bias = false
# Which modules: every linear layer but the output head, a list of names, or a regular expression
# for the whole path. One of the three.
targets = "all-linear"
#target_modules = ["q_proj", "v_proj"]
#target_regex = '.*\.mlp\.(up|down)_proj'
# Never these: paths, or their endings.
#exclude = ["down_proj"]
# Only these layers, counted from 0; layers_pattern is the name before the number.
#layers = [0, 1, 2]
#layers_pattern = ["layers"]
# Another rank or alpha for some modules.
#rank_pattern = { down_proj = 32 }
#alpha_pattern = { down_proj = 64.0 }
# Modules trained whole and saved with the adapter; makes it much larger.
#modules_to_save = ["lm_head"]
# Where the embedding is the output head too, what is trained of the embedding is trained of the head.
#ensure_weight_tying = true
# Numbers of tokens whose rows of the embedding are trained and saved, such as new special tokens.
#trainable_tokens = [2, 3]
# Start from an adapter that is there (PEFT folder); its settings replace those above.
#resume_from = "runs/first/adapter"

[data]
# How rows are written: "auto", "messages" (chat), "prompt_completion", "alpaca", "sharegpt", "text";
# "labels" for encoders: text, perhaps text_pair, and label.
format = "auto"
# Longest sequence; longer rows are cut and counted. Memory grows with it.
max_tokens = 1024
# Several rows share a sequence, kept apart by document masks: nothing is learned differently, faster.
packing = true
# "assistant" learns what the model itself would write, "all" every token.
learn = "assistant"
# A row without a learned token: "error" names it and stops, "skip" leaves it out.
unlearnable_rows = "error"
# For encoders: the labels in the order of their numbers, where neither model nor rows say it; and what is
# found, "classification" or "regression" (a number), where the labels themselves do not say it.
#labels = ["negative", "positive"]
#task = "classification"
# System message for conversations that have none.
#system = "You answer briefly."
# Held out for evaluation: the last rows, a part of the rows, or files of their own (below). One of
# the three.
#validation_rows = 30
#validation_fraction = 0.05

# One or more files: JSON lines, or a JSON array. Relative paths start in the current folder, or
# else beside this recipe.
[[data.train]]
path = "rows.jsonl"
# How often its rows are drawn in an epoch: 0.5 = every second row, 2 = twice.
weight = 1.0
# Only these rows, counted from 0, the end not included.
#rows = "0..969"

#[[data.validation]]
#path = "validation.jsonl"
#rows = "0..100"

[train]
# How long: times over the data, or optimizer steps. One of the two.
epochs = 1.0
#steps = 200
# Sequences computed at once; memory grows with it.
batch_size = 4
# Micro-batches per optimizer step: 4 x 2 learns exactly like 8 x 1 and needs half the memory.
accumulation = 1
# Peak rate. Adapters want about ten times that of full fine-tuning.
learning_rate = 2e-4
# After the warm-up: "constant", "linear" or "cosine".
schedule = "constant"
# The rate rises from 0 over so many steps, or over this part of the run. One of the two.
warmup_steps = 0
#warmup_fraction = 0.03
# Where linear and cosine schedules end.
#minimum_learning_rate = 1e-5
# AdamW.
weight_decay = 0.0
# Decay biases, norms and magnitudes too, as PyTorch's AdamW does unless told otherwise.
decay_vectors = false
beta1 = 0.9
beta2 = 0.999
epsilon = 1e-8
# Largest norm of the gradient; 0 turns clipping off.
clip_norm = 1.0
# Learning rate of B over that of A (LoRA+); 16 is its paper's value.
lora_plus_ratio = 1.0
# Train B alone and keep A as it starts (LoRA-FA): half the optimizer's memory.
lora_fa = false
# Decides initialisation, order and dropout: the same seed gives the same run.
seed = 0
shuffle = true
# Compute activations twice instead of keeping them: slower, far less memory.
recompute = false
# Tokens whose logits are held at once; lower it where the vocabulary is huge.
loss_chunk_tokens = 512
# Steps between evaluations; 0 = only before and after.
evaluate_every = 0
# Stop after so many evaluations without improvement; 0 = never. Needs evaluate_every.
patience = 0
# Keep the adapter of the best evaluation in best/.
keep_best = true
# Steps between checkpoints; 0 = only at the end and on Ctrl-C.
checkpoint_every = 100
keep_checkpoints = 2
# Steps between lines in metrics.jsonl.
log_every = 1

[output]
# The run folder; it must not exist. Default: runs/ and the name of this file.
#folder = "runs/first"
# Weights of a whole model, where one is trained: "f32" or "bf16".
#dtype = "f32"

[sample]
# Asked before and after, to see the difference.
#prompts = ["Who are you?"]
max_tokens = 64

# For `lora pretrain` only, which trains all weights on text. With `config` a model starts from
# random weights and needs one of the two tokenizer keys, and no `model` above.
#[pretrain]
#config = "config.json"
#tokenizer = "tokenizer.json"
#tokenizer_vocab = 4096
"#;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::TEMPLATE;
    use crate::recipe::keys::KEYS;
    use crate::recipe::{Command, Run, RunConfig};

    #[test]
    fn it_is_a_recipe_of_defaults() {
        let run = RunConfig::from_text(TEMPLATE, &[], Command::Plan).unwrap().resolve().unwrap();
        let bare = RunConfig::from_text(
            "model = 'builtin:'\n[[data.train]]\npath = 'rows.jsonl'",
            &[],
            Command::Plan,
        );
        let bare = bare.unwrap().resolve().unwrap();
        assert_eq!(Run { notes: Vec::new(), ..run }, Run { notes: Vec::new(), ..bare });
    }

    #[test]
    fn every_key_stands_in_it() {
        for (section, keys) in KEYS.iter().filter(|(section, _)| !section.is_empty()) {
            let header = section.trim_end_matches(".*");
            let Some((_, part)) = TEMPLATE.rsplit_once(&format!("[{header}]")) else {
                panic!("no section [{header}]");
            };
            for key in keys.iter().filter(|key| !matches!(**key, "train" | "validation")) {
                let found = part
                    .lines()
                    .skip(1)
                    .take_while(|line| !line.trim_start_matches('#').starts_with('['))
                    .any(|line| line.trim_start_matches('#').starts_with(&format!("{key} =")));
                assert!(found, "`{key}` is missing under [{header}]");
            }
        }
    }

    #[test]
    fn every_commented_key_is_known_and_of_the_right_type() {
        let uncommented: String = TEMPLATE
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let config = RunConfig::from_text(&uncommented, &[], Command::Plan).unwrap();
        let error = config.resolve().unwrap_err().to_string();
        assert!(error.contains("can't stand together"), "{error}");
        assert!(!error.contains("unknown") && !error.contains("expected"), "{error}");
    }
}
