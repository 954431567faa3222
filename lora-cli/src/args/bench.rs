//! The arguments of `lora bench`. It is hidden: `cargo xtask bench` calls it, and `benches/peer.py` takes
//! the same words for the same work.

use clap::{Args, Subcommand, ValueEnum};

use super::ComputeArguments;

/// Time one piece of work and print it as one line of JSON
///
/// The model has the shape of SmolLM2-135M and random weights, the data is random tokens. `cargo xtask
/// bench` makes a table of such lines.
#[derive(Args)]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    pub(crate) work: BenchWork,
}

/// What is timed.
#[derive(Subcommand)]
pub(crate) enum BenchWork {
    Train(BenchTrainArguments),
    Generate(BenchGenerateArguments),
    Products(BenchProductsArguments),
    Load(BenchLoadArguments),
}

/// Time optimizer steps
#[derive(Args)]
pub(crate) struct BenchTrainArguments {
    /// What is trained
    #[arg(long, value_enum, default_value_t = BenchTargets::All)]
    pub(crate) targets: BenchTargets,

    #[command(flatten)]
    pub(crate) length: BenchStepsArguments,

    /// Compute activations a second time in the backward pass instead of keeping them
    #[arg(long)]
    pub(crate) recompute: bool,

    /// Wait before each step for a line on standard input; a dot says that it is waited for
    #[arg(long)]
    pub(crate) paced: bool,

    #[command(flatten)]
    pub(crate) shape: BenchShapeArguments,

    #[command(flatten)]
    pub(crate) compute: ComputeArguments,
}

/// Time greedy generation of one sequence
#[derive(Args)]
pub(crate) struct BenchGenerateArguments {
    /// A model in place of random weights
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// What the adapter adapts
    #[arg(long, value_enum, default_value_t = BenchTargets::All)]
    pub(crate) targets: BenchTargets,

    /// What is timed, in turn
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = BenchVariant::ALL)]
    pub(crate) variants: Vec<BenchVariant>,

    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) prompt_tokens: usize,

    /// Tokens that are generated
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) new_tokens: usize,

    /// How often each variant generates
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) runs: usize,

    /// Wait before each round of generations for a line on standard input; a dot says that it is waited for
    #[arg(long)]
    pub(crate) paced: bool,

    #[command(flatten)]
    pub(crate) shape: BenchShapeArguments,

    #[command(flatten)]
    pub(crate) compute: ComputeArguments,
}

/// Time the matrix products of a training step, alone and within it
#[derive(Args)]
pub(crate) struct BenchProductsArguments {
    #[command(flatten)]
    pub(crate) length: BenchStepsArguments,

    #[command(flatten)]
    pub(crate) shape: BenchShapeArguments,

    #[command(flatten)]
    pub(crate) compute: ComputeArguments,
}

/// Time opening a model and reading its weights
#[derive(Args)]
pub(crate) struct BenchLoadArguments {
    /// A Hugging Face folder or a .gguf file
    pub(crate) model: String,

    /// How often it is opened and read, one after another
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) runs: usize,

    #[command(flatten)]
    pub(crate) compute: ComputeArguments,
}

// The size and the number of steps.
#[derive(Args, Clone, Copy)]
pub(crate) struct BenchStepsArguments {
    /// Sequences in a batch
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) batch: usize,

    /// Tokens in a sequence
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) sequence: usize,

    /// Steps before the clock starts
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) warmup_steps: usize,

    /// Steps that are timed, and how often each product runs alone
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub(crate) steps: usize,
}

// The size of the model.
#[derive(Args, Clone)]
pub(crate) struct BenchShapeArguments {
    /// Blocks of the model
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub(crate) blocks: usize,

    /// Bits that its random weights need
    #[arg(long, value_enum, default_value_t = BenchWeights::Bf16)]
    pub(crate) weights: BenchWeights,
}

/// What the random weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchWeights {
    /// bf16 numbers, as SmolLM2 and most models are published
    Bf16,
    /// Numbers that need all bits of f32
    F32,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchTargets {
    /// An adapter of rank 8 on every linear layer
    All,
    /// An adapter of rank 8 on queries and values
    Qv,
    /// All weights, without an adapter
    Full,
}

/// How the adapter takes part in a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchVariant {
    /// There is none
    Base,
    /// Beside the weights
    Unmerged,
    /// Folded into the weights
    Merged,
}

impl BenchVariant {
    const ALL: [Self; 3] = [Self::Base, Self::Unmerged, Self::Merged];

    /// Its name on the command line and in the result.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Unmerged => "unmerged",
            Self::Merged => "merged",
        }
    }
}
