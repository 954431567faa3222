//! How the factors of a new adapter start: A random, B zero, so that the adapted model computes what the
//! base computes. The draws depend on the seed and the module's path alone, not on the order of modules,
//! and are the same on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::config::Init;

/// A and B of a new adapter, row-major.
///
/// Kaiming: A ~ U(−1/√d_in, 1/√d_in), which is He et al.'s with a = √5 as PEFT and `torch.nn.Linear` use
/// it (<https://arxiv.org/abs/1502.01852>). Gaussian: A ~ N(0, 1/r²). B = 0.
///
/// # Shapes
/// A `[d_in, rank]`, B `[rank, d_out]`.
pub fn init_pair(
    init: Init,
    d_in: usize,
    d_out: usize,
    rank: usize,
    seed: u64,
    path: &str,
) -> (Vec<f32>, Vec<f32>) {
    let mut random = stream(seed, path);
    let a = match init {
        Init::Kaiming => {
            let bound = 1.0 / (d_in as f64).sqrt();
            (0..d_in * rank).map(|_| ((2.0 * uniform(&mut random) - 1.0) * bound) as f32).collect()
        }
        Init::Gaussian => {
            let deviation = 1.0 / rank as f64;
            (0..d_in * rank).map(|_| (normal(&mut random) * deviation) as f32).collect()
        }
    };
    (a, vec![0.0; rank * d_out])
}

/// The random numbers of this module under this seed.
fn stream(seed: u64, path: &str) -> ChaCha8Rng {
    // FNV-1a over 128 bits: enough to keep paths apart, and written down nowhere else.
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in path.bytes() {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..24].copy_from_slice(&hash.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Uniform in [0, 1), 32 bits of it.
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    f64::from(random.next_u32()) / 4_294_967_296.0
}

/// Standard normal, by Marsaglia's polar method.
pub(crate) fn normal(random: &mut ChaCha8Rng) -> f64 {
    loop {
        let (x, y) = (2.0 * uniform(random) - 1.0, 2.0 * uniform(random) - 1.0);
        let square = x * x + y * y;
        if square > 0.0 && square < 1.0 {
            return x * (-2.0 * square.ln() / square).sqrt();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "model.layers.0.self_attn.q_proj";

    fn moments(values: &[f32]) -> (f64, f64) {
        let count = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
        (mean, variance.sqrt())
    }

    #[test]
    fn kaiming_fills_its_interval_and_b_is_zero() {
        let (a, b) = init_pair(Init::Kaiming, 576, 192, 8, 1, PATH);
        assert_eq!((a.len(), b.len()), (576 * 8, 8 * 192));
        assert!(b.iter().all(|&value| value == 0.0));
        let bound = 1.0 / 24.0;
        assert!(a.iter().all(|value| value.abs() <= bound));
        assert!(a.iter().any(|&value| value > 0.99 * bound));
        assert!(a.iter().any(|&value| value < -0.99 * bound));
        let (mean, deviation) = moments(&a);
        assert!(mean.abs() < 0.002, "{mean}");
        assert!((deviation - f64::from(bound) / 3_f64.sqrt()).abs() < 0.0005, "{deviation}");
    }

    #[test]
    fn gaussian_has_deviation_one_over_rank() {
        let (a, _) = init_pair(Init::Gaussian, 1024, 4, 8, 1, PATH);
        let (mean, deviation) = moments(&a);
        assert!(mean.abs() < 0.005, "{mean}");
        assert!((deviation - 0.125).abs() < 0.003, "{deviation}");
        let beyond_two = a.iter().filter(|value| value.abs() > 0.25).count() as f64;
        assert!((beyond_two / a.len() as f64 - 0.0455).abs() < 0.01, "tails of a normal");
    }

    #[test]
    fn seed_and_path_choose_the_numbers() {
        let draw = |seed, path| init_pair(Init::Kaiming, 16, 4, 2, seed, path).0;
        assert_eq!(draw(7, PATH), draw(7, PATH));
        assert_ne!(draw(7, PATH), draw(8, PATH));
        assert_ne!(draw(7, PATH), draw(7, "model.layers.1.self_attn.q_proj"));
    }

    #[test]
    fn the_numbers_stay_what_they_are() {
        let (a, _) = init_pair(Init::Kaiming, 4, 1, 1, 0, PATH);
        assert_eq!(a, [-0.41853487, -0.45193166, 0.06270603, -0.19614294]);
    }
}
