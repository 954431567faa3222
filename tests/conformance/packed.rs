//! A base in few bits against the same numbers dense: on every backend it computes what they compute,
//! forward, backward and through the cache.

use half::f16;
use lora_core::packed::{Blocks, GgufFormat, Packed};
use lora_core::parameter::{Parameter, read_f32};
use lora_core::placement::{Placement, Quantize};
use lora_models::export_gguf::save_gguf;
use lora_models::formats::StoredType;
use lora_models::generate::all_logits;
use lora_models::kv_cache::KvCache;
use lora_models::{Checkpoint, Decoder, Input, OpenOptions, Trainable};
use lora_train::data::Batch;
use lora_train::step::{StepSettings, window_gradients};

use crate::case::{Case, Lab, worst};
use crate::equalities::{apart, attach, builtin, every_method_merged, every_method_stored};

/// The same numbers in the same sums; elsewhere than on the processor in another order.
const ROUNDING: f64 = 1e-5;
const ADAPTER: &str = "adapter";
const TOKENS: [u32; 9] = [5, 17, 300, 42, 9, 800, 3, 77, 501];

/// The rows of this file.
pub(crate) fn cases() -> Vec<Case> {
    type Check = fn(&Placement) -> f64;
    let checks: [(&str, Check); 13] = [
        ("every format unpacked", unpacked),
        ("nf4 and its numbers", |placement| quantised_and_dense(placement, Quantize::Nf4)),
        ("int8 and its numbers", |placement| quantised_and_dense(placement, Quantize::Int8)),
        ("the blocks of a Q8_0 file and its numbers", |placement| {
            kept(placement, StoredType::Q8_0)
        }),
        ("the blocks of a Q4_0 file and its numbers", |placement| {
            kept(placement, StoredType::Q4_0)
        }),
        ("small buffers and large ones", small_buffers),
        ("several formats on one input", several_formats),
        ("bf16 numbers at rest as such, and in f32", at_rest_in_bf16),
        ("several formats on one input, bf16 one of them", |placement| {
            several_formats(&placement.clone().in_bf16_where_exact())
        }),
        ("every method beside bf16 at rest, merged and not", |placement| {
            every_method_merged(&placement.clone().in_bf16_where_exact())
        }),
        ("every method beside bf16 at rest, stored and not", |placement| {
            every_method_stored(&placement.clone().in_bf16_where_exact())
        }),
        ("every method beside nf4, merged and not", |placement| {
            every_method_merged(&placement.clone().quantized(Quantize::Nf4))
        }),
        ("every method beside nf4, stored and not", |placement| {
            every_method_stored(&placement.clone().quantized(Quantize::Nf4))
        }),
    ];
    let case = |(name, check): (&str, Check)| {
        let run = move |lab: &mut Lab| Ok(check(&lab.f32()));
        Case::new(format!("packed/{name}"), "itself", ROUNDING, run)
    };
    checks.into_iter().map(case).collect()
}

fn unpacked(placement: &Placement) -> f64 {
    use GgufFormat::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let shape = [6, 512];
    let numbers: Vec<f32> = (0..6 * 512).map(|at| ((at * 37 % 101) as f32 - 50.0) / 9.0).collect();
    let mut all = vec![Blocks::nf4(&numbers, shape), Blocks::int8(&numbers, shape)];
    for format in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K] {
        let (block, size) = format.block();
        let count = 6 * 512 / block * size;
        let mut bytes: Vec<u8> = (0..count).map(|at| (at * 89 + at / 7) as u8).collect();
        for (at, block) in bytes.chunks_exact_mut(size).enumerate() {
            let scale = f16::from_f32(0.01 + at as f32 / 64.0).to_le_bytes();
            let place = if format == Q6K { 208 } else { 0 };
            block[place..place + 2].copy_from_slice(&scale);
            if matches!(format, Q4_1 | Q5_1 | Q4K | Q5K) {
                block[2..4].copy_from_slice(&f16::from_f32(-0.5).to_le_bytes());
            }
        }
        all.push(Blocks::gguf(format, shape, bytes).unwrap());
    }
    let differences = all.into_iter().map(|blocks| {
        let mut expected = vec![0.0; 6 * 512];
        blocks.unpack(&mut expected);
        let packed = Packed::new(blocks, &placement.device, placement.weights).unwrap();
        let found = read_f32(packed.unpack());
        let some: Vec<f32> =
            [4, 1].iter().flat_map(|row| expected[row * 512..][..512].to_vec()).collect();
        worst(apart(&found, &expected), apart(&read_f32(packed.select(&[4, 1])), &some))
    });
    differences.fold(0.0, worst)
}

