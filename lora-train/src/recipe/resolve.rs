//! From a recipe as written to a [`Run`]: defaults with their reasons, and what contradicts what.

use std::path::{Path, PathBuf};

use lora_core::config::{Bias, Init, LoraConfig, TargetModules};
use lora_core::device::DeviceSpec;
use lora_core::placement::{Precision, Quantize};

use super::reader::{BELOW_ONE, POSITIVE, Reader};
use super::settings::default_adapter;
use super::{Command, Method, PretrainSettings, Run, RunConfig, SampleSettings, WeightType, keys};
use crate::error::Result;

mod data;
mod train;

/// Projections of the attention; an adapter on nothing else learns less.
const ATTENTION: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn", "query_key_value"];

pub(super) fn resolve(config: RunConfig) -> Result<Run> {
    let RunConfig { path, folder, command, root, mut problems, notes } = config;
    keys::check(&root, &mut problems);
    let reader = Reader { root: &root, problems, notes };
    let mut resolver = Resolver { reader, folder, command };
    let run = resolver.run(&path);
    if resolver.reader.problems.is_empty() {
        Ok(run)
    } else {
        Err(resolver.reader.problems.into_error())
    }
}

struct Resolver<'a> {
    reader: Reader<'a>,
    folder: PathBuf,
    command: Command,
}

/// What the defaults of the training depend on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lora,
    Full,
    /// Pre-training that goes on from a checkpoint.
    Continue,
    /// Pre-training from random weights.
    Scratch,
}

