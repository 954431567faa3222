//! Reading `adapter_config.json`. Keys that change what an adapter computes and that we do not know how to honour
//! are errors; other keys that we do not keep are dropped with a warning.

use std::path::Path;

use serde_json::{Map, Value};

use super::PeftConfig;
use crate::config::{Bias, Init, LoraConfig, TargetModules};
use crate::error::{Error, Result};
use crate::target::Matcher;

const MERGE: &str = "merge the adapter into its base with PEFT (`merge_and_unload`) and use that";

/// PEFT's defaults, for files that other tools wrote.
const PEFT_RANK: usize = 8;
const PEFT_ALPHA: f64 = 8.0;

/// What the file says.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) config: PeftConfig,
    /// The targets are said in a way that can't be followed, such as a regular expression of Python's own;
    /// the names of the weights say the same.
    pub(super) targets_are_in_the_weights: bool,
}

/// Keys that make an adapter something else unless they are off.
const UNSUPPORTED: [(&str, &str); 11] = [
    ("use_qalora", "group-wise adapters (QA-LoRA)"),
    ("use_bdlora", "block-diagonal adapters"),
    ("layer_replication", "replicated layers"),
    ("target_parameters", "adapters on bare parameters"),
    ("alora_invocation_tokens", "activated adapters (aLoRA)"),
    ("arrow_config", "routed adapters (Arrow)"),
    ("kasa_config", "adapters with singular values (KaSA)"),
    ("monteclora_config", "Monte Carlo adapters"),
    ("megatron_config", "Megatron's parallel layers"),
    ("enable_lora", "adapters on parts of a fused layer"),
    ("use_loha", "Hadamard-product adapters"),
];

/// Keys that say nothing about what the adapter computes once it is trained.
const NOT_KEPT: [&str; 12] = [
    "auto_mapping",
    "corda_config",
    "eva_config",
    "inference_mode",
    "lora_ga_config",
    "loftq_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "merge_weights",
];

/// Reads the file's content; `path` is for messages.
pub(super) fn parse(text: &str, path: &Path) -> Result<Settings> {
    let keys = match serde_json::from_str(text) {
        Ok(Value::Object(keys)) => keys,
        Ok(_) => return Err(Error::malformed(path, "not a JSON object")),
        Err(error) => return Err(Error::malformed(path, format!("not JSON: {error}"))),
    };
    let mut file = File { keys, path };
    check_kind(&mut file)?;
    check_unsupported(&mut file)?;
    let mut warnings = Vec::new();
    let init = init(&mut file, &mut warnings)?;
    let rank = file.optional("r", "a whole number above zero", count)?;
    let rank = rank.unwrap_or_else(|| default_of("r", PEFT_RANK, &mut warnings));
    let alpha = file.optional("lora_alpha", "a number", Value::as_f64)?;
    let alpha = alpha.unwrap_or_else(|| default_of("lora_alpha", PEFT_ALPHA, &mut warnings));
    let target = targets(&mut file)?;
    let exclude =
        file.optional("exclude_modules", "a text or a list of texts", one_or_more_names)?;
    let layers_pattern =
        file.optional("layers_pattern", "a text or a list of texts", one_or_more_names)?;
    let mut lora = LoraConfig {
        rank,
        alpha,
        dropout: file.optional("lora_dropout", "a number", Value::as_f64)?.unwrap_or(0.0),
        use_rslora: file.switch("use_rslora")?,
        target,
        exclude: Vec::new(),
        layers: file.optional("layers_to_transform", "whole numbers", layers)?,
        layers_pattern: layers_pattern.map(Names::into_list).unwrap_or_default(),
        rank_pattern: file
            .optional("rank_pattern", "names with whole numbers above zero", |value| {
                pattern(value, count)
            })?
            .unwrap_or_default(),
        alpha_pattern: file
            .optional("alpha_pattern", "names with numbers", |value| pattern(value, Value::as_f64))?
            .unwrap_or_default(),
        modules_to_save: file
            .optional("modules_to_save", "a list of texts", list_of_names)?
            .unwrap_or_default(),
        ensure_weight_tying: file.switch("ensure_weight_tying")?,
        trainable_tokens: file
            .optional("trainable_token_indices", "token numbers, or modules with them", tokens)?
            .unwrap_or_default(),
        init,
        use_dora: file.switch("use_dora")?,
        lora_bias: file.switch("lora_bias")?,
        bias: file.optional("bias", "`none`, `all` or `lora_only`", bias)?.unwrap_or_default(),
    };
    let excluded_by_expression = match exclude {
        Some(Names::One(_)) => true,
        Some(Names::List(names)) => {
            lora.exclude = names;
            false
        }
        None => false,
    };
    let targets_are_in_the_weights = excluded_by_expression || is_pythons_own(&lora);
    if targets_are_in_the_weights {
        warnings.push(
            "the targets are said by a regular expression that only Python understands: the modules are \
             taken from the names of the weights"
                .to_owned(),
        );
        (lora.layers, lora.layers_pattern) = (None, Vec::new());
    }
    let base_model = file.optional("base_model_name_or_path", "a text", text_of)?;
    let fan_in_fan_out = file.optional("fan_in_fan_out", "true or false", Value::as_bool)?;
    let task_type = file.optional("task_type", "a text", text_of)?;
    warnings.extend(file.left_over()?);
    let fan_in_fan_out = fan_in_fan_out.unwrap_or(false);
    let config = PeftConfig { lora, base_model, fan_in_fan_out, task_type, warnings };
    Ok(Settings { config, targets_are_in_the_weights })
}

