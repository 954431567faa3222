//! Which modules of a model an adapter is for. The rules are PEFT's (`check_target_module_exists`,
//! `get_pattern_key`), so that both resolve one configuration to the same modules. Beyond PEFT, an entry
//! that has no effect is an error here: it is a spelling mistake that would otherwise train silently.

use regex::Regex;

use crate::config::{Init, LoraConfig, TargetModules};
use crate::error::{Error, Result};

/// A linear layer of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearInfo {
    /// Its path: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Inputs.
    pub d_in: usize,
    /// Outputs.
    pub d_out: usize,
    /// Whether it turns hidden states into logits; "all-linear" leaves it out.
    pub is_output_head: bool,
}

/// A linear layer with what its adapter needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapted {
    /// Its path: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Inputs.
    pub d_in: usize,
    /// Outputs.
    pub d_out: usize,
    /// Rank r.
    pub rank: usize,
    /// Alpha.
    pub alpha: f64,
    /// Factor before B·A: α/r or α/√r.
    pub scaling: f64,
}

/// Whether a module of this path is an embedding: its rows are tokens' and all-linear leaves it out.
pub fn is_embedding(path: &str) -> bool {
    ["embed_tokens", "wte", "word_embeddings"].iter().any(|name| is_or_ends_with(path, name))
}

/// The linear layers that a new adapter is for, in the order of the model.
///
/// # Errors
/// Settings that can't be used; a target, exclusion, layer or pattern that matches nothing (what would match
/// is in the hint); a rank above the smaller side of its layer.
pub fn resolve_targets(config: &LoraConfig, linears: &[LinearInfo]) -> Result<Vec<Adapted>> {
    config.validate()?;
    let matcher = Matcher::new(config)?;
    check_entries(config, &matcher, linears)?;
    let adapted = matched(&matcher, linears);
    if adapted.is_empty() {
        return Err(Error::invalid(format!(
            "no linear layer of the model is left to adapt: {} with what is excluded, saved whole and \
             outside the chosen layers taken away",
            describe(&config.target)
        ))
        .with_hint(candidates(linears)));
    }
    for entry in &config.modules_to_save {
        if let Some(module) = adapted.iter().find(|module| module.path.ends_with(entry)) {
            return Err(Error::invalid(format!(
                "`{entry}` in modules_to_save also means the adapted module `{}`, because it ends so",
                module.path
            ))
            .with_hint("write the whole name of the module to save, or exclude the adapted one"));
        }
    }
    for module in &adapted {
        let limit = module.d_in.min(module.d_out);
        if module.rank > limit {
            return Err(Error::invalid(format!(
                "rank {} is above {limit}, the smaller side of `{}` ({} × {})",
                module.rank, module.path, module.d_in, module.d_out
            ))
            .with_hint("lower the rank, or give this module its own in rank_pattern"));
        }
    }
    check_patterns(&matcher, &adapted)?;
    check_embedding(config, &adapted)?;
    Ok(adapted)
}

/// Whether the adapter is for the module at this path, by its name alone.
///
/// Excluded modules, saved modules, modules inside saved ones and modules outside the chosen layers are not.
/// [`TargetModules::AllLinear`] takes every other path: whether it is a linear layer and not the output
/// head is for the caller to know.
///
/// # Errors
/// A regular expression that can't be used.
pub fn module_matches(config: &LoraConfig, module_path: &str) -> Result<bool> {
    Ok(Matcher::new(config)?.matches(module_path))
}

/// The modules that are trained whole, in the order given. As in PEFT an entry means every path that ends
/// with it, dot or no dot: `norm` means `model.norm` and `input_layernorm`.
///
/// # Errors
/// An entry that no path ends with.
pub fn resolve_saved(config: &LoraConfig, all_module_paths: &[String]) -> Result<Vec<String>> {
    for entry in &config.modules_to_save {
        if !all_module_paths.iter().any(|path| path.ends_with(entry.as_str())) {
            let names = distinct(all_module_paths.iter().map(|path| last_name(path)));
            return Err(Error::invalid(format!(
                "`{entry}` in modules_to_save matches no module of the model"
            ))
            .with_hint(format!("the model has: {}", names.join(", "))));
        }
    }
    let is_saved =
        |path: &&String| config.modules_to_save.iter().any(|entry| path.ends_with(entry));
    Ok(all_module_paths.iter().filter(is_saved).cloned().collect())
}

