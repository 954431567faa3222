//! Dropout (Srivastava et al. 2014), whose mask is never stored: it is a function of a seed and of the place.

use rayon::iter::IndexedParallelIterator;
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::number::Number;
use crate::parallel::for_each_row;

/// What is dropped of a matrix. Kept numbers are not scaled up: that belongs to the caller's factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Another one drops other numbers.
    pub seed: u64,
    /// Share of the numbers that is kept, in 0..1.
    pub keep: f32,
}

impl Dropout {
    /// `out = x`, 0 where it is dropped; rows of `width`.
    ///
    /// # Panics
    /// Where the lengths differ or are no whole rows.
    pub fn apply<T: Number>(self, x: &[T], width: usize, out: &mut [T]) {
        assert_eq!(x.len(), out.len());
        assert!(x.len().is_multiple_of(width), "{} elements in rows of {width}", x.len());
        for_each_row(
            width,
            (x.par_chunks(width), out.par_chunks_mut(width).enumerate()),
            #[inline(always)]
            |(x, (row, out))| {
                let row = self.row(row);
                for (place, (out, x)) in out.iter_mut().zip(x).enumerate() {
                    *out = if row.keeps(place) { *x } else { T::from_f32(0.0) };
                }
            },
        );
    }

    /// `out += update`, but where it is dropped; rows of `width`.
    ///
    /// # Panics
    /// As [`Self::apply`].
    pub fn add<T: Number>(self, update: &[f32], width: usize, out: &mut [T]) {
        assert_eq!(update.len(), out.len());
        assert!(out.len().is_multiple_of(width), "{} elements in rows of {width}", out.len());
        for_each_row(
            width,
            (update.par_chunks(width), out.par_chunks_mut(width).enumerate()),
            #[inline(always)]
            |(update, (row, out))| {
                let row = self.row(row);
                for (place, (out, update)) in out.iter_mut().zip(update).enumerate() {
                    let kept = if row.keeps(place) { *update } else { 0.0 };
                    *out = T::from_f32(out.to_f32() + kept);
                }
            },
        );
    }

    #[inline(always)]
    fn row(self, row: usize) -> Row {
        // The finaliser of SplitMix64.
        let z = self.seed.wrapping_add((row as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let z = z ^ (z >> 31);
        let below = (f64::from(self.keep) * 4_294_967_296.0) as u32;
        Row { seeds: [z as u32, (z >> 32) as u32], below }
    }
}

#[derive(Clone, Copy)]
struct Row {
    seeds: [u32; 2],
    below: u32,
}

impl Row {
    /// The finaliser of MurmurHash3 between two seeds: loops over it vectorise.
    #[inline(always)]
    fn keeps(self, place: usize) -> bool {
        let h = (place as u32).wrapping_mul(0x9E37_79B9) ^ self.seeds[0];
        let h = (h ^ (h >> 16)).wrapping_mul(0x85EB_CA6B);
        let h = h.wrapping_add(self.seeds[1]);
        let h = (h ^ (h >> 13)).wrapping_mul(0xC2B2_AE35);
        (h ^ (h >> 16)) < self.below
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    const HALF: Dropout = Dropout { seed: 7, keep: 0.5 };

    #[test]
    fn both_directions_drop_the_same() {
        let (rows, width) = (50, 777);
        let x = vec![bf16::ONE; rows * width];
        let mut out = vec![bf16::NAN; rows * width];
        HALF.apply(&x, width, &mut out);
        let mut sum = vec![bf16::ONE; rows * width];
        HALF.add(&vec![1.0; rows * width], width, &mut sum);
        for (out, sum) in out.iter().zip(&sum) {
            assert_eq!(out.to_f32() + 1.0, sum.to_f32());
        }
        let mut again = vec![bf16::NAN; rows * width];
        HALF.apply(&x, width, &mut again);
        assert_eq!(out, again);
        Dropout { seed: 8, ..HALF }.apply(&x, width, &mut again);
        assert_ne!(out, again);
    }

    #[test]
    fn as_many_are_kept_as_are_asked_for_and_neighbours_do_not_agree() {
        let (rows, width) = (1000, 1000);
        let x = vec![1.0_f32; rows * width];
        for (seed, keep) in [(1, 0.95), (2, 0.5), (3, 0.9), (u64::MAX, 0.05)] {
            let mut out = vec![f32::NAN; rows * width];
            Dropout { seed, keep }.apply(&x, width, &mut out);
            let count = rows * width;
            // Five standard deviations of a million draws.
            let allowed = 5.0 * (keep * (1.0 - keep) / count as f32).sqrt();
            let kept = out.iter().sum::<f32>() / count as f32;
            assert!((kept - keep).abs() < allowed, "{kept} of {keep}");
            for apart in [1, 2, 16, width] {
                let both = out.iter().zip(&out[apart..]).map(|(a, b)| a * b).sum::<f32>();
                let share = both / (count - apart) as f32;
                assert!((share - keep * keep).abs() < 2.0 * allowed, "{share}, {apart} apart");
            }
        }
    }
}
