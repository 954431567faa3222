//! Gated activations: `y = activation(gate) * up`, as in SwiGLU (Shazeer 2020).

use crate::exp::exp;
use crate::number::Number;
use crate::parallel::for_each_row;
use rayon::slice::{ParallelSlice, ParallelSliceMut};

/// What the gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    GeluTanh,
}

/// `y = activation(gate) * up`, where each row of gate_up `[n, 2 * width]` is the gate's `width`
/// elements and then up's; y `[n, width]`.
pub fn gated<T: Number>(activation: Activation, gate_up: &[T], width: usize, y: &mut [T]) {
    match activation {
        Activation::Silu => forward::<T, Silu>(gate_up, width, y),
        Activation::GeluTanh => forward::<T, GeluTanh>(gate_up, width, y),
    }
}

/// `dgate = dy * up * activation'(gate)` and `dup = dy * activation(gate)`, side by side as in
/// gate_up `[n, 2 * width]`; dy `[n, width]`.
pub fn gated_backward<T: Number>(
    activation: Activation,
    gate_up: &[T],
    width: usize,
    dy: &[T],
    d_gate_up: &mut [T],
) {
    match activation {
        Activation::Silu => backward::<T, Silu>(gate_up, width, dy, d_gate_up),
        Activation::GeluTanh => backward::<T, GeluTanh>(gate_up, width, dy, d_gate_up),
    }
}

struct Silu;
struct GeluTanh;

trait Gate {
    fn value_and_slope(x: f32) -> (f32, f32);
}

impl Gate for Silu {
    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let (on, off) = sigmoid(x);
        let value = x * on;
        (value, on + value * off)
    }
}

impl Gate for GeluTanh {
    /// With `1 + tanh(u) = 2 * sigmoid(2 * u)`, which loses no digits where tanh is near -1.
    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        // The sigmoid is 0 or 1 long before; the bound keeps the cube finite.
        let bounded = x.clamp(-100.0, 100.0);
        let square = bounded * bounded;
        let (on, off) = sigmoid(TWO_ROOT * bounded * (1.0 + CUBIC * square));
        let value = x * on;
        (value, on + value * off * TWO_ROOT * (1.0 + 3.0 * CUBIC * square))
    }
}

/// 2 * sqrt(2 / pi).
const TWO_ROOT: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;

/// `1 / (1 + e^-x)` and one minus it, both to a few units in the last place.
#[inline(always)]
fn sigmoid(x: f32) -> (f32, f32) {
    let small = exp(-x.abs());
    let major = 1.0 / (1.0 + small);
    let minor = small * major;
    if x < 0.0 { (minor, major) } else { (major, minor) }
}

#[inline(always)]
fn forward<T: Number, G: Gate>(gate_up: &[T], width: usize, y: &mut [T]) {
    assert_eq!(gate_up.len(), 2 * y.len());
    assert!(y.len().is_multiple_of(width), "{} elements in rows of {width}", y.len());
    for_each_row(
        width,
        (gate_up.par_chunks(2 * width), y.par_chunks_mut(width)),
        #[inline(always)]
        |(gate_up, y)| {
            let (gate, up) = gate_up.split_at(width);
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                let (value, _) = G::value_and_slope(gate.to_f32());
                *y = T::from_f32(value * up.to_f32());
            }
        },
    );
}