/// The configuration with its regular expressions compiled, for many paths.
pub(crate) struct Matcher<'a> {
    config: &'a LoraConfig,
    target: Option<Regex>,
    saved: Vec<Regex>,
    layer_number: Vec<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl<'a> Matcher<'a> {
    pub(crate) fn new(config: &'a LoraConfig) -> Result<Self> {
        let target = match &config.target {
            TargetModules::Regex(pattern) => {
                Some(compile("target_modules", r"\A(?:", pattern, r")\z")?)
            }
            TargetModules::AllLinear | TargetModules::Suffixes(_) => None,
        };
        let saved =
            |name: &String| compile("modules_to_save", r"\A(?:|.*\.)(?:", name, r")(?:\z|\..*)");
        // The first number counts, not the last: an expert's number comes after its layer's.
        let number =
            |before, name| compile("layers_pattern", before, name, r")\.(?P<number>[0-9]+)\.");
        let layer_number = if config.layers_pattern.is_empty() {
            vec![number(r"\A.*?\.(?:", "[^.]*")?]
        } else {
            let names = config.layers_pattern.iter();
            names.map(|name| number(r"\A(?:|.*?\.)(?:", name)).collect::<Result<_>>()?
        };
        Ok(Self {
            config,
            target,
            saved: config.modules_to_save.iter().map(saved).collect::<Result<_>>()?,
            layer_number,
            ranks: compile_patterns("rank_pattern", &config.rank_pattern)?,
            alphas: compile_patterns("alpha_pattern", &config.alpha_pattern)?,
        })
    }

    /// Whether the adapter is for this module, by its name.
    pub(crate) fn matches(&self, path: &str) -> bool {
        if ends_with_any(path, &self.config.exclude) || self.is_inside_saved(path) {
            return false;
        }
        match &self.config.target {
            TargetModules::AllLinear => self.is_in_chosen_layer(path),
            // A whole path is meant as it stands; the choice of layers is for endings.
            TargetModules::Suffixes(names) if names.iter().any(|name| name == path) => true,
            TargetModules::Suffixes(names) => {
                ends_with_any(path, names) && self.is_in_chosen_layer(path)
            }
            TargetModules::Regex(_) => self.target.as_ref().is_some_and(|it| it.is_match(path)),
        }
    }

    pub(crate) fn rank(&self, path: &str) -> usize {
        first_match(&self.ranks, path).unwrap_or(self.config.rank)
    }

    pub(crate) fn alpha(&self, path: &str) -> f64 {
        first_match(&self.alphas, path).unwrap_or(self.config.alpha)
    }

    /// Whether this is a module to save, or lies in one.
    fn is_inside_saved(&self, path: &str) -> bool {
        self.saved.iter().any(|pattern| pattern.is_match(path))
    }

    fn is_in_chosen_layer(&self, path: &str) -> bool {
        self.config
            .chosen_layers()
            .is_none_or(|layers| self.layer_of(path).is_some_and(|number| layers.contains(&number)))
    }

    fn layer_of(&self, path: &str) -> Option<usize> {
        let captures = self.layer_number.iter().find_map(|pattern| pattern.captures(path))?;
        captures.name("number")?.as_str().parse().ok()
    }
}

/// The layers that the adapter is for, without asking whether every setting has an effect.
pub(crate) fn matched(matcher: &Matcher<'_>, linears: &[LinearInfo]) -> Vec<Adapted> {
    let all_linear = matcher.config.target == TargetModules::AllLinear;
    let adapt = |linear: &LinearInfo| {
        let (rank, alpha) = (matcher.rank(&linear.path), matcher.alpha(&linear.path));
        Adapted {
            path: linear.path.clone(),
            d_in: linear.d_in,
            d_out: linear.d_out,
            rank,
            alpha,
            scaling: matcher.config.scaling(rank, alpha),
        }
    };
    linears
        .iter()
        .filter(|linear| {
            let passed_by = linear.is_output_head || is_embedding(&linear.path);
            !(all_linear && passed_by) && matcher.matches(&linear.path)
        })
        .map(adapt)
        .collect()
}

/// What the linear layers are called, for messages.
pub(crate) fn candidates(linears: &[LinearInfo]) -> String {
    let layers = linears.iter().filter(|linear| !is_embedding(&linear.path));
    let names = distinct(layers.map(|linear| last_name(&linear.path)));
    format!("the linear layers of the model are: {}", names.join(", "))
}

