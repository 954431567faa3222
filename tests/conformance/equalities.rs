//! Ways of computing one thing that must agree: packed and apart, accumulated and whole, recomputed and
//! kept, merged and not. Each has a control that must not agree, so that none passes by doing nothing.

use lora_core::parameter::read_f32;
use lora_core::peft::PeftAdapter;
use lora_core::placement::Placement;
use lora_core::{Init, LoraConfig, TargetModules};
use lora_models::generate::all_logits;
use lora_models::kv_cache::KvCache;
use lora_models::{Checkpoint, Decoder, Input, OpenOptions, Trainable};
use lora_train::data::{Batch, Example, Sequence, pack, unpacked};
use lora_train::step::{StepSettings, WindowGradients, window_gradients};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::case::{Case, Lab, worst};

/// Another order of summation moves a gradient or a logit by some 1e-6 of the largest.
const ROUNDING: f64 = 1e-5;
/// What a control must differ by.
const ANOTHER: f64 = 100.0 * ROUNDING;
const ADAPTER: &str = "adapter";

/// The rows of this file.
pub(crate) fn cases() -> Vec<Case> {
    type Check = fn(&Placement) -> f64;
    let checks: [(&str, Check); 12] = [
        ("packed and apart", packed_and_apart),
        ("padding of any token", padding_of_any_token),
        ("accumulated and whole", accumulated_and_whole),
        ("recomputed and kept, with dropout", recomputed_and_kept),
        ("one of two adapters and it alone", one_and_alone),
        ("two adapters, merged and not", merged_and_not),
        ("small buffers and large ones", small_and_large_buffers),
        ("fresh adapters of every method and the base", fresh_and_base),
        ("every method, merged and not", every_method_merged),
        ("every method, stored and not", every_method_stored),
        ("every method recomputed and kept, with dropout", every_method_recomputed),
        ("through the cache and in one pass", cached_and_whole),
    ];
    let case = |(name, check): (&str, Check)| {
        let run = move |lab: &mut Lab| Ok(check(&lab.f32()));
        Case::new(format!("equalities/{name}"), "itself", ROUNDING, run)
    };
    checks.into_iter().map(case).collect()
}

pub(crate) fn builtin(placement: &Placement) -> Decoder {
    let checkpoint = Checkpoint::open("builtin:", &OpenOptions::default()).unwrap();
    checkpoint.load(placement).unwrap()
}

/// An adapter whose B is not zero, so that every factor has a gradient.
pub(crate) fn attach(decoder: &mut Decoder, name: &str, dropout: f64, seed: u64) {
    let config = LoraConfig { dropout, ..LoraConfig::new(4, 8.0) };
    decoder.attach(name, &config, seed).unwrap();
    let device = decoder.device().clone();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for (_, mut parameter) in decoder.trainable_mut(&Trainable::Adapter(name.into())) {
        let numbers = (0..parameter.count()).map(|_| random.random_range(-0.05..0.05)).collect();
        parameter.write(numbers, &device);
    }
}

fn adapted(placement: &Placement, dropout: f64) -> Decoder {
    let mut decoder = builtin(placement);
    attach(&mut decoder, ADAPTER, dropout, 1);
    decoder.set_trainable(&Trainable::Adapter(ADAPTER.into())).unwrap();
    decoder
}

/// Examples of several lengths, of which every third token is not learned.
fn examples() -> Vec<Example> {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    [5, 12, 3, 9, 7, 4]
        .into_iter()
        .map(|length: usize| Example {
            tokens: (0..length).map(|_| random.random_range(2..1000)).collect(),
            learned: (0..length).map(|at| at % 3 != 0).collect(),
            line: 1,
            ..Example::default()
        })
        .collect()
}

const ORDER: [usize; 6] = [0, 1, 2, 3, 4, 5];

fn gradients(
    decoder: &mut Decoder,
    window: &[Batch],
    recompute: bool,
    seed: u64,
) -> WindowGradients {
    let settings = StepSettings { recompute, loss_chunk_tokens: 5, dropout_seed: seed };
    window_gradients(decoder, &Trainable::Adapter(ADAPTER.into()), window, &settings)
}

