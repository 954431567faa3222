//! The arguments of `lora adapter`: everything that is done to adapters themselves.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::values::{WeightedPath, nonzero, quantile, rank, share, weighted_path};
use super::{HubArguments, QuietArguments};

/// Calculate with adapters: add, merge, extract, shrink, compare, verify
///
/// Works on adapter files alone, layer by layer on ΔW = s·B·A; only `extract` and
/// `verify --model` read models. Results are PEFT adapter folders. An adapter is named by its folder or by
/// a run folder; where several are combined, `=WEIGHT` after it gives it a weight other than 1.
#[derive(Args)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "\
Which combination:
  add, cat            exactly the sum; the rank is the sum of the ranks
  svd                 the nearest update of a chosen rank to the sum
  linear              A and B summed by themselves: the smallest and the roughest
  ties, dare, magnitude-prune
                      thin the adapters out first, so that they disturb each other less

Examples:
  lora adapter add runs/style runs/facts --output both
  lora adapter ties style=0.7 facts --density 0.3 --svd --output both
  lora adapter shrink runs/first --energy 0.95 --output small
  lora adapter verify runs/first --model models/smollm2"
)]
pub(crate) struct AdapterCommands {
    #[command(subcommand)]
    pub(crate) command: AdapterCommand,
}

/// What to do with adapters.
#[derive(Subcommand)]
pub(crate) enum AdapterCommand {
    /// Add adapters up, exactly: W + ΔW₁ + ΔW₂ …
    ///
    /// Puts the factors beside each other, so the rank of the result is the sum of the ranks; `lora adapter
    /// shrink` brings it down again.
    #[command(after_help = "\
Examples:
  lora adapter add runs/style runs/facts --output both
  lora adapter add runs/new runs/old=-1 --output what-changed")]
    Add(SumArguments),
    Scale(ScaleArguments),
    /// Sum A and B of several adapters by themselves, as PEFT's `linear`
    ///
    /// Fast and small, but a rough stand-in for the sum of the updates: the product of two sums also holds
    /// the products of unrelated factors. All adapters must have one rank.
    #[command(after_help = "\
Example:
  lora adapter linear style=0.7 facts=0.3 --output both")]
    Linear(SumArguments),
    /// Put the factors of several adapters beside each other, as PEFT's `cat`
    ///
    /// The exact weighted sum of the updates, like `add`; the rank is the sum of the ranks.
    #[command(after_help = "\
Example:
  lora adapter cat style=0.7 facts=0.3 --output both")]
    Cat(SumArguments),
    Svd(SvdArguments),
    Ties(TiesArguments),
    Dare(DareArguments),
    #[command(alias = "magnitude_prune")]
    MagnitudePrune(PruneArguments),
    Extract(ExtractArguments),
    Shrink(ShrinkArguments),
    Diff(DiffArguments),
    Verify(VerifyArguments),
}

// What they do stands with the commands.
#[derive(Args)]
pub(crate) struct SumArguments {
    #[command(flatten)]
    pub(crate) adapters: WeightedArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

/// Make an adapter stronger, weaker or its opposite
///
/// Multiplies ΔW by a number. The number goes into alpha, so A and B stay as they were; a negative one turns
/// the sign of B.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora adapter scale runs/first --by 0.5 --output half
  lora adapter scale runs/first --by -1 --output unlearn")]
pub(crate) struct ScaleArguments {
    /// An adapter folder or a run folder
    pub(crate) adapter: PathBuf,

    /// What to multiply the update by
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true, value_parser = nonzero)]
    pub(crate) by: f64,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

/// Sum the updates and cut the sum to a rank, as PEFT's `svd`
///
/// The nearest update of that rank there is, by the singular value decomposition. It is taken of the
/// small factors, never of the layer's whole matrix.
#[derive(Args)]
#[command(after_help = "\
Example:
  lora adapter svd style=0.7 facts=0.3 --rank 16 --output both")]
pub(crate) struct SvdArguments {
    #[command(flatten)]
    pub(crate) adapters: WeightedArguments,

    /// Rank of the result; the largest of the adapters' without it
    #[arg(long, value_name = "N", value_parser = rank)]
    pub(crate) rank: Option<usize>,

    /// Cut the numbers of A and B to their Q-quantile, as PEFT's svd_clamp
    #[arg(long, value_name = "Q", value_parser = quantile)]
    pub(crate) clamp: Option<f64>,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

/// Thin out, elect signs, and average what agrees, as PEFT's `ties`
///
/// Keeps the largest numbers of each adapter, chooses a sign for each number, and takes the mean of those
/// that have it (Yadav et al. 2023, arXiv 2306.01708).
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora adapter ties style facts --density 0.3 --output both
  lora adapter ties style=0.7 facts --density 0.3 --signs frequency --svd --rank 16 --output both")]
pub(crate) struct TiesArguments {
    #[command(flatten)]
    pub(crate) adapters: WeightedArguments,

    #[command(flatten)]
    pub(crate) density: DensityArguments,

    /// What a sign is elected by
    #[arg(long, value_enum, default_value_t = Signs::Total)]
    pub(crate) signs: Signs,

    #[command(flatten)]
    pub(crate) whole: WholeArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

/// Drop numbers at random and combine the rest, as PEFT's `dare_linear` and `dare_ties`
///
/// Every number stays with probability D and is then divided by D, which keeps the sum right on average (Yu
/// et al. 2023, arXiv 2311.03099). One seed gives one result on every machine.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora adapter dare style facts --density 0.5 --output both
  lora adapter dare style facts --density 0.5 --then ties --svd --seed 7 --output both")]
pub(crate) struct DareArguments {
    #[command(flatten)]
    pub(crate) adapters: WeightedArguments,

