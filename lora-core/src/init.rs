//! How the factors of a new adapter start. Mostly A random, B zero, so that the adapted model computes what
//! the base computes; or a part of the base's weight, which the base then gives up. The draws depend on the
//! seed and the module's path alone, not on the order of modules, and are the same on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::config::Init;
use crate::decompose::{self, product};

/// A and B of a new adapter that leaves the weight as it is, row-major.
///
/// Kaiming: A ~ U(−1/√d_in, 1/√d_in), which is He et al.'s with a = √5 as PEFT and `torch.nn.Linear` use
/// it (<https://arxiv.org/abs/1502.01852>). Gaussian: A ~ N(0, 1/r²). B = 0. Orthogonal: the columns of A
/// and the rows of B lie in halves of an r-dimensional space that are orthogonal to each other, so that A·B
/// is zero (<https://datta0.github.io/posts/rethink-lora-init/>). The starts that need more than a shape begin
/// as Kaiming's.
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
        Init::Gaussian => {
            let deviation = 1.0 / rank as f64;
            (0..d_in * rank).map(|_| (normal(&mut random) * deviation) as f32).collect()
        }
        Init::Orthogonal => return orthogonal(d_in, d_out, rank, &mut random),
        Init::Kaiming | Init::Pissa { .. } | Init::Olora | Init::Eva | Init::Loftq => {
            let bound = 1.0 / (d_in as f64).sqrt();
            (0..d_in * rank).map(|_| ((2.0 * uniform(&mut random) - 1.0) * bound) as f32).collect()
        }
    };
    (a, vec![0.0; rank * d_out])
}

/// A and B of a new adapter on an embedding, as PEFT starts one: A zero, B ~ N(0, 1).
///
/// # Shapes
/// A `[v, rank]`, B `[rank, d]`.
pub fn init_embedding(
    v: usize,
    d: usize,
    rank: usize,
    seed: u64,
    path: &str,
) -> (Vec<f32>, Vec<f32>) {
    let mut random = stream(seed, path);
    let b = (0..rank * d).map(|_| normal(&mut random) as f32).collect();
    (vec![0.0; v * rank], b)
}

/// The part of the weight that an adapter starts as, s·A·B, for a start that takes it out of the base.
///
/// PiSSA: W = U·S·Vᵀ, A = U·√(S/s) and B = √(S/s)·Vᵀ of the first r directions. OLoRA: Wᵀ = Q·R, A the
/// transpose of R's first rows and B that of Q's first columns, as PEFT takes them from PyTorch's weight.
///
/// # Shapes
/// weight `[d_in, d_out]` row-major, A `[d_in, rank]`, B `[rank, d_out]`.
///
/// # Panics
/// If the slice is not as long as the shape says.
pub fn part_of_weight(
    init: Init,
    weight: &[f32],
    [d_in, d_out]: [usize; 2],
    rank: usize,
    scaling: f64,
    seed: u64,
    path: &str,
) -> (Vec<f32>, Vec<f32>) {
    let weight: Vec<f64> = weight.iter().map(|value| f64::from(*value)).collect();
    let rank = rank.min(d_in).min(d_out);
    if init == Init::Olora {
        let turned = decompose::transposed(&weight, d_in, d_out);
        let decompose::Qr { q, r } = decompose::qr(&turned, d_out, d_in);
        let k = d_in.min(d_out);
        let a = decompose::transposed(&r[..rank * d_in], rank, d_in);
        let b = (0..rank * d_out).map(|at| q[at % d_out * k + at / d_out] as f32).collect();
        return (a.into_iter().map(|value| value as f32).collect(), b);
    }
    let svd = match init {
        Init::Pissa { iterations: Some(iterations) } => {
            let seed = stream(seed, path).next_u64();
            decompose::svd_sketch(&weight, d_in, d_out, rank, iterations, seed)
        }
        _ => decompose::svd(&weight, d_in, d_out),
    };
    pair_of(&svd, [d_in, d_out], rank, scaling)
}

/// The factors of rank r whose s·A·B is closest to a matrix: A = U·√(S/s) and B = √(S/s)·Vᵀ of its first r
/// directions; of a matrix with more than 1024 rows and columns those that a random sketch finds, which is
/// seconds in place of minutes.
///
/// # Shapes
/// matrix `[d_in, d_out]` row-major, A `[d_in, rank]`, B `[rank, d_out]`; rows and columns beyond its own rank
/// are zero.
///
/// # Panics
/// If the slice is not as long as the shape says.
pub fn closest_pair(
    matrix: &[f64],
    [d_in, d_out]: [usize; 2],
    rank: usize,
    scaling: f64,
) -> (Vec<f32>, Vec<f32>) {
    let svd = match d_in.min(d_out) {
        ..=1024 => decompose::svd(matrix, d_in, d_out),
        _ => decompose::svd_sketch(matrix, d_in, d_out, rank, 8, 0),
    };
    pair_of(&svd, [d_in, d_out], rank, scaling)
}

