//! Squares of a matrix, turned: what lies below each other beside each other.

#[cfg(target_arch = "x86_64")]
use std::arch::{is_x86_feature_detected, x86_64::*};

/// Rows and columns of a square.
pub(crate) const SIDE: usize = 16;

/// `[SIDE, SIDE]`, in whole lines of the cache.
#[repr(align(64))]
pub(crate) struct Square(pub(crate) [f32; SIDE * SIDE]);

impl Square {
    /// `into[i·step + j] = self[j, i]`.
    ///
    /// # Panics
    /// Where `into` is too short.
    pub(crate) fn turn(&self, into: &mut [f32], step: usize) {
        assert!(step >= SIDE && into.len() >= (SIDE - 1) * step + SIDE, "no place for a square");
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions, and `into` has the place.
        unsafe {
            if is_x86_feature_detected!("avx512f") {
                return by_sixteen(&self.0, into.as_mut_ptr(), step);
            } else if is_x86_feature_detected!("avx") {
                return by_eight(&self.0, into.as_mut_ptr(), step);
            }
        }
        self.one_by_one(into, step);
    }

    fn one_by_one(&self, into: &mut [f32], step: usize) {
        for (column, row) in self.0.chunks_exact(SIDE).enumerate() {
            for (index, number) in row.iter().enumerate() {
                into[index * step + column] = *number;
            }
        }
    }
}

/// # Safety
/// The processor has AVX-512; `SIDE` rows are writable at `into`, so far apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn by_sixteen(from: &[f32; SIDE * SIDE], into: *mut f32, step: usize) {
    let mut lines = [_mm512_setzero_ps(); SIDE];
    for (line, from) in lines.iter_mut().zip(from.chunks_exact(SIDE)) {
        // SAFETY: sixteen numbers.
        *line = unsafe { _mm512_loadu_ps(from.as_ptr()) };
    }
    // Pairs of lines, then fours, within each quarter of a vector; then quarters change places.
    let mut fours = lines;
    for group in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|line| lines[4 * group + line]);
        let double = _mm512_castps_pd;
        let low = [_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d)].map(|both| double(both));
        let high = [_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d)].map(|both| double(both));
        let joined = [
            _mm512_unpacklo_pd(low[0], low[1]),
            _mm512_unpackhi_pd(low[0], low[1]),
            _mm512_unpacklo_pd(high[0], high[1]),
            _mm512_unpackhi_pd(high[0], high[1]),
        ];
        for (within, joined) in joined.into_iter().enumerate() {
            fours[4 * group + within] = _mm512_castpd_ps(joined);
        }
    }
    for within in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|group| fours[4 * group + within]);
        let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
        let odd = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
        let rows = [
            (within, _mm512_shuffle_f32x4::<0x88>(even[0], even[1])),
            (4 + within, _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1])),
            (8 + within, _mm512_shuffle_f32x4::<0xdd>(even[0], even[1])),
            (12 + within, _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1])),
        ];
        for (row, numbers) in rows {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(into.add(row * step), numbers) };
        }
    }
}

/// # Safety
/// As of [`by_sixteen`], with AVX.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn by_eight(from: &[f32; SIDE * SIDE], into: *mut f32, step: usize) {
    for (row, column) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
        let mut lines = [_mm256_setzero_ps(); 8];
        for (index, line) in lines.iter_mut().enumerate() {
            // SAFETY: eight numbers of a row.
            *line = unsafe { _mm256_loadu_ps(from[(row + index) * SIDE + column..].as_ptr()) };
        }
        let mut fours = lines;
        for group in 0..2 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|line| lines[4 * group + line]);
            let double = _mm256_castps_pd;
            let low = [_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d)].map(|it| double(it));
            let high = [_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d)].map(|it| double(it));
            let joined = [
                _mm256_unpacklo_pd(low[0], low[1]),
                _mm256_unpackhi_pd(low[0], low[1]),
                _mm256_unpacklo_pd(high[0], high[1]),
                _mm256_unpackhi_pd(high[0], high[1]),
            ];
            for (within, joined) in joined.into_iter().enumerate() {
                fours[4 * group + within] = _mm256_castpd_ps(joined);
            }
        }
        for within in 0..4 {
            let (a, b) = (fours[within], fours[4 + within]);
            let halves =
                [_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)];
            for (half, numbers) in halves.into_iter().enumerate() {
                let at = (column + 4 * half + within) * step + row;
                // SAFETY: the caller's promise.
                unsafe { _mm256_storeu_ps(into.add(at), numbers) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_turns_alike() {
        let square = Square(std::array::from_fn(|at| at as f32));
        for step in [SIDE, SIDE + 1, 48] {
            let into = vec![-1.0; (SIDE - 1) * step + SIDE];
            let mut expected = into.clone();
            square.one_by_one(&mut expected, step);
            assert!((0..SIDE).all(|at| expected[at] == (at * SIDE) as f32));
            let mut found = into.clone();
            square.turn(&mut found, step);
            assert_eq!(found, expected);
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx") {
                let mut found = into.clone();
                // SAFETY: as asked, with the place for it.
                unsafe { by_eight(&square.0, found.as_mut_ptr(), step) };
                assert_eq!(found, expected);
            }
        }
    }
}
