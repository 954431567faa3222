//! The arguments of `lora analyze`.

use std::path::PathBuf;

use clap::Args;

use super::{HubArguments, QuietArguments};

/// Show what an adapter does to its model: spectra, ranks, amplification, similarity
///
/// Singular values and effective rank of the base weights and of the updates ΔW, how much an update
/// amplifies directions that the base hardly uses, and how alike the subspaces of two adapters are
/// (sections 7.2 and 7.3 of Hu et al. 2021, arXiv 2106.09685). Prints tables; `--output` also writes
/// plots as SVG and PNG and all numbers as JSON.
#[derive(Args)]
#[command(after_help = "\
Examples:
  lora analyze --adapter runs/first
  lora analyze models/smollm2 --adapter runs/first --output report
  lora analyze --adapter runs/rank8 --adapter runs/rank64 --output report
  lora analyze models/smollm2 --targets q_proj,v_proj --each")]
pub(crate) struct AnalyzeArguments {
    /// The base model: a folder, a .gguf file, a hub id or `builtin:`
    pub(crate) model: Option<String>,

    /// An adapter folder or a run folder; twice, to compare two
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Vec<PathBuf>,

    /// Only these layers, by the ends of their names, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) targets: Vec<String>,

    /// A row for every layer instead of one for all layers of a name
    #[arg(long)]
    pub(crate) each: bool,

    /// Folder to create for the plots and analysis.json
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) hub: HubArguments,

    #[command(flatten)]
    pub(crate) quiet: QuietArguments,
}
