//! exp of f32 without branches or tables, so that loops over it vectorise.

/// e^x to a relative error under 1e-7.
///
/// Below -87.3, where f32 stops being normal, it is 0; above 88.7228, where f32 ends, +infinity.
/// NaN stays NaN. Made of fused multiply-adds, which are slow outside of a dispatch.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to an integer, which the low
    // bits of the sum hold.
    let bounded = x.clamp(LOWEST, HIGHEST);
    let shifted = bounded.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, bounded));

    let square = r * r;
    let [a, b, c, d, e, f] = COEFFICIENTS;
    let series = a.mul_add(r, b).mul_add(square, c.mul_add(r, d)).mul_add(square, e.mul_add(r, f));
    let power = series.mul_add(square, r) + 1.0;

    // The shift leaves n alone of the low bits, where the exponent is: times 2^n.
    let finite = f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23));
    let result = if x <= HIGHEST { finite } else { x + f32::INFINITY };
    if x < LOWEST { 0.0 } else { result }
}

/// Just over the logarithm of the smallest normal f32.
const LOWEST: f32 = -87.3;

/// The last f32 under the logarithm of the largest.
const HIGHEST: f32 = 88.722_83;

const ROUND: f32 = 12_582_912.0;

/// ln 2 in two parts, the high one short enough that its product with n is exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2, highest power first (Moshier, Cephes, `expf`).
#[allow(clippy::excessive_precision)]
const COEFFICIENTS: [f32; 6] = [
    1.987_569_150_0e-4,
    1.398_199_950_7e-3,
    8.333_451_907_3e-3,
    4.166_579_589_4e-2,
    1.666_666_545_9e-1,
    5.000_000_120_1e-1,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relative_error_is_under_1e_7() {
        let mut worst = (0.0, 0.0);
        // Every 509th float from the smallest to 88.72, of both signs.
        for bits in (0..HIGHEST.to_bits()).step_by(509) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                if x >= LOWEST {
                    let right = f64::from(x).exp();
                    let error = (f64::from(exp(x)) - right).abs() / right;
                    worst = if error > worst.0 { (error, x) } else { worst };
                }
            }
        }
        assert!(worst.0 < 1e-7, "{worst:?}");
    }

    #[test]
    fn the_ends_are_zero_and_infinity() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        for low in [-87.31, -100.0, -1e10, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp(low), 0.0, "{low}");
        }
        assert!(exp(LOWEST).is_normal());
        assert!(exp(HIGHEST).is_finite());
        assert_eq!(exp(HIGHEST.next_up()), f32::INFINITY);
        for high in [88.8, 100.0, 1e10, f32::MAX, f32::INFINITY] {
            assert_eq!(exp(high), f32::INFINITY, "{high}");
        }
        for payload in [0, 1, 3, 0x1ff, 0x3f_ffff] {
            assert!(exp(f32::from_bits(0x7fc0_0000 | payload)).is_nan(), "{payload:#x}");
            assert!(exp(f32::from_bits(0xffc0_0000 | payload)).is_nan(), "{payload:#x}");
        }
    }
}
