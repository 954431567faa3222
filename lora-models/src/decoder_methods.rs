//! What methods beyond plain LoRA add to a decoder: biases, single tokens, an adapted embedding, and what of
//! all this is trained, as far as the configuration alone says it.

use lora_core::config::{Bias, LoraConfig};
use lora_core::init::init_embedding;
use lora_core::ops::cast;
use lora_core::parameter::{ParameterMut, read_f32};
use lora_core::peft::{Factor, NamedTensor, PeftAdapter};
use lora_core::target::{Adapted, LinearInfo, resolve_targets};

use crate::decoder::{Block, Decoder};
use crate::decoder_config::DecoderConfig;
use crate::decoder_layout::{linear_infos, tensor_layout};
use crate::decoder_load::stored_way_round;
use crate::encoder::{saved_modules, with_classifier};
use crate::error::{Error, Result};
use crate::norm::Norm;

/// Every module that an adapter can be for: the embedding, then the linear layers, the head last.
pub fn adaptable(config: &DecoderConfig) -> Vec<LinearInfo> {
    let embedding = LinearInfo {
        path: config.modules.embedding.to_owned(),
        d_in: config.vocab_size,
        d_out: config.hidden_size,
        is_output_head: false,
    };
    let mut infos = vec![embedding];
    infos.extend(linear_infos(config));
    infos
}

/// Keys and shapes of what an adapter with these settings trains, in the order of the model; no weight is
/// needed.
///
/// # Errors
/// Settings that can't be, a target or a module that matches nothing.
pub fn trained_tensors(
    config: &DecoderConfig,
    lora: &LoraConfig,
) -> Result<Vec<(String, Vec<usize>)>> {
    let modules = adaptable(config);
    let lora: &LoraConfig = &with_classifier(config, lora);
    let targets = resolve_targets(lora, &modules)?;
    let saved = saved_modules(config, lora)?;
    let layout = tensor_layout(config);
    let has_bias = |path: &str| layout.iter().any(|(key, _)| *key == format!("{path}.bias"));
    let mut tensors = Vec::new();
    for LinearInfo { path, d_in, d_out, .. } in &modules {
        let (d_in, d_out) = (*d_in, *d_out);
        let mut add = |end: &str, shape: &[usize]| {
            tensors.push((format!("{path}{end}"), shape.to_vec()));
        };
        if saved.contains(path) {
            add(".weight", &[d_in, d_out]);
            if has_bias(path) {
                add(".bias", &[d_out]);
            }
            continue;
        }
        let target = targets.iter().find(|target| target.path == *path);
        if path == config.modules.embedding {
            if let Some(Adapted { rank, .. }) = target {
                add(".lora_embedding_A", &[d_in, *rank]);
                add(".lora_embedding_B", &[*rank, d_out]);
            }
            for (_, tokens) in &lora.trainable_tokens {
                add(".token_adapter.trainable_tokens_delta", &[tokens.len(), d_out]);
            }
            continue;
        }
        if let Some(Adapted { rank, .. }) = target {
            add(".lora_A.weight", &[d_in, *rank]);
            add(".lora_B.weight", &[*rank, d_out]);
            if lora.lora_bias {
                add(".lora_B.bias", &[d_out]);
            }
            if lora.use_dora {
                add(".lora_magnitude_vector", &[d_out]);
            }
        }
        match (lora.bias, target) {
            (Bias::All | Bias::LoraOnly, Some(_)) if has_bias(path) => {
                add(".base_layer.bias", &[d_out]);
            }
            (Bias::All, None) if has_bias(path) => add(".bias", &[d_out]),
            _ => {}
        }
    }
    if lora.bias == Bias::All {
        // Those of norms come last.
        let of_norm = |key: &str| {
            let path = key.strip_suffix(".bias");
            path.is_some_and(|path| modules.iter().all(|module| module.path != path))
        };
        tensors.extend(layout.into_iter().filter(|(key, _)| of_norm(key)));
    }
    Ok(tensors)
}

