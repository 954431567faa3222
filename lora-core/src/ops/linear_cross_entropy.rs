//! Cross-entropy of a frozen linear head, with its gradient in closed form.

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::cast;
use crate::table::Part;

/// Losses of some tokens under a frozen head, and what flows back from them.
pub struct FrozenLoss {
    /// Loss of each token, `[n, 1]`, f32.
    pub losses: Tensor<2>,
    /// The most likely token, `[n, 1]`.
    pub best: Tensor<2, Int>,
    /// `∂(Σ losses)/∂hidden`, `[n, d]`, where it was asked for.
    pub hidden_gradient: Option<Tensor<2>>,
}

/// `Lᵢ = log Σⱼ exp(hᵢ·wⱼ) − hᵢ·w_yᵢ` and `∂L/∂h = (softmax(h·W) − onehot(y))·Wᵀ`.
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
    want_gradient: bool,
) -> FrozenLoss {
    let dtype = hidden.dtype();
    let parts: Vec<Scores> = head.iter().map(|part| Scores::new(hidden, part, targets)).collect();
    let highest = parts.iter().map(Scores::highest).reduce(Tensor::max_pair);
    let highest = highest.unwrap_or_else(|| Tensor::zeros([targets.len(), 1], &hidden.device()));
    let best = most_likely(&parts, &highest);
    let of_label = sum(parts.iter().map(Scores::of_label));
    let exponentials: Vec<_> =
        parts.iter().map(|part| (part.logits.clone() - highest.clone()).exp()).collect();
    let total = sum(exponentials.iter().map(|part| part.clone().sum_dim(1)));
    let losses = total.clone().log() + highest - of_label;
    let hidden_gradient = want_gradient.then(|| {
        sum(parts.iter().zip(exponentials).map(|(part, exponentials)| {
            let probabilities = cast(exponentials / total.clone(), dtype);
            probabilities.matmul(part.rows.clone()) - part.rows_of_labels()
        }))
    });
    FrozenLoss { losses, best, hidden_gradient }
}

/// The logits under one part of the head.
struct Scores {
    start: usize,
    /// `[rows, d]`, in the compute format.
    rows: Tensor<2>,
    /// `[n, rows]`, f32.
    logits: Tensor<2>,
    /// Labels counted from `start`; 0 where the label is in another part. `[n, 1]`
    labels: Tensor<2, Int>,
    /// 1 where the label is in this part, `[n, 1]`; `None` where all are.
    holds: Option<Tensor<2>>,
}

impl Scores {
    fn new(hidden: &Tensor<2>, part: &Part, targets: &[i32]) -> Self {
        let device = hidden.device();
        let rows = cast(part.rows.clone(), hidden.dtype());
        let [count, _] = rows.dims();
        let start = part.start as i32;
        let held = |target: &i32| (start..start + count as i32).contains(target);
        let local = |target: &i32| if held(target) { target - start } else { 0 };
        let shape = [targets.len(), 1];
        let labels = TensorData::new(targets.iter().map(local).collect(), shape);
        let holds = (!targets.iter().all(held)).then(|| {
            let ones: Vec<f32> = targets.iter().map(|x| f32::from(u8::from(held(x)))).collect();
            Tensor::from_data(TensorData::new(ones, shape), &device)
        });
        Self {
            start: part.start,
            logits: cast(hidden.clone().matmul(rows.clone().transpose()), DType::F32),
            rows,
            labels: Tensor::from_data(labels, &device),
            holds,
        }
    }

    /// `[n, 1]`
    fn highest(&self) -> Tensor<2> {
        self.logits.clone().max_dim(1)
    }

    /// The label's logit, `[n, 1]`; 0 where the label is in another part.
    fn of_label(&self) -> Tensor<2> {
        let found = self.logits.clone().gather(1, self.labels.clone());
        match &self.holds {
            Some(holds) => found * holds.clone(),
            None => found,
        }
    }

    /// The label's row, `[n, d]`; zeros where the label is in another part.
    fn rows_of_labels(&self) -> Tensor<2> {
        let found = self.rows.clone().select(0, self.labels.clone().squeeze_dim(1));
        match &self.holds {
            Some(holds) => found * cast(holds.clone(), self.rows.dtype()),
            None => found,
        }
    }
}

/// The first token whose logit is the highest, `[n, 1]`.
fn most_likely(parts: &[Scores], highest: &Tensor<2>) -> Tensor<2, Int> {
    // From the last part to the first, so that the first of equals stays.
    let found = parts.iter().rev().map(|part| {
        let best = part.logits.clone().argmax(1) + part.start as i64;
        (best, part.highest().equal(highest.clone()))
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
