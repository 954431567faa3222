//! An adapter made stronger, weaker or its opposite.

use crate::error::{Error, Result};
use crate::peft::PeftAdapter;

/// The adapter with factor·ΔW in place of ΔW. The factor goes into α, so that A and B keep their numbers; a
/// negative one turns the sign of B. Weights that were trained whole stay as they are.
///
/// # Errors
/// A factor that is zero or no number; an adapter with more than low-rank pairs and whole modules.
pub fn scale(mut adapter: PeftAdapter, factor: f64) -> Result<PeftAdapter> {
    if factor == 0.0 || !factor.is_finite() {
        return Err(Error::invalid(format!("an adapter can't be scaled by {factor}"))
            .with_hint("the factor is any number but zero: 0.5 halves what the adapter does"));
    }
    super::plain::check("the adapter", &adapter)?;
    let lora = &mut adapter.config.lora;
    lora.alpha *= factor.abs();
    for (_, alpha) in &mut lora.alpha_pattern {
        *alpha *= factor.abs();
    }
    if factor < 0.0 {
        for value in adapter.factors.iter_mut().flat_map(|it| &mut it.b) {
            *value = -*value;
        }
    }
    Ok(adapter)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::low_rank::updates;
    use super::*;
    use crate::config::{LoraConfig, TargetModules};
    use crate::peft::{Factor, PeftConfig};

    #[test]
    fn the_update_is_multiplied_whatever_the_patterns() {
        for use_rslora in [false, true] {
            let mut lora = LoraConfig::new(1, 3.0);
            lora.use_rslora = use_rslora;
            lora.target = TargetModules::Suffixes(vec!["q".into(), "v".into()]);
            lora.alpha_pattern = vec![("v".into(), 5.0)];
            let pair = |path: &str| Factor {
                path: path.into(),
                d_in: 2,
                d_out: 2,
                rank: 1,
                a: vec![1.0, 2.0],
                b: vec![3.0, -4.0],
            };
            let factors = vec![pair("q"), pair("v")];
            let adapter = PeftAdapter::new(PeftConfig::new(lora, None), factors);
            for factor in [0.25, -2.0] {
                let scaled = scale(adapter.clone(), factor).unwrap();
                for (found, before) in updates(&scaled).iter().zip(updates(&adapter)) {
                    assert_eq!(found.dense(), before.times(factor).dense());
                }
                assert_eq!(scaled.factors[0].a, adapter.factors[0].a);
            }
            assert!(scale(adapter.clone(), 0.0).is_err() && scale(adapter, f64::NAN).is_err());
        }
    }
}