impl Resolver<'_> {
    fn run(&mut self, path: &Path) -> Run {
        let pretrain = self.pretrain();
        let method = self.method(pretrain.is_some());
        let kind = match (&method, &pretrain) {
            (Method::Lora(_), _) => Kind::Lora,
            (Method::Full, None) => Kind::Full,
            (Method::Full, Some(settings)) if settings.config.is_some() => Kind::Scratch,
            (Method::Full, Some(_)) => Kind::Continue,
        };
        let model = self.model(pretrain.as_ref());
        let device = self.reader.text("device");
        let device = self.reader.or("device", device, "auto".into(), "the best that is found");
        if let Err(error) = DeviceSpec::parse(&device) {
            let hint = error.hint().unwrap_or_default();
            self.reader.problem("device", format!("{error}; {hint}"));
        }
        let written = self.reader.choice("precision", &Precision::ALL);
        let precision =
            self.reader.or("precision", written, Precision::Auto, "what suits the device");
        let written = self.reader.choice("quantize", &Quantize::ALL);
        let why = "the weights keep all bits that are computed with";
        let quantize = self.reader.or("quantize", written, Quantize::None, why);
        if quantize != Quantize::None && kind != Kind::Lora {
            let what =
                "what is trained can't rest in few bits; leave it out, or use method = \"lora\"";
            self.reader.problem("quantize", what);
        }
        let initial_adapter =
            self.reader.text("adapter.resume_from").map(|text| self.locate(&text));
        if let Method::Lora(config) = &method
            && config.init == Init::Loftq
            && initial_adapter.is_none()
            && !matches!(quantize, Quantize::Nf4 | Quantize::Int8)
        {
            let what =
                "starts from what quantising lost: set quantize = \"nf4\" or \"int8\" as well";
            self.reader.problem("adapter.init", what);
        }
        let data = self.data(kind);
        let train = self.train(kind, &data);
        let sample = self.sample();
        let output = self.output(path);
        let weights = self.weights(kind);
        let notes = std::mem::take(&mut self.reader.notes);
        Run {
            model,
            method,
            device,
            precision,
            quantize,
            initial_adapter,
            data,
            train,
            output,
            weights,
            sample,
            pretrain,
            notes,
        }
    }

    fn model(&mut self, pretrain: Option<&PretrainSettings>) -> String {
        let fresh = pretrain.is_some_and(|settings| settings.config.is_some());
        let written = self.reader.has("model");
        if fresh && written {
            let what = "can't stand together with `pretrain.config`, which starts a model from \
                        random weights; keep one of them";
            self.reader.problem("model", what);
        } else if !fresh && !written {
            let what = "is missing: a folder, a .gguf file, org/name of a hub, or \"builtin:\"";
            self.reader.problem("model", what);
        }
        let model = self.reader.text("model").unwrap_or_default();
        let beside = self.folder.join(&model);
        let looks_up = self.command != Command::Inspect && !model.is_empty();
        if looks_up && !Path::new(&model).exists() && beside.exists() {
            return beside.to_string_lossy().into_owned();
        }
        model
    }

    fn pretrain(&mut self) -> Option<PretrainSettings> {
        let written = self.reader.has("pretrain");
        match self.command {
            Command::Train if written => {
                let what = "is for `lora pretrain`; `lora train` fine-tunes a model that is there";
                self.reader.problem("pretrain", what);
                return None;
            }
            Command::Pretrain => {}
            _ if written => {}
            _ => return None,
        }
        let config = self.path("pretrain.config");
        let tokenizer = self.path("pretrain.tokenizer");
        // 256 bytes and a few special tokens are the least.
        let tokenizer_vocab = self.reader.count("pretrain.tokenizer_vocab", 260);
        let has_tokenizer =
            self.reader.has("pretrain.tokenizer") || self.reader.has("pretrain.tokenizer_vocab");
        if self.reader.has("pretrain.config") && !has_tokenizer {
            let what = "a model that starts from random weights needs a tokenizer: add \
                        `tokenizer` (a folder or tokenizer.json) or `tokenizer_vocab` (trains one)";
            self.reader.problem("pretrain.config", what);
        }
        for key in ["pretrain.tokenizer", "pretrain.tokenizer_vocab"] {
            if self.reader.has(key) && !self.reader.has("pretrain.config") {
                let what = "is for models that start from random weights: add `pretrain.config`, \
                            or leave it out to keep the tokenizer of `model`";
                self.reader.problem(key, what);
            }
        }
        Some(PretrainSettings { config, tokenizer, tokenizer_vocab })
    }

    fn method(&mut self, pretrain: bool) -> Method {
        let choice = self.reader.choice("method", &["lora", "full"]);
        if pretrain {
            if choice == Some("lora") {
                let what = "pre-training learns W0 itself: leave it out or write \"full\"";
                self.reader.problem("method", what);
            }
        } else if !self.reader.has("method") {
            let why = "a small adapter learns what full fine-tuning learns, with less memory";
            self.reader.or("method", None, "lora", why);
        }
        if !pretrain && choice != Some("full") {
            return Method::Lora(self.adapter());
        }
        if self.reader.has("adapter") {
            let what = "has no place where W0 itself is trained; leave the section out";
            self.reader.problem("adapter", what);
        }
        Method::Full
    }

    fn adapter(&mut self) -> LoraConfig {
        let reader = &mut self.reader;
        let default = default_adapter();
        if reader.has("adapter.resume_from") {
            for key in keys::of("adapter").iter().filter(|key| **key != "resume_from") {
                let key = format!("adapter.{key}");
                if reader.has(&key) {
                    let what = "can't stand together with `adapter.resume_from`: the adapter's \
                                own settings count";
                    reader.problem(&key, what);
                }
            }
            return default;
        }
        let rank = reader.count("adapter.rank", 1);
        let why = "enough for some thousand rows; more helps only on more data";
        let rank = reader.or("adapter.rank", rank, default.rank, why);
        let alpha = reader.number("adapter.alpha", &POSITIVE);
        let why = "works at any rank with one learning rate (LoRA Without Regret, 2025)";
        let alpha = reader.or("adapter.alpha", alpha, default.alpha, why);
        let dropout = reader.number("adapter.dropout", &BELOW_ONE);
        let why = "short runs gain nothing from it, and without it they are faster";
        let dropout = reader.or("adapter.dropout", dropout, default.dropout, why);
        let scaling = reader.choice("adapter.scaling", &["standard", "rslora"]);
        let scaling = reader.or("adapter.scaling", scaling, "standard", "alpha / rank");
        let init = self.init();
        let reader = &mut self.reader;
        let bias = reader.choice("adapter.bias", &Bias::ALL);

        let target = self.targets();
        let reader = &mut self.reader;
        let tokens = reader.counts("adapter.trainable_tokens");
        if let Some(token) = tokens.iter().find(|token| u32::try_from(**token).is_err()) {
            let reason = format!("no vocabulary has a token {token}");
            reader.problem("adapter.trainable_tokens", reason);
        }
        let tokens: Vec<u32> =
            tokens.into_iter().filter_map(|token| u32::try_from(token).ok()).collect();
        let tokens = Some(tokens).filter(|tokens| !tokens.is_empty());
        let config = LoraConfig {
            rank,
            alpha,
            dropout,
            use_rslora: scaling == "rslora",
            target,
            exclude: reader.texts("adapter.exclude"),
            layers: Some(reader.counts("adapter.layers")).filter(|layers| !layers.is_empty()),
            layers_pattern: reader.texts("adapter.layers_pattern"),
            rank_pattern: reader
                .pairs("adapter.rank_pattern", |reader, node, key| reader.count_of(node, key, 1)),
            alpha_pattern: reader.pairs("adapter.alpha_pattern", |reader, node, key| {
                reader.number_of(node, key, &POSITIVE)
            }),
            modules_to_save: reader.texts("adapter.modules_to_save"),
            ensure_weight_tying: reader.boolean("adapter.ensure_weight_tying").unwrap_or(false),
            trainable_tokens: tokens
                .map(|tokens| ("embed_tokens".into(), tokens))
                .into_iter()
                .collect(),
            init,
            use_dora: reader.boolean("adapter.dora").unwrap_or(false),
            lora_bias: reader.boolean("adapter.lora_bias").unwrap_or(false),
            bias: bias.unwrap_or_default(),
        };
        if let Err(error) = config.validate() {
            reader.problem("adapter", error.to_string());
        }
        config
    }

    fn init(&mut self) -> Init {
        let reader = &mut self.reader;
        let written = reader.text("adapter.init");
        let known = written.as_deref().map(Init::parse);
        if known == Some(None) {
            let what = "must be \"kaiming\", \"gaussian\", \"orthogonal\", \"pissa\", \
                        \"pissa_niter_4\" (or another number), \"olora\", \"eva\" or \"loftq\"";
            reader.problem("adapter.init", what);
        }
        reader.or("adapter.init", known.flatten(), Init::Kaiming, "A as in PEFT, B zero")
    }

    fn targets(&mut self) -> TargetModules {
        let reader = &mut self.reader;
        let names = reader.texts("adapter.target_modules");
        let regex = reader.text("adapter.target_regex");
        let word = reader.text("adapter.targets");
        if word.as_ref().is_some_and(|word| word != "all-linear") {
            let what = "knows only \"all-linear\"; list modules in `adapter.target_modules`, or \
                        match them with `adapter.target_regex`";
            reader.problem("adapter.targets", what);
        }
        if reader.has("adapter.target_modules") {
            if names.is_empty() {
                reader.problem("adapter.target_modules", "names no module");
            } else if names.iter().all(|name| ATTENTION.contains(&name.as_str())) {
                let note = "adapter.target_modules: attention alone learns less than the MLP \
                            layers do; all-linear is the better start (LoRA Without Regret, 2025)";
                reader.notes.push(note.into());
            }
            return TargetModules::Suffixes(names);
        }
        if let Some(regex) = regex {
            return TargetModules::Regex(regex);
        }
        let why = "adapting every linear layer matches full fine-tuning, attention alone does not";
        reader.or("adapter.targets", word, "all-linear".into(), why);
        TargetModules::AllLinear
    }

    fn sample(&mut self) -> SampleSettings {
        let prompts = self.reader.texts("sample.prompts");
        let max_tokens = self.reader.count("sample.max_tokens", 1);
        let default = SampleSettings::default().max_tokens;
        SampleSettings { prompts, max_tokens: max_tokens.unwrap_or(default) }
    }

    fn output(&mut self, recipe: &Path) -> PathBuf {
        let folder = self.reader.text("output.folder");
        let name = recipe.file_stem().unwrap_or_default().to_string_lossy();
        let default = format!("runs/{name}");
        PathBuf::from(self.reader.or("output.folder", folder, default, "named after the recipe"))
    }

    fn weights(&mut self, kind: Kind) -> WeightType {
        let written = self.reader.choice("output.dtype", &[WeightType::F32, WeightType::Bf16]);
        if kind == Kind::Lora {
            if self.reader.has("output.dtype") {
                let what = "is for runs that train the whole model; adapters are written in f32";
                self.reader.problem("output.dtype", what);
            }
            return WeightType::F32;
        }
        self.reader.or("output.dtype", written, WeightType::F32, "as the weights are trained")
    }

    /// A path that must exist where the command needs it.
    fn path(&mut self, key: &str) -> Option<PathBuf> {
        let text = self.reader.text(key)?;
        let path = self.locate(&text);
        let needed = match self.command {
            Command::Train | Command::Pretrain | Command::Data => true,
            Command::Plan | Command::Evaluate | Command::Inspect => false,
        };
        if needed && !path.exists() {
            let beside = self.folder.join(&text);
            let also =
                if beside == path { String::new() } else { format!(" or `{}`", beside.display()) };
            self.reader.problem(key, format!("there is no `{text}`{also}"));
        }
        Some(path)
    }

    /// A path as written if it exists, else beside the recipe if it exists there.
    fn locate(&self, written: &str) -> PathBuf {
        let path = PathBuf::from(written);
        let beside = self.folder.join(&path);
        if self.command != Command::Inspect && !path.exists() && beside.exists() {
            beside
        } else {
            path
        }
    }
}