/// Largest difference of two gradients, relative to the largest number in them, or of the losses.
fn distance(a: &WindowGradients, b: &WindowGradients) -> f64 {
    assert_eq!(a.learned_tokens, b.learned_tokens);
    assert_eq!(a.tokens, b.tokens);
    let flat = |found: &WindowGradients| -> Vec<f32> {
        found.gradients.iter().flat_map(|gradient| gradient.clone().unwrap()).collect()
    };
    worst(apart(&flat(a), &flat(b)), (a.loss - b.loss).abs())
}

/// Largest difference, relative to the largest number.
pub(crate) fn apart(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0.0f32, |largest, number| largest.max(number.abs()));
    assert!(largest > 0.0, "nothing but zeros");
    let differences = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()));
    differences.fold(0.0, worst) / f64::from(largest)
}

fn must_differ(distance: f64, otherwise: &str) {
    assert!(distance > ANOTHER, "{otherwise}: {distance:.1e}");
}

fn packed_and_apart(placement: &Placement) -> f64 {
    let examples = examples();
    let apart = Batch::collate(&unpacked(&examples, &ORDER), 0);
    let sequences = pack(&examples, &ORDER, 20);
    assert!(sequences.len() < examples.len(), "nothing was packed");
    let packed = Batch::collate(&sequences, 0);
    let mut decoder = adapted(placement, 0.0);
    let expected = gradients(&mut decoder, &[apart], false, 0);
    let found = gradients(&mut decoder, &[packed], false, 0);

    // Without the document masks the same sequences give another gradient.
    let joined: Vec<Sequence> = sequences
        .into_iter()
        .map(|sequence| Sequence { documents: vec![0; sequence.tokens.len()], ..sequence })
        .collect();
    let mut joined = Batch::collate(&joined, 0);
    joined.targets = Batch::collate(&pack(&examples, &ORDER, 20), 0).targets;
    joined.learned_tokens = expected.learned_tokens;
    let unmasked = gradients(&mut decoder, &[joined], false, 0);
    must_differ(distance(&expected, &unmasked), "the document masks do nothing");
    distance(&expected, &found)
}

fn padding_of_any_token(placement: &Placement) -> f64 {
    let sequences = unpacked(&examples(), &ORDER);
    let mut decoder = adapted(placement, 0.0);
    let expected = gradients(&mut decoder, &[Batch::collate(&sequences, 0)], false, 0);
    let found = gradients(&mut decoder, &[Batch::collate(&sequences, 999)], false, 0);
    distance(&expected, &found)
}

fn accumulated_and_whole(placement: &Placement) -> f64 {
    let sequences = unpacked(&examples(), &ORDER);
    let whole = [Batch::collate(&sequences, 0)];
    // Micro-batches of different sizes: a mean of means would differ.
    let parts = [Batch::collate(&sequences[..1], 0), Batch::collate(&sequences[1..], 0)];
    let mut decoder = adapted(placement, 0.0);
    let expected = gradients(&mut decoder, &whole, false, 0);
    let found = gradients(&mut decoder, &parts, false, 0);
    distance(&expected, &found)
}

fn recomputed_and_kept(placement: &Placement) -> f64 {
    let window = [Batch::collate(&unpacked(&examples(), &ORDER), 0)];
    let mut decoder = adapted(placement, 0.3);
    let expected = gradients(&mut decoder, &window, false, 5);
    let found = gradients(&mut decoder, &window, true, 5);
    let other = gradients(&mut decoder, &window, true, 6);
    must_differ(distance(&expected, &other), "dropout does nothing");
    distance(&expected, &found)
}

const TOKENS: [u32; 6] = [5, 17, 300, 42, 9, 800];

fn logits(decoder: &Decoder) -> Vec<f32> {
    all_logits(decoder, &TOKENS).unwrap()
}

/// A base with two adapters, of which `one` and `two` parts act.
fn pair(placement: &Placement, one: f64, two: f64) -> Decoder {
    let mut decoder = builtin(placement);
    attach(&mut decoder, "one", 0.0, 1);
    attach(&mut decoder, "two", 0.0, 2);
    decoder.set_active(&[("one".to_owned(), one), ("two".to_owned(), two)]).unwrap();
    decoder
}