    #[command(flatten)]
    pub(crate) density: DensityArguments,

    /// How what is left is combined
    #[arg(long, value_enum, default_value_t = Then::Linear)]
    pub(crate) then: Then,

    /// What a sign is elected by, with `--then ties`
    #[arg(long, value_enum, default_value_t = Signs::Total)]
    pub(crate) signs: Signs,

    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    #[command(flatten)]
    pub(crate) whole: WholeArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

/// Sum the largest numbers of each adapter, as PEFT's `magnitude_prune`
#[derive(Args)]
#[command(after_help = "\
Example:
  lora adapter magnitude-prune style facts --density 0.5 --svd --output both")]
pub(crate) struct PruneArguments {
    #[command(flatten)]
    pub(crate) adapters: WeightedArguments,

    #[command(flatten)]
    pub(crate) density: DensityArguments,

    #[command(flatten)]
    pub(crate) whole: WholeArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

/// Take what a fine-tuned model has learned as an adapter on its base
///
/// The difference of the two models' linear layers, cut to low rank by the singular value decomposition. What
/// an adapter can't hold (embeddings, norms, biases) and differs too is named with how far it is apart.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora adapter extract models/base models/tuned --energy 0.9 --output learned
  lora adapter extract models/base models/tuned --rank 32 --targets q_proj,v_proj --output learned")]
pub(crate) struct ExtractArguments {
    /// The model before: a folder, a .gguf file, a hub id or `builtin:`
    pub(crate) base: String,

    /// The model after
    pub(crate) tuned: String,

    #[command(flatten)]
    pub(crate) keep: KeepArguments,

    /// Only these layers, by the ends of their names, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) targets: Vec<String>,

    #[command(flatten)]
    pub(crate) output: OutputArguments,

    #[command(flatten)]
    pub(crate) hub: HubArguments,
}

/// Bring an adapter to a lower rank with the least loss
///
/// Keeps the largest singular values of every update, and says how much of it that is.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora adapter shrink runs/first --rank 8 --output small
  lora adapter shrink runs/first --energy 0.95 --output small")]
pub(crate) struct ShrinkArguments {
    /// An adapter folder or a run folder
    pub(crate) adapter: PathBuf,

    #[command(flatten)]
    pub(crate) keep: KeepArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

/// Say how far two adapters are apart
///
/// Compares settings and, layer by layer, the updates ΔW: two adapters with different A and B that do the same
/// have distance 0.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora adapter diff runs/first runs/second
  lora adapter diff runs/first small --json")]
pub(crate) struct DiffArguments {
    /// An adapter folder or a run folder
    pub(crate) first: PathBuf,

    /// The other one
    pub(crate) second: PathBuf,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check every key, shape and number of an adapter
///
/// Reads both files as strictly as training would, and prints the norms of every layer. With a model, checks
/// that the adapter is for it: each pair has its layer, each layer its pair.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora adapter verify runs/first
  lora adapter verify downloads/adapter --model models/smollm2")]
pub(crate) struct VerifyArguments {
    /// An adapter folder or a run folder
    pub(crate) adapter: PathBuf,

    /// The model it should be for: a folder, a .gguf file, a hub id or `builtin:`
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) hub: HubArguments,
}

// The groups below carry plain comments: clap would take doc comments for the command's own.

// The adapters to combine.
#[derive(Args)]
pub(crate) struct WeightedArguments {
    /// Adapter folders or run folders, each with its weight if that is not 1
    #[arg(
        value_name = "ADAPTER[=WEIGHT]",
        required = true,
        value_parser = weighted_path
    )]
    pub(crate) adapters: Vec<WeightedPath>,
}

// Where the result goes.
#[derive(Args)]
pub(crate) struct OutputArguments {
    /// The adapter folder to create
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: PathBuf,

    /// Replace the adapter that the folder holds
    #[arg(long)]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) quiet: QuietArguments,
}

// How much is pruned.
#[derive(Args)]
pub(crate) struct DensityArguments {
    /// Share of the numbers that stays: above 0, at most 1
    #[arg(long, value_name = "D", value_parser = share)]
    pub(crate) density: f64,
}

// Merging updates instead of factors.
#[derive(Args)]
pub(crate) struct WholeArguments {
    /// Merge the updates ΔW instead of A and B, then cut to a rank (PEFT's `…_svd`)
    #[arg(long)]
    pub(crate) svd: bool,

    /// Rank of the result; the largest of the adapters' without it
    #[arg(long, value_name = "N", requires = "svd", value_parser = rank)]
    pub(crate) rank: Option<usize>,

    /// Cut the numbers of A and B to their Q-quantile, as PEFT's svd_clamp
    #[arg(long, value_name = "Q", requires = "svd", value_parser = quantile)]
    pub(crate) clamp: Option<f64>,
}

// How much is kept.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct KeepArguments {
    /// Keep this many directions in every layer
    #[arg(long, value_name = "N", value_parser = rank)]
    pub(crate) rank: Option<usize>,

    /// Keep as many directions as hold this share of ‖ΔW‖², layer by layer
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) energy: Option<f64>,
}

/// What a sign is elected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Signs {
    /// The sum of the numbers
    Total,
    /// How many numbers have it
    Frequency,
}

/// How numbers that were left are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Then {
    /// By their weighted sum
    Linear,
    /// By electing signs, as `ties`
    Ties,
}
