//! Ways of computing one thing that must agree: packed and apart, accumulated and whole, recomputed and
//! kept, merged and not.

use burn::tensor::Device;
use lora_core::LoraConfig;
use lora_core::device::DeviceSpec;
use lora_models::generate::all_logits;
use lora_models::{Checkpoint, Decoder, OpenOptions, Trainable};
use lora_train::data::{Batch, Example, Sequence, pack, unpacked};
use lora_train::step::{StepSettings, WindowGradients, window_gradients};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Another order of summation moves a gradient by some 1e-6 of the largest.
const ROUNDING: f32 = 1e-5;
const ADAPTER: &str = "adapter";

fn device() -> Device {
    DeviceSpec::Cpu.open().unwrap().device
}

fn builtin() -> Decoder {
    let checkpoint = Checkpoint::open("builtin:", &OpenOptions::default()).unwrap();
    checkpoint.load(&device()).unwrap()
}

/// An adapter whose B is not zero, so that every factor has a gradient.
fn attach(decoder: &mut Decoder, name: &str, dropout: f64, seed: u64) {
    let config = LoraConfig { dropout, ..LoraConfig::new(4, 8.0) };
    decoder.attach(name, &config, seed).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for (_, mut parameter) in decoder.trainable_mut(&Trainable::Adapter(name.into())) {
        let numbers = (0..parameter.count()).map(|_| random.random_range(-0.05..0.05)).collect();
        parameter.write(numbers, &device());
    }
}

fn adapted(dropout: f64) -> Decoder {
    let mut decoder = builtin();
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
            file: 0,
            line: 1,
            truncated: 0,
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

/// Largest difference of two gradients, relative to the largest number in them.
fn distance(a: &WindowGradients, b: &WindowGradients) -> f32 {
    assert_eq!(a.learned_tokens, b.learned_tokens);
    assert_eq!(a.tokens, b.tokens);
    let flat = |found: &WindowGradients| -> Vec<f32> {
        found.gradients.iter().flat_map(|gradient| gradient.clone().unwrap()).collect()
    };
    let (left, right) = (flat(a), flat(b));
    assert_eq!(left.len(), right.len());
    let largest = left.iter().fold(0.0f32, |largest, number| largest.max(number.abs()));
    assert!(largest > 0.0, "no gradient at all");
    let apart = left.iter().zip(&right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    (apart / largest).max((a.loss - b.loss).abs() as f32)
}

#[test]
fn packed_equals_apart() {
    let examples = examples();
    let apart = Batch::collate(&unpacked(&examples, &ORDER), 0);
    let sequences = pack(&examples, &ORDER, 20);
    assert!(sequences.len() < examples.len(), "nothing was packed");
    let packed = Batch::collate(&sequences, 0);
    let mut decoder = adapted(0.0);
    let expected = gradients(&mut decoder, &[apart], false, 0);
    let found = gradients(&mut decoder, &[packed], false, 0);
    assert!(distance(&expected, &found) < ROUNDING);

    // Without the document masks the same sequences give another gradient.
    let joined: Vec<Sequence> = sequences
        .into_iter()
        .map(|sequence| Sequence { documents: vec![0; sequence.tokens.len()], ..sequence })
        .collect();
    let mut joined = Batch::collate(&joined, 0);
    joined.targets = Batch::collate(&pack(&examples, &ORDER, 20), 0).targets;
    joined.learned_tokens = expected.learned_tokens;
    let found = gradients(&mut decoder, &[joined], false, 0);
    assert!(distance(&expected, &found) > 100.0 * ROUNDING, "the masks do nothing");
}

#[test]
fn padding_changes_nothing_whatever_its_token() {
    let sequences = unpacked(&examples(), &ORDER);
    let mut decoder = adapted(0.0);
    let expected = gradients(&mut decoder, &[Batch::collate(&sequences, 0)], false, 0);
    let found = gradients(&mut decoder, &[Batch::collate(&sequences, 999)], false, 0);
    assert!(distance(&expected, &found) < ROUNDING);
}

#[test]
fn accumulated_equals_whole() {
    let sequences = unpacked(&examples(), &ORDER);
    let whole = [Batch::collate(&sequences, 0)];
    // Micro-batches of different sizes: a mean of means would differ.
    let parts = [Batch::collate(&sequences[..1], 0), Batch::collate(&sequences[1..], 0)];
    let mut decoder = adapted(0.0);
    let expected = gradients(&mut decoder, &whole, false, 0);
    let found = gradients(&mut decoder, &parts, false, 0);
    assert!(distance(&expected, &found) < ROUNDING);
}

#[test]
fn recomputed_equals_kept_with_dropout() {
    let window = [Batch::collate(&unpacked(&examples(), &ORDER), 0)];
    let mut decoder = adapted(0.3);
    let expected = gradients(&mut decoder, &window, false, 5);
    let found = gradients(&mut decoder, &window, true, 5);
    assert!(distance(&expected, &found) < ROUNDING);
    let other = gradients(&mut decoder, &window, true, 6);
    assert!(distance(&expected, &other) > 100.0 * ROUNDING, "dropout does nothing");
}

#[test]
fn several_adapters_alone_together_and_merged() {
    let tokens = [5, 17, 300, 42, 9, 800];
    let logits = |decoder: &Decoder| all_logits(decoder, &tokens).unwrap();
    let apart = |a: &[f32], b: &[f32]| {
        let largest = a.iter().fold(0.0f32, |largest, number| largest.max(number.abs()));
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
    };
    let base = logits(&builtin());
    let mut decoder = builtin();
    attach(&mut decoder, "one", 0.0, 1);
    attach(&mut decoder, "two", 0.0, 2);
    let mut alone = builtin();
    attach(&mut alone, "one", 0.0, 1);

    let shares = |one: f64, two: f64| [("one".to_owned(), one), ("two".to_owned(), two)];
    decoder.set_active(&[]).unwrap();
    assert!(logits(&decoder) == base, "no adapter is active, and yet something acts");
    decoder.set_active(&shares(1.0, 0.0)).unwrap();
    assert!(apart(&logits(&decoder), &logits(&alone)) < ROUNDING);
    assert!(apart(&logits(&decoder), &base) > 100.0 * ROUNDING);

    decoder.set_active(&shares(0.3, 0.7)).unwrap();
    let together = logits(&decoder);
    let only_one = logits(&alone);
    assert!(apart(&together, &only_one) > 100.0 * ROUNDING);
    decoder.merge();
    assert!(apart(&logits(&decoder), &together) < ROUNDING, "merged and unmerged differ");
    decoder.unmerge();
    decoder.set_active(&[]).unwrap();
    assert!(apart(&logits(&decoder), &base) < ROUNDING, "unmerging does not give the base back");
}