impl Decoder {
    /// Adds a low-rank adapter to the embedding: fresh, or with the factors of a file.
    pub(crate) fn adapt_embedding(
        &mut self,
        name: &str,
        config: &LoraConfig,
        target: &Adapted,
        factor: Option<&Factor>,
        seed: u64,
    ) -> Result<()> {
        let Adapted { d_in, d_out, rank, .. } = *target;
        let path = self.config.modules.embedding;
        let fresh = || {
            let (a, b) = init_embedding(d_in, d_out, rank, seed, path);
            Factor { path: path.to_owned(), d_in, d_out, rank, a, b }
        };
        let factor = factor.cloned().unwrap_or_else(fresh);
        // As in PEFT a tied head stays what the embedding was, unless it is asked to follow.
        if self.is_tied() && !config.ensure_weight_tying {
            self.untie_head()?;
        }
        let (tied, device) = (self.is_tied(), self.device().clone());
        self.embedding_adapters.attach_low_rank(name, &factor, target.scaling, tied, &device);
        Ok(())
    }

    /// Gives adapter `name` copies of the biases that it trains.
    pub(crate) fn add_biases(&mut self, name: &str, bias: Bias, targets: &[Adapted]) -> Result<()> {
        if bias == Bias::None {
            return Ok(());
        }
        let mut found = false;
        for (key, parameter) in self.base_parameters_mut() {
            let (ParameterMut::Vector(parameter), Some(path)) =
                (parameter, key.strip_suffix(".bias"))
            else {
                continue;
            };
            let adapted = targets.iter().any(|target| target.path == path);
            if !adapted && bias != Bias::All {
                continue;
            }
            found = true;
            if !parameter.has_copy(name) {
                let value = cast(parameter.base_value(), burn::tensor::DType::F32);
                parameter.add_copy(name, value);
            }
        }
        if found {
            return Ok(());
        }
        let which = if bias == Bias::All { "the model has" } else { "the adapted layers have" };
        Err(Error::invalid(format!("bias is `{bias}`, but {which} no biases"))
            .with_hint("leave it at `none`"))
    }

    /// Gives adapter `name` rows of its own for the tokens it trains: those of a file, or the embedding's.
    pub(crate) fn add_token_rows(
        &mut self,
        name: &str,
        config: &LoraConfig,
        rows: Option<&NamedTensor>,
    ) -> Result<()> {
        let [v, d] = self.embed_tokens.dims();
        for (_, tokens) in &config.trainable_tokens {
            if let Some(token) = tokens.iter().find(|token| **token as usize >= v) {
                return Err(Error::invalid(format!(
                    "trainable_tokens names token {token}, but the vocabulary has {v}"
                ))
                .with_hint("tokens are numbered from 0"));
            }
            if let Some(tensor) = rows.filter(|tensor| tensor.shape != [tokens.len(), d]) {
                return Err(Error::invalid(format!(
                    "the adapter's `{}` has shape {:?}, the model's rows [{}, {d}]",
                    tensor.name,
                    tensor.shape,
                    tokens.len()
                )));
            }
            let rows = rows.map(|tensor| tensor.data.clone());
            let (tied, device) = (self.is_tied(), self.device().clone());
            let table = &self.embed_tokens;
            self.embedding_adapters.attach_rows(name, tokens, rows, table, tied, &device);
        }
        Ok(())
    }

    /// Attaches what a file holds beside factors and saved modules.
    pub(crate) fn add_extra(&mut self, name: &str, adapter: &PeftAdapter) -> Result<()> {
        let device = self.device().clone();
        for tensor in &adapter.extra {
            let key = tensor.name.as_str();
            if key.ends_with(".token_adapter.trainable_tokens_delta") {
                self.add_token_rows(name, &adapter.config.lora, Some(tensor))?;
            } else if let Some(path) = key.strip_suffix(".base_layer.weight") {
                self.check_base(path, tensor)?;
            } else if let Some(path) = key.strip_suffix(".lora_B.bias") {
                if let Some(linear) = self.linear_mut(path) {
                    linear.set_branch_bias(name, tensor.data.clone(), &device);
                }
            } else if let Some(path) = key.strip_suffix(".lora_magnitude_vector") {
                if let Some(linear) = self.linear_mut(path) {
                    linear.set_magnitude(name, Some(tensor.data.clone()), &device);
                }
            } else {
                let path = key.strip_suffix(".bias").unwrap_or(key);
                let path = path.strip_suffix(".base_layer").unwrap_or(path);
                let wanted = format!("{path}.bias");
                let base = self.base_parameters_mut().into_iter().find(|(key, _)| *key == wanted);
                let Some((_, ParameterMut::Vector(bias))) =
                    base.filter(|(_, bias)| bias.shape() == tensor.shape)
                else {
                    return Err(Error::invalid(format!(
                        "the adapter replaces the bias `{key}`, which this model does not have in that shape"
                    )));
                };
                let data = burn::tensor::TensorData::new(tensor.data.clone(), tensor.shape.clone());
                bias.add_copy(name, burn::tensor::Tensor::from_data(data, &device));
            }
        }
        Ok(())
    }

