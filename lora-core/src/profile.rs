//! Where the time of a run goes: each part's own time, without the parts within it, so that all of them
//! add up.
//!
//! Off unless [`start`] was called; then a part costs two looks at the clock. Times are those of the calling
//! thread: on a device that works on its own, they say how long work took to hand over.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ON: AtomicBool = AtomicBool::new(false);
static PARTS: Mutex<BTreeMap<&'static str, Part>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// Time of the parts that ended within each part that is under way.
    static WITHIN: RefCell<Vec<Duration>> = const { RefCell::new(Vec::new()) };
}

/// Time spent in a part of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// How often it ran.
    pub calls: u64,
    /// Its own time.
    pub time: Duration,
}

/// Begins to measure, from zero.
pub fn start() {
    PARTS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    ON.store(true, Ordering::Relaxed);
}

/// Ends measuring; the parts that ran since [`start`], the longest first.
pub fn finish() -> Vec<(&'static str, Part)> {
    ON.store(false, Ordering::Relaxed);
    let parts = std::mem::take(&mut *PARTS.lock().unwrap_or_else(PoisonError::into_inner));
    let mut parts: Vec<_> = parts.into_iter().collect();
    parts.sort_by_key(|(_, part)| std::cmp::Reverse(part.time));
    parts
}

/// Runs `work` and counts its time as that of `part`.
pub fn timed<R>(part: &'static str, work: impl FnOnce() -> R) -> R {
    if !ON.load(Ordering::Relaxed) {
        return work();
    }
    let started = Instant::now();
    WITHIN.with_borrow_mut(|within| within.push(Duration::ZERO));
    let result = work();
    let whole = started.elapsed();
    let inner = WITHIN.with_borrow_mut(|within| {
        let inner = within.pop().unwrap_or_default();
        if let Some(outer) = within.last_mut() {
            *outer += whole;
        }
        inner
    });
    let mut parts = PARTS.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = parts.entry(part).or_default();
    entry.calls += 1;
    entry.time += whole.saturating_sub(inner);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_within_parts_add_up_to_the_whole() {
        let nap = || std::thread::sleep(Duration::from_millis(20));
        timed("before", nap);
        start();
        let started = Instant::now();
        timed("outer", || {
            nap();
            timed("inner", nap);
            timed("inner", nap);
        });
        let whole = started.elapsed();
        let parts = finish();
        timed("after", nap);
        let of = |name: &str| parts.iter().find(|(part, _)| *part == name).map(|(_, part)| *part);
        let (outer, inner) = (of("outer").unwrap_or_default(), of("inner").unwrap_or_default());
        assert_eq!((parts.len(), outer.calls, inner.calls), (2, 1, 2));
        assert!(inner.time >= Duration::from_millis(40) && outer.time >= Duration::from_millis(20));
        let sum = inner.time + outer.time;
        assert!(sum <= whole && whole - sum < Duration::from_millis(5), "{sum:?} of {whole:?}");
    }
}
