//! The commands, one file each, and what several of them do alike: reading a recipe, opening a
//! model, finding an adapter.

mod adapter;
mod analyze;
mod bench;
mod chat;
mod classify;
mod convert;
mod data;
mod doctor;
mod evaluate;
mod generate;
mod init;
mod inspect;
mod linear_weights;
mod merge;
mod open;
mod plan;
mod probe;
mod train;

use std::process::ExitCode;

use crate::args::Command;

/// Runs one command.
pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Train(arguments) => train::train(&arguments.run),
        Command::Pretrain(arguments) => train::pretrain(&arguments.run),
        Command::Data(arguments) => data::run(&arguments).map(done),
        Command::Plan(arguments) => plan::run(&arguments).map(done),
        Command::Evaluate(arguments) => evaluate::run(&arguments).map(done),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Chat(arguments) => chat::run(&arguments).map(done),
        Command::Classify(arguments) => classify::run(&arguments).map(done),
        Command::Merge(arguments) => merge::run(&arguments).map(done),
        Command::Convert(arguments) => convert::run(&arguments).map(done),
        Command::Adapter(arguments) => adapter::run(&arguments.command).map(done),
        Command::Analyze(arguments) => analyze::run(&arguments).map(done),
        Command::Inspect(arguments) => inspect::run(&arguments).map(done),
        Command::Init(arguments) => init::run(&arguments).map(done),
        Command::Doctor(_) => doctor::run().map(done),
        Command::Bench(arguments) => bench::run(&arguments).map(done),
    }
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}