    /// What adapter `name` stores beside factors and saved modules.
    pub(crate) fn extra_tensors(&self, name: &str) -> Vec<NamedTensor> {
        let path = self.config.modules.embedding;
        let rows = self.embedding_adapters.rows(name).map(|(shape, data)| NamedTensor {
            name: format!("{path}.token_adapter.trainable_tokens_delta"),
            shape: shape.to_vec(),
            data,
        });
        let saved = |path: &str| {
            let attached = self.adapters.iter().find(|adapter| adapter.name == name);
            attached.is_some_and(|adapter| adapter.saved.iter().any(|module| module == path))
        };
        let linears = self.linears();
        let linears = linears.iter().filter(|linear| !saved(linear.path()));
        let vectors = linears.flat_map(|linear| linear.vectors(name));
        let vectors =
            vectors.map(|(name, data)| NamedTensor { name, shape: vec![data.len()], data });
        let of_norm = |norm: &Norm| {
            let copy = norm.bias.as_ref()?.copy_of(name)?;
            let (shape, data) = (copy.dims().to_vec(), read_f32(copy));
            Some(NamedTensor { name: format!("{}.bias", norm.path), shape, data })
        };
        let norms = self.layers.iter().flat_map(Block::norms).chain([&self.norm]);
        rows.into_iter().chain(vectors).chain(norms.filter_map(of_norm)).collect()
    }

    /// Trains the B of adapter `name` alone (LoRA-FA): A stays as it starts, and no gradient is formed for it. On
    /// an embedding, where it is A that starts at zero, both are trained.
    ///
    /// # Errors
    /// No adapter of that name.
    pub fn freeze_a(&mut self, name: &str) -> Result<()> {
        self.attached(name)?;
        self.linears_mut().into_iter().for_each(|linear| linear.freeze_a(name));
        Ok(())
    }

    /// For each B whose A is frozen, by its key: as [`lora_core::linear::LoraLinear::frozen_metric`].
    pub fn frozen_metrics(&self, name: &str) -> Vec<(String, Vec<f32>)> {
        self.linears().into_iter().filter_map(|linear| linear.frozen_metric(name)).collect()
    }

    /// Whether a merged model is all there is: an adapter may add biases that the model's family has no
    /// place for.
    ///
    /// # Errors
    /// Names the first such layer.
    pub fn check_storable(&self) -> Result<()> {
        let linears = self.linears();
        let Some(linear) = linears.iter().find(|linear| linear.adds_bias()) else { return Ok(()) };
        Err(Error::invalid(format!(
            "the adapter gives `{}` a bias (lora_bias), which this family of models has no place for",
            linear.path()
        ))
        .with_hint("keep the adapter beside the model, or train one without `lora_bias`"))
    }

