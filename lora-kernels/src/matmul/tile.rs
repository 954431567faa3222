//! The innermost loops: a tile of the product that stays in registers.

use pulp::Simd;

use crate::number::Number;

/// Rows and vectors of the tile for a vector width: as many as the registers hold.
pub(crate) const fn tile_shape<S: Simd>() -> (usize, usize) {
    match size_of::<S::f32s>() {
        64 => (12, 2),
        32 => (6, 2),
        16 if S::REGISTER_COUNT >= 32 => (6, 4),
        16 => (6, 2),
        _ => (2, 4),
    }
}

/// Steps of the depth between asking for numbers and using them.
const AHEAD: usize = 10;
/// Steps that are taken at once, and without asking, where a vector is shorter than a line of the cache: a step has half as
/// many multiplications there, and whatever else is done in it costs as much as one of them where another thread shares
/// the core.
const AT_ONCE: usize = 4;
/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Asks for the line of the cache at an address, which need not be there.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which no address makes fail.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Numbers in a vector.
pub(crate) const fn lanes<S: Simd>() -> usize {
    size_of::<S::f32s>() / size_of::<f32>()
}

/// `sum[i][j] += Σₖ a[k·a_step + i] · b[k·b_step + j]` for k below `depth`.
///
/// # Safety
/// For each k below `depth`, `a` is readable at `k·a_step .. + ROWS`, `b` at `k·b_step .. + VECTORS` vectors.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, B: Number, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    depth: usize,
    a: (*const f32, usize),
    b: (*const B, usize),
    sum: &mut [[S::f32s; VECTORS]; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe { tile_of_rows::<S, B, ROWS, VECTORS, 1>(simd, depth, a, b, sum) }
}

/// As [`tile`], with the rows of `a` that far apart: `a[k·a_step + i·APART]`.
///
/// # Safety
/// As of [`tile`], with `a` readable at each of these places.
#[inline(always)]
pub(crate) unsafe fn tile_of_rows<
    S: Simd,
    B: Number,
    const ROWS: usize,
    const VECTORS: usize,
    const APART: usize,
>(
    simd: S,
    depth: usize,
    (mut a, a_step): (*const f32, usize),
    (mut b, b_step): (*const B, usize),
    sum: &mut [[S::f32s; VECTORS]; ROWS],
) {
    // A copy whose address nobody has: it stays in registers.
    let mut local = *sum;
    let mut taken = 0;
    // SAFETY: within what the caller promises for each k. What lies behind the last step is not read but asked for.
    unsafe {
        if size_of::<S::f32s>() < LINE {
            while taken + AT_ONCE <= depth {
                for _ in 0..AT_ONCE {
                    step::<S, B, ROWS, VECTORS, APART>(simd, a, b, &mut local);
                    a = a.wrapping_add(a_step);
                    b = b.wrapping_add(b_step);
                }
                taken += AT_ONCE;
            }
        }
        for _ in taken..depth {
            // A side that is longer than the nearest cache comes from the next one, which takes a while.
            prefetch(a.wrapping_add(AHEAD * a_step));
            for vector in 0..VECTORS {
                prefetch(b.wrapping_add(AHEAD * b_step + vector * lanes::<S>()));
            }
            step::<S, B, ROWS, VECTORS, APART>(simd, a, b, &mut local);
            a = a.wrapping_add(a_step);
            b = b.wrapping_add(b_step);
        }
    }
    *sum = local;
}

/// One step of the depth.
///
/// # Safety
/// `a` is readable at each `i·APART` for i below ROWS, `b` at `VECTORS` vectors.
#[inline(always)]
unsafe fn step<S: Simd, B: Number, const ROWS: usize, const VECTORS: usize, const APART: usize>(
    simd: S,
    a: *const f32,
    b: *const B,
    sum: &mut [[S::f32s; VECTORS]; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut columns = [simd.splat_f32s(0.0); VECTORS];
        for (vector, column) in columns.iter_mut().enumerate() {
            *column = B::load(simd, b.add(vector * lanes::<S>()));
        }
        for (row, sums) in sum.iter_mut().enumerate() {
            let factor = simd.splat_f32s(*a.add(row * APART));
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = simd.mul_add_e_f32s(factor, column, *sum);
            }
        }
    }
}
