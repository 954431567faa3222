//! What a run will need, from headers alone: no weight is read.

use std::fmt;

use lora_core::device::{Backend, DeviceSpec};
use lora_core::placement::{DType, Placement, Precision, Quantize};
use lora_core::report::ParameterReport;
use lora_models::formats::StoredType;
use lora_models::{Checkpoint, DecoderConfig, expected_tensors, linear_infos, trained_tensors};

use crate::batches::BatchStream;
use crate::data::{Dataset, Example};
use crate::error::{Error, Result};
use crate::recipe::{Method, Run};

/// Bytes of one f32 number.
const NUMBER: u64 = 4;

/// The program itself, buffers of its kernels, and what the largest tensor needs while it is read.
const PROGRAM: u64 = 110_000_000;

/// Sizes of a run before it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What is trained.
    pub parameters: ParameterReport,
    /// Memory by part, in bytes.
    pub memory: Vec<(&'static str, u64)>,
    /// Rows, tokens and steps, where the data was read.
    pub work: Option<Work>,
}

/// How much a run has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Rows of the training data.
    pub rows: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Their learned tokens; none of an encoder's.
    pub learned_tokens: Option<usize>,
    /// Optimizer steps.
    pub steps: usize,
}

impl Plan {
    /// Sum of the memory's parts.
    pub fn total_bytes(&self) -> u64 {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Plans `run` on `checkpoint`, of which only headers are read.
///
/// # Errors
/// Targets that match nothing; blocks to be kept of a file that has none.
pub fn plan(run: &Run, checkpoint: &Checkpoint, dataset: Option<&Dataset>) -> Result<Plan> {
    let config = &checkpoint.config;
    let parameters = parameters(run, config)?;
    let weights = &checkpoint.weights;
    if run.quantize == Quantize::Keep {
        let mut stored = weights.names().into_iter().filter_map(|name| weights.stored_type(&name));
        if !stored.any(StoredType::is_quantised) {
            let reason = "quantize = \"keep\": no weight in this file is in blocks";
            return Err(
                Error::malformed(weights.path(), reason).with_hint("use \"nf4\" or \"int8\"")
            );
        }
    }
    let (base_part, number) = match (run.precision, &run.method) {
        (Precision::Bf16, Method::Lora(_)) => ("base weights, bf16", NUMBER / 2),
        (Precision::F16, Method::Lora(_)) => ("base weights, f16", NUMBER / 2),
        // What `auto` takes depends on the device; this is the most it can be.
        _ => ("base weights, f32", NUMBER),
    };
    let (base_part, base) = match run.quantize {
        Quantize::None => match in_bf16(run, checkpoint) {
            0 => (base_part, config.parameter_count() * number),
            narrow => {
                let narrow = narrow.min(config.parameter_count());
                let rest = config.parameter_count() - narrow;
                ("base weights, bf16", narrow * NUMBER / 2 + rest * NUMBER)
            }
        },
        quantize => at_rest(quantize, checkpoint, number),
    };
    let trained = parameters.trainable * NUMBER;
    let mut memory = vec![
        (base_part, base),
        ("adapter", if run.method == Method::Full { 0 } else { trained }),
        ("gradients", trained),
        ("optimizer, two moments", 2 * trained),
    ];
    if run.quantize != Quantize::None {
        let unpacked = unpacked_at_once(run.quantize, config) * number;
        memory.insert(1, ("weights unpacked at once", unpacked));
    }
    match kernel_format(run, config) {
        Some(number) => memory = with_program(memory, by_kernels(run, config, number)),
        None => memory.extend(by_operations(run, config)),
    }
    let learned = |dataset: &Dataset| dataset.examples.iter().map(Example::learned_tokens).sum();
    let work = dataset.map(|dataset| Work {
        rows: dataset.examples.len(),
        tokens: dataset.examples.iter().map(|example| example.tokens.len()).sum(),
        learned_tokens: config.encoder.is_none().then(|| learned(dataset)),
        steps: BatchStream::new(dataset, &run.data, &run.train, 0).total_steps(),
    });
    Ok(Plan { parameters, memory, work })
}

/// Numbers of what is unpacked together: layers on one input, or a packed head while the loss is computed.
fn unpacked_at_once(quantize: Quantize, config: &DecoderConfig) -> u64 {
    let inner = linear_infos(config).into_iter().filter(|linear| !linear.is_output_head);
    let largest = inner.map(|linear| linear.d_in * linear.d_out).max().unwrap_or_default();
    let head = if quantize == Quantize::Keep { config.vocab_size * config.hidden_size } else { 0 };
    (2 * largest).max(head) as u64
}

/// The base with its linear layers in few bits; what is in between, `number` bytes for each.
fn at_rest(quantize: Quantize, checkpoint: &Checkpoint, number: u64) -> (&'static str, u64) {
    let config = &checkpoint.config;
    let inner = || linear_infos(config).into_iter().filter(|linear| !linear.is_output_head);
    let in_linears: u64 = inner().map(|linear| (linear.d_in * linear.d_out) as u64).sum();
    let outputs: u64 = inner().map(|linear| linear.d_out as u64).sum();
    let rest = (config.parameter_count() - in_linears) * number;
    match quantize {
        Quantize::None => ("base weights", rest + in_linears * number),
        // Half a byte each, a byte for 64, four for 64 · 256.
        Quantize::Nf4 => ("base weights, NF4", rest + in_linears / 2 + in_linears / 64),
        Quantize::Int8 => ("base weights, INT8", rest + in_linears + 4 * outputs),
        Quantize::Keep => {
            let names = checkpoint.weights.names();
            let bytes = names.iter().filter_map(|name| {
                let (stored, shape) =
                    (checkpoint.weights.stored_type(name)?, checkpoint.weights.shape(name)?);
                let count: u64 = shape.iter().map(|side| *side as u64).product();
                let packed = stored.bytes_of(&shape).filter(|_| stored.is_quantised());
                Some(packed.map_or(count * number, |bytes| bytes as u64))
            });
            ("base weights, as stored", bytes.sum())
        }
    }
}

fn parameters(run: &Run, config: &DecoderConfig) -> Result<ParameterReport> {
    let base = config.parameter_count();
    let Method::Lora(lora) = &run.method else {
        let keys = expected_tensors(config);
        let whole = ParameterReport::new(base, true, &[]);
        debug_assert!(!keys.is_empty());
        return Ok(ParameterReport { trainable: base, total: base, ..whole });
    };
    let mut tensors = trained_tensors(config, lora)?;
    if run.train.lora_fa {
        tensors.retain(|(key, _)| !key.ends_with(".lora_A.weight"));
    }
    Ok(ParameterReport::new(base, false, &tensors))
}

fn chunk(run: &Run, tokens: u64) -> u64 {
    (run.train.loss_chunk_tokens as u64).min(tokens)
}

/// Numbers of matrices that rest in bf16 as the file has them, though f32 is computed with.
fn in_bf16(run: &Run, checkpoint: &Checkpoint) -> u64 {
    if !placement_by_kernels(run).is_some_and(|placement| placement.bf16_where_exact) {
        return 0;
    }
    let weights = &checkpoint.weights;
    let names = weights.names().into_iter();
    let stored = names.filter(|name| weights.stored_type(name) == Some(StoredType::BF16));
    let shapes = stored.filter_map(|name| weights.shape(&name)).filter(|shape| shape.len() == 2);
    shapes.map(|shape| shape.iter().map(|side| *side as u64).product::<u64>()).sum()
}

/// Where the processor's kernels train an adapter; `None` elsewhere.
fn placement_by_kernels(run: &Run) -> Option<Placement> {
    let device = DeviceSpec::parse(&run.device).ok()?.open().ok()?;
    if device.backend != Backend::Cpu || run.method == Method::Full {
        return None;
    }
    Some(Placement::new(&device, run.precision, run.quantize, false).ok()?.0)
}

/// Bytes of a number of an activation where the processor's kernels train an adapter; `None` elsewhere.
fn kernel_format(run: &Run, config: &DecoderConfig) -> Option<u64> {
    if config.score_cap.is_some() || config.encoder.is_some() {
        return None;
    }
    match placement_by_kernels(run)?.compute {
        DType::F32 => Some(NUMBER),
        DType::BF16 => Some(NUMBER / 2),
        _ => None,
    }
}

/// What the kernels keep and work with. Each keeps its input, as little as its backward pass needs, and attention
/// no scores.
fn by_kernels(run: &Run, config: &DecoderConfig, number: u64) -> Vec<(&'static str, u64)> {
    let tokens = (run.train.batch_size * run.data.max_tokens) as u64;
    let [d, wide, blocks] =
        [config.hidden_size, config.intermediate_size, config.num_hidden_layers].map(|n| n as u64);
    let query = (config.num_attention_heads * config.head_dim) as u64;
    let key = (config.num_key_value_heads * config.head_dim) as u64;
    // Inputs of both norms and of what follows them; of attention and of its output; of the activation, with
    // its gate, and of the layer after it.
    let block = tokens * number * (4 * d + 2 * (query + key) + 3 * wide);
    let stream = tokens * number * d;
    let kept = if run.train.recompute { block + blocks * stream } else { blocks * block };
    // Gradients on their way through a block. With recomputation the logits, which are gone then, leave room.
    let passing = if run.train.recompute { block } else { 2 * block };
    let logits = chunk(run, tokens) * config.vocab_size as u64 * NUMBER;
    vec![("activations", kept), ("gradients of a block", passing), ("logits of one chunk", logits)]
}

/// All parts, and what the process needs besides: what it gives back the allocator keeps.
fn with_program(
    mut memory: Vec<(&'static str, u64)>,
    more: Vec<(&'static str, u64)>,
) -> Vec<(&'static str, u64)> {
    memory.extend(more);
    let all: u64 = memory.iter().map(|(_, bytes)| bytes).sum();
    memory.push(("program and allocator", PROGRAM + all * 8 / 100));
    memory
}

/// What Burn's operations keep, at most.
fn by_operations(run: &Run, config: &DecoderConfig) -> Vec<(&'static str, u64)> {
    let activations = ("activations, at most", activations(run, config));
    if config.encoder.is_some() {
        return vec![activations];
    }
    let tokens = (run.train.batch_size * run.data.max_tokens) as u64;
    let logits = 3 * chunk(run, tokens) * config.vocab_size as u64 * NUMBER;
    vec![activations, ("logits of one chunk", logits)]
}

/// What the backward pass keeps of the forward pass, for full micro-batches.
fn activations(run: &Run, config: &DecoderConfig) -> u64 {
    let rows = run.train.batch_size as u64;
    let columns = run.data.max_tokens as u64;
    let tokens = rows * columns;
    let d = config.hidden_size as u64;
    let query = (config.num_attention_heads * config.head_dim) as u64;
    let key = (config.num_key_value_heads * config.head_dim) as u64;
    // Per token: the stream, both norms and their parts; projections before and after rotation; the
    // gated product and its factors. Per pair of tokens and head: scores and probabilities.
    let per_token = 10 * d + 4 * (query + 2 * key) + 5 * config.intermediate_size as u64;
    let scores = 3 * rows * config.num_attention_heads as u64 * columns * columns;
    let block = (per_token * tokens + scores) * NUMBER;
    let blocks = config.num_hidden_layers as u64;
    if run.train.recompute { block + blocks * tokens * d * NUMBER } else { block * blocks }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.parameters)?;
        writeln!(f, "memory")?;
        for (part, size) in &self.memory {
            writeln!(f, "  {part:<24} {:>10}", bytes(*size))?;
        }
        write!(f, "  {:<24} {:>10}", "together, at most", bytes(self.total_bytes()))?;
        if let Some(work) = &self.work {
            write!(f, "\n\nwork")?;
            let learned = work.learned_tokens.map(|count| ("learned tokens", count));
            let parts = [("rows", work.rows), ("tokens", work.tokens)].into_iter();
            for (part, count) in parts.chain(learned).chain([("steps", work.steps)]) {
                write!(f, "\n  {part:<24} {count:>10}")?;
            }
        }
        Ok(())
    }
}

/// A number of bytes in decimal units, as disks and memory are sold.
pub fn bytes(count: u64) -> String {
    const UNITS: [(&str, f64); 3] = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    for (unit, size) in UNITS {
        if count as f64 >= size {
            return format!("{:.1} {unit}", count as f64 / size);
        }
    }
    format!("{count} B")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use std::path::Path;

    use crate::recipe::Run;
    use lora_models::families::decoder_config;

    type Measured = (usize, usize, bool, Option<f64>, Option<f64>);

    /// Peaks of `VmHWM` in megabytes, as `lora bench train` measured them on two cores of an Intel Xeon with AMX
    /// in November 2026 (docs/performance.md): batch, tokens, whether recomputed, f32, bf16. The model is
    /// SmolLM2-135M's shape with an adapter of rank 8 on every linear layer; in f32 its weights rest so.
    const MEASURED: [Measured; 6] = [
        (4, 256, false, Some(2_040.0), Some(1_130.0)),
        (4, 256, true, None, Some(590.0)),
        (1, 512, true, None, Some(550.0)),
        (1, 1024, true, None, Some(600.0)),
        (1, 2048, true, None, Some(660.0)),
        (1, 4096, true, None, Some(790.0)),
    ];

    #[test]
    fn a_plan_says_what_is_measured() {
        let config = serde_json::json!({
            "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576,
            "intermediate_size": 1_536, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "max_position_embeddings": 8_192, "rms_norm_eps": 1e-5,
            "rope_theta": 100_000.0, "tie_word_embeddings": true, "hidden_act": "silu",
        });
        let config = decoder_config(&config, Path::new("config.json")).unwrap();
        let trained = 2_442_240 * NUMBER;
        for (batch_size, max_tokens, recompute, f32, bf16) in MEASURED {
            let mut run = Run::new("builtin:", "rows.jsonl");
            (run.train.batch_size, run.train.recompute) = (batch_size, recompute);
            run.data.max_tokens = max_tokens;
            // The same in f32 with weights that rest in bf16.
            let at_rest = f32.map(|_| 1_780.0);
            for (measured, number, base) in [(f32, 4, 4), (at_rest, 4, 2), (bf16, 2, 2)] {
                let Some(measured) = measured else { continue };
                let mut memory = vec![("base", config.parameter_count() * base)];
                memory.push(("trained", 4 * trained));
                let planned = with_program(memory, by_kernels(&run, &config, number));
                let planned: u64 = planned.iter().map(|(_, bytes)| bytes).sum();
                let ratio = planned as f64 / (measured * 1e6);
                let what =
                    format!("{batch_size} x {max_tokens}, {base} and {number} bytes: {ratio:.3}");
                assert!((0.98..1.10).contains(&ratio), "{what}");
            }
        }
    }
}
