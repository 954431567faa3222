//! `lora adapter add`, `linear`, `cat`, `svd`, `ties`, `dare` and `magnitude-prune`.

use lora_core::algebra::{Combination, Election, Merge, Weighted, combine};

use super::super::open;
use super::{check_output, warn, write};
use crate::args::adapter::{
    DareArguments, OutputArguments, PruneArguments, Signs, SumArguments, SvdArguments, Then,
    TiesArguments, WeightedArguments, WholeArguments,
};
use crate::progress::Waiting;
use crate::style::Problem;

/// The exact sum: factors beside each other.
pub(super) fn beside(arguments: &SumArguments) -> anyhow::Result<()> {
    run(&arguments.adapters, Combination::Beside, &arguments.output)
}

/// Factors summed by themselves.
pub(super) fn linear(arguments: &SumArguments) -> anyhow::Result<()> {
    run(&arguments.adapters, Combination::OnFactors(Merge::Sum), &arguments.output)
}

/// The sum cut to a rank.
pub(super) fn svd(arguments: &SvdArguments) -> anyhow::Result<()> {
    let &SvdArguments { rank, clamp, .. } = arguments;
    let how = Combination::OnUpdates { merge: Merge::Sum, rank, clamp };
    run(&arguments.adapters, how, &arguments.output)
}

/// Signs elected among the largest numbers.
pub(super) fn ties(arguments: &TiesArguments) -> anyhow::Result<()> {
    let density = arguments.density.density;
    let merge = Merge::Ties { density, election: election(arguments.signs) };
    run(&arguments.adapters, on(merge, &arguments.whole), &arguments.output)
}

/// Numbers dropped at random.
pub(super) fn dare(arguments: &DareArguments) -> anyhow::Result<()> {
    let &DareArguments { seed, signs, .. } = arguments;
    let density = arguments.density.density;
    let merge = match arguments.then {
        Then::Linear => Merge::DareSum { density, seed },
        Then::Ties => Merge::DareTies { density, election: election(signs), seed },
    };
    run(&arguments.adapters, on(merge, &arguments.whole), &arguments.output)
}

/// The largest numbers summed.
pub(super) fn magnitude_prune(arguments: &PruneArguments) -> anyhow::Result<()> {
    let merge = Merge::PrunedSum { density: arguments.density.density };
    run(&arguments.adapters, on(merge, &arguments.whole), &arguments.output)
}

fn run(
    arguments: &WeightedArguments,
    how: Combination,
    output: &OutputArguments,
) -> anyhow::Result<()> {
    if arguments.adapters.len() < 2 {
        let problem = Problem::new("one adapter alone is nothing to combine");
        let hint =
            "name another one after it, or use `lora adapter scale` to change how strong it is";
        return Err(problem.with_hint(hint).into());
    }
    check_output(output)?;
    let quiet = output.quiet.quiet;
    let (mut names, mut adapters) = (Vec::new(), Vec::new());
    for given in &arguments.adapters {
        names.push(given.path.display().to_string());
        adapters.push(open::read_adapter(&given.path, None, quiet)?);
    }
    let weighted: Vec<Weighted<'_>> = adapters
        .iter()
        .zip(&names)
        .zip(&arguments.adapters)
        .map(|((adapter, name), given)| Weighted { name, adapter, weight: given.weight })
        .collect();
    let waiting = Waiting::start("combining", quiet);
    let combined = combine(&weighted, &how)?;
    drop(waiting);
    if !quiet {
        combined.notes.iter().for_each(|note| warn(note));
    }
    write(&combined.adapter, output)
}

fn on(merge: Merge, whole: &WholeArguments) -> Combination {
    let &WholeArguments { svd, rank, clamp } = whole;
    if svd { Combination::OnUpdates { merge, rank, clamp } } else { Combination::OnFactors(merge) }
}

fn election(signs: Signs) -> Election {
    match signs {
        Signs::Total => Election::Total,
        Signs::Frequency => Election::Frequency,
    }
}
