//! Which instructions multiply pairs, and whether this processor has them.

use std::sync::OnceLock;

use half::bf16;

use super::{Size, Step, Sums};
#[cfg(test)]
use super::{THIRDS, plain};
use crate::number::Number;
use crate::stream::Stream;

/// How pairs are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Tiles: AMX.
    #[cfg(target_arch = "x86_64")]
    Tiles,
    /// Vectors: AVX512-BF16.
    #[cfg(target_arch = "x86_64")]
    Vectors,
    /// Number by number, to hold the others to.
    #[cfg(test)]
    Plain,
}

/// The fastest of this processor, if any multiplies pairs faster than f32 numbers are multiplied.
pub(crate) fn best_engine() -> Option<Engine> {
    static BEST: OnceLock<Option<Engine>> = OnceLock::new();
    *BEST.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if super::x86::tiles_are_there() {
            return Some(Engine::Tiles);
        } else if super::x86::vectors_pay() {
            return Some(Engine::Vectors);
        }
        None
    })
}

#[cfg_attr(
    not(any(test, target_arch = "x86_64")),
    expect(unused_variables, reason = "there is no engine")
)]
impl Engine {
    /// All that this processor has.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Plain];
        #[cfg(target_arch = "x86_64")]
        if super::x86::has_avx512() {
            all.push(Self::Vectors);
        }
        #[cfg(target_arch = "x86_64")]
        if super::x86::tiles_are_there() {
            all.push(Self::Tiles);
        }
        all
    }

    /// Runs `work`, in which this thread may use tiles.
    pub(crate) fn with_tiles(self, work: impl FnOnce()) {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: there is such an engine only where the processor and the system have tiles.
            Self::Tiles => unsafe { super::x86::with_tiles(work) },
            _ => work(),
        }
    }

    /// `sums = Σ left·right` over all steps, of the first rows and columns at least.
    ///
    /// # Safety
    /// Each step's blocks are readable on both sides; for tiles, within [`Self::with_tiles`].
    pub(crate) unsafe fn sum(self, steps: &[Step], size: Size, sums: &mut Sums) {
        // SAFETY: the caller's promise.
        unsafe { self.add_up::<false>(steps, size, sums) }
    }

    /// The same, added to what `sums` has.
    ///
    /// # Safety
    /// As of [`Self::sum`].
    pub(crate) unsafe fn sum_more(self, steps: &[Step], size: Size, sums: &mut Sums) {
        // SAFETY: the caller's promise.
        unsafe { self.add_up::<true>(steps, size, sums) }
    }

    /// Whether products of f32 numbers are faster by thirds than in f32: six of the nine products of their parts,
    /// the others being below the last bit.
    pub(crate) fn multiplies_thirds(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Tiles => true,
            #[cfg(target_arch = "x86_64")]
            Self::Vectors => false,
            #[cfg(test)]
            Self::Plain => true,
        }
    }

    /// As [`Self::sum`], of blocks in thirds on both sides; added to what `sums` has where there is `more`.
    ///
    /// # Safety
    /// As of [`Self::sum`], where [`Self::multiplies_thirds`]; each step's `stride` is `DEPTH`.
    pub(crate) unsafe fn sum_thirds(self, steps: &[Step], size: Size, more: bool, sums: &mut Sums) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self, more) {
                #[cfg(target_arch = "x86_64")]
                (Self::Tiles, false) => super::x86::sum_thirds_by_tiles::<false>(steps, size, sums),
                #[cfg(target_arch = "x86_64")]
                (Self::Tiles, true) => super::x86::sum_thirds_by_tiles::<true>(steps, size, sums),
                #[cfg(target_arch = "x86_64")]
                (Self::Vectors, _) => unreachable!("vectors do not multiply thirds"),
                #[cfg(test)]
                (Self::Plain, _) => plain::sum_thirds(steps, THIRDS, size, more, sums),
            }
        }
    }

    /// The same of blocks in thirds on the left and in whole on the right: three products.
    ///
    /// # Safety
    /// As of [`Self::sum_thirds`].
    pub(crate) unsafe fn sum_left_thirds(
        self,
        steps: &[Step],
        size: Size,
        more: bool,
        sums: &mut Sums,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self, more) {
                #[cfg(target_arch = "x86_64")]
                (Self::Tiles, false) => {
                    super::x86::sum_left_thirds_by_tiles::<false>(steps, size, sums);
                }
                #[cfg(target_arch = "x86_64")]
                (Self::Tiles, true) => {
                    super::x86::sum_left_thirds_by_tiles::<true>(steps, size, sums);
                }
                #[cfg(target_arch = "x86_64")]
                (Self::Vectors, _) => unreachable!("vectors do not multiply thirds"),
                #[cfg(test)]
                (Self::Plain, _) => plain::sum_thirds(steps, 1, size, more, sums),
            }
        }
    }

    unsafe fn add_up<const MORE: bool>(self, steps: &[Step], size: Size, sums: &mut Sums) {
        // SAFETY: the caller's promise; an engine is only made where its instructions are.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Tiles => super::x86::sum_by_tiles::<MORE>(steps, size, sums),
                #[cfg(target_arch = "x86_64")]
                Self::Vectors => super::x86::sum_by_vectors::<MORE>(steps, size, sums),
                #[cfg(test)]
                Self::Plain => plain::sum::<MORE>(steps, size, sums),
            }
        }
    }

    /// Blocks of the depth that should be summed before those of another block of the output. Tiles are
    /// multiplied twice as fast as a second-level cache delivers them: one side of so many stays in the first.
    pub(crate) fn blocks_at_once(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Tiles => 11,
            _ => usize::MAX,
        }
    }

    /// Parts of a product for each thread. With one its left side is read as seldom as can be, which counts where tiles
    /// wait for memory; with some, one thread multiplies while another packs, as thirds on both sides want it.
    pub(crate) fn tasks_per_thread(self, thirds: bool) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Tiles if !thirds => 1,
            _ => 3,
        }
    }

    /// Whether the processors that have it find what a second-level cache does not keep hardly sooner than memory.
    pub(crate) fn has_slow_last_cache(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Tiles => true,
            _ => false,
        }
    }

    /// Packs a block of the right side, whose rows and columns lie so far apart.
    pub(crate) fn pack(self, from: &[bf16], steps: [usize; 2], into: &mut [bf16]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the engines have AVX-512.
            Self::Tiles | Self::Vectors => unsafe { super::x86::pack_block(from, steps, into) },
            #[cfg(test)]
            Self::Plain => plain::block(from, steps, into),
        }
    }

    /// Writes the first `size` rows and columns of `sums`, with a bias added to each row; they are
    /// added to what is there where there is `add`. Whole rows that nothing is added to go into `stream`.
    ///
    /// # Safety
    /// They are writable at `at`, whose rows are the second number apart.
    pub(crate) unsafe fn store<O: Number>(
        self,
        sums: &Sums,
        bias: Option<&[f32]>,
        add: bool,
        size: Size,
        at: (*mut O, usize),
        stream: Option<&Stream>,
    ) {
        // SAFETY: the caller's promise; the engines have AVX-512.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Tiles | Self::Vectors => super::x86::store(sums, bias, add, size, at, stream),
                #[cfg(test)]
                Self::Plain => plain::store(sums, bias, add, size, at),
            }
        }
    }
}
