//! Threads that stay awake between pieces of work that follow one another closely.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

/// Runs `work` on a thread of the pool, and keeps the others awake for what it shares out: waking one takes
/// longer than many a product with a single row. A thread that had nothing to do for some milliseconds goes back
/// to sleep until the next call.
///
/// # Panics
/// As `work` does.
pub fn awake<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| {
        let end = End(Arc::default());
        let caller = rayon::current_thread_index();
        if rayon::current_num_threads() > 1 {
            let ended = Arc::clone(&end.0);
            rayon::spawn_broadcast(move |context| {
                if Some(context.index()) != caller {
                    wait(&ended);
                }
            });
        }
        work()
    })
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
        let found = std::panic::catch_unwind(|| awake(|| panic!("on purpose")));
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
