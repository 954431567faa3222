//! AVX512-BF16: sixteen pairs at once.

use std::arch::x86_64::*;

use super::super::{BLOCK, DEPTH, SIDE, Size, Step, Sums};

/// Rows that are summed at once.
const ROWS: usize = 8;

/// Whether the processor multiplies pairs faster than it does f32 numbers: AMD's do, while Intel's of before
/// AMX have one unit for it against two.
pub(in crate::pairs) fn vectors_pay() -> bool {
    const AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];
    let vendor = __cpuid(0);
    super::has_avx512() && [vendor.ebx, vendor.edx, vendor.ecx] == AMD
}

/// As [`super::super::Engine::sum`], added to what `sums` has where there is `MORE`.
///
/// # Safety
/// As there, and the processor has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(in crate::pairs) unsafe fn sum_by_vectors<const MORE: bool>(
    steps: &[Step],
    (rows, columns): Size,
    sums: &mut Sums,
) {
    let halves = columns.div_ceil(SIDE / 2);
    for row in (0..rows).step_by(ROWS) {
        // SAFETY: the caller's promise: `SIDE` rows are readable.
        unsafe {
            if halves == 2 {
                block::<MORE, 2>(steps, row, sums);
            } else {
                block::<MORE, 1>(steps, row, sums);
            }
        }
    }
}

/// The same bits as pairs of bf16.
#[inline(always)]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of which any is allowed.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn block<const MORE: bool, const HALVES: usize>(
    steps: &[Step],
    first: usize,
    sums: &mut Sums,
) {
    let mut local = [[_mm512_setzero_ps(); HALVES]; ROWS];
    if MORE {
        for (row, sums_of_row) in local.iter_mut().enumerate() {
            for (half, sum) in sums_of_row.iter_mut().enumerate() {
                let from = &sums.0[(first + row) * SIDE + half * SIDE / 2..][..SIDE / 2];
                // SAFETY: a vector's length, as sliced.
                *sum = unsafe { _mm512_loadu_ps(from.as_ptr()) };
            }
        }
    }
    for step in steps {
        // SAFETY: the caller's promise for rows, blocks and pairs.
        unsafe {
            let mut left = step.left.add(first * step.stride);
            let mut right = step.right;
            for _ in 0..step.blocks {
                for pair in 0..DEPTH / 2 {
                    let mut columns = [_mm512_setzero_si512(); HALVES];
                    for (half, column) in columns.iter_mut().enumerate() {
                        let at = right.add(half * BLOCK / 2 + pair * SIDE);
                        *column = _mm512_loadu_si512(at.cast());
                    }
                    for (row, sums) in local.iter_mut().enumerate() {
                        let at = left.add(row * step.stride + 2 * pair);
                        let factor = _mm512_set1_epi32(at.cast::<i32>().read_unaligned());
                        for (sum, column) in sums.iter_mut().zip(columns) {
                            *sum = _mm512_dpbf16_ps(*sum, pairs(factor), pairs(column));
                        }
                    }
                }
                left = left.wrapping_add(DEPTH);
                right = right.wrapping_add(BLOCK);
            }
        }
    }
    for (row, sums_of_row) in local.into_iter().enumerate() {
        for (half, sum) in sums_of_row.into_iter().enumerate() {
            let into = &mut sums.0[(first + row) * SIDE + half * SIDE / 2..][..SIDE / 2];
            // SAFETY: a vector's length, as sliced.
            unsafe { _mm512_storeu_ps(into.as_mut_ptr(), sum) };
        }
    }
}