    /// PEFT adds the weight of an adapted head or embedding to its files; it must be this model's.
    fn check_base(&mut self, path: &str, tensor: &NamedTensor) -> Result<()> {
        let modules = self.config.modules;
        let own = if path == modules.embedding {
            self.embed_tokens.read()
        } else {
            let linear = self.linear_mut(path);
            linear
                .map(|linear| {
                    read_f32(stored_way_round(modules, path, linear.weight().base_value()))
                })
                .unwrap_or_default()
        };
        // A base in half precision, or a file of one, is off by its rounding.
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 0.01 * a.abs().max(0.01);
        if own.len() == tensor.data.len() && own.iter().zip(&tensor.data).all(near) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the adapter carries `{}`, and it is not the one of this model",
            tensor.name
        )))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use burn::tensor::Device;
    use lora_core::Placement;
    use lora_core::config::{Init, TargetModules};

    use super::*;
    use crate::checkpoint::{Checkpoint, OpenOptions};
    use crate::decoder_adapters::Trainable;

    fn carried() -> Decoder {
        let checkpoint = Checkpoint::open("builtin:", &OpenOptions::default()).unwrap();
        checkpoint.load(&Placement::f32(Device::flex())).unwrap()
    }

    fn plain() -> LoraConfig {
        LoraConfig::new(4, 8.0)
    }

    fn on(names: &[&str]) -> TargetModules {
        TargetModules::Suffixes(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn what_is_trained_is_known_before_a_weight_is_read() {
        let base = carried();
        for config in [
            plain(),
            LoraConfig { use_dora: true, ..plain() },
            LoraConfig { lora_bias: true, ..plain() },
            LoraConfig { target: on(&["embed_tokens", "lm_head"]), ..plain() },
            LoraConfig {
                trainable_tokens: vec![("embed_tokens".to_owned(), vec![3, 1])],
                modules_to_save: vec!["layers.0.mlp.up_proj".to_owned()],
                ..plain()
            },
            LoraConfig {
                target: on(&["v_proj"]),
                modules_to_save: vec!["embed_tokens".to_owned(), "lm_head".to_owned()],
                ..plain()
            },
        ] {
            let mut decoder = base.clone();
            decoder.attach("a", &config, 0).unwrap();
            let found = decoder.trainable_mut(&Trainable::Adapter("a".into()));
            let found: Vec<_> = found.into_iter().map(|(key, it)| (key, it.shape())).collect();
            assert_eq!(trained_tensors(base.config(), &config).unwrap(), found);
        }
    }

    #[test]
    fn a_copy_of_the_base_in_an_adapter_must_be_that_of_the_base() {
        let mut decoder = carried();
        let config = LoraConfig { target: on(&["embed_tokens", "lm_head"]), ..plain() };
        decoder.attach("a", &config, 0).unwrap();
        let mut adapter = decoder.export("a", None).unwrap();
        // PEFT writes these where nothing says that it should not.
        for (path, key) in
            [("model.embed_tokens", "model.embed_tokens.weight"), ("lm_head", "lm_head.weight")]
        {
            let (_, shape, data) = decoder.tensors().find(|(name, ..)| name == key).unwrap();
            let name = format!("{path}.base_layer.weight");
            adapter.extra.push(NamedTensor { name, shape, data });
        }
        let folder = tempfile::tempdir().unwrap();
        adapter.save(folder.path()).unwrap();
        let mut adapter = PeftAdapter::load(folder.path()).unwrap();
        carried().attach_peft("a", &adapter).unwrap();
        adapter.extra[1].data[7] += 1.0;
        let error = carried().attach_peft("a", &adapter).unwrap_err().to_string();
        assert!(error.contains("is not the one of this model"), "{error}");
    }

    #[test]
    fn a_module_saved_whole_keeps_its_bias() {
        use burn::tensor::{Tensor, TensorData};
        let vector = |numbers: &[f32]| {
            let data = TensorData::new(numbers.to_vec(), [numbers.len()]);
            Tensor::<1>::from_data(data, &Device::flex())
        };
        // The carried model has no biases: one layer gets one.
        let with_bias = || {
            let mut decoder = carried();
            let linear = &mut decoder.layers[0].mlp.inputs[1];
            let weight = linear.weight().value();
            let bias = vector(&vec![0.5; weight.dims()[1]]);
            *linear =
                lora_core::linear::LoraLinear::new(linear.path().to_owned(), weight, Some(bias));
            decoder
        };
        let mut decoder = with_bias();
        let config = LoraConfig {
            target: on(&["v_proj"]),
            modules_to_save: vec!["layers.0.mlp.up_proj".to_owned()],
            ..plain()
        };
        decoder.attach("a", &config, 0).unwrap();
        let device = decoder.device().clone();
        for (key, mut parameter) in decoder.trainable_mut(&Trainable::Adapter("a".into())) {
            if key.ends_with("up_proj.bias") {
                parameter.write(vec![-2.0; parameter.count()], &device);
            }
        }
        let folder = tempfile::tempdir().unwrap();
        decoder.export("a", None).unwrap().save(folder.path()).unwrap();
        let mut other = with_bias();
        other.attach_peft("a", &PeftAdapter::load(folder.path()).unwrap()).unwrap();
        let bias = |decoder: &Decoder| {
            let linear =
                decoder.linears().into_iter().find(|it| it.path().ends_with("0.mlp.up_proj"));
            read_f32(linear.unwrap().bias().unwrap().value())[0]
        };
        assert_eq!(bias(&other), -2.0);
        other.set_active(&[]).unwrap();
        assert_eq!(bias(&other), 0.5);
    }

    #[test]
    fn what_can_not_be_is_said() {
        let base = carried();
        let refused = |config: LoraConfig| {
            let mut decoder = base.clone();
            let error = decoder.attach("a", &config, 0).unwrap_err();
            let left = decoder.linears().iter().find_map(|linear| linear.factor("a"));
            assert_eq!(left, None, "an adapter that was refused is still there");
            match error.hint() {
                Some(hint) => format!("{error}\n  {hint}"),
                None => error.to_string(),
            }
        };
        let tokens = |list: &[u32]| vec![("embed_tokens".to_owned(), list.to_vec())];
        let mut sum = base.clone();
        sum.attach("a", &LoraConfig { use_dora: true, ..plain() }, 0).unwrap();
        let sum = sum.set_active(&[("a".to_owned(), 0.5)]).unwrap_err();
        let mut biased = base.clone();
        biased.attach("a", &LoraConfig { lora_bias: true, ..plain() }, 0).unwrap();
        let messages = [
            refused(LoraConfig { use_dora: true, target: on(&["embed_tokens"]), ..plain() }),
            refused(LoraConfig { target: on(&["embed_tokens"]), init: Init::Olora, ..plain() }),
            refused(LoraConfig { use_dora: true, lora_bias: true, ..plain() }),
            refused(LoraConfig { init: Init::Orthogonal, ..LoraConfig::new(3, 8.0) }),
            refused(LoraConfig { init: Init::Eva, ..plain() }),
            refused(LoraConfig { bias: Bias::LoraOnly, ..plain() }),
            refused(LoraConfig { trainable_tokens: tokens(&[1, 2, 1]), ..plain() }),
            refused(LoraConfig { trainable_tokens: tokens(&[1 << 20]), ..plain() }),
            refused(LoraConfig {
                trainable_tokens: vec![("lm_head".to_owned(), vec![1])],
                ..plain()
            }),
            sum.to_string(),
            biased.check_storable().unwrap_err().to_string(),
        ];
        insta::assert_snapshot!(messages.join("\n"), @"
        `model.embed_tokens` is an embedding, and an adapter on it can't be weight-decomposed (DoRA)
          leave it out of the targets, or leave that setting out
        `model.embed_tokens` is an embedding, and an adapter on it can't start otherwise than with A zero and B normal (init `kaiming`)
          leave it out of the targets, or leave that setting out
        lora_bias has no place in a weight-decomposed adapter (DoRA)
        init `orthogonal` needs even ranks, not 3
        init `eva` starts from data, which there is none of here
          call `attach_explained` with a pass over data
        bias is `lora_only`, but the adapted layers have no biases
          leave it at `none`
        token 1 stands twice in trainable_tokens
        trainable_tokens names token 1048576, but the vocabulary has 1024
          tokens are numbered from 0
        trainable_tokens are rows of the embedding (`embed_tokens`), not of `lm_head`
        adapter `a` is a weight-decomposed one (DoRA), so it can't be part of a sum
        the adapter gives `model.layers.0.self_attn.q_proj` a bias (lora_bias), which this family of models has no place for
        ");
    }
}
