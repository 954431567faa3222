//! Writing `adapter_config.json`, with every key that PEFT writes, so that PEFT and what reads its files
//! find what they look for.

use serde_json::{Map, Value, json};

use super::{Factor, PeftConfig};
use crate::config::{Init, TargetModules};

/// The version whose keys these are.
const PEFT_VERSION: &str = "0.21.2";

/// The file's content: keys sorted, indented by two.
pub(super) fn settings(config: &PeftConfig, factors: &[Factor]) -> String {
    let lora = &config.lora;
    let target = match &lora.target {
        TargetModules::AllLinear => json!(last_names(factors)),
        TargetModules::Suffixes(names) => json!(names),
        TargetModules::Regex(pattern) => json!(pattern),
    };
    let init = match lora.init {
        // On a base that was quantised as a whole these are factors like any other.
        Init::Kaiming | Init::Loftq => json!(true),
        other => json!(other.to_string()),
    };
    let alphas: Vec<(String, Value)> = lora
        .alpha_pattern
        .iter()
        .map(|(key, alpha)| (key.clone(), whole_if_it_is(*alpha)))
        .collect();
    let ranks: Vec<(String, Value)> =
        lora.rank_pattern.iter().map(|(key, rank)| (key.clone(), json!(rank))).collect();
    let layers = lora.chosen_layers();
    let layers_pattern = layers.and(some_if_any(&lora.layers_pattern));
    let mut keys = Map::new();
    let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
    put("alora_invocation_tokens", Value::Null);
    // The order of patterns has a meaning, so these are not sorted.
    put("alpha_pattern", Value::Object(alphas.into_iter().collect()));
    put("arrow_config", Value::Null);
    put("auto_mapping", Value::Null);
    put("base_model_name_or_path", json!(config.base_model));
    put("bias", json!(lora.bias.to_string()));
    put("corda_config", Value::Null);
    put("ensure_weight_tying", json!(lora.ensure_weight_tying));
    put("eva_config", Value::Null);
    put("exclude_modules", json!(some_if_any(&lora.exclude)));
    put("fan_in_fan_out", json!(config.fan_in_fan_out));
    put("inference_mode", json!(true));
    put("init_lora_weights", init);
    put("kasa_config", Value::Null);
    put("layer_replication", Value::Null);
    put("layers_pattern", json!(layers_pattern));
    put("layers_to_transform", json!(layers));
    put("loftq_config", json!({}));
    put("lora_alpha", whole_if_it_is(lora.alpha));
    put("lora_bias", json!(lora.lora_bias));
    put("lora_dropout", json!(lora.dropout));
    put("lora_ga_config", Value::Null);
    put("megatron_config", Value::Null);
    put("megatron_core", json!("megatron.core"));
    put("modules_to_save", json!(some_if_any(&lora.modules_to_save)));
    put("monteclora_config", Value::Null);
    put("peft_type", json!("LORA"));
    put("peft_version", json!(PEFT_VERSION));
    put("qalora_group_size", json!(16));
    put("r", json!(lora.rank));
    put("rank_pattern", Value::Object(ranks.into_iter().collect()));
    put("revision", Value::Null);
    put("target_modules", target);
    put("target_parameters", Value::Null);
    put("task_type", json!(config.task_type));
    put("trainable_token_indices", tokens(&lora.trainable_tokens));
    put("use_bdlora", Value::Null);
    put("use_dora", json!(lora.use_dora));
    put("use_qalora", json!(false));
    put("use_rslora", json!(lora.use_rslora));
    put("velora_config", Value::Null);
    format!("{:#}", Value::Object(keys))
}

/// PEFT takes a list for the embedding, and names with lists for any module.
fn tokens(tokens: &[(String, Vec<u32>)]) -> Value {
    match tokens {
        [] => Value::Null,
        [(module, tokens)] if module == "embed_tokens" => json!(tokens),
        many => Value::Object(many.iter().map(|(it, list)| (it.clone(), json!(list))).collect()),
    }
}

fn some_if_any(names: &[String]) -> Option<&[String]> {
    Some(names).filter(|names| !names.is_empty())
}

/// PEFT writes an alpha of 16 as `16`, not as `16.0`.
fn whole_if_it_is(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e15 { json!(number as i64) } else { json!(number) }
}

/// Last parts of the adapted paths, each once, sorted.
fn last_names(factors: &[Factor]) -> Vec<&str> {
    let last = |factor: &'_ Factor| factor.path.rfind('.').map_or(0, |dot| dot + 1);
    let mut names: Vec<&str> = factors.iter().map(|factor| &factor.path[last(factor)..]).collect();
    names.sort_unstable();
    names.dedup();
    names
}
