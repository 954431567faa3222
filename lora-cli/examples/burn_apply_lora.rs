//! What `lora bench train` times, by Burn's own modules and its `apply_lora`: a decoder of SmolLM2-135M's shape,
//! random weights and tokens, the head tied to the embedding. Prints the same line of JSON, and
//! `cargo xtask bench` sets it beside ours.
//!
//! Forward and backward alone: no optimizer moves the factors, which is in Burn's favour.

#[path = "../src/allocator.rs"]
mod allocator;

use std::time::Instant;

use burn::module::{Lora, Module};
use burn::nn::{
    Linear, LinearConfig, RmsNorm, RmsNormConfig, RotaryEncoding, RotaryEncodingConfig,
};
use burn::tensor::activation::{log_softmax, silu, softmax};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use lora_train::memory::{peak_bytes, resident_bytes};

const BLOCKS: usize = 30;
const WIDTH: usize = 576;
const HEADS: usize = 9;
const KEY_HEADS: usize = 3;
const HEAD_WIDTH: usize = 64;
const FEED_FORWARD: usize = 1536;
const VOCABULARY: usize = 49152;
const RANK: usize = 8;
const ALPHA: f64 = 16.0;

#[derive(Module, Debug)]
struct Block {
    attention_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
struct Blocks {
    blocks: Vec<Block>,
}

struct Model {
    adapted: Blocks,
    norm: RmsNorm,
    rotary: RotaryEncoding,
    /// `[v, d]`, frozen.
    embedding: Tensor<2>,
}

#[expect(clippy::print_stdout, reason = "one line is what it is for")]
fn main() {
    allocator::keep_pages();
    let start = resident_bytes();
    let number = |name: &str, otherwise: usize| {
        let words: Vec<String> = std::env::args().collect();
        let at = words.iter().position(|word| word == name);
        at.and_then(|at| words.get(at + 1)?.parse().ok()).unwrap_or(otherwise)
    };
    let (batch, sequence) = (number("--batch", 4), number("--sequence", 256));
    let (warmup, steps) = (number("--warmup-steps", 1), number("--steps", 3));
    let is_paced = std::env::args().any(|word| word == "--paced");
    let has_turn = || {
        if is_paced {
            println!(".");
        }
        !is_paced || std::io::stdin().read_line(&mut String::new()).is_ok_and(|read| read > 0)
    };
    let device = Device::default().autodiff();
    device.seed(1);
    let model = Model::new(&device);
    let (mut step_ms, mut losses) = (Vec::new(), Vec::new());
    for step in 0..warmup + steps {
        let tokens = random_tokens(batch, sequence, &device);
        if !has_turn() {
            break;
        }
        let started = Instant::now();
        let loss = model.loss(tokens);
        let gradients = loss.backward();
        std::hint::black_box(&gradients);
        if step >= warmup {
            step_ms.push(started.elapsed().as_secs_f64() * 1e3);
        }
        losses.push(loss.inner().into_scalar::<f32>());
    }
    // So that who measures knows when the last step ended.
    has_turn();
    let speeds: Vec<f64> =
        step_ms.iter().map(|milliseconds| (batch * sequence) as f64 / milliseconds * 1e3).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let line = serde_json::json!({
        "kind": "train", "device": "cpu", "dtype": "f32", "threads": threads,
        "tok_s": speeds, "step_ms": step_ms,
        "loss_first": losses.first(), "loss_last": losses.last(),
        "start_rss_mb": start as f64 / 1e6, "peak_rss_mb": peak_bytes() as f64 / 1e6,
    });
    println!("{line}");
}

fn random_tokens(batch: usize, sequence: usize, device: &Device) -> Tensor<2, Int> {
    let distribution = Distribution::Uniform(0.0, VOCABULARY as f64);
    let tokens = Tensor::<2>::random([batch, sequence + 1], distribution, &device.clone().inner());
    tokens.int()
}

impl Model {
    fn new(device: &Device) -> Self {
        let linear = |d_in, d_out| LinearConfig::new(d_in, d_out).with_bias(false).init(device);
        let norm = || RmsNormConfig::new(WIDTH).with_epsilon(1e-5).init(device);
        let block = |_| Block {
            attention_norm: norm(),
            query: linear(WIDTH, HEADS * HEAD_WIDTH),
            key: linear(WIDTH, KEY_HEADS * HEAD_WIDTH),
            value: linear(WIDTH, KEY_HEADS * HEAD_WIDTH),
            output: linear(HEADS * HEAD_WIDTH, WIDTH),
            mlp_norm: norm(),
            gate: linear(WIDTH, FEED_FORWARD),
            up: linear(WIDTH, FEED_FORWARD),
            down: linear(FEED_FORWARD, WIDTH),
        };
        let blocks = Blocks { blocks: (0..BLOCKS).map(block).collect() };
        let distribution = Distribution::Normal(0.0, 0.02);
        Self {
            adapted: blocks.apply_lora(Lora::new(RANK, ALPHA)),
            norm: norm().freeze(),
            rotary: RotaryEncodingConfig::new(8192, HEAD_WIDTH).with_theta(1e5).init(device),
            embedding: Tensor::random([VOCABULARY, WIDTH], distribution, &device.clone().inner()),
        }
    }

