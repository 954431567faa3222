//! The `lora` binary: reads the arguments, runs one command, and turns what happened into messages
//! and an exit status (0 done, 1 something to correct, 2 a fault of the program, 130 interrupted).

#![recursion_limit = "256"]

mod allocator;
mod args;
mod commands;
mod interrupt;
mod plot;
mod progress;
mod style;

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::Parser as _;
use lora_core::device::device_failure;

use crate::args::Arguments;

/// What the last panic said, kept for the apology.
static PANIC: Mutex<String> = Mutex::new(String::new());

const USER_ERROR: u8 = 1;
const INTERNAL_ERROR: u8 = 2;

fn main() -> ExitCode {
    allocator::keep_pages();
    lora_core::ops::join_pool();
    panic::set_hook(Box::new(remember_panic));
    let Ok(code) = panic::catch_unwind(AssertUnwindSafe(run)) else {
        return panicked();
    };
    code
}

fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    match commands::run(arguments.command) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            style::print_error(&error);
            ExitCode::from(USER_ERROR)
        }
    }
}

/// Help and version go to standard output; mistakes in the arguments to standard error.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().ansi().to_string();
    if error.use_stderr() {
        style::say(text.trim_end());
        return ExitCode::from(USER_ERROR);
    }
    // A closed pipe is no reason to complain about help.
    let _ = style::out(&text);
    ExitCode::SUCCESS
}

/// `lora data … | head` closes our output: nothing went wrong.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

fn remember_panic(info: &panic::PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
    let mut text = format!("{message}{}", place.unwrap_or_default());
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        text.push_str(&format!("\n{}", std::backtrace::Backtrace::force_capture()));
    }
    *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = text;
}

/// A device that fails makes Burn panic; everything else that does is our fault.
fn panicked() -> ExitCode {
    let message = PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(error) = device_failure("the device", || None, &message) {
        style::print_error(&error.into());
        return ExitCode::from(USER_ERROR);
    }
    apologise(&message);
    ExitCode::from(INTERNAL_ERROR)
}

fn apologise(message: &str) {
    style::say(&format!(
        "{} this is a fault in lora, not in what you gave it; sorry\n  {} {message}\n\n{} set \
         RUST_BACKTRACE=1 to see where it happened, and please report it with the command you ran",
        style::paint(style::ERROR, "error:"),
        style::paint(style::ERROR, "caused by:"),
        style::paint(style::HINT, "hint:"),
    ));
}
