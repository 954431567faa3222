//! Working memory that is kept between calls, so that no kernel pays for fresh pages.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use half::bf16;

/// Sixteen numbers in one line of the cache, so that wide loads never meet two.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

const LINE: usize = 16;

static POOL: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// Some numbers to work with; what they are at first is not said. Goes back to the pool when dropped.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    length: usize,
}

impl Scratch {
    /// Working memory of `length` numbers: the smallest that fits, else the largest there is, grown.
    pub(crate) fn new(length: usize) -> Self {
        let lines = length.div_ceil(LINE);
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = (0..pool.len()).filter(|index| pool[*index].len() >= lines);
        let found = fitting
            .min_by_key(|index| pool[*index].len())
            .or_else(|| (0..pool.len()).max_by_key(|index| pool[*index].len()));
        let mut kept = found.map(|index| pool.swap_remove(index)).unwrap_or_default();
        drop(pool);
        if kept.len() < lines {
            // Nothing of it is wanted: a fresh one needs no copy.
            kept = Vec::new();
            kept.resize(lines, Line([0.0; LINE]));
        }
        Self { lines: kept, length }
    }
}

/// Bf16 numbers to work with, as many as were last asked for, in whole lines of the cache.
pub(crate) struct Halves(Scratch);

impl Halves {
    pub(crate) fn none() -> Self {
        Self(Scratch { lines: Vec::new(), length: 0 })
    }

    /// `length` numbers; what they are is not said.
    pub(crate) fn resized(&mut self, length: usize) -> &mut [bf16] {
        if self.0.lines.len() * LINE * 2 < length {
            self.0 = Scratch::new(length.div_ceil(2));
        }
        &mut bytemuck::cast_slice_mut(&mut self.0.lines)[..length]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.lines.is_empty() {
            let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
            pool.push(std::mem::take(&mut self.lines));
        }
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}
