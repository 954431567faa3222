//! The arguments of every command, with the words that `--help` shows. No command does anything
//! here.

pub(crate) mod adapter;
pub(crate) mod analyze;
pub(crate) mod bench;
pub(crate) mod convert;
mod values;

use std::path::PathBuf;

use clap::builder::Styles;
use clap::{Args, Parser, Subcommand, ValueEnum};
use lora_core::placement::{Precision, Quantize};

use self::adapter::AdapterCommands;
use self::analyze::AnalyzeArguments;
use self::bench::BenchArguments;
use self::convert::{ConvertArguments, StoredName};
use self::values::{
    key_and_value, positive, positive_probability, probability, temperature, unescape,
};
use crate::style;

const STYLES: Styles = Styles::styled()
    .header(style::HEADING)
    .usage(style::HEADING)
    .literal(style::LITERAL)
    .error(style::ERROR)
    .valid(style::LITERAL)
    .invalid(style::WARNING);

const TOP_EXAMPLES: &str = "\
Start here:
  lora init                       write a commented recipe to edit
  lora data recipe.toml           see the rows as the model will see them
  lora train recipe.toml          fine-tune
  lora evaluate recipe.toml       measure it with and without the adapter

A MODEL is a Hugging Face folder, a .gguf file, a hub id such as
HuggingFaceTB/SmolLM2-135M-Instruct[@revision], or `builtin:`, the small model inside this program.

Exit status: 0 done, 1 something to correct in the input, 2 a fault of this program, 130 interrupted.";

/// Fine-tune language models with low-rank adapters.
///
/// One program from a checkpoint and a JSONL file to an adapter that PEFT loads, or to a merged
/// model. No Python.
#[derive(Parser)]
#[command(
    name = "lora",
    version,
    styles = STYLES,
    max_term_width = 100,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = TOP_EXAMPLES
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    Train(TrainArguments),
    Pretrain(PretrainArguments),
    Data(DataArguments),
    Plan(PlanArguments),
    Evaluate(EvaluateArguments),
    Generate(GenerateArguments),
    Chat(ChatArguments),
    Merge(MergeArguments),
    Convert(ConvertArguments),
    Adapter(AdapterCommands),
    Analyze(AnalyzeArguments),
    Inspect(InspectArguments),
    Init(InitArguments),
    Doctor(DoctorArguments),
    #[command(hide = true)]
    Bench(BenchArguments),
}

/// Train an adapter (or all weights) as a recipe says
///
/// Reads the recipe, the model and the data, trains, evaluates, and writes a run folder with the
/// adapter, the resolved recipe, the metrics (JSONL and TensorBoard) and checkpoints. Ctrl-C saves
/// a checkpoint first; `--resume` continues from the newest one and ends with the same adapter as
/// a run that was never stopped.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora train recipes/quickstart.toml
  lora train recipe.toml --set train.learning_rate=1e-4 --set adapter.rank=32 --output runs/second
  lora train recipe.toml --resume")]
pub(crate) struct TrainArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
}

/// Train the model itself, from scratch or onwards, without adapters
///
/// The recipe's `[pretrain]` table says which configuration and tokenizer to start from; without a
/// configuration, the weights of `model` are trained onwards. Writes a Hugging Face folder into the
/// run folder.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora pretrain recipes/builtin.toml
  lora pretrain recipe.toml --set train.steps=1000 --output runs/tiny")]
pub(crate) struct PretrainArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
}

// The groups below carry plain comments: clap would take doc comments for the command's own.

// What `train` and `pretrain` share.
#[derive(Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,

    /// Where the run goes; the recipe's output.folder
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    /// Continue from the newest checkpoint in the output folder
    #[arg(long)]
    pub(crate) resume: bool,

    /// Say at the end where the time went, operation by operation
    #[arg(long)]
    pub(crate) profile: bool,

    #[command(flatten)]
    pub(crate) compute: ComputeArguments,

    #[command(flatten)]
    pub(crate) hub: HubArguments,

    #[command(flatten)]
    pub(crate) quiet: QuietArguments,
}

/// Show training rows as the model will see them
///
/// Renders the rows of a recipe through the model's own chat template and tokenizer. Tokens that
/// are learned stand in green, special tokens in grey; without colour, learned text stands between
/// « and ». Counts of rows, tokens, truncations and skipped rows follow.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora data recipe.toml
  lora data recipe.toml --rows 20 --validation | less -R
  lora data recipe.toml --set data.learn=all --plain")]
pub(crate) struct DataArguments {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,

    /// How many rows to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) rows: usize,

    /// Show the validation rows instead of the training rows
    #[arg(long)]
    pub(crate) validation: bool,

    /// Mark learned text with « and » instead of colour
    #[arg(long)]
    pub(crate) plain: bool,

    #[command(flatten)]
    pub(crate) hub: HubArguments,

    #[command(flatten)]
    pub(crate) quiet: QuietArguments,
}

