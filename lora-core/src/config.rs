//! What an adapter is: rank, scale, dropout, which modules it adapts and how it starts. Plain data in
//! PEFT's terms; [`crate::target`] applies it to a model and [`crate::peft`] reads and writes it.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;

use crate::error::{Error, Result};
use crate::target::{Matcher, is_embedding};

/// Settings of one low-rank adapter.
///
/// A frozen weight W is used as W + s·B·A with s = α/r, or α/√r with [`use_rslora`](Self::use_rslora)
/// (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>; Kalajdzievski 2023,
/// <https://arxiv.org/abs/2312.03732>).
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank r of the update where no pattern says otherwise.
    pub rank: usize,
    /// Numerator α of the scale where no pattern says otherwise.
    pub alpha: f64,
    /// Probability that an input of the low-rank branch is dropped in training.
    pub dropout: f64,
    /// Scale by α/√r in place of α/r.
    pub use_rslora: bool,
    /// Modules that get an adapter.
    pub target: TargetModules,
    /// Modules that never get one: a path, or its ending after a dot.
    pub exclude: Vec<String>,
    /// Only these layers get one; `None` or empty means all. Not with a regular expression.
    pub layers: Option<Vec<usize>>,
    /// Names before the layer number (`layers` in `model.layers.3`); empty means any.
    pub layers_pattern: Vec<String>,
    /// Ranks of single modules: path ending or regular expression, first match wins.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of single modules: path ending or regular expression, first match wins.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules trained whole and saved beside the adapter: path endings.
    pub modules_to_save: Vec<String>,
    /// Where the embedding is the output head too: what is trained of one is trained of both.
    pub ensure_weight_tying: bool,
    /// Tokens whose rows of a module (path ending: `embed_tokens`) are trained and saved, and no others.
    pub trainable_tokens: Vec<(String, Vec<u32>)>,
    /// How the pair starts.
    pub init: Init,
    /// Magnitude and direction of each weight column apart: W ← m·(W + s·B·A)/‖W + s·B·A‖ (DoRA, Liu et
    /// al. 2024, <https://arxiv.org/abs/2402.09353>).
    pub use_dora: bool,
    /// A bias of its own on the low-rank branch: y gets s·b more.
    pub lora_bias: bool,
    /// Which biases of the base are trained too, and saved.
    pub bias: Bias,
}

/// Which biases of the base are trained with the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of the adapted layers.
    LoraOnly,
}

impl Bias {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::None, Self::All, Self::LoraOnly];
}

impl fmt::Display for Bias {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::None => "none",
            Self::All => "all",
            Self::LoraOnly => "lora_only",
        })
    }
}

/// Modules that get an adapter, as PEFT's `target_modules` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear layer except the output head.
    AllLinear,
    /// Each entry is a module path, or its ending after a dot: `q_proj`, `layers.0.mlp.up_proj`.
    Suffixes(Vec<String>),
    /// A regular expression that matches the whole module path.
    Regex(String),
}

/// How an adapter starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Init {
    /// A uniform in ±1/√d_in, which is Kaiming's with a = √5; B zero. What PEFT does by default.
    #[default]
    Kaiming,
    /// A normal with standard deviation 1/r; B zero.
    Gaussian,
    /// A and B random in directions that do not meet: B·A is zero and both have gradients. Even ranks.
    Orthogonal,
    /// The strongest singular directions of W, which are taken out of the base (PiSSA, Meng et al. 2024,
    /// <https://arxiv.org/abs/2404.02948>).
    Pissa {
        /// Found from a random sketch with so many iterations; `None` is the whole decomposition.
        iterations: Option<usize>,
    },
    /// The first columns and rows of W = Q·R, which are taken out of the base (OLoRA, Büyükakyüz 2024,
    /// <https://arxiv.org/abs/2406.01775>).
    Olora,
    /// A spans what the layer's inputs vary most along, found in a pass over data; B zero (EVA, Paischer
    /// et al. 2024, <https://arxiv.org/abs/2410.07170>).
    Eva,
    /// What is closest to what the base lost when it was quantised, W − Q (LoftQ, Li et al. 2023,
    /// <https://arxiv.org/abs/2310.08659>, one step of algorithm 1); the base stays Q.
    Loftq,
}

