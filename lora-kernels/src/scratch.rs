//! Working memory that is kept between calls, so that no kernel pays for fresh pages.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Some numbers to work with; what they are at first is not said. Goes back to the pool when dropped.
pub(crate) struct Scratch {
    numbers: Vec<f32>,
    length: usize,
}

impl Scratch {
    /// Working memory of `length` numbers: the smallest that fits, else the largest there is, grown.
    pub(crate) fn new(length: usize) -> Self {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = (0..pool.len()).filter(|index| pool[*index].len() >= length);
        let found = fitting
            .min_by_key(|index| pool[*index].len())
            .or_else(|| (0..pool.len()).max_by_key(|index| pool[*index].len()));
        let mut numbers = found.map(|index| pool.swap_remove(index)).unwrap_or_default();
        drop(pool);
        if numbers.len() < length {
            // Nothing of it is wanted: a fresh one needs no copy.
            numbers = Vec::new();
            numbers.resize(length, 0.0);
        }
        Self { numbers, length }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        pool.push(std::mem::take(&mut self.numbers));
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.numbers[..self.length]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.numbers[..self.length]
    }
}