/// Every target, exclusion and layer must mean something in this model.
fn check_entries(config: &LoraConfig, matcher: &Matcher<'_>, linears: &[LinearInfo]) -> Result<()> {
    let targets: &[String] = match &config.target {
        TargetModules::Suffixes(names) => names,
        TargetModules::AllLinear | TargetModules::Regex(_) => &[],
    };
    for (setting, names) in [("target_modules", targets), ("exclude", &config.exclude)] {
        for name in names {
            if !linears.iter().any(|linear| is_or_ends_with(&linear.path, name)) {
                return Err(Error::invalid(format!(
                    "`{name}` in {setting} matches no linear layer of the model"
                ))
                .with_hint(candidates(linears)));
            }
        }
    }
    if let (TargetModules::Regex(pattern), Some(target)) = (&config.target, &matcher.target)
        && !linears.iter().any(|linear| target.is_match(&linear.path))
    {
        let example = linears.first().map_or("", |linear| linear.path.as_str());
        return Err(Error::invalid(format!(
            "the regular expression `{pattern}` matches no linear layer of the model"
        ))
        .with_hint(format!(
            "it must match a whole path such as `{example}`; {}",
            candidates(linears)
        )));
    }
    for layer in config.chosen_layers().unwrap_or_default() {
        if !linears.iter().any(|linear| matcher.layer_of(&linear.path) == Some(*layer)) {
            let last = linears.iter().filter_map(|linear| matcher.layer_of(&linear.path)).max();
            let hint = last.map_or_else(
                || "no path of this model holds a layer number".to_owned(),
                |last| format!("layers are numbered 0 to {last}"),
            );
            return Err(
                Error::invalid(format!("layer {layer} is not in the model")).with_hint(hint)
            );
        }
    }
    Ok(())
}

/// Every rank and alpha pattern must match an adapted module.
fn check_patterns(matcher: &Matcher<'_>, adapted: &[Adapted]) -> Result<()> {
    let without_effect = |regex: &Regex| !adapted.iter().any(|it| regex.is_match(&it.path));
    let config = matcher.config;
    let ranks = matcher.ranks.iter().zip(&config.rank_pattern);
    let alphas = matcher.alphas.iter().zip(&config.alpha_pattern);
    let unused_rank = ranks.filter(|((regex, _), _)| without_effect(regex));
    let unused_alpha = alphas.filter(|((regex, _), _)| without_effect(regex));
    let first = unused_rank
        .map(|(_, (key, _))| ("rank_pattern", key))
        .chain(unused_alpha.map(|(_, (key, _))| ("alpha_pattern", key)))
        .next();
    let Some((setting, key)) = first else {
        return Ok(());
    };
    let names = distinct(adapted.iter().map(|module| last_name(&module.path)));
    Err(Error::invalid(format!("`{key}` in {setting} matches no adapted module"))
        .with_hint(format!("adapted modules are: {}", names.join(", "))))
}

/// What an adapted embedding can't have.
fn check_embedding(config: &LoraConfig, adapted: &[Adapted]) -> Result<()> {
    let Some(embedding) = adapted.iter().find(|module| is_embedding(&module.path)) else {
        return Ok(());
    };
    let what = if config.use_dora {
        "be weight-decomposed (DoRA)"
    } else if config.lora_bias {
        "have a bias in the low-rank branch (lora_bias)"
    } else if !matches!(config.init, Init::Kaiming | Init::Gaussian) {
        "start otherwise than with A zero and B normal (init `kaiming`)"
    } else if !config.trainable_tokens.is_empty() {
        "have single rows trained beside (trainable_tokens)"
    } else {
        return Ok(());
    };
    let path = &embedding.path;
    Err(Error::invalid(format!("`{path}` is an embedding, and an adapter on it can't {what}"))
        .with_hint("leave it out of the targets, or leave that setting out"))
}

fn describe(target: &TargetModules) -> String {
    match target {
        TargetModules::AllLinear => "all-linear".to_owned(),
        TargetModules::Suffixes(names) => format!("`{}`", names.join("`, `")),
        TargetModules::Regex(pattern) => format!("`{pattern}`"),
    }
}

fn compile_patterns<T: Copy>(setting: &str, patterns: &[(String, T)]) -> Result<Vec<(Regex, T)>> {
    let one = |(key, value): &(String, T)| {
        Ok((compile(setting, r"\A(?:.*\.)?(?:", key, r")\z")?, *value))
    };
    patterns.iter().map(one).collect()
}

/// Compiles the pattern with what stands before and after it; it must be one by itself too.
fn compile(setting: &str, before: &str, pattern: &str, after: &str) -> Result<Regex> {
    let whole = format!("{before}{pattern}{after}");
    let compiled = Regex::new(pattern).and_then(|_| Regex::new(&whole));
    compiled.map_err(|error| {
        let text = error.to_string();
        let reason = text.rsplit("error: ").next().unwrap_or(&text).trim().to_owned();
        Error::invalid(format!(
            "`{pattern}` in {setting} is not a regular expression that works here: {reason}"
        ))
    })
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(regex, _)| regex.is_match(path)).map(|(_, value)| *value)
}

