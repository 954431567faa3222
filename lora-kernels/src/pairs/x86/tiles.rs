//! AMX: eight registers of 16 rows of 64 bytes, of which four hold sums.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

use super::super::{BLOCK, DEPTH, SIDE, Size, Step, Sums};

/// Whether the processor has tiles for bf16, and the system lets this process use them.
pub(in crate::pairs) fn tiles_are_there() -> bool {
    super::has_avx512() && has_instructions() && system_allows()
}

fn has_instructions() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & (1 << 27) == 0 {
        return false;
    }
    let edx = __cpuid_count(7, 0).edx;
    // SAFETY: the processor has the instruction, as the bit asked for above says.
    let saved = unsafe { read_enabled() };
    // The system keeps configuration and contents of tiles when it changes threads.
    edx & (BF16 | TILE) == BF16 | TILE && saved & (0b11 << 17) == 0b11 << 17
}

#[target_feature(enable = "xsave")]
fn read_enabled() -> u64 {
    // SAFETY: register 0 is there wherever the instruction is.
    unsafe { _xgetbv(0) }
}

/// Linux gives the room for tiles to processes that ask for it, once for all their threads.
#[cfg(target_os = "linux")]
fn system_allows() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: the call changes nothing but what this process may do; registers it changes are named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn system_allows() -> bool {
    false
}

#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles whole.
static WHOLE: Configuration = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        row_bytes[tile] = 64;
        rows[tile] = 16;
        tile += 1;
    }
    Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// Runs `work` with tiles made ready on this thread.
///
/// # Safety
/// [`tiles_are_there`].
pub(in crate::pairs) unsafe fn with_tiles(work: impl FnOnce()) {
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            // SAFETY: made ready below. Empty tiles cost nothing when threads change.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
    // SAFETY: the caller's promise; a whole configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, readonly)) };
    let _release = Release;
    work();
}