    /// The mean loss of every next token; `tokens`, `[b, t + 1]`.
    fn loss(&self, tokens: Tensor<2, Int>) -> Tensor<1> {
        let [b, all] = tokens.dims();
        let t = all - 1;
        let inputs = tokens.clone().narrow(1, 0, t).reshape([b * t]);
        let targets = tokens.narrow(1, 1, t).reshape([b * t, 1]);
        let mut x = self.embedding.clone().select(0, inputs).autodiff().reshape([b, t, WIDTH]);
        let mask = causal_mask(t, &x.device());
        for block in &self.adapted.blocks {
            x = block.forward(x, &self.rotary, &mask);
        }
        let hidden = self.norm.forward(x).reshape([b * t, WIDTH]);
        let logits = hidden.matmul(self.embedding.clone().autodiff().transpose());
        log_softmax(logits, 1).gather(1, targets).mean().neg()
    }
}

/// `[1, 1, t, t]`: 0 where a query may look, far below every score elsewhere.
fn causal_mask(t: usize, device: &Device) -> Tensor<4> {
    let scores: Vec<f32> = (0..t * t).map(|at| if at % t <= at / t { 0.0 } else { -1e9 }).collect();
    Tensor::from_data(TensorData::new(scores, [1, 1, t, t]), device)
}

impl Block {
    fn forward(&self, x: Tensor<3>, rotary: &RotaryEncoding, mask: &Tensor<4>) -> Tensor<3> {
        let [b, t, _] = x.dims();
        let normed = self.attention_norm.forward(x.clone());
        let heads = |layer: &Linear, count: usize| {
            let heads = layer.forward(normed.clone()).reshape([b, t, count, HEAD_WIDTH]);
            heads.swap_dims(1, 2) // [b, h, t, w]
        };
        let shared = |x: Tensor<4>| {
            let times = HEADS / KEY_HEADS;
            let grouped: Tensor<5> = x.unsqueeze_dim(2);
            grouped.repeat_dim(2, times).reshape([b, HEADS, t, HEAD_WIDTH])
        };
        let query = rotary.forward(heads(&self.query, HEADS));
        let key = shared(rotary.forward(heads(&self.key, KEY_HEADS)));
        let value = shared(heads(&self.value, KEY_HEADS));
        let scores = query.matmul(key.transpose()) / (HEAD_WIDTH as f64).sqrt() + mask.clone();
        let mixed = softmax(scores, 3).matmul(value);
        let mixed = mixed.swap_dims(1, 2).reshape([b, t, HEADS * HEAD_WIDTH]);
        let x = x + self.output.forward(mixed);
        let normed = self.mlp_norm.forward(x.clone());
        let gated = silu(self.gate.forward(normed.clone())) * self.up.forward(normed);
        x + self.down.forward(gated)
    }
}
