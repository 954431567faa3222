//! Threads that stay awake between pieces of work that follow one another closely.

use std::hint::spin_loop;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

/// Makes the calling thread one of the pool's, in place of one of its own: then it takes part in what it shares
/// out, where another thread would sleep until that is done. For a program's first thread, before anything is
/// shared out; where the pool would have one thread, or is there already, nothing happens.
pub fn join_pool() {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|count| count.parse().ok());
    let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = asked.filter(|count| *count > 0).unwrap_or_else(cores);
    // Alone it would have to do what others wait for, and may itself be waiting for them.
    if threads > 1 {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
        let _ = builder.build_global();
    }
}

/// Runs `work`, and keeps the pool's other threads awake for what it shares out: waking one takes longer than many
/// a product with a single row. A thread that had nothing to do for some milliseconds goes back to sleep until the
/// next call.
///
/// `work` stays on the calling thread: memory that it lets go is kept for its next call, and would be kept once for
/// each thread that it had run on.
///
/// # Panics
/// As `work` does.
pub fn awake<R>(work: impl FnOnce() -> R) -> R {
    let end = End(Arc::default());
    if rayon::current_num_threads() > 1 {
        let ended = Arc::clone(&end.0);
        // A thread that is not of the pool has a core too.
        let spared = rayon::current_thread_index().unwrap_or(0);
        rayon::spawn_broadcast(move |context| {
            if context.index() != spared {
                wait(&ended);
            }
        });
    }
    let result = work();
    // This thread's own part of the broadcast, which nobody else takes.
    rayon::yield_local();
    result
}

/// Sets its flag when dropped, after a panic too.
struct End(Arc<AtomicBool>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Does what others share out, until the end or until there was nothing for a while.
///
/// It must not wait for the end alone: it may run within a piece of the very work that it waits for.
fn wait(ended: &AtomicBool) {
    let mut idle = Instant::now();
    while !ended.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(Yield::Executed) {
            idle = Instant::now();
            continue;
        }
        let time = idle.elapsed();
        if time > PATIENCE {
            return;
        }
        if time > ALERT {
            // Another program may have use for the core.
            std::thread::yield_now();
        }
        (0..PAUSES).for_each(|_| spin_loop());
    }
}

/// How long a thread waits for more.
const PATIENCE: Duration = Duration::from_millis(3);
/// How long it does so without giving way to other programs.
const ALERT: Duration = Duration::from_micros(100);
/// Between two looks, so that those who work are not kept from their memory.
const PAUSES: usize = 8;

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn work_is_done_and_shared() {
        for round in 0..50u64 {
            let sum = awake(|| {
                let of = |from: u64| (from..from + 1000).into_par_iter().sum::<u64>();
                (0..20).map(|part| of(1000 * part + round)).sum::<u64>()
            });
            assert_eq!(sum, (0..20_000).sum::<u64>() + 20_000 * round);
        }
    }

    #[test]
    fn calls_may_be_nested_and_concurrent() {
        let count = |n: u64| awake(|| (0..n).into_par_iter().map(|i| awake(|| i)).sum::<u64>());
        let all = std::thread::scope(|scope| {
            let threads = [100, 200, 300].map(|n| scope.spawn(move || count(n)));
            threads.map(|thread| thread.join().ok())
        });
        assert_eq!(all, [Some(4950), Some(19_900), Some(44_850)]);
    }

    #[test]
    fn a_panic_ends_it() {
        let found = std::panic::catch_unwind(|| awake(|| assert!(std::hint::black_box(false))));
        assert!(found.is_err());
        assert_eq!(awake(|| 7), 7);
    }

    #[test]
    fn a_long_serial_part_lets_the_others_sleep() {
        let all = awake(|| {
            std::thread::sleep(3 * PATIENCE);
            (0..1000).into_par_iter().sum::<u64>()
        });
        assert_eq!(all, 499_500);
    }
}
