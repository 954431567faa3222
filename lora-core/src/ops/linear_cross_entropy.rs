//! Cross-entropy of a frozen linear head, with its gradient in closed form.

use burn::tensor::{DType, Int, Tensor};

use super::cast;

/// Losses of some tokens under a frozen head, and what flows back from them.
pub struct FrozenLoss {
    /// Loss of each token, `[n, 1]`, f32.
    pub losses: Tensor<2>,
    /// The most likely token, `[n, 1]`.
    pub best: Tensor<2, Int>,
    /// `∂(Σ losses)/∂hidden`, `[n, d]`, where it was asked for.
    pub hidden_gradient: Option<Tensor<2>>,
}

/// `Lᵢ = log Σⱼ exp(hᵢ·wⱼ) − hᵢ·w_yᵢ` and `∂L/∂h = (softmax(h·W) − onehot(y))·Wᵀ`. The logits `[n, v]`
/// are held as a whole: the caller cuts its tokens into chunks. Everything from the logits on is f32.
///
/// # Shapes
/// - hidden: `[n, d]`
/// - head: `[d, v]`
/// - labels: `[n, 1]`
pub fn linear_cross_entropy(
    hidden: Tensor<2>,
    head: Tensor<2>,
    labels: Tensor<2, Int>,
    want_gradient: bool,
) -> FrozenLoss {
    let dtype = hidden.dtype();
    let head = cast(head, dtype);
    let logits = cast(hidden.matmul(head.clone()), DType::F32); // [n, v]
    let best = logits.clone().argmax(1);
    let of_label = logits.clone().gather(1, labels.clone());
    let highest = logits.clone().max_dim(1);
    let exponentials = (logits - highest.clone()).exp();
    let total = exponentials.clone().sum_dim(1);
    let losses = total.clone().log() + highest - of_label;
    let hidden_gradient = want_gradient.then(|| {
        let probabilities = cast(exponentials / total, dtype);
        let rows_of_labels = head.clone().transpose().select(0, labels.squeeze_dim(1));
        probabilities.matmul(head.transpose()) - rows_of_labels
    });
    FrozenLoss { losses, best, hidden_gradient }
}
