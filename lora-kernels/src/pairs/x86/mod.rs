//! Pairs on x86: what a processor has, packing, and writing.

mod tiles;
mod vectors;

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

use half::bf16;

use super::{BLOCK, DEPTH, SIDE, Size, Sums, plain};
use crate::number::Number;
use crate::stream::Stream;
pub(super) use tiles::{
    sum_by_tiles, sum_left_thirds_by_tiles, sum_thirds_by_tiles, tiles_are_there, with_tiles,
};
pub(super) use vectors::{sum_by_vectors, vectors_pay};

/// Whether what [`pack_block`] and [`store`] are compiled for is there.
pub(super) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bf16")
}

/// Packs 32 rows of the depth and 32 columns, which lie so far apart; one of both lies dense.
///
/// # Safety
/// The processor has AVX-512 as [`has_avx512`] asks for it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn pack_block(
    from: &[bf16],
    [row_step, column_step]: [usize; 2],
    into: &mut [bf16],
) {
    assert!(into.len() >= BLOCK, "a block is packed whole");
    let last = (DEPTH - 1) * row_step + (SIDE - 1) * column_step;
    assert!(from.len() > last, "block too short");
    // SAFETY: 32 numbers at each row, or at each column, as asserted; `into` holds a block.
    unsafe {
        if column_step == 1 {
            interleave(from.as_ptr(), row_step, into.as_mut_ptr());
        } else if row_step == 1 {
            for half in 0..2 {
                let from = from.as_ptr().add(half * SIDE / 2 * column_step);
                transpose(from, column_step, into.as_mut_ptr().add(half * BLOCK / 2));
            }
        } else {
            plain::block(from, [row_step, column_step], into);
        }
    }
}

/// Two rows at a time, their numbers in turns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn interleave(from: *const bf16, row_step: usize, into: *mut bf16) {
    let mut order = [[0_i16; 32]; 2];
    for lane in 0..16 {
        for half in 0..2 {
            order[half][2 * lane] = (half * 16 + lane) as i16;
            order[half][2 * lane + 1] = (32 + half * 16 + lane) as i16;
        }
    }
    // SAFETY: the caller's promise; the orders are as long as a vector.
    unsafe {
        let order = order.map(|order| _mm512_loadu_epi16(order.as_ptr()));
        for pair in 0..DEPTH / 2 {
            let even = _mm512_loadu_epi16(from.add(2 * pair * row_step).cast());
            let odd = _mm512_loadu_epi16(from.add((2 * pair + 1) * row_step).cast());
            for (half, order) in order.into_iter().enumerate() {
                let both = _mm512_permutex2var_epi16(even, order, odd);
                let at = into.add(half * BLOCK / 2 + pair * SIDE);
                _mm512_storeu_epi16(at.cast(), both);
            }
        }
    }
}

/// Sixteen columns of sixteen pairs, turned.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn transpose(from: *const bf16, column_step: usize, into: *mut bf16) {
    // SAFETY: the caller's promise: sixteen times a vector is readable, and writable.
    unsafe {
        let mut lines = [_mm512_setzero_si512(); 16];
        for (column, line) in lines.iter_mut().enumerate() {
            *line = _mm512_loadu_si512(from.add(column * column_step).cast());
        }
        // Pairs of lines, then fours, within each quarter of a vector; then quarters change places.
        let mut fours = lines;
        for group in 0..4 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|line| lines[4 * group + line]);
            let low = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let high = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            fours[4 * group] = _mm512_unpacklo_epi64(low.0, low.1);
            fours[4 * group + 1] = _mm512_unpackhi_epi64(low.0, low.1);
            fours[4 * group + 2] = _mm512_unpacklo_epi64(high.0, high.1);
            fours[4 * group + 3] = _mm512_unpackhi_epi64(high.0, high.1);
        }
        for within in 0..4 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|group| fours[4 * group + within]);
            let even = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
            let odd = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
            let rows = [
                (within, _mm512_shuffle_i32x4::<0x88>(even.0, even.1)),
                (4 + within, _mm512_shuffle_i32x4::<0x88>(odd.0, odd.1)),
                (8 + within, _mm512_shuffle_i32x4::<0xdd>(even.0, even.1)),
                (12 + within, _mm512_shuffle_i32x4::<0xdd>(odd.0, odd.1)),
            ];
            for (pair, row) in rows {
                _mm512_storeu_si512(into.add(pair * SIDE).cast(), row);
            }
        }
    }
}

/// As [`super::Engine::store`].
///
/// # Safety
/// As there, and the processor has AVX-512 with bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn store<O: Number>(
    sums: &Sums,
    bias: Option<&[f32]>,
    add: bool,
    size: Size,
    (at, stride): (*mut O, usize),
    stream: Option<&Stream>,
) {
    let whole = size.1 == SIDE && bias.is_none() && !add;
    if !whole {
        // SAFETY: the caller's promise.
        unsafe { plain::store(sums, bias, add, size, (at, stride)) };
        return;
    }
    // What goes past the caches goes in whole lines of theirs: every row begins with one.
    let begin_with_lines =
        at.addr().is_multiple_of(64) && (stride * size_of::<O>()).is_multiple_of(64);
    let past_caches = stream.is_some() && begin_with_lines;
    let is_bf16 = O::as_bf16(&[]).is_some();
    for (row, sums) in sums.0.chunks_exact(SIDE).enumerate().take(size.0) {
        // SAFETY: 32 numbers are there in each row, of 16 bits or as they are summed; those past the caches are
        // fenced by the stream.
        unsafe {
            let out = at.add(row * stride);
            let low = _mm512_loadu_ps(sums.as_ptr());
            let high = _mm512_loadu_ps(sums.as_ptr().add(SIDE / 2));
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            match (is_bf16, past_caches) {
                (true, true) => _mm512_stream_si512(out.cast(), both),
                (true, false) => _mm512_storeu_si512(out.cast(), both),
                (false, true) => {
                    _mm512_stream_ps(out.cast(), low);
                    _mm512_stream_ps(out.cast::<f32>().add(SIDE / 2), high);
                }
                (false, false) => {
                    _mm512_storeu_ps(out.cast(), low);
                    _mm512_storeu_ps(out.cast::<f32>().add(SIDE / 2), high);
                }
            }
        }
    }
}
