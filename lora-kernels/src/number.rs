//! The element types of activations, f32 and bf16. Sums are f32.

use half::bf16;
use pulp::Simd;

/// How many partial sums a reduction over a row keeps: one AVX-512 register, two of AVX2.
pub(crate) const LANES: usize = 16;

/// An element of an activation: f32 or bf16.
pub trait Number: sealed::Sealed + Copy + Send + Sync + bytemuck::Pod + 'static {
    /// The same value as f32; exact.
    fn to_f32(self) -> f32;

    /// The nearest value of this type, ties to even; NaN stays NaN.
    fn from_f32(value: f32) -> Self;

    /// The same numbers, where they are bf16.
    #[doc(hidden)]
    fn as_bf16(numbers: &[Self]) -> Option<&[bf16]>;

    /// The same numbers, where they are f32.
    #[doc(hidden)]
    fn as_f32(numbers: &[Self]) -> Option<&[f32]>;

    /// `dst[i] = src[i]` as f32. Inlined, so it runs as wide as the dispatch it is called in.
    ///
    /// Panics if the lengths differ.
    #[inline(always)]
    fn widen(src: &[Self], dst: &mut [f32]) {
        assert_eq!(src.len(), dst.len());
        for (dst, src) in dst.iter_mut().zip(src) {
            *dst = src.to_f32();
        }
    }

    /// `dst[i] = src[i]` rounded to this type. Inlined as [`Number::widen`] is.
    ///
    /// Panics if the lengths differ.
    #[inline(always)]
    fn narrow(src: &[f32], dst: &mut [Self]) {
        assert_eq!(src.len(), dst.len());
        for (dst, src) in dst.iter_mut().zip(src) {
            *dst = Self::from_f32(*src);
        }
    }

    /// As many numbers as a vector has lanes.
    ///
    /// # Safety
    /// They are readable at `at`, which may be unaligned.
    #[doc(hidden)]
    unsafe fn load<S: Simd>(simd: S, at: *const Self) -> S::f32s;
    /// Writes as many numbers as a vector has lanes.
    ///
    /// # Safety
    /// They are writable at `at`, which may be unaligned.
    #[doc(hidden)]
    unsafe fn store<S: Simd>(simd: S, at: *mut Self, vector: S::f32s);
}

impl Number for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }

    fn as_bf16(_numbers: &[Self]) -> Option<&[bf16]> {
        None
    }

    fn as_f32(numbers: &[Self]) -> Option<&[f32]> {
        Some(numbers)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(_simd: S, at: *const Self) -> S::f32s {
        // SAFETY: the caller's promise; a vector of floats has no invalid bits.
        unsafe { at.cast::<S::f32s>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(_simd: S, at: *mut Self, vector: S::f32s) {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<S::f32s>().write_unaligned(vector) }
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        let bits = value.to_bits();
        // A carry out of the dropped half rounds up; the kept half's last bit breaks the tie.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        bf16::from_bits(if value.is_nan() { QUIET_NAN } else { rounded } as u16)
    }

    fn as_bf16(numbers: &[Self]) -> Option<&[bf16]> {
        Some(numbers)
    }

    fn as_f32(_numbers: &[Self]) -> Option<&[f32]> {
        None
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, at: *const Self) -> S::f32s {
        let mut wide = simd.splat_f32s(0.0);
        let lanes = size_of::<S::f32s>() / size_of::<f32>();
        let into = (&raw mut wide).cast::<u32>();
        for lane in 0..lanes {
            // SAFETY: the caller's promise, and `wide` has `lanes` numbers of 32 bits.
            unsafe { *into.add(lane) = u32::from((*at.add(lane)).to_bits()) << 16 };
        }
        wide
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(_simd: S, at: *mut Self, vector: S::f32s) {
        let lanes = size_of::<S::f32s>() / size_of::<f32>();
        let from = (&raw const vector).cast::<f32>();
        for lane in 0..lanes {
            // SAFETY: the caller's promise, and `vector` has `lanes` numbers.
            unsafe { *at.add(lane) = Self::from_f32(*from.add(lane)) };
        }
    }
}

const QUIET_NAN: u32 = 0x7fc0;

/// `Σ leftᵢ·rightᵢ`, as many products side by side as there are partial sums. Inlined, so it runs as wide as its caller.
#[inline(always)]
pub(crate) fn dot<T: Number>(left: &[T], right: &[T]) -> f32 {
    let (lefts, left) = left.as_chunks::<LANES>();
    let (rights, right) = right.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (left, right) in lefts.iter().zip(rights) {
        for lane in 0..LANES {
            sums[lane] += left[lane].to_f32() * right[lane].to_f32();
        }
    }
    let rest = left.iter().zip(right);
    rest.fold(total(sums), |sum, (left, right)| sum + left.to_f32() * right.to_f32())
}

/// The sum of the partial sums, added as a tree.
#[inline(always)]
pub(crate) fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bf16_survives_the_way_through_f32() {
        for bits in 0..=u16::MAX {
            let wide = Number::to_f32(bf16::from_bits(bits));
            assert_eq!(wide.to_bits(), u32::from(bits) << 16);
            let back = <bf16 as Number>::from_f32(wide);
            if wide.is_nan() {
                assert!(back.is_nan(), "{bits:#x}");
            } else {
                assert_eq!(back.to_bits(), bits);
            }
        }
    }

    #[test]
    fn narrowing_rounds_to_the_nearest_even() {
        // Around every upper half: just above it, below, on and above the tie, just under the next.
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let narrow = <bf16 as Number>::from_f32(value);
                if value.is_nan() {
                    assert!(narrow.is_nan(), "{value} from {high:#x} {low:#x}");
                } else {
                    let up = low > 0x8000 || low == 0x8000 && high & 1 == 1;
                    assert_eq!(narrow.to_bits(), high + u16::from(up), "{high:#x} {low:#x}");
                }
            }
        }
    }

    #[test]
    fn bulk_conversions_do_every_element() {
        for length in [0, 1, 3, 7, 8, 15, 16, 17, 100] {
            let wide: Vec<f32> = (0..length).map(|i| i as f32 - 3.5).collect();
            let mut narrow = vec![bf16::ZERO; length];
            bf16::narrow(&wide, &mut narrow);
            let mut back = vec![0.0; length];
            bf16::widen(&narrow, &mut back);
            assert_eq!(back, wide);
            f32::narrow(&wide, &mut back);
            assert_eq!(back, wide);
        }
    }

    #[test]
    fn every_product_is_summed_once() {
        for length in [0, 1, 15, 16, 17, 64, 100] {
            let numbers: Vec<f32> = (0..length).map(|at| at as f32).collect();
            let expected = numbers.iter().map(|number| number * number).sum::<f32>();
            assert_eq!(dot(&numbers, &numbers), expected, "{length}");
        }
    }

    #[test]
    fn the_total_has_every_lane_once() {
        let lanes = std::array::from_fn(|lane| (1 << lane) as f32);
        assert_eq!(total(lanes), 65535.0);
    }
}
