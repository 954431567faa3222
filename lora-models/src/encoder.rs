//! What an encoder is beside the one stack of blocks (Devlin et al. 2018, <https://arxiv.org/abs/1810.04805>;
//! Liu et al. 2019, <https://arxiv.org/abs/1907.11692>): segments, positions that may begin later, and a
//! classifier on the first token instead of a language model's head.
//!
//! The base model's own dropout is off, in training too: an adapter has its own.

use std::borrow::Cow;

use burn::tensor::{DType, Tensor, TensorData};
use lora_core::config::LoraConfig;
use lora_core::linear::LoraLinear;
use lora_core::ops::cast;
use lora_core::peft::PeftAdapter;
use lora_core::target::resolve_saved;

use crate::decoder::{Decoder, Input};
use crate::decoder_config::DecoderConfig;
use crate::decoder_load::on_device;
use crate::decoder_methods::adaptable;
use crate::encoder_load::fresh_tensor;
use crate::error::{Error, Result};

/// What the adapter of an encoder saves whole, by the name that PEFT has for it.
pub const CLASSIFIER: &str = "classifier";
/// PEFT saves both names, whichever a model has.
const OTHER_CLASSIFIER: &str = "score";

/// Shape and meaning of what an encoder has more than a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Rows of the table of segments.
    pub segments: usize,
    /// Row of a text's first token in the table of positions.
    pub first_position: usize,
    /// The padding token, where positions are counted without it.
    pub padding: Option<i32>,
    /// The labels' names, in the order of the logits.
    pub labels: Vec<String>,
    /// The one logit is the answer itself, and the loss is the square of its distance.
    pub regression: bool,
}

/// `LABEL_0`, `LABEL_1`, …, as transformers names labels that nobody has named.
pub fn numbered_labels(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("LABEL_{index}")).collect()
}

impl DecoderConfig {
    /// The layers of an encoder's head with their numbers of outputs; none in a language model.
    pub(crate) fn head_layers(&self) -> Vec<(&'static str, usize)> {
        match (self.modules.encoder, &self.encoder) {
            (Some(more), Some(encoder)) => {
                vec![(more.pooler, self.hidden_size), (more.classifier, encoder.labels.len())]
            }
            _ => Vec::new(),
        }
    }

    /// Whether a tensor may be missing, as an encoder's head is in a checkpoint of the encoder alone.
    pub(crate) fn may_start_fresh(&self, tensor: &str) -> bool {
        let path = tensor.rsplit_once('.').map_or(tensor, |(path, _)| path);
        self.head_layers().iter().any(|(layer, _)| *layer == path)
    }

    /// What PEFT calls the task.
    pub(crate) fn task_type(&self) -> &'static str {
        if self.encoder.is_some() { "SEQ_CLS" } else { "CAUSAL_LM" }
    }

    /// An error for what only a language model can do; `what` follows "it ".
    ///
    /// # Errors
    /// The model is an encoder.
    pub fn refuse_encoder(&self, what: &str) -> Result<()> {
        if self.encoder.is_none() {
            return Ok(());
        }
        let reason = format!("this model is an encoder (`{}`): it {what}", self.model_type);
        Err(Error::invalid(reason)
            .with_hint("`lora classify` gives the labels that it finds for a text"))
    }
}

impl Decoder {
    /// Gives the classifier these labels. Where their number is another one, its output layer starts anew, which
    /// is what is told.
    pub fn set_labels(&mut self, labels: Vec<String>, regression: bool) -> bool {
        let placement = self.placement.clone();
        let (Some(more), Some(encoder)) = (self.config.modules.encoder, &mut self.config.encoder)
        else {
            return false;
        };
        let count = labels.len();
        let fresh = count != encoder.labels.len();
        (encoder.labels, encoder.regression) = (labels, regression);
        if fresh {
            let shape = [count, self.config.hidden_size];
            let numbers = fresh_tensor(&format!("{}.weight", more.classifier), &shape);
            let rows: Tensor<2> = on_device(TensorData::new(numbers, shape), &placement);
            let bias = on_device(TensorData::new(vec![0.0f32; count], [count]), &placement);
            let layer = LoraLinear::new(more.classifier, rows.transpose(), Some(bias));
            self.lm_head = Some(layer.output_head());
        }
        fresh
    }

