//! The arguments of `lora classify`.

use std::path::PathBuf;

use clap::Args;

use super::{ComputeArguments, HubArguments, QuietArguments};

/// Say which label an encoder finds for a text
///
/// Prints the labels with their probabilities, the likeliest first, or the number that a regression
/// finds; a line for each text.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora classify data/minilm --adapter runs/reviews --text 'A film to remember.'
  lora classify runs/reviews-full/model --json < texts.txt
  lora classify models/paraphrase --text 'He left.' --pair 'He went away.'")]
pub(crate) struct ClassifyArguments {
    /// A Hugging Face folder or a hub id of an encoder (bert, roberta)
    pub(crate) model: String,

    /// The text; without it, each line of standard input is one
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) text: Option<String>,

    /// The second text of a pair
    #[arg(long, value_name = "TEXT", requires = "text")]
    pub(crate) pair: Option<String>,

    /// Adapter to use: an adapter folder or a run folder
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,

    /// Print a JSON object for each text
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) compute: ComputeArguments,

    #[command(flatten)]
    pub(crate) hub: HubArguments,

    #[command(flatten)]
    pub(crate) quiet: QuietArguments,
}