/// A sum by tiles: a loop over the depth for each shape, of which the smallest that has all rows and columns is taken.
macro_rules! sum_by_shape {
    ($(#[$about:meta])* $name:ident, [$whole:ident, $tall:ident, $wide:ident, $small:ident]) => {
        $(#[$about])*
        pub(in crate::pairs) unsafe fn $name<const MORE: bool>(
            steps: &[Step],
            (rows, columns): Size,
            sums: &mut Sums,
        ) {
            // SAFETY: the caller's promise.
            unsafe {
                match (rows > SIDE / 2, columns > SIDE / 2) {
                    (true, true) => $whole::<MORE>(steps, sums),
                    (true, false) => $tall::<MORE>(steps, sums),
                    (false, true) => $wide::<MORE>(steps, sums),
                    (false, false) => $small::<MORE>(steps, sums),
                }
            }
        }
    };
}

sum_by_shape!(
    /// As [`super::super::Engine::sum`], added to what `sums` has where there is `MORE`.
    ///
    /// # Safety
    /// As there, within [`with_tiles`].
    sum_by_tiles,
    [tall_and_wide, tall, wide, small]
);

/// Bytes of a row of a packed block.
const LINE: usize = 64;
/// Of a packed block, and of half of its columns.
const BLOCK_BYTES: usize = BLOCK * 2;
const HALF_BLOCK_BYTES: usize = BLOCK_BYTES / 2;
const ROW_OF_SUMS: usize = SIDE * size_of::<f32>();
/// From one block of the depth to the next, of a left side that is read where it lies.
const DEPTH_BYTES: usize = DEPTH * 2;
/// From the upper left quarter of the sums to the lower left one.
const LOWER: usize = SIDE / 2 * ROW_OF_SUMS;

/// A loop over the depth for one shape of the sums: `whole` (both halves of rows and columns), `tall` (one of columns),
/// `wide` (one of rows) or `small`; how far it goes on both sides with each block, and what it does with it.
macro_rules! tile_loop {
    (whole, $name:ident, [$depth:ident, $block:ident], $body:tt) => {
        tile_loop!(
            $name,
            [$depth, $block],
            ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
            [
                "tileloadd tmm0, [{c} + {stride}*1]",
                "tileloadd tmm1, [{c} + {stride}*1 + 64]",
                "tileloadd tmm2, [{lower} + {stride}*1]",
                "tileloadd tmm3, [{lower} + {stride}*1 + 64]"
            ],
            $body,
            [
                "tilestored [{c} + {stride}*1], tmm0",
                "tilestored [{c} + {stride}*1 + 64], tmm1",
                "tilestored [{lower} + {stride}*1], tmm2",
                "tilestored [{lower} + {stride}*1 + 64], tmm3"
            ]
        );
    };
    (tall, $name:ident, [$depth:ident, $block:ident], $body:tt) => {
        tile_loop!(
            $name,
            [$depth, $block],
            ["tilezero tmm0", "tilezero tmm2"],
            ["tileloadd tmm0, [{c} + {stride}*1]", "tileloadd tmm2, [{lower} + {stride}*1]"],
            $body,
            ["tilestored [{c} + {stride}*1], tmm0", "tilestored [{lower} + {stride}*1], tmm2"]
        );
    };
    (wide, $name:ident, [$depth:ident, $block:ident], $body:tt) => {
        tile_loop!(
            $name,
            [$depth, $block],
            ["tilezero tmm0", "tilezero tmm1"],
            [
                "tileloadd tmm0, [{c} + {stride}*1]",
                "tileloadd tmm1, [{c} + {stride}*1 + 64] /* {lower} */"
            ],
            $body,
            [
                "tilestored [{c} + {stride}*1], tmm0",
                "tilestored [{c} + {stride}*1 + 64], tmm1 /* {lower} */"
            ]
        );
    };
    (small, $name:ident, [$depth:ident, $block:ident], $body:tt) => {
        tile_loop!(
            $name,
            [$depth, $block],
            ["tilezero tmm0"],
            ["tileloadd tmm0, [{c} + {stride}*1] /* {lower} */"],
            $body,
            ["tilestored [{c} + {stride}*1], tmm0 /* {lower} */"]
        );
    };
    (
        $name:ident,
        [$depth:ident, $block:ident],
        [$($zero:literal),*],
        [$($load:literal),*],
        [$($body:literal),*],
        [$($store:literal),*]
    ) => {
        #[inline]
        unsafe fn $name<const MORE: bool>(steps: &[Step], sums: &mut Sums) {
            // SAFETY: tiles are ready, and every block is readable, as the caller promises; no one else
            // uses tiles on this thread meanwhile.
            unsafe {
                if MORE {
                    asm!(
                        $($load),*,
                        c = in(reg) sums.0.as_ptr(),
                        lower = in(reg) sums.0.as_ptr().byte_add(LOWER),
                        stride = in(reg) ROW_OF_SUMS,
                        options(nostack, readonly),
                    );
                } else {
                    asm!($($zero),*, options(nostack, nomem));
                }
                for step in steps.iter().filter(|step| step.blocks > 0) {
                    let stride = step.stride * 2;
                    asm!(
                        "2:",
                        $($body),*,
                        "add {a}, {depth}",
                        "add {lower}, {depth}",
                        "add {b}, {block}",
                        "dec {count}",
                        "jnz 2b",
                        a = inout(reg) step.left => _,
                        lower = inout(reg) step.left.byte_add(stride * (SIDE / 2)) => _,
                        b = inout(reg) step.right => _,
                        count = inout(reg) step.blocks => _,
                        stride = in(reg) stride,
                        line = in(reg) LINE,
                        half = const HALF_BLOCK_BYTES,
                        depth = const $depth,
                        block = const $block,
                        options(nostack, readonly),
                    );
                }
                asm!(
                    $($store),*,
                    c = in(reg) sums.0.as_mut_ptr(),
                    lower = in(reg) sums.0.as_mut_ptr().byte_add(LOWER),
                    stride = in(reg) ROW_OF_SUMS,
                    options(nostack),
                );
            }
        }
    };
}

mod thirds;

pub(in crate::pairs) use thirds::{sum_left_thirds_by_tiles, sum_thirds_by_tiles};

tile_loop!(
    whole,
    tall_and_wide,
    [DEPTH_BYTES, BLOCK_BYTES],
    [
        "tileloadd tmm6, [{b} + {line}*1]",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {line}*1 + {half}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{lower} + {stride}*1]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7"
    ]
);
tile_loop!(
    tall,
    tall,
    [DEPTH_BYTES, BLOCK_BYTES],
    [
        "tileloadd tmm6, [{b} + {line}*1]",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{lower} + {stride}*1]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "/* {half} */"
    ]
);
tile_loop!(
    wide,
    wide,
    [DEPTH_BYTES, BLOCK_BYTES],
    [
        "tileloadd tmm6, [{b} + {line}*1]",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {line}*1 + {half}]",
        "tdpbf16ps tmm1, tmm4, tmm7"
    ]
);
tile_loop!(
    small,
    small,
    [DEPTH_BYTES, BLOCK_BYTES],
    [
        "tileloadd tmm6, [{b} + {line}*1]",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "/* {half} */"
    ]
);
