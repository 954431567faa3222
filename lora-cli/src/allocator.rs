//! The allocator: the CPU backend allocates every result anew, so pages must stay between tensors.

use libmimalloc_sys::{mi_option_set, mi_option_t};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, which the bindings leave out.
const PURGE_DELAY: mi_option_t = 15;

/// Never gives free pages back: clearing them anew took a quarter of a training step.
#[expect(unsafe_code, reason = "mimalloc has no safe binding for its options")]
pub(crate) fn keep_pages() {
    // SAFETY: a plain store into mimalloc's own table of options, at an index that it has.
    unsafe { mi_option_set(PURGE_DELAY, -1) }
}
