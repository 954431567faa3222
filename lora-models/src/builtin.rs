//! The model that the crate carries, so that everything works without a download: a small decoder,
//! pre-trained by `lora pretrain recipes/builtin.toml` on generated text.

/// `config.json`.
pub(crate) const CONFIG: &[u8] = include_bytes!("../assets/builtin/config.json");
/// `tokenizer.json`.
pub(crate) const TOKENIZER: &[u8] = include_bytes!("../assets/builtin/tokenizer.json");
/// `tokenizer_config.json`.
pub(crate) const TOKENIZER_CONFIG: &[u8] =
    include_bytes!("../assets/builtin/tokenizer_config.json");
/// `model.safetensors`, bf16.
pub(crate) const WEIGHTS: &[u8] = include_bytes!("../assets/builtin/model.safetensors");
