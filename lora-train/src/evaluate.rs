//! Loss, perplexity and token accuracy over a data set, with the forward pass of training; of an encoder loss,
//! accuracy and the scores of its answers.

use lora_core::ops::awake;
use lora_core::parameter::read_f32;
use lora_models::{Decoder, EncoderConfig};

use crate::data::Batch;
use crate::loss::{Answers, head_loss};
use crate::scores::{LabelScores, class_scores, number_scores};
use crate::step::{input_of, learned_rows, select_rows};

/// What a data set says about a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Mean loss over the learned tokens, in nats.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Part of the learned tokens that the model finds most likely.
    pub accuracy: f64,
    /// Learned tokens; texts of an encoder.
    pub tokens: usize,
    /// What else there is to say of an encoder's answers.
    pub scores: Option<LabelScores>,
}

impl Evaluation {
    /// What there is to tell beside the loss, with a name each: of a language model perplexity and accuracy, of an
    /// encoder accuracy, where it finds labels, and its scores.
    pub fn measures(&self) -> Vec<(&'static str, f64)> {
        let mut measures = Vec::new();
        if self.scores.is_none() {
            measures.push(("perplexity", self.perplexity));
        }
        if !matches!(self.scores, Some(LabelScores::Numbers { .. })) {
            measures.push(("accuracy", self.accuracy));
        }
        measures.extend(self.scores.iter().flat_map(LabelScores::named));
        measures
    }
}

/// Evaluates `decoder`, as it stands, on `batches`.
pub fn evaluate(decoder: &Decoder, batches: &[Batch], loss_chunk_tokens: usize) -> Evaluation {
    if let Some(encoder) = &decoder.config().encoder {
        return evaluate_answers(decoder, encoder, batches);
    }
    let (mut sum, mut correct, mut tokens) = (0.0, 0, 0);
    for batch in batches.iter().filter(|batch| batch.learned_tokens > 0) {
        let (rows, targets) = learned_rows(batch);
        let loss = awake(decoder.device(), || {
            let hidden = decoder.forward(&input_of(batch), None).inner();
            let selected = select_rows(hidden, &rows);
            let answers = Answers { targets: &targets, scores: &batch.scores };
            head_loss(decoder, &selected, answers, loss_chunk_tokens, None)
        });
        sum += loss.sum;
        correct += loss.correct;
        tokens += targets.len();
    }
    let count = tokens.max(1) as f64;
    let loss = sum / count;
    let accuracy = correct as f64 / count;
    Evaluation { loss, perplexity: loss.exp(), accuracy, tokens, scores: None }
}

fn evaluate_answers(decoder: &Decoder, encoder: &EncoderConfig, batches: &[Batch]) -> Evaluation {
    let count = encoder.labels.len();
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    let (mut numbers, mut scores) = (Vec::new(), Vec::new());
    let mut sum = 0.0;
    for batch in batches.iter().filter(|batch| batch.learned_tokens > 0) {
        let (rows, targets) = learned_rows(batch);
        let logits = awake(decoder.device(), || {
            let hidden = decoder.forward(&input_of(batch), None).inner();
            read_f32(decoder.logits(select_rows(hidden, &rows)))
        });
        for (index, (logits, target)) in logits.chunks_exact(count).zip(&targets).enumerate() {
            if let Some(score) = batch.scores.get(index) {
                let (number, score) = (f64::from(logits[0]), f64::from(*score));
                sum += (number - score).powi(2);
                numbers.push(number);
                scores.push(score);
                continue;
            }
            let target = *target as usize;
            sum += cross_entropy(logits, target);
            let likeliest =
                (0..count).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a)));
            found.push(likeliest.unwrap_or(0));
            expected.push(target);
        }
    }
    let tokens = found.len() + numbers.len();
    let loss = sum / tokens.max(1) as f64;
    let right = found.iter().zip(&expected).filter(|(a, b)| a == b).count();
    let accuracy = right as f64 / found.len().max(1) as f64;
    let scores = match encoder.regression {
        true => number_scores(&numbers, &scores),
        false => class_scores(&found, &expected, count),
    };
    Evaluation { loss, perplexity: loss.exp(), accuracy, tokens, scores: Some(scores) }
}

fn cross_entropy(logits: &[f32], target: usize) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |most, logit| most.max(*logit));
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    sum.ln() - f64::from(logits[target] - largest)
}
