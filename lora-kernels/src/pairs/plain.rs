//! What the instructions do, number by number.

use half::bf16;

use super::{DEPTH, SIDE, Size, Sums, place};
use crate::number::Number;

/// Writes the first rows and columns of `sums`. Inlined, so it runs as wide as its caller may.
///
/// # Safety
/// As [`super::Engine::store`].
#[inline(always)]
pub(super) unsafe fn store<O: Number>(
    sums: &Sums,
    bias: Option<&[f32]>,
    add: bool,
    (rows, columns): Size,
    (at, stride): (*mut O, usize),
) {
    for (row, sums) in sums.0.chunks_exact(SIDE).enumerate().take(rows) {
        let mut line = [0.0; SIDE];
        line.copy_from_slice(sums);
        if let Some(bias) = bias {
            line.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        }
        // SAFETY: the caller's promise.
        let out = unsafe { std::slice::from_raw_parts_mut(at.add(row * stride), columns) };
        if add {
            line.iter_mut().zip(&*out).for_each(|(sum, out)| *sum += out.to_f32());
        }
        match <&mut [O; SIDE]>::try_from(&mut *out) {
            Ok(out) => O::narrow(&line, out),
            Err(_) => O::narrow(&line[..columns], out),
        }
    }
}

/// # Safety
/// As [`super::Engine::sum`].
#[cfg(test)]
pub(super) unsafe fn sum<const MORE: bool>(
    steps: &[super::Step],
    (rows, columns): Size,
    sums: &mut Sums,
) {
    use super::BLOCK;
    for row in 0..rows {
        for column in 0..columns {
            let mut sum = if MORE { sums.0[row * SIDE + column] } else { 0.0 };
            for step in steps {
                for k in 0..step.blocks * DEPTH {
                    let place = place(k, column);
                    assert!(place < step.blocks * BLOCK);
                    // SAFETY: the caller's promise.
                    let (left, right): (bf16, bf16) =
                        unsafe { (*step.left.add(row * step.stride + k), *step.right.add(place)) };
                    sum += left.to_f32() * right.to_f32();
                }
            }
            sums.0[row * SIDE + column] = sum;
        }
    }
}

/// # Safety
/// As [`super::Engine::sum_thirds`], or [`super::Engine::sum_left_thirds`] where the right side has one part.
#[cfg(test)]
pub(super) unsafe fn sum_thirds(
    steps: &[super::Step],
    right_parts: usize,
    (rows, columns): Size,
    more: bool,
    sums: &mut Sums,
) {
    use super::{BLOCK, THIRDS};
    // SAFETY: the caller's promise.
    let part = |from: *const bf16, at: usize| unsafe { (*from.add(at)).to_f32() };
    for row in 0..rows {
        for column in 0..columns {
            let mut sum = if more { sums.0[row * SIDE + column] } else { 0.0 };
            for step in steps {
                for k in 0..step.blocks * DEPTH {
                    let third = |from, parts: usize, at| {
                        let at = k / DEPTH * parts * BLOCK + at;
                        [0, 1, 2]
                            .map(|it| if it < parts { part(from, at + it * BLOCK) } else { 0.0 })
                    };
                    let [a, b, c] = third(step.left, THIRDS, row * DEPTH + k % DEPTH);
                    let [x, y, z] = third(step.right, right_parts, place(k % DEPTH, column));
                    sum += a * z + a * y + b * y + b * x + c * x + a * x;
                }
            }
            sums.0[row * SIDE + column] = sum;
        }
    }
}

/// Packs a whole block.
pub(super) fn block(from: &[bf16], [row_step, column_step]: [usize; 2], into: &mut [bf16]) {
    for row in 0..DEPTH {
        for column in 0..SIDE {
            into[place(row, column)] = from[row * row_step + column * column_step];
        }
    }
}
