//! Plain float64 reference implementations of the operations of a Llama-like decoder, forward and
//! backward, against which every backend is tested. All data is row-major; a `…_backward` takes
//! the gradient `dy` of the output and returns the vector-Jacobian product of each input.

/// The sizes of [`attention`]: batch, query heads, key heads, queries, keys, width of a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionSizes {
    /// Batch.
    pub(crate) b: usize,
    /// Query heads, a multiple of `groups`.
    pub(crate) heads: usize,
    /// Key and value heads.
    pub(crate) groups: usize,
    /// Query positions.
    pub(crate) t: usize,
    /// Key positions.
    pub(crate) s: usize,
    /// Width of one head.
    pub(crate) width: usize,
}

/// The gradients of [`lora_linear`], each in the shape of its input; `bias` is `[d_out]`.
#[derive(Clone, Debug)]
pub(crate) struct LoraLinearGradients {
    /// `[n, d_in]`.
    pub(crate) x: Vec<f64>,
    /// `[d_in, rank]`.
    pub(crate) a: Vec<f64>,
    /// `[rank, d_out]`.
    pub(crate) b: Vec<f64>,
    /// `[d_in, d_out]`.
    pub(crate) w: Vec<f64>,
    /// `[d_out]`.
    pub(crate) bias: Vec<f64>,
}

/// The settings of [`adamw`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamWSettings {
    /// Learning rate.
    pub(crate) rate: f64,
    /// Decay of the first moment.
    pub(crate) beta1: f64,
    /// Decay of the second moment.
    pub(crate) beta2: f64,
    /// Term added to the denominator.
    pub(crate) epsilon: f64,
    /// Decoupled weight decay.
    pub(crate) weight_decay: f64,
}

/// `y[i, j] = Σ_l a[i, l] · b[l, j]`: `[n, k] · [k, m] → [n, m]`.
pub(crate) fn matmul(a: &[f64], b: &[f64], [n, k, m]: [usize; 3]) -> Vec<f64> {
    assert_eq!(a.len(), n * k);
    assert_eq!(b.len(), k * m);
    let mut y = vec![0.0; n * m];
    for i in 0..n {
        for j in 0..m {
            for l in 0..k {
                y[i * m + j] += a[i * k + l] * b[l * m + j];
            }
        }
    }
    y
}

/// `y[j, i] = a[i, j]`: `[n, m] → [m, n]`.
pub(crate) fn transpose(a: &[f64], [n, m]: [usize; 2]) -> Vec<f64> {
    assert_eq!(a.len(), n * m);
    let mut y = vec![0.0; n * m];
    for i in 0..n {
        for j in 0..m {
            y[j * n + i] = a[i * m + j];
        }
    }
    y
}

/// `y = x·W + bias + scale · (x·A)·B`, with x `[n, d_in]`, W `[d_in, d_out]`, bias `[d_out]`,
/// A `[d_in, rank]`, B `[rank, d_out]` and y `[n, d_out]`.
pub(crate) fn lora_linear(
    x: &[f64],
    w: &[f64],
    bias: Option<&[f64]>,
    a: &[f64],
    b: &[f64],
    scale: f64,
    [n, d_in, d_out, rank]: [usize; 4],
) -> Vec<f64> {
    let mut y = matmul(x, w, [n, d_in, d_out]);
    let xa = matmul(x, a, [n, d_in, rank]);
    let xab = matmul(&xa, b, [n, rank, d_out]);
    for i in 0..n * d_out {
        y[i] += scale * xab[i];
    }
    if let Some(bias) = bias {
        assert_eq!(bias.len(), d_out);
        for i in 0..n {
            for j in 0..d_out {
                y[i * d_out + j] += bias[j];
            }
        }
    }
    y
}

/// The gradients of [`lora_linear`]:
/// `dx = dy·Wᵀ + scale · (dy·Bᵀ)·Aᵀ`, `dA = scale · xᵀ·(dy·Bᵀ)`, `dB = scale · (x·A)ᵀ·dy`,
/// `dW = xᵀ·dy`, `dbias[j] = Σ_i dy[i, j]`, with dy `[n, d_out]`.
pub(crate) fn lora_linear_backward(
    x: &[f64],
    w: &[f64],
    a: &[f64],
    b: &[f64],
    scale: f64,
    dy: &[f64],
    [n, d_in, d_out, rank]: [usize; 4],
) -> LoraLinearGradients {
    let scaled = |values: Vec<f64>| -> Vec<f64> { values.iter().map(|v| scale * v).collect() };
    let x_transposed = transpose(x, [n, d_in]);
    let xa = matmul(x, a, [n, d_in, rank]);
    // scale · dy·Bᵀ, the gradient of x·A: [n, rank].
    let dxa = scaled(matmul(dy, &transpose(b, [rank, d_out]), [n, d_out, rank]));

    let mut dx = matmul(dy, &transpose(w, [d_in, d_out]), [n, d_out, d_in]);
    let dx_adapter = matmul(&dxa, &transpose(a, [d_in, rank]), [n, rank, d_in]);
    for i in 0..n * d_in {
        dx[i] += dx_adapter[i];
    }
    let mut dbias = vec![0.0; d_out];
    for i in 0..n {
        for j in 0..d_out {
            dbias[j] += dy[i * d_out + j];
        }
    }
    LoraLinearGradients {
        x: dx,
        a: matmul(&x_transposed, &dxa, [d_in, n, rank]),
        b: scaled(matmul(&transpose(&xa, [n, rank]), dy, [rank, n, d_out])),
        w: matmul(&x_transposed, dy, [d_in, n, d_out]),
        bias: dbias,
    }
}

