//! What a layer's inputs vary most along, from sums over the rows that it meets (EVA, Paischer et al. 2024,
//! <https://arxiv.org/abs/2410.07170>).

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Tensor};

use crate::decompose::{svd, svd_sketch};
use crate::ops::cast;
use crate::parameter::read_f32;

/// Up to this width all directions are found exactly; above it, the first ones from a sketch.
const EXACT: usize = 256;
/// Iterations of the sketch: neighbours among the directions are told apart by them.
const ITERATIONS: usize = 8;

/// Sums over the rows x that a layer was given, shared by all copies of the layer.
#[derive(Debug, Clone, Default)]
pub(super) struct InputSums(Arc<Mutex<Sums>>);

#[derive(Debug, Default)]
struct Sums {
    rows: usize,
    /// Σ x, `[1, d]`, and Σ x·xᵀ, `[d, d]`, f32.
    sums: Option<[Tensor<2>; 2]>,
}

/// Directions along which inputs vary, the first the most.
#[derive(Debug, Clone, PartialEq)]
pub struct InputDirections {
    /// `[count, d]`, orthonormal rows.
    pub directions: Vec<f32>,
    /// The share of the inputs' whole variance that each explains.
    pub explained: Vec<f64>,
}

impl InputSums {
    pub(super) fn add(&self, x: &Tensor<2>) {
        let x = cast(x.clone().inner(), DType::F32);
        let new = [x.clone().sum_dim(0), x.clone().transpose().matmul(x.clone())];
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sums.rows += x.dims()[0];
        sums.sums = Some(match sums.sums.take() {
            Some([sum, products]) => {
                let [more, more_products] = new;
                [sum + more, products + more_products]
            }
            None => new,
        });
    }

    /// The first `count` directions of what was added; `None` before anything was.
    pub(super) fn directions(&self, count: usize) -> Option<InputDirections> {
        let sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [sum, products] = sums.sums.clone()?;
        let rows = sums.rows as f64;
        let d = sum.dims()[1];
        let mean: Vec<f64> = read_f32(sum).iter().map(|x| f64::from(*x) / rows).collect();
        let mut covariance: Vec<f64> = read_f32(products).iter().map(|x| f64::from(*x)).collect();
        for (row, a) in covariance.chunks_exact_mut(d).zip(&mean) {
            row.iter_mut().zip(&mean).for_each(|(value, b)| *value -= rows * a * b);
        }
        let variance: f64 = covariance.iter().step_by(d + 1).sum();
        let count = count.min(d);
        let found = match d <= EXACT {
            true => svd(&covariance, d, d),
            false => svd_sketch(&covariance, d, d, count, ITERATIONS, 0),
        };
        let directions = found.vt[..count * d].iter().map(|x| *x as f32).collect();
        let explained = found.s[..count].iter().map(|s| s / variance.max(f64::MIN_POSITIVE));
        Some(InputDirections { directions, explained: explained.collect() })
    }
}