    /// The logits of each row of one document, from its first token.
    ///
    /// # Shapes
    /// - output: `[b, labels]`
    pub fn classify(&self, input: &Input) -> Tensor<2> {
        let (b, t, d) = (input.rows, input.columns, self.config.hidden_size);
        let hidden = self.forward(input, None).reshape([b, t, d]);
        self.logits(hidden.narrow(1, 0, 1).reshape([b, d]))
    }

    /// Makes room for the classifier of an adapter that has another number of labels.
    pub(crate) fn fit_classifier(&mut self, adapter: &PeftAdapter) {
        let Some(more) = self.config.modules.encoder else { return };
        let key = format!("{}.weight", more.classifier);
        let saved = adapter.saved.iter().find(|tensor| tensor.name == key);
        let Some(&[count, width]) = saved.map(|tensor| tensor.shape.as_slice()) else { return };
        let labels = self.config.encoder.as_ref().map_or(0, |encoder| encoder.labels.len());
        if count != labels && width == self.config.hidden_size {
            self.set_labels(numbered_labels(count), count == 1);
        }
    }

    /// Rows of the table of positions. Where padding is not counted, a position is that of the padding token and
    /// the number of other tokens up to here.
    pub(crate) fn positions_of<'a>(&self, input: &'a Input) -> Cow<'a, [i32]> {
        let padding = self.config.encoder.as_ref().and_then(|encoder| encoder.padding);
        let Some(padding) = padding else { return Cow::Borrowed(&input.positions) };
        let mut counted = 0;
        let rows = input.tokens.iter().zip(&input.positions).map(|(token, within)| {
            if *within == 0 {
                counted = 0;
            }
            if *token == padding {
                return padding;
            }
            counted += 1;
            padding + counted
        });
        Cow::Owned(rows.collect())
    }

    /// Rows of the table of segments; a model with one of them does not tell texts apart.
    pub(crate) fn segments_of<'a>(&self, input: &'a Input) -> Cow<'a, [i32]> {
        let count = self.config.encoder.as_ref().map_or(1, |encoder| encoder.segments);
        if input.segments.is_empty() || count < 2 {
            return Cow::Owned(vec![0; input.tokens.len()]);
        }
        Cow::Borrowed(&input.segments)
    }
}

/// `tanh(W·x + b)`, in f32 as the reductions are.
pub(crate) fn pooled(pooler: &LoraLinear, hidden: Tensor<2>) -> Tensor<2> {
    let dtype = hidden.dtype();
    cast(cast(pooler.forward(hidden), DType::F32).tanh(), dtype)
}

/// The settings of an adapter with what it always has on an encoder: a classifier of its own, as in PEFT.
pub(crate) fn with_classifier<'a>(
    config: &DecoderConfig,
    lora: &'a LoraConfig,
) -> Cow<'a, LoraConfig> {
    let is_there = lora.modules_to_save.iter().any(|entry| entry == CLASSIFIER);
    if config.encoder.is_none() || is_there {
        return Cow::Borrowed(lora);
    }
    let mut lora = lora.clone();
    lora.modules_to_save.push(CLASSIFIER.to_owned());
    Cow::Owned(lora)
}

/// The modules of which the adapter has a copy. `classifier` is all layers in it.
pub(crate) fn saved_modules(config: &DecoderConfig, lora: &LoraConfig) -> Result<Vec<String>> {
    let mut paths: Vec<String> = adaptable(config).into_iter().map(|info| info.path).collect();
    if config.encoder.is_none() {
        return Ok(resolve_saved(lora, &paths)?);
    }
    let inside = format!("{CLASSIFIER}.");
    let mut wanted = lora.clone();
    wanted.modules_to_save.retain(|entry| entry != OTHER_CLASSIFIER);
    let whole = wanted.modules_to_save.iter().any(|entry| entry == CLASSIFIER);
    let found = if whole && paths.iter().any(|path| path.starts_with(&inside)) {
        wanted.modules_to_save.retain(|entry| entry != CLASSIFIER);
        let others = resolve_saved(&wanted, &paths)?;
        paths.retain(|path| path.starts_with(&inside) || others.contains(path));
        paths
    } else {
        resolve_saved(&wanted, &paths)?
    };
    Ok(found)
}