/// A = U·√(S/s) and B = √(S/s)·Vᵀ of the first `rank` directions; zeros where there are fewer.
fn pair_of(
    svd: &decompose::Svd,
    [d_in, d_out]: [usize; 2],
    rank: usize,
    scaling: f64,
) -> (Vec<f32>, Vec<f32>) {
    let k = svd.s.len();
    let root = |at: usize| svd.s.get(at).map_or(0.0, |s| (s / scaling).sqrt());
    let (mut a, mut b) = (vec![0.0; d_in * rank], vec![0.0; rank * d_out]);
    for at in 0..rank.min(k) {
        (0..d_in).for_each(|row| a[row * rank + at] = (svd.u[row * k + at] * root(at)) as f32);
        let of_b = b[at * d_out..][..d_out].iter_mut().zip(&svd.vt[at * d_out..]);
        of_b.for_each(|(b, v)| *b = (v * root(at)) as f32);
    }
    (a, b)
}

/// A = N₁·E and B = O·N₂ with N normal / 10, and E, O the two halves of an orthogonal r × r matrix.
fn orthogonal(
    d_in: usize,
    d_out: usize,
    rank: usize,
    random: &mut ChaCha8Rng,
) -> (Vec<f32>, Vec<f32>) {
    let half = rank / 2;
    let mut draw = |count: usize| -> Vec<f64> { (0..count).map(|_| normal(random)).collect() };
    let basis = decompose::qr(&draw(rank * rank), rank, rank).q;
    let (for_a, for_b) = basis.split_at(half * rank);
    let a = product(&draw(d_in * half), for_a, d_in, half, rank);
    let for_b = decompose::transposed(&for_b[..half * rank], half, rank);
    let b = product(&for_b, &draw(half * d_out), rank, half, d_out);
    let tenth = |values: Vec<f64>| values.into_iter().map(|value| (value / 10.0) as f32).collect();
    (tenth(a), tenth(b))
}

/// The random numbers of this module under this seed.
pub(crate) fn stream(seed: u64, path: &str) -> ChaCha8Rng {
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
pub(crate) fn uniform(random: &mut ChaCha8Rng) -> f64 {
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

    /// Of what bitsandbytes' NF4 loses, against torch; written by `tests/fixtures/make_nf4.py`.
    #[test]
    fn the_closest_pair_is_that_of_torch() {
        macro_rules! golden {
            ($name:literal) => {{
                let bytes = include_bytes!(concat!("../../lora-kernels/tests-data/nf4/", $name));
                let numbers = bytes.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it));
                numbers.map(f64::from).collect::<Vec<f64>>()
            }};
        }
        let (weights, kept) = (golden!("weights.f32"), golden!("unpacked.f32"));
        let lost: Vec<f64> =
            weights.iter().zip(kept).map(|(w, q)| f64::from((w - q) as f32)).collect();
        let (a, b) = closest_pair(&lost, [30, 600], 4, 2.0);
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
        let found = product(&wide(a), &wide(b), 30, 4, 600);
        let expected = golden!("lost_rank4.f32");
        let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((2.0 * found - expected).abs() < 1e-6 * largest, "{found} {expected}");
        }
    }

    fn zero_beside(a: &[f32], b: &[f32], [d_in, rank, d_out]: [usize; 3]) -> f64 {
        let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let all = product(&wide(a), &wide(b), d_in, rank, d_out);
        all.into_iter().fold(0.0, |most: f64, value| most.max(value.abs()))
    }

    #[test]
    fn orthogonal_factors_are_not_zero_and_their_product_is() {
        let (a, b) = init_pair(Init::Orthogonal, 96, 40, 6, 1, PATH);
        assert!(
            moments(&a).1 > 0.02 && moments(&b).1 > 0.02,
            "{:?} {:?}",
            moments(&a),
            moments(&b)
        );
        assert!(zero_beside(&a, &b, [96, 6, 40]) < 1e-7);
    }

    #[test]
    fn pissa_takes_the_strongest_directions_and_olora_the_first_columns() {
        let (d_in, d_out, rank, scaling) = (24, 36, 3, 2.0);
        let (weight, _) = init_pair(Init::Gaussian, d_in, 1, d_out, 7, PATH);
        let wide: Vec<f64> = weight.iter().map(|value| f64::from(*value)).collect();
        let rest = |init| {
            let shape = [d_in, d_out];
            let (a, b) = part_of_weight(init, &weight, shape, rank, scaling, 0, PATH);
            assert_eq!((a.len(), b.len()), (d_in * rank, rank * d_out));
            let wider = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
            let part = product(&wider(a), &wider(b), d_in, rank, d_out);
            wide.iter().zip(part).map(|(w, part)| w - scaling * part).collect::<Vec<f64>>()
        };
        let before = decompose::svd(&wide, d_in, d_out).s;
        for init in [Init::Pissa { iterations: None }, Init::Pissa { iterations: Some(60) }] {
            let after = decompose::svd(&rest(init), d_in, d_out).s;
            let pairs = after.iter().zip(&before[rank..]);
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-6), "{init}: {after:?}");
        }
        // OLoRA as PEFT has it leaves nothing of the first r inputs where s is 1, and with another s the
        // rest is W − s·A·B.
        let first = rest(Init::Olora);
        let kept = |w: &[f64]| w[..rank * d_out].iter().map(|value| value.abs()).sum::<f64>();
        let left = (1.0 - scaling).abs() * kept(&wide);
        assert!((kept(&first) - left).abs() < 1e-4, "{} {left}", kept(&first));
    }
}