/// `r_i = 1 / sqrt(mean_j(x[i, j]²) + ε)`: `[n, d] → [n]`.
fn reciprocal_root_mean_square(x: &[f64], epsilon: f64, [n, d]: [usize; 2]) -> Vec<f64> {
    assert_eq!(x.len(), n * d);
    let mut r = Vec::with_capacity(n);
    for i in 0..n {
        let mut sum = 0.0;
        for j in 0..d {
            sum += x[i * d + j] * x[i * d + j];
        }
        r.push(1.0 / (sum / d as f64 + epsilon).sqrt());
    }
    r
}

/// `y[i, j] = x[i, j] · r_i · w[j]` where `r_i = 1 / sqrt(mean_j(x[i, j]²) + ε)`, with x and y
/// `[n, d]`, w `[d]`.
pub(crate) fn rms_norm(x: &[f64], weight: &[f64], epsilon: f64, [n, d]: [usize; 2]) -> Vec<f64> {
    assert_eq!(weight.len(), d);
    let r = reciprocal_root_mean_square(x, epsilon, [n, d]);
    let mut y = vec![0.0; n * d];
    for i in 0..n {
        for j in 0..d {
            y[i * d + j] = x[i * d + j] * r[i] * weight[j];
        }
    }
    y
}

/// The gradients `(dx, dweight)` of [`rms_norm`]. As `∂r_i/∂x[i, j] = −r_i³ · x[i, j] / d`,
/// `dx[i, j] = r_i · w[j] · dy[i, j] − r_i³ · x[i, j] / d · Σ_l dy[i, l] · w[l] · x[i, l]` and
/// `dw[j] = Σ_i dy[i, j] · x[i, j] · r_i`.
pub(crate) fn rms_norm_backward(
    x: &[f64],
    weight: &[f64],
    epsilon: f64,
    dy: &[f64],
    [n, d]: [usize; 2],
) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(weight.len(), d);
    assert_eq!(dy.len(), n * d);
    let r = reciprocal_root_mean_square(x, epsilon, [n, d]);
    let mut dx = vec![0.0; n * d];
    let mut dweight = vec![0.0; d];
    for i in 0..n {
        let mut inner = 0.0;
        for l in 0..d {
            inner += dy[i * d + l] * weight[l] * x[i * d + l];
        }
        for j in 0..d {
            let at = i * d + j;
            dx[at] = r[i] * weight[j] * dy[at] - r[i].powi(3) * x[at] / d as f64 * inner;
            dweight[j] += dy[at] * x[at] * r[i];
        }
    }
    (dx, dweight)
}

/// Rotates each pair `(i, i + width/2)` of a head by the angle of its position:
/// `y₁ = x₁·cos − x₂·sin`, `y₂ = x₂·cos + x₁·sin`, with x and y `[b, t, h, width]`, cosine and
/// sine `[b, t, 1, width/2]`.
pub(crate) fn rotary(
    x: &[f64],
    cosine: &[f64],
    sine: &[f64],
    [b, t, h, width]: [usize; 4],
) -> Vec<f64> {
    let half = width / 2;
    assert_eq!(width, 2 * half);
    assert_eq!(x.len(), b * t * h * width);
    assert_eq!(cosine.len(), b * t * half);
    assert_eq!(sine.len(), b * t * half);
    let mut y = vec![0.0; x.len()];
    for position in 0..b * t {
        for head in 0..h {
            for i in 0..half {
                let first = (position * h + head) * width + i;
                let second = first + half;
                let cos = cosine[position * half + i];
                let sin = sine[position * half + i];
                y[first] = x[first] * cos - x[second] * sin;
                y[second] = x[second] * cos + x[first] * sin;
            }
        }
    }
    y
}

/// The gradient of [`rotary`], the transposed map:
/// `dx₁ = dy₁·cos + dy₂·sin`, `dx₂ = dy₂·cos − dy₁·sin`, in the shapes of [`rotary`].
pub(crate) fn rotary_backward(
    dy: &[f64],
    cosine: &[f64],
    sine: &[f64],
    [b, t, h, width]: [usize; 4],
) -> Vec<f64> {
    let half = width / 2;
    assert_eq!(width, 2 * half);
    assert_eq!(dy.len(), b * t * h * width);
    assert_eq!(cosine.len(), b * t * half);
    assert_eq!(sine.len(), b * t * half);
    let mut dx = vec![0.0; dy.len()];
    for position in 0..b * t {
        for head in 0..h {
            for i in 0..half {
                let first = (position * h + head) * width + i;
                let second = first + half;
                let cos = cosine[position * half + i];
                let sin = sine[position * half + i];
                dx[first] = dy[first] * cos + dy[second] * sin;
                dx[second] = dy[second] * cos - dy[first] * sin;
            }
        }
    }
    dx
}

