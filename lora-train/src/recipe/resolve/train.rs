//! The `[train]` section: defaults depend on what is trained.

use super::super::reader::{BELOW_ONE, NOT_NEGATIVE, PART, POSITIVE};
use super::super::{DataSettings, Length, Schedule, TrainSettings, Warmup};
use super::{Kind, Resolver};

impl Resolver<'_> {
    pub(super) fn train(&mut self, kind: Kind, data: &DataSettings) -> TrainSettings {
        let default = TrainSettings::default();
        let length = self.length();
        let (learning_rate, schedule, minimum_learning_rate) = self.rate(kind);
        let warmup = self.warmup(kind, length);
        let reader = &mut self.reader;
        let batch_size = reader.count("train.batch_size", 1);
        let why = "small batches suit adapters; raise it if memory allows and rows are many";
        let batch_size = reader.or("train.batch_size", batch_size, default.batch_size, why);
        let accumulation = reader.count("train.accumulation", 1);
        let why = "each micro-batch is a step";
        let accumulation = reader.or("train.accumulation", accumulation, default.accumulation, why);
        if kind == Kind::Lora && batch_size.saturating_mul(accumulation) > 32 {
            reader.notes.push(format!(
                "train.batch_size x train.accumulation = {}: adapters lose ground to full \
                 fine-tuning above about 32 sequences a step (LoRA Without Regret, 2025)",
                batch_size.saturating_mul(accumulation)
            ));
        }
        let decay = reader.number("train.weight_decay", &NOT_NEGATIVE);
        let weight_decay = if kind == Kind::Scratch {
            reader.or("train.weight_decay", decay, 0.1, "usual in pre-training")
        } else {
            let why = "fine-tuning is short; it gains nothing from decay";
            reader.or("train.weight_decay", decay, default.weight_decay, why)
        };
        let beta1 = reader.number("train.beta1", &BELOW_ONE);
        let beta1 = reader.or("train.beta1", beta1, default.beta1, "AdamW's own");
        let beta2 = reader.number("train.beta2", &BELOW_ONE);
        let beta2 = if kind == Kind::Scratch {
            reader.or("train.beta2", beta2, 0.95, "usual in pre-training: it forgets spikes sooner")
        } else {
            reader.or("train.beta2", beta2, default.beta2, "AdamW's own")
        };
        let epsilon = reader.number("train.epsilon", &POSITIVE);
        let epsilon = reader.or("train.epsilon", epsilon, default.epsilon, "AdamW's own");
        let clip = reader.number("train.clip_norm", &NOT_NEGATIVE);
        let why = "one bad batch can't wreck the run; 0 turns it off";
        let clip_norm = Some(reader.or("train.clip_norm", clip, 1.0, why)).filter(|n| *n > 0.0);
        let ratio = reader.number("train.lora_plus_ratio", &POSITIVE).unwrap_or(1.0);
        if ratio != 1.0 && kind != Kind::Lora {
            let what = "is for adapters; leave it out where W0 itself is trained";
            reader.problem("train.lora_plus_ratio", what);
        }
        let lora_fa = reader.boolean("train.lora_fa").unwrap_or(false);
        if lora_fa && kind != Kind::Lora {
            reader.problem("train.lora_fa", "is for adapters: it keeps their A as it starts");
        }
        let decay_vectors = reader.boolean("train.decay_vectors").unwrap_or(false);
        let seed = reader.count("train.seed", 0);
        let seed = reader.or("train.seed", seed, 0, "the same run every time") as u64;
        let shuffle = reader.boolean("train.shuffle");
        let why = "rows in a new order each epoch, decided by the seed";
        let shuffle = reader.or("train.shuffle", shuffle, default.shuffle, why);
        let recompute = reader.boolean("train.recompute");
        let why = "faster; true computes activations twice and needs far less memory";
        let recompute = reader.or("train.recompute", recompute, default.recompute, why);
        let chunk = reader.count("train.loss_chunk_tokens", 1);
        let loss_chunk_tokens = chunk.unwrap_or(default.loss_chunk_tokens);
        let (evaluate_every, patience) = self.evaluation(data);
        let reader = &mut self.reader;
        let keep_best = reader.boolean("train.keep_best").unwrap_or(default.keep_best);
        let checkpoint_every = reader.count("train.checkpoint_every", 0);
        let why = "a killed run loses at most so many steps";
        let checkpoint_every =
            reader.or("train.checkpoint_every", checkpoint_every, default.checkpoint_every, why);
        let keep_checkpoints =
            reader.count("train.keep_checkpoints", 1).unwrap_or(default.keep_checkpoints);
        let log_every = reader.count("train.log_every", 1).unwrap_or(default.log_every);
        TrainSettings {
            length,
            batch_size,
            accumulation,
            learning_rate,
            schedule,
            warmup,
            minimum_learning_rate,
            weight_decay,
            decay_vectors,
            beta1,
            beta2,
            epsilon,
            clip_norm,
            lora_plus_ratio: ratio,
            lora_fa,
            seed,
            shuffle,
            recompute,
            loss_chunk_tokens,
            evaluate_every,
            patience,
            keep_best,
            checkpoint_every,
            keep_checkpoints,
            log_every,
        }
    }

    fn length(&mut self) -> Length {
        let epochs = self.reader.number("train.epochs", &POSITIVE);
        if let Some(steps) = self.reader.count("train.steps", 1) {
            return Length::Steps(steps);
        }
        Length::Epochs(self.reader.or("train.epochs", epochs, 1.0, "once over the data"))
    }

    fn rate(&mut self, kind: Kind) -> (f64, Schedule, f64) {
        let reader = &mut self.reader;
        let rate = reader.number("train.learning_rate", &POSITIVE);
        let (value, why) = match kind {
            Kind::Lora => (2e-4, "adapters want ten times the rate of full fine-tuning"),
            Kind::Full => (2e-5, "usual for full fine-tuning; adapters want ten times as much"),
            Kind::Continue => (1e-4, "below the rate that a model is pre-trained with"),
            Kind::Scratch => (1e-3, "usual for small models from random weights"),
        };
        let rate = reader.or("train.learning_rate", rate, value, why);
        let schedules = [Schedule::Constant, Schedule::Linear, Schedule::Cosine];
        let schedule = reader.choice("train.schedule", &schedules);
        let (value, why) = match kind {
            Kind::Lora => (
                Schedule::Constant,
                "as good as a decay for adapters, and any step may be the last",
            ),
            _ => (Schedule::Cosine, "training all weights gains from a slow end"),
        };
        let schedule = reader.or("train.schedule", schedule, value, why);
        let minimum = reader.number("train.minimum_learning_rate", &NOT_NEGATIVE).unwrap_or(0.0);
        if minimum > rate {
            let what = format!("{minimum} is above `train.learning_rate`, which is {rate}");
            reader.problem("train.minimum_learning_rate", what);
        } else if minimum > 0.0 && schedule == Schedule::Constant {
            let what = "a constant schedule never comes down; set `train.schedule` to \"linear\" \
                        or \"cosine\", or leave it out";
            reader.problem("train.minimum_learning_rate", what);
        }
        (rate, schedule, minimum)
    }

    fn warmup(&mut self, kind: Kind, length: Length) -> Warmup {
        let reader = &mut self.reader;
        let fraction = reader.number("train.warmup_fraction", &PART);
        if let Some(steps) = reader.count("train.warmup_steps", 0) {
            if let Length::Steps(total) = length
                && steps > total
            {
                let what =
                    format!("the warm-up of {steps} steps is longer than the run of {total}");
                reader.problem("train.warmup_steps", what);
            }
            return Warmup::Steps(steps);
        }
        if let Some(fraction) = fraction {
            return Warmup::Fraction(fraction);
        }
        if kind == Kind::Lora {
            let why = "B starts at zero, which is a warm-up of its own";
            return Warmup::Steps(reader.or("train.warmup_steps", None, 0, why));
        }
        let why = "all weights move at once; the first steps should be small";
        Warmup::Fraction(reader.or("train.warmup_fraction", None, 0.03, why))
    }

    fn evaluation(&mut self, data: &DataSettings) -> (usize, usize) {
        let reader = &mut self.reader;
        let evaluate_every = reader.count("train.evaluate_every", 0).unwrap_or(0);
        let patience = reader.count("train.patience", 0).unwrap_or(0);
        let held_out = ["data.validation", "data.validation_rows", "data.validation_fraction"];
        let has_validation = data.has_validation() || held_out.iter().any(|key| reader.has(key));
        if evaluate_every > 0 && !has_validation {
            let what = "there is nothing to evaluate on: add `[[data.validation]]` or \
                        `data.validation_rows`";
            reader.problem("train.evaluate_every", what);
        }
        if patience > 0 && evaluate_every == 0 {
            let what = "counts evaluations, and there are none: set `train.evaluate_every`";
            reader.problem("train.patience", what);
        }
        if has_validation && !reader.has("train.evaluate_every") {
            reader.notes.push("train.evaluate_every = 0: evaluates before and after only".into());
        }
        (evaluate_every, patience)
    }
}
