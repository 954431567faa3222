//! Cross-entropy of a linear head, with its gradient in closed form.

use burn::tensor::{DType, Device, Int, Tensor};

use super::{cast, soft_cap};
use crate::table::{Part, gathered, indices, select_from};

/// Losses of some tokens under a frozen head, and what flows back from them.
pub struct FrozenLoss {
    /// Loss of each token, `[n, 1]`, f32.
    pub losses: Tensor<2>,
    /// The most likely token, `[n, 1]`.
    pub best: Tensor<2, Int>,
    /// `∂(Σ losses)/∂hidden`, `[n, d]`, where it was asked for.
    pub hidden_gradient: Option<Tensor<2>>,
}

/// `Lᵢ = log Σⱼ exp(zᵢⱼ) − zᵢ_yᵢ` of the logits `zᵢⱼ = hᵢ·wⱼ`, and
/// `∂L/∂h = (softmax(z) − onehot(y))·Wᵀ`. With a cap c the logits are `c·tanh(hᵢ·wⱼ / c)`, and each term of
/// the gradient is multiplied by their slope `1 − (zᵢⱼ/c)²`.
///
/// The head comes in parts of its rows, one where the device takes it whole; the logits of a part,
/// `[n, rows]`, are one buffer, and the caller cuts its tokens into chunks. Everything from the logits on
/// is f32.
///
/// # Shapes
/// - hidden: `[n, d]`
/// - head: the rows wⱼ, `[v, d]` in all
/// - targets: `[n]`, in 0..v
pub fn linear_cross_entropy(
    hidden: &Tensor<2>,
    head: &[Part],
    targets: &[i32],
    cap: Option<f64>,
    want_gradient: bool,
) -> FrozenLoss {
    #[cfg(feature = "cpu")]
    if let ([part], None) = (head, cap)
        && let Some(loss) =
            super::processor::cross_entropy(hidden, &part.rows, targets, want_gradient)
    {
        return loss;
    }
    let (dtype, device) = (hidden.dtype(), hidden.device());
    let head: Vec<Part> =
        head.iter().map(|part| Part { rows: cast(part.rows.clone(), dtype), ..*part }).collect();
    let logits: Vec<Tensor<2>> = head
        .iter()
        .map(|part| cast(hidden.clone().matmul(part.rows.clone().transpose()), DType::F32))
        .map(|logits| match cap {
            Some(cap) => soft_cap(logits, cap),
            None => logits,
        })
        .collect();
    let highest = logits.iter().map(|part| part.clone().max_dim(1)).reduce(Tensor::max_pair);
    let highest = highest.unwrap_or_else(|| Tensor::zeros([targets.len(), 1], &device));
    let best = most_likely(&head, &logits, &highest);
    let of_label = label_logits(&head, &logits, targets, &device);
    // Only the gradient needs them.
    let sloped = cap.filter(|_| want_gradient);
    let label_slope = slope(&of_label, sloped);
    let slopes: Vec<_> = logits.iter().map(|part| slope(part, sloped)).collect();
    let exponentials: Vec<_> =
        logits.into_iter().map(|part| (part - highest.clone()).exp()).collect();
    let total = sum(exponentials.iter().map(|part| part.clone().sum_dim(1)));
    let losses = total.clone().log() + highest - of_label;
    let hidden_gradient = want_gradient.then(|| {
        let parts = exponentials.into_iter().zip(slopes).zip(&head);
        let expected = sum(parts.map(|((exponentials, slope), part)| {
            let probabilities = times(exponentials / total.clone(), slope);
            cast(probabilities, dtype).matmul(part.rows.clone())
        }));
        let label_slope = label_slope.map(|slope| cast(slope, dtype));
        expected - times(select_from(&head, targets, &device), label_slope)
    });
    FrozenLoss { losses, best, hidden_gradient }
}

/// Losses of some tokens under a head that is trained.
pub struct TrainedLoss {
    /// Their sum, `[1]`, in the graph of hidden states and head.
    pub sum: Tensor<1>,
    /// Loss of each token, `[n, 1]`, f32.
    pub losses: Tensor<2>,
    /// The most likely token, `[n, 1]`.
    pub best: Tensor<2, Int>,
}

/// As [`linear_cross_entropy`], where the head is trained too: its gradient is `(softmax(z) − onehot(y))ᵀ·h`. The logits
/// of `chunk` tokens at a time are held.
///
/// `None` where the processor's kernels do not serve: the caller then takes logits and loss by themselves.
///
/// # Shapes
/// - hidden: `[n, d]`
/// - head: `[v, d]`
/// - targets: `[n]`, in 0..v
pub fn trained_cross_entropy(
    hidden: &Tensor<2>,
    head: &Tensor<2>,
    targets: &[i32],
    chunk: usize,
) -> Option<TrainedLoss> {
    #[cfg(feature = "cpu")]
    return super::processor::trained_cross_entropy(hidden, head, targets, chunk);
    #[cfg(not(feature = "cpu"))]
    {
        let _ = (hidden, head, targets, chunk);
        None
    }
}

/// The slope `1 − (z/c)²` of the cap at capped logits; `None` without a cap.
fn slope(logits: &Tensor<2>, cap: Option<f64>) -> Option<Tensor<2>> {
    cap.map(|cap| (logits.clone() / cap).square().neg() + 1.0)
}

fn times(x: Tensor<2>, factor: Option<Tensor<2>>) -> Tensor<2> {
    match factor {
        Some(factor) => x * factor,
        None => x,
    }
}

/// The logit of each label, `[n, 1]`.
fn label_logits(
    head: &[Part],
    logits: &[Tensor<2>],
    targets: &[i32],
    device: &Device,
) -> Tensor<2> {
    if let [logits] = logits {
        return logits.clone().gather(1, indices(targets, device).unsqueeze_dim(1));
    }
    gathered(head, targets, device, |part, local, rows| {
        let rows = logits[part].clone().select(0, indices(&rows, device));
        rows.gather(1, indices(&local, device).unsqueeze_dim(1))
    })
}

/// The first token whose logit is the highest, `[n, 1]`.
fn most_likely(head: &[Part], logits: &[Tensor<2>], highest: &Tensor<2>) -> Tensor<2, Int> {
    // From the last part to the first, so that the first of equals stays.
    let found = head.iter().zip(logits).rev().map(|(part, logits)| {
        let best = logits.clone().argmax(1) + part.start as i64;
        (best, logits.clone().max_dim(1).equal(highest.clone()))
    });
    let best = found.reduce(|(later, _), (best, is_highest)| {
        (later.mask_where(is_highest.clone(), best), is_highest)
    });
    match best {
        Some((best, _)) => best,
        None => Tensor::zeros(highest.dims(), &highest.device()),
    }
}

/// # Panics
/// Without any part: a head has at least one.
fn sum(parts: impl Iterator<Item = Tensor<2>>) -> Tensor<2> {
    let sum = parts.reduce(|a, b| a + b);
    sum.unwrap_or_else(|| panic!("a head without rows"))
}
