//! What is particular about the checkpoints of encoders: heads that are missing or of another kind, and names
//! that older programs gave.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::checkpoint::Checkpoint;
use crate::decoder_load::gaussian;
use crate::modules::EncoderModules;

/// Standard deviation of a head that starts anew, as transformers draws it for these families.
const INITIAL_DEVIATION: f32 = 0.02;

/// Names of a norm's weight and bias today and in the first checkpoints of BERT.
const NORM_NAMES: [(&str, &str); 2] =
    [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")];

impl Checkpoint {
    /// The layers of an encoder's head that the checkpoint does not have: they start anew.
    pub fn absent_head(&self) -> Vec<&'static str> {
        let names = self.tensor_names();
        let is_there = |layer: &str| {
            let key = format!("{layer}.weight");
            names.iter().any(|(name, _)| *name == key)
        };
        let head = self.config.head_layers().into_iter().map(|(layer, _)| layer);
        head.filter(|layer| !is_there(layer)).collect()
    }
}

/// Numbers of a tensor that no file has: a bias is 0, a weight is drawn from N(0, 0.02²) by its name alone, so that
/// it is the same wherever the model is opened.
pub(crate) fn fresh_tensor(name: &str, shape: &[usize]) -> Vec<f32> {
    let count = shape.iter().product();
    if name.ends_with(".bias") {
        return vec![0.0; count];
    }
    // FNV-1a.
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| gaussian(&mut random) * INITIAL_DEVIATION).collect()
}

/// The name that a tensor has today.
pub(crate) fn spelled_today(name: &str) -> String {
    let old = NORM_NAMES.iter().find(|(_, old)| name.ends_with(old));
    match old.and_then(|(today, old)| Some((today, name.strip_suffix(old)?))) {
        Some((today, path)) => format!("{path}{today}"),
        None => name.to_owned(),
    }
}

/// The name under which a file that has these tensors has this one.
pub(crate) fn stored_spelling(name: &str, names: &[String]) -> String {
    if names.iter().any(|stored| stored == name) {
        return name.to_owned();
    }
    let found = NORM_NAMES.iter().find_map(|(today, old)| Some((name.strip_suffix(today)?, old)));
    found.map_or_else(|| name.to_owned(), |(path, old)| format!("{path}{old}"))
}

/// Whether the tensor belongs to a head that the classifier has no use for, such as that of a masked language
/// model.
pub(crate) fn is_of_other_head(more: EncoderModules, name: &str) -> bool {
    more.other_heads.iter().any(|beginning| name.starts_with(beginning))
}