fn ends_with_any(path: &str, names: &[String]) -> bool {
    names.iter().any(|name| is_or_ends_with(path, name))
}

/// Whether the path is this name or ends with it after a dot.
fn is_or_ends_with(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn last_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Each once, with how often it occurs, in the order of first occurrence.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for name in names {
        match counted.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counted.push((name, 1)),
        }
    }
    counted.into_iter().map(|(name, count)| format!("{name} ({count})")).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// A decoder of two layers and 12 modules' worth of names.
    fn decoder() -> Vec<LinearInfo> {
        let mut linears = Vec::new();
        for layer in 0..2 {
            for (name, d_in, d_out) in [
                ("self_attn.q_proj", 64, 64),
                ("self_attn.v_proj", 64, 32),
                ("mlp.up_proj", 64, 112),
                ("mlp.down_proj", 112, 64),
            ] {
                let path = format!("model.layers.{layer}.{name}");
                linears.push(LinearInfo { path, d_in, d_out, is_output_head: false });
            }
        }
        let path = "lm_head".to_owned();
        linears.push(LinearInfo { path, d_in: 64, d_out: 256, is_output_head: true });
        linears
    }

    fn on(target: TargetModules) -> LoraConfig {
        LoraConfig { target, ..LoraConfig::new(4, 8.0) }
    }

    fn suffixes(names: &[&str]) -> TargetModules {
        TargetModules::Suffixes(owned(names))
    }

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn paths(config: &LoraConfig) -> Vec<String> {
        let adapted = resolve_targets(config, &decoder()).unwrap();
        adapted.into_iter().map(|module| module.path).collect()
    }

    fn failure(config: &LoraConfig) -> String {
        let error = resolve_targets(config, &decoder()).unwrap_err();
        format!("{error}\n{}", error.hint().unwrap_or_default())
    }

    #[test]
    fn all_linear_leaves_the_head_out_and_keeps_the_order() {
        let found = paths(&on(TargetModules::AllLinear));
        assert_eq!(found.len(), 8);
        assert_eq!(found[0], "model.layers.0.self_attn.q_proj");
        assert_eq!(found[7], "model.layers.1.mlp.down_proj");
    }

    #[test]
    fn endings_match_after_a_dot_and_may_name_the_head() {
        let found = paths(&on(suffixes(&["lm_head", "layers.1.mlp.up_proj"])));
        assert_eq!(found, ["model.layers.1.mlp.up_proj", "lm_head"]);
        assert!(!module_matches(&on(suffixes(&["proj"])), "model.q_proj").unwrap());
    }

    #[test]
    fn expressions_match_the_whole_path() {
        let regex = |text: &str| on(TargetModules::Regex(text.to_owned()));
        assert_eq!(paths(&regex(r".*\.(q|v)_proj")).len(), 4);
        assert_eq!(paths(&regex(r"(?i).*\.0\..*Q_PROJ")), ["model.layers.0.self_attn.q_proj"]);
        assert!(!module_matches(&regex("q_proj"), "model.q_proj").unwrap());
        assert!(!module_matches(&regex("a|model"), "model.q_proj").unwrap(), "alternatives too");
    }

    #[test]
    fn exclusions_win() {
        let mut config = on(TargetModules::Regex(".*_proj".to_owned()));
        config.exclude = owned(&["mlp.down_proj", "model.layers.0.self_attn.q_proj", "lm_head"]);
        assert_eq!(paths(&config).len(), 5);
    }

    #[test]
    fn saved_modules_and_what_is_in_them_are_never_adapted() {
        let mut config = on(suffixes(&["lm_head", "up_proj"]));
        config.modules_to_save = owned(&["lm_head"]);
        assert_eq!(paths(&config).len(), 2);
        config.modules_to_save = owned(&["layers.1.mlp"]);
        assert_eq!(paths(&config), ["model.layers.0.mlp.up_proj", "lm_head"]);
        config.modules_to_save = owned(&["p_proj"]);
        assert!(failure(&config).contains("`p_proj` in modules_to_save also means"));
    }

    #[test]
    fn layers_are_chosen_by_the_first_number() {
        let mut config = on(TargetModules::AllLinear);
        config.layers = Some(vec![1]);
        assert_eq!(paths(&config).len(), 4);
        assert!(module_matches(&config, "model.layers.1.experts.0.up_proj").unwrap());
        assert!(!module_matches(&config, "model.layers.0.experts.1.up_proj").unwrap());
        assert!(!module_matches(&config, "model.up_proj").unwrap());
        config.layers_pattern = owned(&["h", "experts"]);
        assert!(module_matches(&config, "model.layers.0.experts.1.up_proj").unwrap());
        assert!(module_matches(&config, "h.1.up_proj").unwrap());
        assert!(!module_matches(&config, "model.layers.1.up_proj").unwrap());
    }

    #[test]
    fn a_whole_path_is_adapted_whatever_layers_are_chosen() {
        let mut config = on(suffixes(&["model.layers.0.mlp.up_proj", "down_proj"]));
        config.layers = Some(vec![1]);
        assert_eq!(paths(&config), ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"]);
    }

    #[test]
    fn rank_alpha_and_scaling_follow_the_patterns() {
        let mut config = on(suffixes(&["q_proj", "down_proj"]));
        config.rank_pattern = vec![("layers.1.mlp.down_proj".to_owned(), 16)];
        config.alpha_pattern = vec![("down_proj".to_owned(), 32.0)];
        config.use_rslora = true;
        let adapted = resolve_targets(&config, &decoder()).unwrap();
        let last = &adapted[3];
        assert_eq!((last.rank, last.alpha, last.scaling), (16, 32.0, 8.0));
        assert_eq!((last.d_in, last.d_out), (112, 64));
        assert_eq!((adapted[2].rank, adapted[2].alpha, adapted[2].scaling), (4, 8.0, 4.0));
    }

    #[test]
    fn what_has_no_effect_is_an_error_that_says_what_would() {
        insta::assert_snapshot!(failure(&on(suffixes(&["q_proj", "query"]))), @"
        `query` in target_modules matches no linear layer of the model
        the linear layers of the model are: q_proj (2), v_proj (2), up_proj (2), down_proj (2), lm_head (1)
        ");
        insta::assert_snapshot!(failure(&on(TargetModules::Regex("q_proj".to_owned()))), @"
        the regular expression `q_proj` matches no linear layer of the model
        it must match a whole path such as `model.layers.0.self_attn.q_proj`; the linear layers of the model are: q_proj (2), v_proj (2), up_proj (2), down_proj (2), lm_head (1)
        ");
        let mut config = on(suffixes(&["q_proj"]));
        config.exclude = owned(&["q_proj"]);
        insta::assert_snapshot!(failure(&config), @"
        no linear layer of the model is left to adapt: `q_proj` with what is excluded, saved whole and outside the chosen layers taken away
        the linear layers of the model are: q_proj (2), v_proj (2), up_proj (2), down_proj (2), lm_head (1)
        ");
        let mut config = on(TargetModules::AllLinear);
        config.layers = Some(vec![0, 2]);
        insta::assert_snapshot!(failure(&config), @"
        layer 2 is not in the model
        layers are numbered 0 to 1
        ");
        let mut config = on(suffixes(&["q_proj"]));
        config.alpha_pattern = vec![("up_proj".to_owned(), 4.0)];
        insta::assert_snapshot!(failure(&config), @"
        `up_proj` in alpha_pattern matches no adapted module
        adapted modules are: q_proj (2)
        ");
    }

    #[test]
    fn a_rank_above_the_smaller_side_is_refused() {
        let mut config = on(TargetModules::AllLinear);
        config.rank = 33;
        insta::assert_snapshot!(failure(&config), @"
        rank 33 is above 32, the smaller side of `model.layers.0.self_attn.v_proj` (64 × 32)
        lower the rank, or give this module its own in rank_pattern
        ");
        config.rank = 32;
        assert_eq!(paths(&config).len(), 8);
    }

    #[test]
    fn saved_modules_are_found_by_their_ending() {
        let all = owned(&[
            "model.embed_tokens",
            "model.layers.0.input_layernorm",
            "model.norm",
            "lm_head",
        ]);
        let mut config = LoraConfig::new(4, 8.0);
        assert!(resolve_saved(&config, &all).unwrap().is_empty());
        config.modules_to_save = owned(&["lm_head", "norm"]);
        assert_eq!(
            resolve_saved(&config, &all).unwrap(),
            ["model.layers.0.input_layernorm", "model.norm", "lm_head"]
        );
        config.modules_to_save = owned(&["classifier"]);
        let error = resolve_saved(&config, &all).unwrap_err();
        insta::assert_snapshot!(error, @"`classifier` in modules_to_save matches no module of the model");
        insta::assert_snapshot!(error.hint().unwrap(), @"the model has: embed_tokens (1), input_layernorm (1), norm (1), lm_head (1)");
    }
}
