//! Options and environment together: where the cache is, which hub, which token.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{HubOptions, HubProgress};
use crate::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";

/// How models are fetched, all decided.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) offline: bool,
    pub(super) cache: PathBuf,
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    pub(super) progress: Option<Arc<dyn Fn(HubProgress) + Send + Sync>>,
    /// Before the first new attempt at a file; doubles with each.
    pub(super) retry_wait: Duration,
}

impl Settings {
    pub(super) fn resolve(
        options: &HubOptions,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let cache = options
            .cache
            .clone()
            .or_else(|| variable("HF_HUB_CACHE").map(PathBuf::from))
            .or_else(|| variable("HUGGINGFACE_HUB_CACHE").map(PathBuf::from))
            .or_else(|| Some(home.as_ref()?.join("hub")))
            .ok_or_else(|| {
                Error::invalid("there is no home folder to keep models in")
                    .with_hint("set HF_HOME to a folder")
            })?;
        let endpoint = options.endpoint.clone().or_else(|| variable("HF_ENDPOINT"));
        let endpoint = endpoint.unwrap_or_else(|| ENDPOINT.into());
        let endpoint = endpoint.trim().trim_end_matches('/').to_string();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::invalid(format!("the hub's address is `{endpoint}`"))
                .with_hint("HF_ENDPOINT begins with https:// or http://"));
        }
        let stored = || {
            let path = variable("HF_TOKEN_PATH").map(PathBuf::from);
            std::fs::read_to_string(path.or_else(|| Some(home.as_ref()?.join("token")))?).ok()
        };
        let token = options
            .token
            .clone()
            .or_else(|| variable("HF_TOKEN"))
            .or_else(|| variable("HUGGING_FACE_HUB_TOKEN"))
            .or_else(stored)
            .map(|token| token.trim().to_string())
            .filter(|token| !token.is_empty());
        let yes = |name: &str| {
            variable(name).is_some_and(|value| {
                ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())
            })
        };
        Ok(Self {
            offline: options.offline || yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
            cache,
            endpoint,
            token,
            progress: options.progress.clone(),
            retry_wait: Duration::from_millis(500),
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn resolve(options: &HubOptions, variables: &[(&str, &str)]) -> Settings {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_string())
        };
        Settings::resolve(options, variable).unwrap()
    }

    #[test]
    fn the_cache_is_where_python_keeps_it() {
        let cache = |variables: &[(&str, &str)]| resolve(&HubOptions::default(), variables).cache;
        assert_eq!(cache(&[("HF_HOME", "/h")]), PathBuf::from("/h/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), PathBuf::from("/c"));
        assert!(cache(&[]).ends_with(".cache/huggingface/hub"));
        let options = HubOptions { cache: Some("/o".into()), ..HubOptions::default() };
        assert_eq!(resolve(&options, &[("HF_HUB_CACHE", "/c")]).cache, PathBuf::from("/o"));
    }

    #[test]
    fn tokens_come_from_options_environment_or_file() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "stored\n").unwrap();
        let home = home.path().to_str().unwrap();
        let options = HubOptions { token: Some("option".into()), ..HubOptions::default() };
        let variables = [("HF_HOME", home), ("HF_TOKEN", " variable ")];
        assert_eq!(resolve(&options, &variables).token.unwrap(), "option");
        let options = HubOptions::default();
        assert_eq!(resolve(&options, &variables).token.unwrap(), "variable");
        assert_eq!(resolve(&options, &variables[..1]).token.unwrap(), "stored");
        assert_eq!(resolve(&options, &[("HF_HOME", "/none")]).token, None);
    }

    #[test]
    fn offline_and_endpoint() {
        let options = HubOptions::default();
        assert!(!resolve(&options, &[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(resolve(&options, &[("HF_HUB_OFFLINE", "True")]).offline);
        assert!(resolve(&HubOptions { offline: true, ..options.clone() }, &[]).offline);
        assert_eq!(resolve(&options, &[]).endpoint, "https://huggingface.co");
        assert_eq!(resolve(&options, &[("HF_ENDPOINT", "http://m/")]).endpoint, "http://m");
        let wrong = HubOptions { endpoint: Some("mirror".into()), ..options };
        assert!(Settings::resolve(&wrong, |_| None).is_err());
    }

    #[test]
    fn the_token_is_not_shown() {
        let options = HubOptions { token: Some("secret".into()), ..HubOptions::default() };
        assert!(!format!("{options:?}").contains("secret"));
    }
}
