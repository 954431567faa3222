//! Ctrl-C: the first one asks the work at hand to stop at a safe place, the second one ends the
//! program. Nobody listening means that the first one ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;

/// Exit status of a run that was interrupted, as shells use it.
pub(crate) const INTERRUPTED: u8 = 130;

/// The flags that the handler and the work share.
#[derive(Clone)]
pub(crate) struct Interrupt {
    stop: Arc<AtomicBool>,
    busy: Arc<AtomicBool>,
}

impl Interrupt {
    /// Installs the handler. `word` is said at the first Ctrl-C; empty says nothing.
    pub(crate) fn install(word: &'static str) -> anyhow::Result<Self> {
        let interrupt =
            Self { stop: Arc::new(AtomicBool::new(false)), busy: Arc::new(AtomicBool::new(true)) };
        let shared = interrupt.clone();
        ctrlc::set_handler(move || {
            if !shared.is_busy() || shared.stop.swap(true, Ordering::SeqCst) {
                leave();
            }
            if !word.is_empty() {
                crate::style::say(&format!("\n{word}"));
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(interrupt)
    }

    /// The flag that long work looks at.
    pub(crate) fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Says whether there is work that will look at the flag; forgets an earlier Ctrl-C.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.stop.store(false, Ordering::SeqCst);
        self.busy.store(busy, Ordering::SeqCst);
    }

    fn is_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst)
    }
}

#[expect(clippy::exit, reason = "the person asked twice, or nothing would notice the flag")]
fn leave() {
    crate::style::say("");
    std::process::exit(i32::from(INTERRUPTED));
}