fn one_and_alone(placement: &Placement) -> f64 {
    let base = logits(&builtin(placement));
    let mut decoder = pair(placement, 1.0, 0.0);
    let mut alone = builtin(placement);
    attach(&mut alone, "one", 0.0, 1);
    let alone = logits(&alone);
    must_differ(apart(&alone, &base), "the adapter does nothing");
    let found = apart(&logits(&decoder), &alone);
    decoder.set_active(&[]).unwrap();
    worst(found, apart(&logits(&decoder), &base))
}

fn merged_and_not(placement: &Placement) -> f64 {
    let mut decoder = pair(placement, 0.3, 0.7);
    let together = logits(&decoder);
    must_differ(apart(&together, &logits(&pair(placement, 1.0, 0.0))), "shares do nothing");
    decoder.merge();
    let merged = apart(&logits(&decoder), &together);
    decoder.unmerge();
    decoder.set_active(&[]).unwrap();
    worst(merged, apart(&logits(&decoder), &logits(&builtin(placement))))
}

/// An adapter of each method, and what it is called. The carried model's head is its embedding.
fn methods() -> Vec<(&'static str, LoraConfig)> {
    let plain = || LoraConfig::new(4, 8.0);
    let on = |names: &[&str]| {
        TargetModules::Suffixes(names.iter().map(|name| (*name).to_owned()).collect())
    };
    let tokens = || vec![("embed_tokens".to_owned(), vec![17, 5, 800])];
    let with_embedding = |ensure_weight_tying| LoraConfig {
        target: on(&["embed_tokens", "v_proj"]),
        ensure_weight_tying,
        ..plain()
    };
    let saved = |ensure_weight_tying| LoraConfig {
        target: on(&["q_proj"]),
        modules_to_save: vec!["embed_tokens".to_owned()],
        ensure_weight_tying,
        ..plain()
    };
    let from = |init| LoraConfig { init, ..plain() };
    let exact = Init::Pissa { iterations: None };
    vec![
        ("gaussian", from(Init::Gaussian)),
        ("orthogonal", from(Init::Orthogonal)),
        ("PiSSA", from(exact)),
        ("PiSSA from a sketch", from(Init::Pissa { iterations: Some(2) })),
        ("OLoRA with α/√r", LoraConfig { use_rslora: true, ..from(Init::Olora) }),
        ("DoRA", LoraConfig { use_dora: true, ..plain() }),
        ("DoRA from PiSSA", LoraConfig { use_dora: true, ..from(exact) }),
        ("lora_bias", LoraConfig { lora_bias: true, ..plain() }),
        ("embedding", with_embedding(false)),
        ("embedding and head", with_embedding(true)),
        ("embedding saved", saved(false)),
        ("embedding and head saved", saved(true)),
        ("head", LoraConfig { target: on(&["lm_head"]), use_dora: true, ..plain() }),
        ("tokens", LoraConfig { trainable_tokens: tokens(), ..plain() }),
    ]
}

/// The base with an adapter of this method on it; what it has is moved by so much.
fn of_method(placement: &Placement, config: &LoraConfig, moved: f32) -> Decoder {
    let mut decoder = builtin(placement);
    decoder.attach(ADAPTER, config, 3).unwrap();
    let device = decoder.device().clone();
    let mut random = ChaCha8Rng::seed_from_u64(11);
    for (_, mut parameter) in decoder.trainable_mut(&Trainable::Adapter(ADAPTER.into())) {
        let numbers = parameter.read().into_iter();
        let numbers = numbers.map(|number| number + moved * random.random_range(-1.0..1.0f32));
        parameter.write(numbers.collect(), &device);
    }
    decoder
}

/// Compares for each method; what must differ from the base does.
fn for_every_method(placement: &Placement, compare: impl Fn(&mut Decoder) -> f64) -> f64 {
    let base = logits(&builtin(placement));
    let found = methods().into_iter().map(|(name, config)| {
        let mut decoder = of_method(placement, &config, 0.02);
        must_differ(apart(&logits(&decoder), &base), &format!("{name}: the adapter does nothing"));
        let found = compare(&mut decoder);
        assert!(found <= ROUNDING, "{name}: {found:.1e}");
        found
    });
    found.fold(0.0, worst)
}