impl Init {
    /// Whether the start is a part of W, which the base then gives up.
    pub fn takes_from_base(self) -> bool {
        matches!(self, Self::Pissa { .. } | Self::Olora)
    }

    /// The way of that name: `pissa`, or with the iterations of a sketch `pissa_niter_4`.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "kaiming" => Self::Kaiming,
            "gaussian" => Self::Gaussian,
            "orthogonal" => Self::Orthogonal,
            "pissa" => Self::Pissa { iterations: None },
            "olora" => Self::Olora,
            "eva" => Self::Eva,
            "loftq" => Self::Loftq,
            other => {
                let iterations = other.strip_prefix("pissa_niter_")?.parse().ok()?;
                Self::Pissa { iterations: Some(iterations) }
            }
        })
    }
}

impl fmt::Display for Init {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kaiming => formatter.pad("kaiming"),
            Self::Gaussian => formatter.pad("gaussian"),
            Self::Orthogonal => formatter.pad("orthogonal"),
            Self::Pissa { iterations: None } => formatter.pad("pissa"),
            Self::Pissa { iterations: Some(count) } => write!(formatter, "pissa_niter_{count}"),
            Self::Olora => formatter.pad("olora"),
            Self::Eva => formatter.pad("eva"),
            Self::Loftq => formatter.pad("loftq"),
        }
    }
}

impl LoraConfig {
    /// An adapter on every linear layer, without dropout.
    pub fn new(rank: usize, alpha: f64) -> Self {
        Self {
            rank,
            alpha,
            dropout: 0.0,
            use_rslora: false,
            target: TargetModules::AllLinear,
            exclude: Vec::new(),
            layers: None,
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
            trainable_tokens: Vec::new(),
            init: Init::default(),
            use_dora: false,
            lora_bias: false,
            bias: Bias::None,
        }
    }