/// `y = (x − mean(x)) / √(mean((x − mean(x))²) + ε) · w + b` over rows of d.
pub(crate) fn layer_norm(
    x: &[f64],
    weight: &[f64],
    bias: &[f64],
    epsilon: f64,
    [n, d]: [usize; 2],
) -> Vec<f64> {
    assert_eq!(x.len(), n * d);
    let mut y = Vec::with_capacity(n * d);
    for row in x.chunks(d) {
        let (normed, _) = standardised(row, epsilon);
        y.extend((0..d).map(|j| normed[j] * weight[j] + bias[j]));
    }
    y
}

/// The gradients `(dx, dw, db)` of [`layer_norm`]. With `z` the normed row, `g = dy · w` and s = 1/√(var + ε):
/// `dx = s · (g − mean(g) − z · mean(g · z))`, `dw = Σ_i dy · z`, `db = Σ_i dy`.
pub(crate) fn layer_norm_backward(
    x: &[f64],
    weight: &[f64],
    epsilon: f64,
    dy: &[f64],
    [n, d]: [usize; 2],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    assert_eq!(dy.len(), n * d);
    let (mut dx, mut dw, mut db) = (Vec::with_capacity(n * d), vec![0.0; d], vec![0.0; d]);
    for (row, dy) in x.chunks(d).zip(dy.chunks(d)) {
        let (z, scale) = standardised(row, epsilon);
        let g: Vec<f64> = (0..d).map(|j| dy[j] * weight[j]).collect();
        let mean = g.iter().sum::<f64>() / d as f64;
        let inner = (0..d).map(|j| g[j] * z[j]).sum::<f64>() / d as f64;
        for j in 0..d {
            dx.push(scale * (g[j] - mean - z[j] * inner));
            dw[j] += dy[j] * z[j];
            db[j] += dy[j];
        }
    }
    (dx, dw, db)
}

/// A row with mean 0 and variance 1, and 1/√(var + ε).
fn standardised(row: &[f64], epsilon: f64) -> (Vec<f64>, f64) {
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (variance + epsilon).sqrt();
    (row.iter().map(|x| (x - mean) * scale).collect(), scale)
}

/// `σ(x) = 1 / (1 + e^(−x))`.
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `y = silu(gate) · up` elementwise, where `silu(g) = g · σ(g)`.
pub(crate) fn swiglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    assert_eq!(gate.len(), up.len());
    gate.iter().zip(up).map(|(g, u)| g * sigmoid(*g) * u).collect()
}

/// The gradients `(dgate, dup)` of [`swiglu`]:
/// `dgate = dy · up · σ(g) · (1 + g · (1 − σ(g)))`, `dup = dy · g · σ(g)`.
pub(crate) fn swiglu_backward(gate: &[f64], up: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(gate.len(), up.len());
    assert_eq!(gate.len(), dy.len());
    let mut dgate = vec![0.0; gate.len()];
    let mut dup = vec![0.0; gate.len()];
    for i in 0..gate.len() {
        let sigma = sigmoid(gate[i]);
        dgate[i] = dy[i] * up[i] * sigma * (1.0 + gate[i] * (1.0 - sigma));
        dup[i] = dy[i] * gate[i] * sigma;
    }
    (dgate, dup)
}

/// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))` and its derivative.
pub(crate) fn gelu_tanh(x: f64) -> (f64, f64) {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let tanh = (root * (x + 0.044715 * x * x * x)).tanh();
    let slope = root * (1.0 + 3.0 * 0.044715 * x * x);
    (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope)
}

/// `x·Φ(x)` and its derivative `Φ(x) + x·φ(x)`, with erf by its power series.
pub(crate) fn gelu(x: f64) -> (f64, f64) {
    let z = x / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    let erf = if z.abs() > 5.0 { z.signum() } else { sum * std::f64::consts::FRAC_2_SQRT_PI };
    let below = (1.0 + erf) / 2.0;
    let density = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
    (x * below, below + x * density)
}

/// `y = gelu(gate) · up` elementwise, by the approximation with tanh.
pub(crate) fn geglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    assert_eq!(gate.len(), up.len());
    gate.iter().zip(up).map(|(g, u)| gelu_tanh(*g).0 * u).collect()
}

/// The gradients `(dgate, dup)` of [`geglu`]: `dgate = dy · up · gelu'(gate)`, `dup = dy · gelu(gate)`.
pub(crate) fn geglu_backward(gate: &[f64], up: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(gate.len(), up.len());
    assert_eq!(gate.len(), dy.len());
    let all = gate.iter().zip(up).zip(dy);
    all.map(|((g, u), dy)| (dy * u * gelu_tanh(*g).1, dy * gelu_tanh(*g).0)).unzip()
}

/// `z` softly capped, `c·tanh(z / c)`, and the slope there; `(z, 1)` without a cap.
fn capped(z: f64, cap: Option<f64>) -> (f64, f64) {
    match cap {
        Some(cap) => {
            let tanh = (z / cap).tanh();
            (cap * tanh, 1.0 - tanh * tanh)
        }
        None => (z, 1.0),
    }
}

