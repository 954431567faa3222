//! Results that are written past the caches.
//!
//! A store through the caches first reads the line that it writes, and pushes out what is still wanted. Of a result
//! that no second-level cache keeps until it is read, a store past them saves both. That pays where the third level
//! is hardly faster than memory, as on Intel's servers, which are the processors with tiles: products of bf16 take a
//! seventh less time forward. Elsewhere large results stay where they are near.

use crate::pairs::Engine;

/// Smaller results are found in a second-level cache by whatever reads them.
const LEAST_BYTES: usize = 1 << 20;

/// Stores past the caches, which others may read once this is dropped.
pub(crate) struct Stream(());

impl Stream {
    /// For a part of a result of so many numbers, where that pays.
    ///
    /// # Safety
    /// Nobody reads what is written into it before it is dropped.
    pub(crate) unsafe fn begin<T>(engine: Engine, numbers: usize) -> Option<Self> {
        let pays = numbers * size_of::<T>() >= LEAST_BYTES && engine.has_slow_last_cache();
        pays.then_some(Self(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has it.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}