    /// Whether these settings can be used on any model at all.
    ///
    /// # Errors
    /// Names every setting that can't be used, all at once.
    pub fn validate(&self) -> Result<()> {
        let mut problems = self.problems();
        if problems.is_empty()
            && let Err(error) = Matcher::new(self)
        {
            problems.push(error.to_string());
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::invalid(problems.join("; "))) }
    }

    /// Rank of the module at this path. A pattern that [`validate`](Self::validate) refuses matches
    /// nothing.
    pub fn rank_for(&self, module_path: &str) -> usize {
        Matcher::new(self).map_or(self.rank, |matcher| matcher.rank(module_path))
    }

    /// Alpha of the module at this path. A pattern that [`validate`](Self::validate) refuses matches
    /// nothing.
    pub fn alpha_for(&self, module_path: &str) -> f64 {
        Matcher::new(self).map_or(self.alpha, |matcher| matcher.alpha(module_path))
    }

    /// Factor before B·A in the module at this path: α/r, or α/√r.
    pub fn scaling_for(&self, module_path: &str) -> f64 {
        self.scaling(self.rank_for(module_path), self.alpha_for(module_path))
    }

    /// Factor before B·A for this rank and alpha.
    pub(crate) fn scaling(&self, rank: usize, alpha: f64) -> f64 {
        let rank = rank as f64;
        if self.use_rslora { alpha / rank.sqrt() } else { alpha / rank }
    }

    /// The settings of the ordinary adapter of rank 2r that says what this one changes of the base as it
    /// was: [A | A₀] and [B; −B₀], where A₀·B₀ is what the start took out of it.
    #[must_use]
    pub fn converted(&self) -> Self {
        // α/√r wants √2 times the alpha for twice the rank.
        let more = if self.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        let mut converted = self.clone();
        converted.rank *= 2;
        converted.alpha *= more;
        converted.rank_pattern.iter_mut().for_each(|(_, rank)| *rank *= 2);
        converted.alpha_pattern.iter_mut().for_each(|(_, alpha)| *alpha *= more);
        converted.init = Init::Kaiming;
        converted
    }

    /// The layers to adapt, where only some are.
    pub(crate) fn chosen_layers(&self) -> Option<&[usize]> {
        self.layers.as_deref().filter(|layers| !layers.is_empty())
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.rank == 0 {
            problems.push("rank must be at least 1".to_owned());
        }
        if !is_positive(self.alpha) {
            problems.push(format!("alpha must be a number above zero, not {}", self.alpha));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            problems.push(format!("dropout must be at least 0 and below 1, not {}", self.dropout));
        }
        match &self.target {
            TargetModules::Suffixes(names) if names.is_empty() => {
                problems.push("target_modules is empty".to_owned());
            }
            TargetModules::Regex(_) if self.chosen_layers().is_some() => problems.push(
                "layers can't be chosen beside a regular expression for the targets: say both in \
                 the expression"
                    .to_owned(),
            ),
            _ => {}
        }
        if !self.layers_pattern.is_empty() && self.chosen_layers().is_none() {
            problems.push("layers_pattern is set but no layers are chosen".to_owned());
        }
        for (setting, names) in self.name_lists() {
            if names.iter().any(|name| name.trim().is_empty()) {
                problems.push(format!("{setting} holds an empty name"));
            }
        }
        for (pattern, rank) in &self.rank_pattern {
            if *rank == 0 {
                problems.push(format!("rank of `{pattern}` in rank_pattern must be at least 1"));
            }
        }
        for (pattern, alpha) in &self.alpha_pattern {
            if !is_positive(*alpha) {
                problems.push(format!(
                    "alpha of `{pattern}` in alpha_pattern must be a number above zero, not {alpha}"
                ));
            }
        }
        self.method_problems(&mut problems);
        let ranks: Vec<&str> = self.rank_pattern.iter().map(|(key, _)| key.as_str()).collect();
        let alphas: Vec<&str> = self.alpha_pattern.iter().map(|(key, _)| key.as_str()).collect();
        for (setting, keys) in [("rank_pattern", ranks), ("alpha_pattern", alphas)] {
            if let Some(twice) = first_repeated(&keys) {
                problems.push(format!("`{twice}` stands twice in {setting}"));
            }
        }
        problems
    }

    /// Methods that can't be had together, and what they ask for.
    fn method_problems(&self, problems: &mut Vec<String>) {
        if self.lora_bias && self.use_dora {
            problems
                .push("lora_bias has no place in a weight-decomposed adapter (DoRA)".to_owned());
        }
        if self.lora_bias && self.init != Init::Kaiming {
            problems.push(format!("lora_bias goes with init `kaiming` only, not `{}`", self.init));
        }
        if self.init == Init::Orthogonal {
            let mut ranks = self.rank_pattern.iter().map(|(_, rank)| *rank).chain([self.rank]);
            if let Some(odd) = ranks.find(|rank| rank % 2 == 1) {
                problems.push(format!("init `orthogonal` needs even ranks, not {odd}"));
            }
        }
        for (module, tokens) in &self.trainable_tokens {
            if !is_embedding(module) {
                problems.push(format!(
                    "trainable_tokens are rows of the embedding (`embed_tokens`), not of `{module}`"
                ));
            }
            if tokens.is_empty() {
                problems.push(format!("trainable_tokens of `{module}` is empty"));
            }
            if let Some(token) = first_repeated(tokens) {
                problems.push(format!("token {token} stands twice in trainable_tokens"));
            }
        }
        if self.trainable_tokens.len() > 1 {
            problems.push("trainable_tokens names more than one module".to_owned());
        }
    }

    fn name_lists(&self) -> [(&'static str, &[String]); 4] {
        let targets = match &self.target {
            TargetModules::Suffixes(names) => names.as_slice(),
            TargetModules::AllLinear | TargetModules::Regex(_) => &[],
        };
        [
            ("target_modules", targets),
            ("exclude", &self.exclude),
            ("layers_pattern", &self.layers_pattern),
            ("modules_to_save", &self.modules_to_save),
        ]
    }
}

fn is_positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