/// `p[b, h, i, j] = exp(z_ij) / Σ_l exp(z_il)` where `z_ij = cap(scale · q_i·k_j)` and the sum runs over
/// the allowed keys; zero where not allowed. Returns `[b, heads, t, s]`.
fn attention_weights(
    q: &[f64],
    k: &[f64],
    allowed: &[bool],
    (scale, cap): (f64, Option<f64>),
    AttentionSizes { b, heads, groups, t, s, width }: AttentionSizes,
) -> Vec<f64> {
    assert_eq!(heads % groups, 0);
    assert_eq!(q.len(), b * heads * t * width);
    assert_eq!(k.len(), b * groups * s * width);
    assert_eq!(allowed.len(), b * t * s);
    let mut p = vec![0.0; b * heads * t * s];
    for batch in 0..b {
        for head in 0..heads {
            let group = head / (heads / groups);
            for i in 0..t {
                let query = ((batch * heads + head) * t + i) * width;
                let row = ((batch * heads + head) * t + i) * s;
                let mask = (batch * t + i) * s;
                let mut largest = f64::NEG_INFINITY;
                for j in 0..s {
                    let key = ((batch * groups + group) * s + j) * width;
                    let mut score = 0.0;
                    for e in 0..width {
                        score += q[query + e] * k[key + e];
                    }
                    p[row + j] = capped(scale * score, cap).0;
                    if allowed[mask + j] {
                        largest = largest.max(p[row + j]);
                    }
                }
                assert!((0..s).any(|j| allowed[mask + j]), "a query has no allowed key");
                let mut sum = 0.0;
                for j in 0..s {
                    p[row + j] = if allowed[mask + j] { (p[row + j] - largest).exp() } else { 0.0 };
                    sum += p[row + j];
                }
                for j in 0..s {
                    p[row + j] /= sum;
                }
            }
        }
    }
    p
}

/// `y_i = Σ_j p_ij · v_j` where `p = softmax(cap(scale · q·kᵀ))` over the allowed keys, with q and y
/// `[b, heads, t, width]`, k and v `[b, groups, s, width]`, allowed `[b, t, s]`; query head h reads
/// key head `h / (heads / groups)`. Every query has an allowed key.
pub(crate) fn attention(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    allowed: &[bool],
    scores: (f64, Option<f64>),
    sizes: AttentionSizes,
) -> Vec<f64> {
    let AttentionSizes { b, heads, groups, t, s, width } = sizes;
    assert_eq!(v.len(), b * groups * s * width);
    let p = attention_weights(q, k, allowed, scores, sizes);
    let mut y = vec![0.0; b * heads * t * width];
    for batch in 0..b {
        for head in 0..heads {
            let group = head / (heads / groups);
            for i in 0..t {
                let query = ((batch * heads + head) * t + i) * width;
                let row = ((batch * heads + head) * t + i) * s;
                for j in 0..s {
                    let key = ((batch * groups + group) * s + j) * width;
                    for e in 0..width {
                        y[query + e] += p[row + j] * v[key + e];
                    }
                }
            }
        }
    }
    y
}

/// The gradients `(dq, dk, dv)` of [`attention`]. With `dp_ij = dy_i·v_j` and the gradient of the
/// softmax `dz_ij = p_ij · (dp_ij − Σ_l p_il · dp_il)`, times the slope of the cap:
/// `dq_i = scale · Σ_j dz_ij · k_j`, `dk_j = scale · Σ_i dz_ij · q_i`, `dv_j = Σ_i p_ij · dy_i`,
/// the last two summed over the query heads of the key head too.
pub(crate) fn attention_backward(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    allowed: &[bool],
    scores: (f64, Option<f64>),
    dy: &[f64],
    sizes: AttentionSizes,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let AttentionSizes { b, heads, groups, t, s, width } = sizes;
    assert_eq!(v.len(), b * groups * s * width);
    assert_eq!(dy.len(), b * heads * t * width);
    let p = attention_weights(q, k, allowed, scores, sizes);
    let mut dq = vec![0.0; q.len()];
    let mut dk = vec![0.0; k.len()];
    let mut dv = vec![0.0; v.len()];
    for batch in 0..b {
        for head in 0..heads {
            let group = head / (heads / groups);
            for i in 0..t {
                let query = ((batch * heads + head) * t + i) * width;
                let row = ((batch * heads + head) * t + i) * s;
                let mut dp = vec![0.0; s];
                let mut inner = 0.0;
                for j in 0..s {
                    let key = ((batch * groups + group) * s + j) * width;
                    for e in 0..width {
                        dp[j] += dy[query + e] * v[key + e];
                    }
                    inner += p[row + j] * dp[j];
                }
                for j in 0..s {
                    let key = ((batch * groups + group) * s + j) * width;
                    let product: f64 = (0..width).map(|e| q[query + e] * k[key + e]).sum();
                    let (scale, cap) = scores;
                    let slope = capped(scale * product, cap).1;
                    let dz = p[row + j] * (dp[j] - inner) * slope;
                    for e in 0..width {
                        dq[query + e] += scale * dz * k[key + e];
                        dk[key + e] += scale * dz * q[query + e];
                        dv[key + e] += p[row + j] * dy[query + e];
                    }
                }
            }
        }
    }
    (dq, dk, dv)
}