/// Logits in one pass, logits token by token, and every gradient, with an adapter.
fn everything(decoder: &mut Decoder) -> [Vec<f32>; 3] {
    attach(decoder, ADAPTER, 0.0, 1);
    let whole = all_logits(decoder, &TOKENS).unwrap();
    let mut cache = KvCache::new();
    let mut single = Vec::new();
    for token in TOKENS {
        let input = Input::single(&[token], cache.len());
        let hidden = decoder.forward(&input, Some(&mut cache));
        single.extend(read_f32(decoder.logits(hidden)));
    }
    let trainable = Trainable::Adapter(ADAPTER.into());
    decoder.set_trainable(&trainable).unwrap();
    let columns = TOKENS.len();
    let batch = Batch {
        rows: 1,
        columns,
        tokens: TOKENS.iter().map(|token| *token as i32).collect(),
        targets: TOKENS.iter().map(|token| (*token as i32 + 7) % 1000).collect(),
        positions: (0..columns as i32).collect(),
        documents: vec![0; columns],
        learned_tokens: columns,
        ..Batch::default()
    };
    let settings = StepSettings {
        recompute: decoder.placement().keeps_unpacked(),
        loss_chunk_tokens: 5,
        dropout_seed: 0,
    };
    let found = window_gradients(decoder, &trainable, &[batch], &settings);
    let gradients = found.gradients.into_iter().flat_map(|gradient| gradient.unwrap()).collect();
    [whole, single, gradients]
}

fn distance(a: &[Vec<f32>; 3], b: &[Vec<f32>; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| apart(a, b)).fold(0.0, worst)
}

fn quantised_and_dense(placement: &Placement, quantize: Quantize) -> f64 {
    let mut packed = builtin(&placement.clone().quantized(quantize));
    assert!(packed.resident_bytes() < builtin(placement).resident_bytes() / 2);
    let mut dense = builtin(placement);
    for (dense, packed) in dense.linears_mut().into_iter().zip(packed.linears()) {
        dense.weight_mut().set(packed.weight().value());
    }
    let expected = everything(&mut dense);
    let base = everything(&mut builtin(placement));
    assert!(distance(&expected, &base) > 1e-3, "{quantize} changes nothing");
    distance(&everything(&mut packed), &expected)
}

/// The carried model's file has bf16 numbers, tied table and all.
fn at_rest_in_bf16(placement: &Placement) -> f64 {
    let at_rest = placement.clone().in_bf16_where_exact();
    let (mut narrow, mut wide) = (builtin(&at_rest), builtin(placement));
    if at_rest.bf16_where_exact {
        assert!(narrow.resident_bytes() < wide.resident_bytes() * 51 / 100);
    }
    assert!(narrow.tensors().eq(wide.tensors()), "every bit");
    distance(&everything(&mut narrow), &everything(&mut wide))
}

/// What the largest buffer could not hold unpacked stays dense.
fn small_buffers(placement: &Placement) -> f64 {
    let packed = placement.clone().quantized(Quantize::Nf4);
    let small = Placement { buffer_limit: Some(1 << 16), ..packed.clone() };
    let mut mixed = builtin(&small);
    let is_packed = |decoder: &Decoder| {
        let linears = decoder.linears();
        linears.iter().filter(|linear| linear.weight().packed().is_some()).count()
    };
    assert!(is_packed(&mixed) > 0 && is_packed(&mixed) < is_packed(&builtin(&packed)));
    // Rounded all the same.
    distance(&everything(&mut mixed), &everything(&mut builtin(&packed)))
}

/// Queries in one format, keys in another, values dense.
fn several_formats(placement: &Placement) -> f64 {
    let mut mixed = builtin(placement);
    let shape = |weight: &[usize; 2]| [weight[1], weight[0]];
    for linear in mixed.linears_mut() {
        let rows = read_f32(linear.weight().value().transpose());
        let blocks = match linear.path() {
            path if path.contains("q_proj") => Blocks::int8(&rows, shape(&linear.weight().dims())),
            path if path.contains("k_proj") => Blocks::nf4(&rows, shape(&linear.weight().dims())),
            _ => continue,
        };
        let packed = Packed::new(blocks, &placement.device, placement.weights).unwrap();
        *linear.weight_mut() = Parameter::packed_weight(packed);
    }
    let mut dense = builtin(placement);
    for (dense, mixed) in dense.linears_mut().into_iter().zip(mixed.linears()) {
        dense.weight_mut().set(mixed.weight().value());
    }
    let base = everything(&mut builtin(placement));
    let expected = everything(&mut dense);
    assert!(distance(&expected, &base) > 1e-4, "packing changes nothing");
    distance(&everything(&mut mixed), &expected)
}

fn kept(placement: &Placement, stored: StoredType) -> f64 {
    let checkpoint = Checkpoint::open("builtin:", &OpenOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    save_gguf(&checkpoint, &builtin(placement), &path, stored).unwrap();
    let file = Checkpoint::open(path.to_str().unwrap(), &OpenOptions::default()).unwrap();
    let mut dense = file.load(placement).unwrap();
    let mut packed = file.load(&placement.clone().quantized(Quantize::Keep)).unwrap();
    assert!(packed.resident_bytes() < dense.resident_bytes() / 2);
    distance(&everything(&mut packed), &everything(&mut dense))
}