fn first_repeated<T: Copy + Eq + Hash>(items: &[T]) -> Option<T> {
    let mut seen = HashSet::new();
    items.iter().copied().find(|item| !seen.insert(*item))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn reason(config: &LoraConfig) -> String {
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn scaling_is_alpha_over_rank_or_over_its_root() {
        let mut config = LoraConfig::new(4, 8.0);
        assert_eq!(config.scaling_for("model.layers.0.self_attn.q_proj"), 2.0);
        config.use_rslora = true;
        assert_eq!(config.scaling_for("model.layers.0.self_attn.q_proj"), 4.0);
    }

    #[test]
    fn patterns_match_a_path_ending_or_an_expression_and_the_first_wins() {
        let mut config = LoraConfig::new(4, 8.0);
        config.rank_pattern = vec![
            (r"^model\.layers\.0\.self_attn\.v_proj".to_owned(), 6),
            ("model.layers.1.mlp.down_proj".to_owned(), 2),
            ("q_proj".to_owned(), 8),
            ("layers.1.self_attn.q_proj".to_owned(), 16),
        ];
        config.alpha_pattern = vec![("down_proj|q_proj".to_owned(), 32.0)];
        assert_eq!(config.rank_for("model.layers.0.self_attn.v_proj"), 6);
        assert_eq!(config.rank_for("model.layers.1.self_attn.v_proj"), 4);
        assert_eq!(config.rank_for("model.layers.1.mlp.down_proj"), 2);
        assert_eq!(config.rank_for("model.layers.1.self_attn.q_proj"), 8, "order counts");
        assert_eq!(config.rank_for("model.layers.1.self_attn.xq_proj"), 4, "only after a dot");
        assert_eq!(config.rank_for("q_proj"), 8, "a path without dots");
        assert_eq!(config.rank_for("q_proj.inner"), 4, "the end must match");
        assert_eq!(config.alpha_for("model.layers.0.mlp.down_proj"), 32.0);
        assert_eq!(config.scaling_for("model.layers.1.mlp.down_proj"), 16.0);
    }

    #[test]
    fn usable_settings_pass() {
        let mut config = LoraConfig::new(1, 0.5);
        config.dropout = 0.99;
        config.layers = Some(vec![]);
        config.target = TargetModules::Regex(".*q_proj".to_owned());
        config.validate().unwrap();
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let mut config = LoraConfig::new(0, f64::NAN);
        config.dropout = 1.0;
        config.target = TargetModules::Suffixes(vec![]);
        config.layers_pattern = vec!["h".to_owned()];
        config.exclude = vec![" ".to_owned()];
        config.rank_pattern = vec![("a".to_owned(), 0), ("a".to_owned(), 1)];
        config.alpha_pattern = vec![("b".to_owned(), -1.0)];
        insta::assert_snapshot!(reason(&config).replace("; ", "\n"), @r"
        rank must be at least 1
        alpha must be a number above zero, not NaN
        dropout must be at least 0 and below 1, not 1
        target_modules is empty
        layers_pattern is set but no layers are chosen
        exclude holds an empty name
        rank of `a` in rank_pattern must be at least 1
        alpha of `b` in alpha_pattern must be a number above zero, not -1
        `a` stands twice in rank_pattern
        ");
    }

    #[test]
    fn an_expression_and_a_choice_of_layers_contradict_each_other() {
        let mut config = LoraConfig::new(4, 8.0);
        config.target = TargetModules::Regex(".*".to_owned());
        config.layers = Some(vec![1]);
        assert!(reason(&config).contains("layers can't be chosen"));
    }

    #[test]
    fn unsupported_expressions_are_named() {
        let mut config = LoraConfig::new(4, 8.0);
        config.target = TargetModules::Regex("(?!vision).*q_proj".to_owned());
        insta::assert_snapshot!(reason(&config), @"`(?!vision).*q_proj` in target_modules is not a regular expression that works here: look-around, including look-ahead and look-behind, is not supported");
        config.target = TargetModules::AllLinear;
        config.rank_pattern = vec![("q_(proj".to_owned(), 8)];
        insta::assert_snapshot!(reason(&config), @"`q_(proj` in rank_pattern is not a regular expression that works here: unclosed group");
        assert_eq!(config.rank_for("q_proj"), 4);
    }
}