/// `loss = Σ_i (log Σ_j exp(z_ij) − z_i,target(i))` where `z = cap(hidden·head)`, with hidden `[n, d]`,
/// head `[d, v]`, targets `[n]`. Returns `(loss, dhidden, dhead)`: as
/// `dz_ij = (softmax(z_i)_j − [j = target(i)]) · slope of the cap`, `dhidden = dz·headᵀ` and `dhead = hiddenᵀ·dz`.
pub(crate) fn cross_entropy(
    hidden: &[f64],
    head: &[f64],
    targets: &[usize],
    cap: Option<f64>,
    [n, d, v]: [usize; 3],
) -> (f64, Vec<f64>, Vec<f64>) {
    assert_eq!(targets.len(), n);
    assert!(targets.iter().all(|target| *target < v), "a target is out of range");
    let products = matmul(hidden, head, [n, d, v]);
    let z: Vec<f64> = products.iter().map(|z| capped(*z, cap).0).collect();
    let mut loss = 0.0;
    let mut dz = vec![0.0; n * v];
    for i in 0..n {
        let mut largest = f64::NEG_INFINITY;
        for j in 0..v {
            largest = largest.max(z[i * v + j]);
        }
        let mut sum = 0.0;
        for j in 0..v {
            sum += (z[i * v + j] - largest).exp();
        }
        let log_sum_exp = largest + sum.ln();
        loss += log_sum_exp - z[i * v + targets[i]];
        for j in 0..v {
            dz[i * v + j] = (z[i * v + j] - log_sum_exp).exp();
        }
        dz[i * v + targets[i]] -= 1.0;
    }
    for (dz, product) in dz.iter_mut().zip(&products) {
        *dz *= capped(*product, cap).1;
    }
    let dhidden = matmul(&dz, &transpose(head, [d, v]), [n, v, d]);
    let dhead = matmul(&transpose(hidden, [n, d]), &dz, [d, n, v]);
    (loss, dhidden, dhead)
}

/// `y[i, j] = table[tokens[i], j]`, with table `[v, d]`, tokens `[n]` and y `[n, d]`.
pub(crate) fn embedding(table: &[f64], tokens: &[usize], d: usize) -> Vec<f64> {
    let mut y = vec![0.0; tokens.len() * d];
    for (i, token) in tokens.iter().enumerate() {
        for j in 0..d {
            y[i * d + j] = table[token * d + j];
        }
    }
    y
}

/// The gradient of [`embedding`] with respect to its table: `dtable[r, j] = Σ_i dy[i, j]` over
/// the i where `tokens[i] = r`, with dy `[n, d]` and dtable `[v, d]`.
pub(crate) fn embedding_backward(tokens: &[usize], dy: &[f64], [v, d]: [usize; 2]) -> Vec<f64> {
    assert_eq!(dy.len(), tokens.len() * d);
    let mut dtable = vec![0.0; v * d];
    for (i, token) in tokens.iter().enumerate() {
        for j in 0..d {
            dtable[token * d + j] += dy[i * d + j];
        }
    }
    dtable
}