#[inline(always)]
fn backward<T: Number, G: Gate>(gate_up: &[T], width: usize, dy: &[T], d_gate_up: &mut [T]) {
    assert_eq!(gate_up.len(), 2 * dy.len());
    assert_eq!(gate_up.len(), d_gate_up.len());
    assert!(dy.len().is_multiple_of(width), "{} elements in rows of {width}", dy.len());
    let gradients = d_gate_up.par_chunks_mut(2 * width);
    for_each_row(
        width,
        (gate_up.par_chunks(2 * width), dy.par_chunks(width), gradients),
        #[inline(always)]
        |(gate_up, dy, d_gate_up)| {
            let (gate, up) = gate_up.split_at(width);
            let (dgate, dup) = d_gate_up.split_at_mut(width);
            let gradients = dgate.iter_mut().zip(dup);
            for (((gate, up), dy), (dgate, dup)) in gate.iter().zip(up).zip(dy).zip(gradients) {
                let (value, slope) = G::value_and_slope(gate.to_f32());
                *dgate = T::from_f32(dy.to_f32() * up.to_f32() * slope);
                *dup = T::from_f32(dy.to_f32() * value);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ULP, WIDTHS, assert_close, slope, wave, wide};
    use half::bf16;

    const BOTH: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

    fn reference(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let root = (2.0 / std::f64::consts::PI).sqrt();
                x / 2.0 * (1.0 + (root * (x + 0.044715 * x * x * x)).tanh())
            }
        }
    }

    fn all<T: Number>(activation: Activation) {
        for (rows, width) in WIDTHS.into_iter().map(|width| (3, width)).chain([(60, 576)]) {
            let what = format!("{activation:?} {rows} x {width} of {}", std::any::type_name::<T>());
            // Gates up to 6 either way.
            let gate_up: Vec<T> = wave::<T>(rows * 2 * width, 0.1)
                .iter()
                .map(|value| T::from_f32(3.0 * value.to_f32()))
                .collect();
            let dy = wave::<T>(rows * width, 0.7);
            let mut y = wave::<T>(rows * width, 9.0);
            let mut d_gate_up = wave::<T>(rows * 2 * width, 9.0);
            gated(activation, &gate_up, width, &mut y);
            gated_backward(activation, &gate_up, width, &dy, &mut d_gate_up);

            let (gate_up, dy) = (wide(&gate_up), wide(&dy));
            let product = |row: &[f64]| -> Vec<f64> {
                let (gate, up) = row.split_at(width);
                gate.iter().zip(up).map(|(gate, up)| reference(activation, *gate) * up).collect()
            };
            let right: Vec<f64> = gate_up.chunks(2 * width).flat_map(product).collect();
            // exp's 1e-7 is under 1 unit; its argument, rounded in about 3 steps, is under 25
            // for GELU, whose gate of -6 gives 2u = -25; 4 steps more.
            let steps = if activation == Activation::Silu { 6.0 } else { 6.0 + 3.0 * 25.0 };
            // The reference's own 1 + tanh keeps only 1e-16 of 1.
            assert_close(&what, &y, &right, |i| steps * ULP * right[i].abs() + 1e-14);

            let right: Vec<f64> = (gate_up.chunks(2 * width).zip(dy.chunks(width)))
                .flat_map(|(row, dy)| {
                    let gradient = |i: usize| {
                        let one = [row[i], row[width + i]];
                        let loss = |x: &[f64]| reference(activation, x[0]) * x[1] * dy[i];
                        slope(&one, loss)
                    };
                    let pairs: Vec<Vec<f64>> = (0..width).map(gradient).collect();
                    [0, 1].map(|half| pairs.iter().map(|pair| pair[half]).collect::<Vec<f64>>())
                })
                .flatten()
                .collect();
            // A slope is a sum that may cancel, of terms under 2; times up and dy, under 6 and 2.
            // The differences are good to 1e-8. For dup the same bound holds as for y.
            assert_close(&what, &d_gate_up, &right, |i| {
                if i / width % 2 == 0 {
                    2.0 * 12.0 * 8.0 * ULP + 1e-8
                } else {
                    steps * ULP * right[i].abs() + 1e-8
                }
            });
        }
    }

    #[test]
    fn both_activations_and_their_gradients_match_the_reference() {
        for activation in BOTH {
            all::<f32>(activation);
            all::<bf16>(activation);
        }
    }

    #[test]
    fn far_gates_are_shut_or_open() {
        for activation in BOTH {
            let gates = [-f32::MAX, -1e20, -1000.0, 1000.0, 1e20, 3e37];
            for gate in gates {
                let open = f32::from(gate > 0.0);
                let (mut y, mut gradient) = ([9.0], [9.0; 2]);
                gated(activation, &[gate, 2.0], 1, &mut y);
                gated_backward(activation, &[gate, 2.0], 1, &[3.0], &mut gradient);
                assert_eq!(y, [open * gate * 2.0], "{activation:?} {gate}");
                assert_eq!(gradient, [open * 6.0, open * gate * 3.0], "{activation:?} {gate}");
            }
        }
    }
}
