//! Taking turns with the programs that the work is compared with, so that each step meets the same machine as
//! theirs.

use std::io::{self, BufRead};

use anyhow::{Context, ensure};

use crate::style;

/// What is printed where a turn is waited for.
const WAITING: &str = ".";

/// Waits, if `paced`, until a line comes on standard input.
pub(super) fn wait_for_turn(paced: bool) -> anyhow::Result<()> {
    if paced {
        style::out_line(WAITING)?;
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line).context("waiting for the next turn")?;
        ensure!(read > 0, "no more turns came before the work was done");
    }
    Ok(())
}