/// Say what a recipe will train and what it will need, before anything is read
///
/// Trainable parameters by module, memory by part, tokens, steps, and every setting that was
/// defaulted or inherited with the reason. Reads the model's configuration and the data, but no
/// weights.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora plan recipe.toml
  lora plan recipe.toml --set adapter.rank=64 --set train.recompute=true")]
pub(crate) struct PlanArguments {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,

    #[command(flatten)]
    pub(crate) compute: ComputeArguments,

    #[command(flatten)]
    pub(crate) hub: HubArguments,

    #[command(flatten)]
    pub(crate) quiet: QuietArguments,
}

/// Measure loss, perplexity and token accuracy, with and without an adapter
///
/// With a model, measures it on the rows of `--data`. With a recipe (a .toml file or a run folder),
/// measures the recipe's model on the recipe's validation rows, and the adapter of its run if there
/// is one.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora evaluate recipe.toml
  lora evaluate runs/first
  lora evaluate builtin: --data held_out.jsonl --adapter runs/first
  lora evaluate models/smollm2 --data held_out.jsonl --set data.max_tokens=512 --json")]
pub(crate) struct EvaluateArguments {
    /// A model, a recipe (.toml) or a run folder
    #[arg(value_name = "MODEL|RECIPE")]
    pub(crate) source: String,

    /// Rows to measure on (.jsonl, .json or .txt); may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Vec<PathBuf>,

    /// Adapter to measure as well: an adapter folder or a run folder
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,

    /// Change one key of the recipe, or of the settings the rows are read with; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub(crate) set: Vec<String>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) compute: ComputeArguments,

    #[command(flatten)]
    pub(crate) hub: HubArguments,

    #[command(flatten)]
    pub(crate) quiet: QuietArguments,
}

/// Continue a text, or answer a message
///
/// The text goes to standard output as it is written; speed and token counts go to standard error.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora generate models/smollm2 --chat --prompt 'What is the capital of France?'
  lora generate models/smollm2 --adapter runs/first --merged --prompt 'Once upon a time'
  lora generate builtin: --temperature 0.8 --top-p 0.95 --seed 7 < prompt.txt
  lora generate builtin: --prompt 'name: Blue Spice' --stop '\\n' --json")]
pub(crate) struct GenerateArguments {
    /// A Hugging Face folder, a .gguf file, a hub id or `builtin:`
    pub(crate) model: String,

    /// What to continue; without it, standard input is read to its end
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,

    /// Send the prompt as a user's message through the model's chat template
    #[arg(long)]
    pub(crate) chat: bool,

    /// System message that goes before the prompt
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,

    #[command(flatten)]
    pub(crate) adapter: AdapterArguments,

    /// Print one JSON object (text, token ids, finish reason, speed) instead of streaming
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) compute: ComputeArguments,

    #[command(flatten)]
    pub(crate) hub: HubArguments,

    #[command(flatten)]
    pub(crate) quiet: QuietArguments,

    #[command(flatten, next_help_heading = "Sampling")]
    pub(crate) sampling: SamplingArguments,
}

/// Talk to a model
///
/// Each line is a message; end a line with \ to go on in the next one. Ctrl-C stops an answer, and
/// leaves when there is none. Commands: /reset forgets the conversation, /adapter on and
/// /adapter off switch the adapter, /exit leaves.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora chat models/smollm2
  lora chat models/smollm2 --adapter runs/first --system 'You are a pirate.'")]
pub(crate) struct ChatArguments {
    /// A Hugging Face folder, a .gguf file, a hub id or `builtin:`
    pub(crate) model: String,

    /// System message that opens the conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,

    #[command(flatten)]
    pub(crate) adapter: AdapterArguments,

    #[command(flatten)]
    pub(crate) compute: ComputeArguments,

    #[command(flatten)]
    pub(crate) hub: HubArguments,

    #[command(flatten)]
    pub(crate) quiet: QuietArguments,

    #[command(flatten, next_help_heading = "Sampling")]
    pub(crate) sampling: SamplingArguments,
}

/// Fold an adapter into its model and write a Hugging Face folder or a GGUF file
///
/// Compares the logits of the merged and the unmerged model and prints the largest difference
/// before it writes. The output must not exist: nothing is ever overwritten.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora merge models/smollm2 runs/first --output models/smollm2-first
  lora merge model.gguf runs/first/adapter --output merged --dtype bf16
  lora merge models/smollm2 runs/first --output first.gguf --dtype q8_0")]
pub(crate) struct MergeArguments {
    /// The model that the adapter was trained on
    pub(crate) model: String,

    /// An adapter folder, a run folder or a GGUF adapter
    pub(crate) adapter: PathBuf,

    /// The folder to create, or the .gguf file
    #[arg(long, short, value_name = "PATH")]
    pub(crate) output: PathBuf,

    /// Number format of the merged weights; as the model stores them, or f32 if it is quantised
    #[arg(long, value_name = "DTYPE")]
    pub(crate) dtype: Option<StoredName>,

