//! Products of f32 numbers in thirds.

use std::arch::asm;

use super::super::super::{SIDE, Size, Step, Sums, THIRDS};
use super::{BLOCK_BYTES, HALF_BLOCK_BYTES, LINE, LOWER, ROW_OF_SUMS};

sum_by_shape!(
    /// As [`super::super::super::Engine::sum_thirds`], added to what `sums` has where there is `MORE`.
    ///
    /// # Safety
    /// As there, within [`super::with_tiles`].
    sum_thirds_by_tiles,
    [tall_and_wide_thirds, tall_thirds, wide_thirds, small_thirds]
);
sum_by_shape!(
    /// As [`super::super::super::Engine::sum_left_thirds`], added to what `sums` has where there is `MORE`.
    ///
    /// # Safety
    /// As there, within [`super::with_tiles`].
    sum_left_thirds_by_tiles,
    [tall_and_wide_left_thirds, tall_left_thirds, wide_left_thirds, small_left_thirds]
);

/// From one block in thirds to the next.
const THIRDS_BYTES: usize = THIRDS * BLOCK_BYTES;

// Six products of nine: high with low, high with middle, middle with middle, middle with high, low with high,
// high with high. From one to the next only one side changes, and the right one is read once.
tile_loop!(
    whole,
    tall_and_wide_thirds,
    [THIRDS_BYTES, THIRDS_BYTES],
    [
        "tileloadd tmm6, [{b} + {line}*1 + 4*{half}]",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {line}*1 + 5*{half}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{lower} + {stride}*1]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "tileloadd tmm6, [{b} + {line}*1 + 2*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tileloadd tmm7, [{b} + {line}*1 + 3*{half}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "tileloadd tmm4, [{a} + {stride}*1 + 2*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{lower} + {stride}*1 + 2*{half}]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "tileloadd tmm6, [{b} + {line}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tileloadd tmm7, [{b} + {line}*1 + 1*{half}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "tileloadd tmm4, [{a} + {stride}*1 + 4*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{lower} + {stride}*1 + 4*{half}]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{lower} + {stride}*1]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7"
    ]
);
tile_loop!(
    tall,
    tall_thirds,
    [THIRDS_BYTES, THIRDS_BYTES],
    [
        "tileloadd tmm6, [{b} + {line}*1 + 4*{half}]",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{lower} + {stride}*1]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tileloadd tmm6, [{b} + {line}*1 + 2*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tileloadd tmm4, [{a} + {stride}*1 + 2*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{lower} + {stride}*1 + 2*{half}]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tileloadd tmm6, [{b} + {line}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tileloadd tmm4, [{a} + {stride}*1 + 4*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{lower} + {stride}*1 + 4*{half}]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{lower} + {stride}*1]",
        "tdpbf16ps tmm2, tmm5, tmm6"
    ]
);
tile_loop!(
    wide,
    wide_thirds,
    [THIRDS_BYTES, THIRDS_BYTES],
    [
        "tileloadd tmm6, [{b} + {line}*1 + 4*{half}]",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {line}*1 + 5*{half}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm6, [{b} + {line}*1 + 2*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {line}*1 + 3*{half}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm4, [{a} + {stride}*1 + 2*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm6, [{b} + {line}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {line}*1 + 1*{half}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm4, [{a} + {stride}*1 + 4*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7"
    ]
);
tile_loop!(
    small,
    small_thirds,
    [THIRDS_BYTES, THIRDS_BYTES],
    [
        "tileloadd tmm6, [{b} + {line}*1 + 4*{half}]",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm6, [{b} + {line}*1 + 2*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm4, [{a} + {stride}*1 + 2*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm6, [{b} + {line}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm4, [{a} + {stride}*1 + 4*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6"
    ]
);

// Middle, low and high parts with whole numbers: what is left of the order above where the other parts of the right
// side are zero, so that both ways compute the same bits.
tile_loop!(
    whole,
    tall_and_wide_left_thirds,
    [THIRDS_BYTES, BLOCK_BYTES],
    [
        "tileloadd tmm6, [{b} + {line}*1]",
        "tileloadd tmm4, [{a} + {stride}*1 + 2*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {line}*1 + {half}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{lower} + {stride}*1 + 2*{half}]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "tileloadd tmm4, [{a} + {stride}*1 + 4*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{lower} + {stride}*1 + 4*{half}]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{lower} + {stride}*1]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7"
    ]
);
tile_loop!(
    tall,
    tall_left_thirds,
    [THIRDS_BYTES, BLOCK_BYTES],
    [
        "tileloadd tmm6, [{b} + {line}*1]",
        "tileloadd tmm4, [{a} + {stride}*1 + 2*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{lower} + {stride}*1 + 2*{half}]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tileloadd tmm4, [{a} + {stride}*1 + 4*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{lower} + {stride}*1 + 4*{half}]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{lower} + {stride}*1]",
        "tdpbf16ps tmm2, tmm5, tmm6"
    ]
);
tile_loop!(
    wide,
    wide_left_thirds,
    [THIRDS_BYTES, BLOCK_BYTES],
    [
        "tileloadd tmm6, [{b} + {line}*1]",
        "tileloadd tmm4, [{a} + {stride}*1 + 2*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {line}*1 + {half}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm4, [{a} + {stride}*1 + 4*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7"
    ]
);
tile_loop!(
    small,
    small_left_thirds,
    [THIRDS_BYTES, BLOCK_BYTES],
    [
        "tileloadd tmm6, [{b} + {line}*1]",
        "tileloadd tmm4, [{a} + {stride}*1 + 2*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm4, [{a} + {stride}*1 + 4*{half}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm4, [{a} + {stride}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6"
    ]
);
