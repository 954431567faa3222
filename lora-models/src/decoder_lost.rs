//! Adapters that begin as what a quantised base has lost (LoftQ, Li et al. 2023,
//! <https://arxiv.org/abs/2310.08659>).

use lora_core::LoraConfig;
use lora_core::placement::Quantize;

use crate::decoder::Decoder;
use crate::decoder_load::absent_prefix;
use crate::error::{Error, Result};
use crate::formats::{Weights, transposed};

impl Decoder {
    /// Attaches an adapter that starts as what is closest to what each layer of the base lost when it was
    /// quantised (LoftQ); `weights` are those before.
    ///
    /// # Errors
    /// Those of [`Self::attach`]; a base of which nothing that is adapted is quantised, or which is as the
    /// file has it.
    pub fn attach_lost(
        &mut self,
        name: &str,
        config: &LoraConfig,
        seed: u64,
        weights: &Weights,
    ) -> Result<()> {
        if !matches!(self.placement.quantize, Quantize::Nf4 | Quantize::Int8) {
            return Err(Error::invalid(
                "init `loftq` starts from what quantising lost, and nothing was",
            )
            .with_hint("set `quantize = \"nf4\"` or \"int8\", or start with `kaiming`"));
        }
        self.attach_fresh(name, config, seed)?;
        let started = self.start_as_loss(name, weights);
        if started.is_err() {
            self.take_off(name);
        }
        started
    }

    fn start_as_loss(&mut self, name: &str, weights: &Weights) -> Result<()> {
        let device = self.device().clone();
        let modules = self.config.modules;
        let prefix = absent_prefix(&self.config, &weights.names()).unwrap_or_default();
        for linear in self.linears_mut() {
            if linear.factor(name).is_none() {
                continue;
            }
            let path = linear.path().to_owned();
            if linear.info().is_output_head {
                let reason =
                    format!("init `loftq`: `{path}` is not quantised, so that it lost nothing");
                return Err(Error::invalid(reason)
                    .with_hint("leave it out of the targets, or start with `kaiming`"));
            }
            let key = format!("{path}.weight");
            let stored = weights.read_f32(key.strip_prefix(prefix).unwrap_or(&key))?;
            let [_, d_out] = linear.weight().dims();
            let weight = if modules.fan_in_fan_out { stored } else { transposed(&stored, d_out) };
            linear.start_as_loss(name, &weight, &device);
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use burn::tensor::Device;
    use lora_core::Placement;
    use lora_core::config::Init;
    use lora_core::decompose::{product, svd};
    use lora_core::parameter::read_f32;

    use super::*;
    use crate::{Checkpoint, OpenOptions};

    #[test]
    fn the_adapter_is_as_close_as_its_rank_allows() {
        let checkpoint = Checkpoint::open("builtin:", &OpenOptions::default()).unwrap();
        let place = Placement::f32(Device::flex());
        let mut decoder = checkpoint.load(&place.clone().quantized(Quantize::Nf4)).unwrap();
        let config = LoraConfig { init: Init::Loftq, ..LoraConfig::new(4, 8.0) };
        let refused = decoder.attach("a", &config, 0).unwrap_err();
        assert!(refused.to_string().contains("needs the weights"), "{refused}");
        decoder.attach_lost("a", &config, 0, &checkpoint.weights).unwrap();
        let dense = checkpoint.load(&place).unwrap();
        for (packed, dense) in decoder.linears().into_iter().zip(dense.linears()).step_by(5) {
            let [d_in, d_out] = dense.weight().dims();
            let wide = |numbers: Vec<f32>| numbers.into_iter().map(f64::from).collect::<Vec<_>>();
            let (w, q) =
                (wide(read_f32(dense.weight().value())), wide(read_f32(packed.weight().value())));
            let lost: Vec<f64> = w.iter().zip(&q).map(|(w, q)| w - q).collect();
            let factor = packed.factor("a").unwrap();
            let update = product(&wide(factor.a), &wide(factor.b), d_in, 4, d_out);
            let left: f64 = lost.iter().zip(&update).map(|(l, u)| (l - 2.0 * u).powi(2)).sum();
            let all = svd(&lost, d_in, d_out).s;
            let least: f64 = all[4..].iter().map(|s| s * s).sum();
            let whole: f64 = all.iter().map(|s| s * s).sum();
            assert!(least < 0.95 * whole, "{}: nothing to win", packed.path());
            assert!((left - least).abs() < 1e-5 * whole, "{}: {left} {least}", packed.path());
        }
    }

    /// DoRA's magnitudes are those of what the adapter starts as.
    #[test]
    fn a_decomposed_adapter_starts_as_an_ordinary_one() {
        let checkpoint = Checkpoint::open("builtin:", &OpenOptions::default()).unwrap();
        let logits = |use_dora| {
            let place = Placement::f32(Device::flex()).quantized(Quantize::Int8);
            let mut decoder = checkpoint.load(&place).unwrap();
            let config = LoraConfig { init: Init::Loftq, use_dora, ..LoraConfig::new(4, 8.0) };
            decoder.attach_lost("a", &config, 0, &checkpoint.weights).unwrap();
            crate::generate::all_logits(&decoder, &[5, 17, 300, 42]).unwrap()
        };
        for (plain, decomposed) in logits(false).iter().zip(&logits(true)) {
            assert!((plain - decomposed).abs() < 1e-4, "{plain} {decomposed}");
        }
    }

    #[test]
    fn a_base_that_lost_nothing_is_refused() {
        let checkpoint = Checkpoint::open("builtin:", &OpenOptions::default()).unwrap();
        let mut decoder = checkpoint.load(&Placement::f32(Device::flex())).unwrap();
        let config = LoraConfig { init: Init::Loftq, ..LoraConfig::new(4, 8.0) };
        let refused = decoder.attach_lost("a", &config, 0, &checkpoint.weights);
        assert!(refused.unwrap_err().to_string().contains("nothing was"));
        assert!(decoder.linears()[0].factor("a").is_none());
    }
}
