//! `lora adapter`: everything that is done to adapters themselves. Here is what its commands do alike:
//! reading adapters, refusing to overwrite, writing whole.

mod combine;
mod compare;
mod cut;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lora_core::peft::PeftAdapter;
use lora_models::adapter_files::AdapterFormat;

use crate::args::adapter::{AdapterCommand, OutputArguments};
use crate::style::{self, Problem};

/// Runs one of the commands.
pub(crate) fn run(command: &AdapterCommand) -> anyhow::Result<()> {
    match command {
        AdapterCommand::Add(arguments) | AdapterCommand::Cat(arguments) => {
            combine::beside(arguments)
        }
        AdapterCommand::Scale(arguments) => cut::scale(arguments),
        AdapterCommand::Linear(arguments) => combine::linear(arguments),
        AdapterCommand::Svd(arguments) => combine::svd(arguments),
        AdapterCommand::Ties(arguments) => combine::ties(arguments),
        AdapterCommand::Dare(arguments) => combine::dare(arguments),
        AdapterCommand::MagnitudePrune(arguments) => combine::magnitude_prune(arguments),
        AdapterCommand::Extract(arguments) => cut::extract(arguments),
        AdapterCommand::Shrink(arguments) => cut::shrink(arguments),
        AdapterCommand::Diff(arguments) => compare::diff(arguments),
        AdapterCommand::Verify(arguments) => compare::verify(arguments),
    }
}

fn warn(text: &str) {
    style::say(&style::warning(text));
}

/// `4 lora_magnitude_vector, 1 …`: what an adapter holds beside pairs and whole modules.
pub(super) fn beside_pairs(adapter: &PeftAdapter) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for tensor in &adapter.extra {
        let last = tensor.name.rsplit('.').next().unwrap_or(&tensor.name);
        *counts.entry(last).or_default() += 1;
    }
    let said: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    said.join(", ")
}

/// Refuses a place that is taken, before anything is read or calculated.
fn check_output(output: &OutputArguments) -> anyhow::Result<()> {
    let folder = &output.output;
    if !folder.exists() {
        return Ok(());
    }
    let path = folder.display();
    if !output.force {
        let hint =
            "name a folder that does not exist, or add --force to replace the adapter in this one";
        return Err(Problem::new(format!("`{path}` exists, and nothing is overwritten"))
            .with_hint(hint)
            .into());
    }
    if is_empty(folder) || AdapterFormat::of(folder)? == Some(AdapterFormat::Peft) {
        return Ok(());
    }
    Err(Problem::new(format!("`{path}` is no PEFT adapter folder, so --force does not replace it"))
        .with_hint("name a folder that does not exist, or one that holds a PEFT adapter")
        .into())
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Writes the adapter whole and prints where it is.
fn write(adapter: &PeftAdapter, output: &OutputArguments) -> anyhow::Result<()> {
    let folder = &output.output;
    if folder.exists() {
        // What else lies in the folder is not ours.
        adapter.save(folder)?;
    } else {
        lora_core::files::create_folder_whole(folder, |scratch| adapter.save(scratch))?;
    }
    if !output.quiet.quiet {
        let numbers: usize = adapter.factors.iter().map(|f| f.a.len() + f.b.len()).sum();
        let layers = adapter.factors.len() as u64;
        style::say(&format!(
            "rank {} in {}, {} numbers",
            super::inspect::ranks(adapter),
            style::counted(layers, "layer", "layers"),
            style::count(numbers as u64)
        ));
    }
    style::out_line(&folder.display().to_string())?;
    Ok(())
}