    /// Merge into the weights as this format rounds them, beside which the adapter was trained
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) quantize: Option<QuantizeName>,

    #[command(flatten)]
    pub(crate) device: DeviceArguments,

    #[command(flatten)]
    pub(crate) hub: HubArguments,

    #[command(flatten)]
    pub(crate) quiet: QuietArguments,
}

/// Say what a checkpoint, an adapter, a GGUF file or a run folder holds
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora inspect models/smollm2
  lora inspect model.gguf --tensors
  lora inspect runs/first
  lora inspect runs/first/adapter")]
pub(crate) struct InspectArguments {
    /// A model folder, an adapter folder, a run folder, a .safetensors or .gguf file, or `builtin:`
    pub(crate) path: String,

    /// List every tensor with its number format and shape
    #[arg(long)]
    pub(crate) tensors: bool,
}

/// Write a commented recipe to edit
///
/// Every key stands there with its default and a word on what it does.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora init
  lora init recipes/mine.toml
  lora init - | less")]
pub(crate) struct InitArguments {
    /// The file to create, or - for standard output
    #[arg(default_value = "recipe.toml")]
    pub(crate) path: PathBuf,
}

/// Say what this machine and this program can do
///
/// Backends compiled in, devices found, number formats, memory, and where models from the hub go.
#[derive(Args)]
pub(crate) struct DoctorArguments {}

// A recipe and the keys changed from the command line.
#[derive(Args)]
pub(crate) struct RecipeArguments {
    /// The recipe (.toml), or a run folder to read its recipe from
    pub(crate) recipe: PathBuf,

    /// Change one key of the recipe, as in train.learning_rate=1e-4; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub(crate) set: Vec<String>,
}

// An adapter over the model.
#[derive(Args)]
pub(crate) struct AdapterArguments {
    /// Adapter to use: an adapter folder or a run folder
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,

    /// Fold the adapter into the weights first: the same text, a little faster
    #[arg(long, requires = "adapter")]
    pub(crate) merged: bool,
}

// How the next token is chosen.
#[derive(Args)]
pub(crate) struct SamplingArguments {
    /// Stop after this many tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,

    /// 0 takes the likeliest token always; higher is more varied
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    pub(crate) temperature: f32,

    /// Choose among the K likeliest tokens; 0 switches this off
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,

    /// Choose among the likeliest tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = positive_probability)]
    pub(crate) top_p: f32,

    /// Drop tokens less likely than P times the likeliest; 0 switches this off
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub(crate) min_p: f32,

    /// Above 1, make tokens that are already there less likely
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    pub(crate) repetition_penalty: f32,

    /// Seed of the draws; without it every run with a temperature differs
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Stop before this text, where \n is a line break and \t a tab; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = unescape)]
    pub(crate) stop: Vec<String>,
}

// Where the numbers are computed.
#[derive(Args, Clone)]
pub(crate) struct DeviceArguments {
    /// Where to compute: auto, cpu, cuda, vulkan:1 …; `lora doctor` lists what there is
    #[arg(long, value_name = "DEVICE", env = "LORA_DEVICE", hide_env_values = true)]
    pub(crate) device: Option<String>,
}

// Where and in which number format they are computed.
#[derive(Args, Clone)]
pub(crate) struct ComputeArguments {
    #[command(flatten)]
    pub(crate) on: DeviceArguments,

    /// Number format of the computation
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) precision: Option<PrecisionName>,

    /// How the model's weights rest: in few bits they take less memory
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) quantize: Option<QuantizeName>,
}

/// Formats at rest by name.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum QuantizeName {
    /// As they are computed with
    None,
    /// 4 bits, as QLoRA has them
    Nf4,
    /// 8 bits
    Int8,
    /// The blocks of a GGUF file as they come
    Keep,
}

impl From<QuantizeName> for Quantize {
    fn from(name: QuantizeName) -> Self {
        match name {
            QuantizeName::None => Self::None,
            QuantizeName::Nf4 => Self::Nf4,
            QuantizeName::Int8 => Self::Int8,
            QuantizeName::Keep => Self::Keep,
        }
    }
}

/// Number formats by name.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PrecisionName {
    /// What suits the device: bf16 on cards that compute in it, else f32
    Auto,
    /// 32 bits
    F32,
    /// 16 bits with the range of f32
    Bf16,
    /// 16 bits with more digits and little range
    F16,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::Auto => Self::Auto,
            PrecisionName::F32 => Self::F32,
            PrecisionName::Bf16 => Self::Bf16,
            PrecisionName::F16 => Self::F16,
        }
    }
}

// Use of the hub.
#[derive(Args)]
pub(crate) struct HubArguments {
    /// Never use the network: take hub models from the cache or fail
    #[arg(long)]
    pub(crate) offline: bool,
}

// How much is said.
#[derive(Args)]
pub(crate) struct QuietArguments {
    /// Print results and errors, nothing in between
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn clap_accepts_the_definitions() {
        Arguments::command().debug_assert();
    }
}