/// One step of AdamW with decoupled weight decay, as `torch.optim.AdamW`, `step` = t from 1:
/// `p ← p·(1 − rate·weight_decay)`, `m ← β₁·m + (1 − β₁)·g`, `v ← β₂·v + (1 − β₂)·g²`,
/// `p ← p − rate/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε)`, with m `first` and v `second`.
pub(crate) fn adamw(
    parameter: &mut [f64],
    gradient: &[f64],
    first: &mut [f64],
    second: &mut [f64],
    step: usize,
    settings: AdamWSettings,
) {
    let AdamWSettings { rate, beta1, beta2, epsilon, weight_decay } = settings;
    assert!(step >= 1, "steps count from one");
    assert_eq!(parameter.len(), gradient.len());
    assert_eq!(parameter.len(), first.len());
    assert_eq!(parameter.len(), second.len());
    let correction1 = 1.0 - beta1.powf(step as f64);
    let correction2 = 1.0 - beta2.powf(step as f64);
    for i in 0..parameter.len() {
        parameter[i] *= 1.0 - rate * weight_decay;
        first[i] = beta1 * first[i] + (1.0 - beta1) * gradient[i];
        second[i] = beta2 * second[i] + (1.0 - beta2) * gradient[i] * gradient[i];
        let denominator = second[i].sqrt() / correction2.sqrt() + epsilon;
        parameter[i] -= rate / correction1 * first[i] / denominator;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` reproducible values, uniform on [−1, 1), by SplitMix64.
    fn values(seed: u64, n: usize) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x2545_F491_4F6C_DD1D);
        let mut next = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            (z >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(actual.len(), expected.len());
        for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
            assert!((a - e).abs() <= tolerance * (1.0 + e.abs()), "at {i}: {a}, expected {e}");
        }
    }

    /// Asserts that `gradient` is that of `function` at `input`, by central differences
    /// `(f(x + h) − f(x − h)) / 2h`.
    fn assert_gradient(input: &[f64], gradient: &[f64], function: impl Fn(&[f64]) -> f64) {
        let h = 1e-5;
        let mut point = input.to_vec();
        let mut differences = Vec::with_capacity(input.len());
        for i in 0..input.len() {
            point[i] = input[i] + h;
            let above = function(&point);
            point[i] = input[i] - h;
            let below = function(&point);
            point[i] = input[i];
            differences.push((above - below) / (2.0 * h));
        }
        assert!(differences.iter().any(|v| v.abs() > 1e-3), "the check is vacuous");
        assert_close(gradient, &differences, 1e-8);
    }

    #[test]
    fn matmul_and_transpose_match_values_by_hand() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let b = [1.0, 0.0, -1.0, 2.0, 3.0, 1.0];
        assert_eq!(matmul(&a, &b, [2, 3, 2]), [8.0, 7.0, 17.0, 16.0]);
        assert_eq!(transpose(&a, [2, 3]), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    #[test]
    fn lora_linear_matches_values_by_hand() {
        // x·W = [7, 10], x·A = [1·2 + 2·1] = [4], ·B = [4, −4], half of which is [2, −2].
        let (x, w, a, b) = ([1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [2.0, 1.0], [1.0, -1.0]);
        let sizes = [1, 2, 2, 1];
        assert_eq!(lora_linear(&x, &w, None, &a, &b, 0.5, sizes), [9.0, 8.0]);
        assert_eq!(lora_linear(&x, &w, Some(&[10.0, 20.0]), &a, &b, 0.5, sizes), [19.0, 28.0]);
    }

    #[test]
    fn lora_linear_backward_matches_differences() {
        let sizes = [3, 4, 5, 2];
        let [n, d_in, d_out, rank] = sizes;
        let (x, w) = (values(1, n * d_in), values(2, d_in * d_out));
        let (a, b) = (values(3, d_in * rank), values(4, rank * d_out));
        let (bias, dy) = (values(5, d_out), values(6, n * d_out));
        let scale = 1.7;
        let loss = |x: &[f64], w: &[f64], bias: &[f64], a: &[f64], b: &[f64]| {
            dot(&dy, &lora_linear(x, w, Some(bias), a, b, scale, sizes))
        };
        let gradients = lora_linear_backward(&x, &w, &a, &b, scale, &dy, sizes);
        assert_gradient(&x, &gradients.x, |x| loss(x, &w, &bias, &a, &b));
        assert_gradient(&w, &gradients.w, |w| loss(&x, w, &bias, &a, &b));
        assert_gradient(&bias, &gradients.bias, |bias| loss(&x, &w, bias, &a, &b));
        assert_gradient(&a, &gradients.a, |a| loss(&x, &w, &bias, a, &b));
        assert_gradient(&b, &gradients.b, |b| loss(&x, &w, &bias, &a, b));
    }

    #[test]
    fn rms_norm_matches_values_by_hand() {
        // mean(1, 49) + 11 = 36 and mean(9, 1) + 11 = 16.
        let y = rms_norm(&[1.0, -7.0, 3.0, 1.0], &[6.0, 12.0], 11.0, [2, 2]);
        assert_close(&y, &[1.0, -14.0, 4.5, 3.0], 1e-15);
    }

    #[test]
    fn rms_norm_backward_matches_differences() {
        let sizes = [3, 5];
        let (x, weight, dy) = (values(11, 15), values(12, 5), values(13, 15));
        for epsilon in [1e-6, 0.3] {
            let (dx, dweight) = rms_norm_backward(&x, &weight, epsilon, &dy, sizes);
            assert_gradient(&x, &dx, |x| dot(&dy, &rms_norm(x, &weight, epsilon, sizes)));
            assert_gradient(&weight, &dweight, |w| dot(&dy, &rms_norm(&x, w, epsilon, sizes)));
        }
    }

    #[test]
    fn rotary_matches_values_by_hand() {
        // Two positions, two heads of width four; the pairs are (0, 2) and (1, 3).
        let x: Vec<f64> = (1..=16).map(f64::from).collect();
        let cosine = [0.0, 1.0, 0.6, -1.0];
        let sine = [1.0, 0.0, 0.8, 0.0];
        let expected = [
            [-3.0, 2.0, 1.0, 4.0],
            [-7.0, 6.0, 5.0, 8.0],
            [9.0 * 0.6 - 11.0 * 0.8, -10.0, 11.0 * 0.6 + 9.0 * 0.8, -12.0],
            [13.0 * 0.6 - 15.0 * 0.8, -14.0, 15.0 * 0.6 + 13.0 * 0.8, -16.0],
        ];
        for sizes in [[1, 2, 2, 4], [2, 1, 2, 4]] {
            assert_close(&rotary(&x, &cosine, &sine, sizes), expected.as_flattened(), 1e-15);
        }
    }

    #[test]
    fn rotary_backward_matches_differences() {
        let sizes = [2, 3, 2, 6];
        let (x, dy, angles) = (values(21, 72), values(22, 72), values(23, 18));
        let cosine: Vec<f64> = angles.iter().map(|angle| (3.0 * angle).cos()).collect();
        let sine: Vec<f64> = angles.iter().map(|angle| (3.0 * angle).sin()).collect();
        let dx = rotary_backward(&dy, &cosine, &sine, sizes);
        assert_gradient(&x, &dx, |x| dot(&dy, &rotary(x, &cosine, &sine, sizes)));
        // A rotation's transpose is its inverse.
        assert_close(&rotary(&dx, &cosine, &sine, sizes), &dy, 1e-14);
    }

    #[test]
    fn swiglu_matches_values_by_hand() {
        // σ(ln 3) = 3/4 and σ(−ln 3) = 1/4.
        let log = 3.0_f64.ln();
        let y = swiglu(&[0.0, log, -log], &[5.0, 4.0, 8.0]);
        assert_close(&y, &[0.0, 3.0 * log, -2.0 * log], 1e-15);
    }

    #[test]
    fn swiglu_backward_matches_differences() {
        let gate: Vec<f64> = values(31, 12).iter().map(|v| 4.0 * v).collect();
        let (up, dy) = (values(32, 12), values(33, 12));
        let (dgate, dup) = swiglu_backward(&gate, &up, &dy);
        assert_gradient(&gate, &dgate, |gate| dot(&dy, &swiglu(gate, &up)));
        assert_gradient(&up, &dup, |up| dot(&dy, &swiglu(&gate, up)));
    }

    #[test]
    fn gelu_matches_a_table_and_differences() {
        // x·Φ(x), with Φ(1) = 0.8413447460685429 and Φ(−2) = 0.0227501319481792.
        assert!((gelu(1.0).0 - 0.841_344_746_068_542_9).abs() < 1e-14);
        assert!((gelu(-2.0).0 + 2.0 * 0.022_750_131_948_179_2).abs() < 1e-14);
        assert_eq!([gelu(40.0).0, gelu(-40.0).0], [40.0, 0.0]);
        for x in [-3.0, -0.5, 0.0, 0.7, 4.0] {
            let slope = (gelu(x + 1e-5).0 - gelu(x - 1e-5).0) / 2e-5;
            assert!((slope - gelu(x).1).abs() < 1e-8, "{x}");
        }
    }

    #[test]
    fn geglu_matches_values_by_hand_and_differences() {
        // Far out GELU is x or 0; at 1 it is 0.841192 (Hendrycks and Gimpel's approximation).
        let y = geglu(&[0.0, 30.0, -30.0, 1.0], &[5.0, 2.0, 2.0, 1.0]);
        assert_close(&y, &[0.0, 60.0, 0.0, 0.841_191_990_608], 1e-11);
        let gate: Vec<f64> = values(71, 12).iter().map(|v| 4.0 * v).collect();
        let (up, dy) = (values(72, 12), values(73, 12));
        let (dgate, dup) = geglu_backward(&gate, &up, &dy);
        assert_gradient(&gate, &dgate, |gate| dot(&dy, &geglu(gate, &up)));
        assert_gradient(&up, &dup, |up| dot(&dy, &geglu(&gate, up)));
    }

    #[test]
    fn layer_norm_matches_values_by_hand_and_differences() {
        // Mean 2, variance 1.
        let y = layer_norm(&[1.0, 3.0], &[2.0, 10.0], &[0.5, 0.0], 0.0, [1, 2]);
        assert_close(&y, &[-1.5, 10.0], 1e-15);
        let sizes = [3, 5];
        let (x, weight, bias, dy) = (values(74, 15), values(75, 5), values(76, 5), values(77, 15));
        let of = |x: &[f64], w: &[f64], b: &[f64]| dot(&dy, &layer_norm(x, w, b, 1e-2, sizes));
        let (dx, dw, db) = layer_norm_backward(&x, &weight, 1e-2, &dy, sizes);
        assert_gradient(&x, &dx, |x| of(x, &weight, &bias));
        assert_gradient(&weight, &dw, |w| of(&x, w, &bias));
        assert_gradient(&bias, &db, |b| of(&x, &weight, b));
    }

    #[test]
    fn attention_matches_values_by_hand() {
        // One query of each of four heads over two key heads of width one; the third key, whose
        // score is the largest, is not allowed. The scores of the first two differ by ±ln 3.
        let sizes = AttentionSizes { b: 1, heads: 4, groups: 2, t: 1, s: 3, width: 1 };
        let log = 3.0_f64.ln();
        let q = [log, -log, 0.0, log];
        let k = [0.0, 2.0, 900.0, 0.0, -2.0, 900.0];
        let v = [4.0, 8.0, 1e9, 40.0, 80.0, 1e9];
        let y = attention(&q, &k, &v, &[true, true, false], (0.5, None), sizes);
        assert_close(&y, &[7.0, 5.0, 60.0, 50.0], 1e-14);
        let y = attention(&q, &k, &v, &[false, true, false], (0.5, None), sizes);
        assert_close(&y, &[8.0, 8.0, 80.0, 80.0], 1e-14);
    }

    #[test]
    fn attention_reads_its_own_batch_query_and_key() {
        // Each query may look at one key only, so that its output is the value of that key.
        let sizes = AttentionSizes { b: 2, heads: 2, groups: 1, t: 2, s: 3, width: 2 };
        let (q, k) = (values(34, 16), values(35, 12));
        let v: Vec<f64> = (0..12).map(f64::from).collect();
        let looks = [[2, 0], [1, 2]];
        let mut allowed = Vec::new();
        for row in looks.as_flattened() {
            allowed.extend((0..3).map(|j| j == *row));
        }
        let y = attention(&q, &k, &v, &allowed, (0.7, None), sizes);
        let first = [4.0, 5.0, 0.0, 1.0];
        let second = [8.0, 9.0, 10.0, 11.0];
        assert_eq!(y, [first, first, second, second].concat());
    }

    #[test]
    fn attention_does_not_overflow() {
        let sizes = AttentionSizes { b: 1, heads: 1, groups: 1, t: 1, s: 2, width: 1 };
        let y = attention(&[1e3], &[1e3, 1e3], &[1.0, 3.0], &[true, true], (1.0, None), sizes);
        assert_close(&y, &[2.0], 1e-15);
    }

    #[test]
    fn attention_backward_matches_differences() {
        let sizes = AttentionSizes { b: 2, heads: 4, groups: 2, t: 3, s: 5, width: 3 };
        let AttentionSizes { b, heads, groups, t, s, width } = sizes;
        let (q, dy) = (values(41, b * heads * t * width), values(42, b * heads * t * width));
        let (k, v) = (values(43, b * groups * s * width), values(44, b * groups * s * width));
        // A causal mask whose last query is the last key; the second batch lacks the first key.
        let mut allowed = Vec::new();
        for batch in 0..b {
            for i in 0..t {
                allowed.extend((0..s).map(|j| j + t <= i + s && j >= batch));
            }
        }
        for scores in [(1.3, None), (1.3, Some(0.8))] {
            let loss = |q: &[f64], k: &[f64], v: &[f64]| {
                dot(&dy, &attention(q, k, v, &allowed, scores, sizes))
            };
            let (dq, dk, dv) = attention_backward(&q, &k, &v, &allowed, scores, &dy, sizes);
            assert_gradient(&q, &dq, |q| loss(q, &k, &v));
            assert_gradient(&k, &dk, |k| loss(&q, k, &v));
            assert_gradient(&v, &dv, |v| loss(&q, &k, v));
        }
    }

    #[test]
    fn cross_entropy_matches_values_by_hand() {
        // The logits are (0, ln 3) and (0, −ln 3): the target has probability 3/4, then 3/4.
        let log = 3.0_f64.ln();
        let (loss, _, _) = cross_entropy(&[1.0, -1.0], &[0.0, log], &[1, 0], None, [2, 1, 2]);
        assert_close(&[loss], &[2.0 * (4.0_f64 / 3.0).ln()], 1e-15);
        // Large logits do not overflow: log(e^1000 + e^1000) − 1000 = log 2.
        let (loss, dhidden, dhead) = cross_entropy(&[1.0], &[1e3, 1e3], &[0], None, [1, 1, 2]);
        assert_close(&[loss], &[2.0_f64.ln()], 1e-12);
        assert_close(&dhidden, &[0.0], 1e-9);
        assert_close(&dhead, &[-0.5, 0.5], 1e-12);
    }

    #[test]
    fn cross_entropy_gradients_match_differences() {
        let sizes = [4, 3, 6];
        let (hidden, head) = (values(51, 12), values(52, 18));
        let targets = [5, 0, 2, 2];
        for cap in [None, Some(0.6)] {
            let (_, dhidden, dhead) = cross_entropy(&hidden, &head, &targets, cap, sizes);
            assert_gradient(&hidden, &dhidden, |h| cross_entropy(h, &head, &targets, cap, sizes).0);
            assert_gradient(&head, &dhead, |h| cross_entropy(&hidden, h, &targets, cap, sizes).0);
        }
    }

    #[test]
    fn embedding_matches_values_by_hand() {
        let table = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(embedding(&table, &[2, 0, 2], 2), [5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
    }

    #[test]
    fn embedding_backward_matches_differences() {
        let tokens = [3, 1, 3, 0];
        let (table, dy) = (values(61, 15), values(62, 12));
        let dtable = embedding_backward(&tokens, &dy, [5, 3]);
        assert_gradient(&table, &dtable, |table| dot(&dy, &embedding(table, &tokens, 3)));
    }

    #[test]
    fn adamw_matches_values_by_hand() {
        let settings =
            AdamWSettings { rate: 0.1, beta1: 0.5, beta2: 0.75, epsilon: 1.0, weight_decay: 0.2 };
        let (mut parameter, mut first, mut second) = ([1.0], [0.0], [0.0]);
        // m = 1, v = 1, corrections 1/2 and 1/4: p = 0.98 − 0.1 · 2 / (2 + 1).
        adamw(&mut parameter, &[2.0], &mut first, &mut second, 1, settings);
        let expected = 0.98 - 0.2 / 3.0;
        assert_close(&[parameter[0], first[0], second[0]], &[expected, 1.0, 1.0], 1e-15);
        // m = 0.5 − 1.5 = −1, v = 0.75 + 2.25 = 3, corrections 3/4 and 7/16:
        // p ← 0.98·p + 0.1 · 4/3 / (√(48/7) + 1).
        adamw(&mut parameter, &[-3.0], &mut first, &mut second, 2, settings);
        let expected = 0.98 * expected + 0.4 / 3.0 / ((48.0_f64 / 7.0).sqrt() + 1.0);
        assert_close(&[parameter[0], first[0], second[0]], &[expected, -1.0, 3.0], 1e-15);
    }

    #[test]
    fn adamw_of_a_constant_gradient_moves_by_the_rate() {
        // The corrected moments of a constant gradient are g and g² at every step.
        let settings = AdamWSettings {
            rate: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
        };
        let gradient = [0.3, -2.0];
        let (mut parameter, mut first, mut second) = ([0.5, -0.7], [0.0; 2], [0.0; 2]);
        let mut expected = parameter;
        for step in 1..=50 {
            adamw(&mut parameter, &gradient, &mut first, &mut second, step, settings);
            for i in 0..2 {
                expected[i] *= 1.0 - 1e-4;
                expected[i] -= 1e-2 * gradient[i] / (gradient[i].abs() + 1e-8);
            }
            assert_close(&parameter, &expected, 1e-12);
        }
    }
}
