//! Taking turns with the programs that the work is compared with, so that each step meets the same machine as
//! theirs.

use std::io::{self, BufRead};

use anyhow::Context;

use crate::style;

/// What is printed where a turn is waited for.
const WAITING: &str = ".";

/// Waits, if `paced`, until a line comes on standard input; whether one came. Where the input ends, enough was timed.
pub(super) fn wait_for_turn(paced: bool) -> anyhow::Result<bool> {
    if !paced {
        return Ok(true);
    }
    style::out_line(WAITING)?;
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line).context("waiting for the next turn")?;
    Ok(read > 0)
}