fn fresh_and_base(placement: &Placement) -> f64 {
    let base = logits(&builtin(placement));
    let found = methods().into_iter().map(|(name, config)| {
        let mut decoder = of_method(placement, &config, 0.0);
        let fresh = apart(&logits(&decoder), &base);
        assert!(fresh <= ROUNDING, "fresh {name}: {fresh:.1e}");
        decoder.detach(ADAPTER).unwrap();
        worst(fresh, apart(&logits(&decoder), &base))
    });
    found.fold(0.0, worst)
}

pub(crate) fn every_method_merged(placement: &Placement) -> f64 {
    let base = logits(&builtin(placement));
    for_every_method(placement, |decoder| {
        let apart_from = |decoder: &Decoder, expected: &[f32]| apart(&logits(decoder), expected);
        let unmerged = logits(decoder);
        decoder.merge();
        let merged = apart_from(decoder, &unmerged);
        decoder.unmerge();
        let again = apart_from(decoder, &unmerged);
        decoder.merge();
        decoder.set_active(&[]).unwrap();
        let off = apart_from(decoder, &base);
        decoder.set_active(&[(ADAPTER.to_owned(), 1.0)]).unwrap();
        [merged, again, off, apart_from(decoder, &unmerged)].into_iter().fold(0.0, worst)
    })
}

pub(crate) fn every_method_stored(placement: &Placement) -> f64 {
    for_every_method(placement, |decoder| {
        let folder = tempfile::tempdir().unwrap();
        decoder.export(ADAPTER, None).unwrap().save(folder.path()).unwrap();
        let mut other = builtin(placement);
        other.attach_peft(ADAPTER, &PeftAdapter::load(folder.path()).unwrap()).unwrap();
        apart(&logits(&other), &logits(decoder))
    })
}

fn every_method_recomputed(placement: &Placement) -> f64 {
    let window = [Batch::collate(&unpacked(&examples(), &ORDER), 0)];
    let trainable = Trainable::Adapter(ADAPTER.into());
    let found = methods().into_iter().map(|(name, config)| {
        let config = LoraConfig { dropout: 0.3, ..config };
        let mut decoder = of_method(placement, &config, 0.02);
        decoder.set_trainable(&trainable).unwrap();
        let kept = gradients(&mut decoder, &window, false, 5);
        let again = gradients(&mut decoder, &window, true, 5);
        let found = distance(&kept, &again);
        assert!(found <= ROUNDING, "{name}: {found:.1e}");
        found
    });
    found.fold(0.0, worst)
}

/// 16 KB hold a few rows of the vocabulary, and the logits of a few tokens.
fn small_and_large_buffers(placement: &Placement) -> f64 {
    let window = [Batch::collate(&unpacked(&examples(), &ORDER), 0)];
    let small = Placement { buffer_limit: Some(1 << 14), ..placement.clone() };
    let expected = gradients(&mut adapted(placement, 0.0), &window, false, 0);
    let found = gradients(&mut adapted(&small, 0.0), &window, false, 0);
    distance(&expected, &found)
}

/// Logits of a text, first part at once and then token by token through the cache, against one pass.
fn cached_and_whole(placement: &Placement) -> f64 {
    let mut decoder = builtin(placement);
    attach(&mut decoder, ADAPTER, 0.0, 1);
    let text: Vec<u32> = TOKENS.into_iter().chain((0..10).map(|at| at * 53 + 11)).collect();
    let whole = all_logits(&decoder, &text).unwrap();
    let mut cache = KvCache::new();
    let mut found = Vec::new();
    let mut pass = |tokens: &[u32]| {
        let input = Input::single(tokens, cache.len());
        let hidden = decoder.forward(&input, Some(&mut cache));
        found.extend(read_f32(decoder.logits(hidden)));
    };
    pass(&text[..TOKENS.len()]);
    text[TOKENS.len()..].chunks(1).for_each(&mut pass);
    apart(&found, &whole)
}
