//! `lora plan`: what a recipe will train and need, before any weight is read.

use lora_core::device::DeviceSpec;
use lora_train::recipe::Command;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use super::open;
use crate::args::PlanArguments;
use crate::progress::Waiting;
use crate::style;

/// Prints the plan, and on standard error each choice that the recipe left open.
pub(crate) fn run(arguments: &PlanArguments) -> anyhow::Result<()> {
    let quiet = arguments.quiet.quiet;
    let extra = open::compute_keys(&arguments.compute);
    let run = open::read_recipe(&arguments.recipe, &extra, Command::Plan)?;
    let checkpoint = open::open_run_model(&run, arguments.hub.offline, quiet)?;
    let waiting = Waiting::start("reading the data", quiet);
    let (train, _) = lora_train::data::load_for(&run.data, &checkpoint, &checkpoint.config)?;
    drop(waiting);
    let plan = lora_train::plan::plan(&run, &checkpoint, Some(&train))?;
    if !quiet {
        for note in &run.notes {
            style::say(&style::paint(style::DIM, note));
        }
    }
    style::out_line(plan.to_string().trim_end())?;
    // The run may be planned here for a device that is elsewhere.
    let device = DeviceSpec::parse(&run.device)?.open();
    let free = free_memory();
    if device.is_ok_and(|open| open.backend.is_processor()) && plan.total_bytes() > free {
        style::say(&style::warning(&format!(
            "{} are free here; `train.recompute = true` needs the least, and `train.batch_size` \
             and `data.max_tokens` lower it too",
            style::bytes(free),
        )));
    }
    Ok(())
}

fn free_memory() -> u64 {
    let ram = MemoryRefreshKind::nothing().with_ram();
    System::new_with_specifics(RefreshKind::nothing().with_memory(ram)).available_memory()
}