/// The file's keys, taken out one by one.
struct File<'a> {
    keys: Map<String, Value>,
    path: &'a Path,
}

impl File<'_> {
    /// Takes a key out; null is the same as absent.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.shift_remove(key).filter(|value| !value.is_null())
    }

    fn optional<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.wrong(format!("`{key}` must be {expected}, not {}", short(&value)))),
        }
    }

    fn switch(&mut self, key: &str) -> Result<bool> {
        Ok(self.optional(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn required<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<T> {
        self.optional(key, expected, read)?.ok_or_else(|| {
            self.wrong(format!("`{key}` is missing"))
                .with_hint("an adapter can't be used without it: take the file that PEFT wrote")
        })
    }

    fn wrong(&self, reason: String) -> Error {
        Error::malformed(self.path, reason)
    }

    /// Warnings about the keys that nothing asked for.
    fn left_over(self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for (key, value) in &self.keys {
            if NOT_KEPT.contains(&key.as_str()) {
                continue;
            }
            // PEFT switches variants on by such keys; one that we have not heard of may do anything.
            if changes_the_mathematics(key) && !is_off(value) {
                let reason = format!("`{key}` is {}: a setting unknown here", short(value));
                return Err(self.wrong(reason).with_hint(MERGE));
            }
            warnings.push(format!("`{key}` is ignored"));
        }
        Ok(warnings)
    }
}

/// Whether the name of a key that we have not heard of says that it changes what the adapter computes:
/// variants are switched on by `use_…` and `…_config`, factors have alpha or scale in their names.
fn changes_the_mathematics(key: &str) -> bool {
    key.starts_with("use_")
        || key.ends_with("_config")
        || key.contains("alpha")
        || key.contains("scal")
}

/// What PEFT takes where a file does not say.
fn default_of<T: std::fmt::Display>(key: &str, value: T, warnings: &mut Vec<String>) -> T {
    warnings.push(format!("`{key}` is missing: PEFT's default of {value} is taken"));
    value
}

fn check_kind(file: &mut File<'_>) -> Result<()> {
    let kind = file.required("peft_type", "a text", text_of)?;
    if kind == "LORA" {
        return Ok(());
    }
    Err(file.wrong(format!("`peft_type` is `{kind}`: only `LORA` is supported")))
}

fn check_unsupported(file: &mut File<'_>) -> Result<()> {
    for (key, what) in UNSUPPORTED {
        if let Some(value) = file.take(key).filter(|value| !is_off(value)) {
            let reason = format!("`{key}` is {}: {what} are not supported", short(&value));
            return Err(file.wrong(reason).with_hint(MERGE));
        }
    }
    Ok(())
}

/// How the adapter started. That is past, except where the start also changed the weights of the base.
fn init(file: &mut File<'_>, warnings: &mut Vec<String>) -> Result<Init> {
    let way = file.take("init_lora_weights");
    if file.take("velora_config").is_some() {
        warnings.push("`velora_config` is ignored: it only changes training".to_owned());
    }
    let way = match way {
        None | Some(Value::Bool(_)) => return Ok(Init::Kaiming),
        Some(Value::String(way)) => way.to_lowercase(),
        Some(other) => {
            let reason =
                format!("`init_lora_weights` must be true, false or a text, not {}", short(&other));
            return Err(file.wrong(reason));
        }
    };
    // PEFT's puts another base under it each time.
    let known = Init::parse(&way).filter(|init| *init != Init::Loftq);
    if let Some(init) = known {
        if let Init::Pissa { iterations: Some(_) } = init {
            warnings.push(format!(
                "`init_lora_weights` is `{way}`: PEFT took an approximate part out of the base, which is \
                 different each time; here it is the exact one"
            ));
            return Ok(Init::Pissa { iterations: None });
        }
        return Ok(init);
    }
    if way == "mica" {
        warnings.push(format!("`init_lora_weights` is `{way}`, which is not kept"));
        return Ok(Init::Kaiming);
    }
    let reason = format!("`init_lora_weights` is `{way}`, which changes the weights of the base");
    Err(file.wrong(reason).with_hint(
        "save the adapter again with PEFT's `path_initial_model_for_weight_conversion`, which makes \
         it an ordinary one",
    ))
}

fn bias(value: &Value) -> Option<Bias> {
    let name = value.as_str()?;
    Bias::ALL.into_iter().find(|bias| bias.to_string() == name)
}

/// `[7, 8]` are rows of the embedding; `{"embed_tokens": [7, 8]}` says so.
fn tokens(value: &Value) -> Option<Vec<(String, Vec<u32>)>> {
    let list = |value: &Value| -> Option<Vec<u32>> {
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        value.as_array()?.iter().map(number).collect()
    };
    if let Value::Array(_) = value {
        return Some(vec![("embed_tokens".to_owned(), list(value)?)]);
    }
    pattern(value, list)
}

fn targets(file: &mut File<'_>) -> Result<TargetModules> {
    let expected = "a list of texts, or a text";
    Ok(match file.required("target_modules", expected, one_or_more_names)? {
        Names::List(names) => TargetModules::Suffixes(names),
        Names::One(text) if text.eq_ignore_ascii_case("all-linear") => TargetModules::AllLinear,
        Names::One(pattern) => TargetModules::Regex(pattern),
    })
}

/// Whether the regular expression for the targets is one that works in Python only.
fn is_pythons_own(lora: &LoraConfig) -> bool {
    if !matches!(lora.target, TargetModules::Regex(_)) {
        return false;
    }
    let alone = LoraConfig { target: lora.target.clone(), ..LoraConfig::new(1, 1.0) };
    Matcher::new(&alone).is_err()
}

enum Names {
    One(String),
    List(Vec<String>),
}

impl Names {
    fn into_list(self) -> Vec<String> {
        match self {
            // PEFT takes an empty text as none.
            Self::One(name) if name.is_empty() => Vec::new(),
            Self::One(name) => vec![name],
            Self::List(names) => names,
        }
    }
}

fn one_or_more_names(value: &Value) -> Option<Names> {
    match value {
        Value::String(name) => Some(Names::One(name.clone())),
        other => list_of_names(other).map(Names::List),
    }
}

fn list_of_names(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(text_of).collect()
}

fn text_of(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|&number| number > 0)
}

fn layers(value: &Value) -> Option<Vec<usize>> {
    let number = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
    match value {
        Value::Array(values) => values.iter().map(number).collect(),
        other => Some(vec![number(other)?]),
    }
}

fn pattern<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    value.as_object()?.iter().map(|(key, value)| Some((key.clone(), read(value)?))).collect()
}

/// Whether a switch is off: null, false, nothing in it.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}
