//! Which adapters can be calculated with: those that add s·A·B to a layer as it is, and nothing else.

use crate::config::Bias;
use crate::error::{Error, Result};
use crate::peft::PeftAdapter;

/// Whether the adapter is one; `name` is for messages.
///
/// # Errors
/// An adapter with a part that neither adds up nor scales.
pub(super) fn check(name: &str, adapter: &PeftAdapter) -> Result<()> {
    let lora = &adapter.config.lora;
    let part = if lora.use_dora {
        "magnitudes (use_dora)"
    } else if lora.lora_bias {
        "biases in its low-rank branch (lora_bias)"
    } else if lora.bias != Bias::None {
        "biases of the base (bias)"
    } else if !lora.trainable_tokens.is_empty() {
        "rows of single tokens (trainable_token_indices)"
    } else if lora.init.takes_from_base() {
        "a start that the base gave up (init_lora_weights)"
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!("{name} has {part}, which can't be calculated with")).with_hint(
        "`lora merge` puts all of it into the model, and `lora adapter extract` takes what it does to the \
         linear layers out again",
    ))
}
