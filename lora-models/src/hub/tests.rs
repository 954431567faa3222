//! Tests of the hub, against a small one in a thread.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;

use super::test_server::{Hub, Server};
use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn hub() -> Hub {
    let big: Vec<u8> = (0..700_000u32).map(|index| (index % 251) as u8).collect();
    let files = [
        ("README.md", b"not wanted".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("pytorch_model.bin", b"not wanted".to_vec()),
        ("tokenizer.json", b"{\"model\": 1}".to_vec()),
        ("chat_template.jinja", b"{{ messages }}".to_vec()),
        ("model.safetensors", big),
    ];
    Hub {
        files: files.into_iter().map(|(name, content)| (name.to_string(), content)).collect(),
        commit: COMMIT.to_string(),
        ..Hub::default()
    }
}

fn sharded() -> Hub {
    let mut hub = hub();
    hub.files.remove("model.safetensors");
    let index =
        br#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors",
                                    "c": "model-1-of-2.safetensors"}}"#;
    hub.files.insert("model.safetensors.index.json".into(), index.to_vec());
    hub.files.insert("model-1-of-2.safetensors".into(), b"first".to_vec());
    hub.files.insert("model-2-of-2.safetensors".into(), b"second".to_vec());
    hub
}

fn settings(server: &Server, cache: &TempDir) -> Settings {
    let options = HubOptions {
        cache: Some(cache.path().to_path_buf()),
        endpoint: Some(server.endpoint.clone()),
        ..HubOptions::default()
    };
    let mut settings = Settings::resolve(&options, |_| None).unwrap();
    settings.token = None;
    settings.retry_wait = Duration::from_millis(1);
    settings
}

fn start(hub: Hub) -> (Server, TempDir, Settings) {
    let server = Server::start(hub);
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server, &cache);
    (server, cache, settings)
}

fn assert_holds(folder: &Path, server: &Server, file: &str) {
    let content = std::fs::read(folder.join(file)).unwrap();
    assert!(content == server.hub.lock().unwrap().files[file], "{file}: {}", content.len());
}

fn error(settings: &Settings) -> (String, String) {
    let error = fetch_with("org/name", settings).unwrap_err();
    (error.to_string(), error.hint().unwrap_or_default().to_string())
}

#[test]
fn ids_are_told_from_paths() {
    for id in ["org/name", "HuggingFaceTB/SmolLM2-135M", "a/b_c.d@v1.0", "a/b@refs/pr/1"] {
        assert!(is_hub_id(id), "{id}");
    }
    for other in [
        "name",
        "a/b/c",
        "./name",
        "../name",
        "/name",
        "org/",
        "a/model.gguf",
        "a/data.jsonl",
        "a/b@",
        "a/b@../c",
        "a b/c",
        "builtin:",
        "a/..",
        "a/-b",
        "",
    ] {
        assert!(!is_hub_id(other), "{other}");
    }
    // Tests run in the crate's folder.
    assert!(Path::new("src/lib.rs").exists() && !is_hub_id("src/lib.rs"));
    let error = fetch("nonsense", &HubOptions::default()).unwrap_err();
    assert!(error.hint().unwrap().contains("org/name@revision"));
}

#[test]
fn a_model_is_fetched_once() {
    let (server, cache, mut settings) = start(hub());
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = told.clone();
    settings.progress = Some(Arc::new(move |progress| log.lock().unwrap().push(progress)));

    let folder = fetch_with("org/name", &settings).unwrap();
    assert_eq!(folder, cache.path().join("models--org--name/snapshots").join(COMMIT));
    for file in ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"] {
        assert_holds(&folder, &server, file);
    }
    assert!(!folder.join("README.md").exists() && !folder.join("pytorch_model.bin").exists());
    let reference = cache.path().join("models--org--name/refs/main");
    assert_eq!(std::fs::read_to_string(reference).unwrap(), COMMIT);

    let told = told.lock().unwrap();
    let weights: Vec<_> = told.iter().filter(|told| told.file == "model.safetensors").collect();
    assert!(weights.len() > 2, "{told:?}");
    assert!(weights.is_sorted_by_key(|told| told.bytes_done), "{told:?}");
    assert_eq!(
        weights.last().map(|told| (told.bytes_done, told.bytes_total)),
        Some((700_000, 700_000))
    );
    drop(told);

    let before = server.requests().len();
    assert_eq!(fetch_with("org/name", &settings).unwrap(), folder);
    assert_eq!(server.requests().len(), before + 1, "only the commit is asked for");
    // The commit is a revision as well.
    assert_eq!(fetch_with(&format!("org/name@{COMMIT}"), &settings).unwrap(), folder);
    assert_eq!(server.downloads("model.safetensors"), [0]);
}

#[test]
fn shards_come_with_their_index() {
    let (server, _cache, settings) = start(sharded());
    let folder = fetch_with("org/name", &settings).unwrap();
    assert_holds(&folder, &server, "model-1-of-2.safetensors");
    assert_holds(&folder, &server, "model-2-of-2.safetensors");
    assert_eq!(server.downloads("model-1-of-2.safetensors"), [0]);
}

#[test]
fn a_missing_shard_is_named() {
    let (server, _cache, settings) = start(sharded());
    server.change(|hub| drop(hub.files.remove("model-2-of-2.safetensors")));
    let (message, hint) = error(&settings);
    assert!(message.contains("model.safetensors.index.json"), "{message}");
    assert!(message.contains("names `model-2-of-2.safetensors`"), "{message}");
    assert!(hint.contains("incomplete"));
}

#[test]
fn shards_stay_in_the_folder() {
    let (server, _cache, settings) = start(sharded());
    let index = br#"{"weight_map": {"a": "../../secret"}}"#;
    server.change(|hub| {
        drop(hub.files.insert("model.safetensors.index.json".into(), index.to_vec()));
    });
    assert!(error(&settings).0.contains("which is no file"));
}

#[test]
fn a_cut_connection_goes_on_where_it_stopped() {
    let (server, _cache, settings) = start(hub());
    server.change(|hub| {
        hub.files.retain(|name, _| ["config.json", "model.safetensors"].contains(&name.as_str()));
    });
    // The first cut hits config.json, which has two bytes.
    server.change(|hub| hub.cuts = 3);
    let folder = fetch_with("org/name", &settings).unwrap();
    assert_holds(&folder, &server, "config.json");
    assert_holds(&folder, &server, "model.safetensors");
    assert_eq!(server.downloads("config.json"), [0, 1]);
    assert_eq!(server.downloads("model.safetensors"), [0, 350_000, 525_000]);
}

#[test]
fn a_later_run_goes_on_where_an_earlier_stopped() {
    let (server, _cache, settings) = start(hub());
    server.change(|hub| hub.cuts = usize::MAX);
    let (message, hint) = error(&settings);
    assert!(message.contains("of `org/name`"), "{message}");
    assert!(hint.contains("goes on"), "{hint}");
    server.change(|hub| hub.cuts = 0);
    let folder = fetch_with("org/name", &settings).unwrap();
    assert_holds(&folder, &server, "config.json");
    assert_holds(&folder, &server, "model.safetensors");
}

#[test]
fn what_an_earlier_run_left_is_used_or_removed() {
    for (left, expected) in [(400_000, vec![400_000]), (700_000, vec![]), (700_001, vec![0])] {
        let (server, cache, settings) = start(hub());
        // Finds out the name of the content.
        let folder = fetch_with("org/name", &settings).unwrap();
        let blob = std::fs::canonicalize(folder.join("model.safetensors")).unwrap();
        let mut content = std::fs::read(&blob).unwrap();
        content.resize(left, 0);
        std::fs::write(blob.with_extension("part"), &content).unwrap();
        std::fs::remove_file(&blob).unwrap();

        let server = Server::start(server.hub.lock().unwrap().clone());
        let again = fetch_with("org/name", &super::tests::settings(&server, &cache)).unwrap();
        assert_holds(&again, &server, "model.safetensors");
        assert_eq!(server.downloads("model.safetensors"), expected);
        assert!(server.downloads("config.json").is_empty());
    }
}

#[test]
fn a_server_that_can_not_resume_costs_a_new_start() {
    let (server, _cache, settings) = start(hub());
    let folder = fetch_with("org/name", &settings).unwrap();
    let blob = std::fs::canonicalize(folder.join("model.safetensors")).unwrap();
    let content = std::fs::read(&blob).unwrap();
    std::fs::write(blob.with_extension("part"), &content[..1000]).unwrap();
    std::fs::remove_file(&blob).unwrap();
    server.change(|hub| hub.ignores_range = true);
    let folder = fetch_with("org/name", &settings).unwrap();
    assert_holds(&folder, &server, "model.safetensors");
    assert_eq!(server.downloads("model.safetensors"), [0, 1000, 0]);
}

#[test]
fn a_new_commit_fetches_only_what_changed() {
    let (server, _cache, settings) = start(hub());
    let first = fetch_with("org/name", &settings).unwrap();
    server.change(|hub| {
        hub.commit = "f".repeat(40);
        drop(hub.files.insert("config.json".into(), b"{\"new\": 1}".to_vec()));
    });
    let second = fetch_with("org/name", &settings).unwrap();
    assert_ne!(first, second);
    assert_holds(&second, &server, "config.json");
    assert_holds(&second, &server, "model.safetensors");
    assert_eq!(std::fs::read(first.join("config.json")).unwrap(), b"{}");
    assert_eq!(server.downloads("model.safetensors"), [0]);
    assert_eq!(server.downloads("config.json"), [0, 0]);
}

#[test]
fn the_token_is_sent() {
    let (server, _cache, mut settings) = start(hub());
    server.change(|hub| hub.token = Some("secret".into()));
    let (message, hint) = error(&settings);
    assert_eq!(message, "`org/name` is private, gated, or does not exist");
    assert!(hint.contains("HF_TOKEN"));
    settings.token = Some("wrong".into());
    let (message, hint) = error(&settings);
    assert_eq!(message, "the token may not read `org/name`");
    assert!(hint.contains("/org/name"));
    settings.token = Some("secret".into());
    let folder = fetch_with("org/name", &settings).unwrap();
    assert_holds(&folder, &server, "model.safetensors");
}

#[test]
fn what_the_hub_lacks_is_said() {
    let (server, _cache, settings) = start(hub());
    let missing = |id: &str| fetch_with(id, &settings).unwrap_err().to_string();
    assert_eq!(missing("org/other"), format!("`{}` has no `org/other`", server.endpoint));
    assert_eq!(missing("org/name@v9"), "`org/name` has no revision `v9`");
    assert_eq!(server.requests().len(), 2, "no new attempts");
    server.change(|hub| hub.status = Some("503 Service Unavailable"));
    assert!(missing("org/name").ends_with("answers 503 for `org/name`"));
}

#[test]
fn models_in_other_formats_are_named() {
    let (server, _cache, settings) = start(hub());
    server.change(|hub| drop(hub.files.remove("model.safetensors")));
    assert!(error(&settings).0.ends_with("only pickled weights"));
    server.change(|hub| drop(hub.files.insert("q4.gguf".into(), Vec::new())));
    assert!(error(&settings).0.ends_with("only: q4.gguf"));
    server.change(|hub| hub.files.clear());
    assert!(error(&settings).0.contains("config.json"));
}

#[test]
fn adapters_are_fetched_too() {
    let (server, _cache, settings) = start(hub());
    server.change(|hub| {
        hub.files.clear();
        hub.files.insert("adapter_config.json".into(), b"{}".to_vec());
        hub.files.insert("adapter_model.safetensors".into(), b"weights".to_vec());
    });
    let folder = fetch_with("org/name", &settings).unwrap();
    assert_holds(&folder, &server, "adapter_model.safetensors");
    assert_eq!(
        snapshot::find_complete(&HubId::parse("org/name").unwrap(), &settings.cache).unwrap(),
        folder
    );
}

#[test]
fn offline_takes_from_the_cache_and_asks_nobody() {
    let (server, cache, mut settings) = start(sharded());
    settings.offline = true;
    let (message, hint) = error(&settings);
    let shown = cache.path().display();
    assert_eq!(message, format!("`org/name` is not in the cache `{shown}`"));
    assert!(hint.contains("without `--offline`"), "{hint}");

    settings.offline = false;
    let folder = fetch_with("org/name", &settings).unwrap();
    let asked = server.requests().len();
    settings.offline = true;
    assert_eq!(fetch_with("org/name", &settings).unwrap(), folder);
    assert_eq!(fetch_with(&format!("org/name@{COMMIT}"), &settings).unwrap(), folder);
    assert!(fetch_with("org/name@v2", &settings).is_err());
    assert_eq!(server.requests().len(), asked);

    std::fs::remove_file(folder.join("model-2-of-2.safetensors")).unwrap();
    let (message, hint) = error(&settings);
    assert_eq!(message, "the cached copy of `org/name` lacks `model-2-of-2.safetensors`");
    assert!(hint.contains("without `--offline`"), "{hint}");
}

#[test]
fn a_hub_that_is_away_points_to_the_cache() {
    let (server, _cache, mut settings) = start(hub());
    fetch_with("org/name", &settings).unwrap();
    // A port that nobody listens on any more.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    settings.endpoint = format!("http://{closed}");
    let (message, hint) = error(&settings);
    assert!(message.starts_with(&format!("`http://{closed}` can't be reached")), "{message}");
    assert_eq!(hint, "the model is in the cache: use it with `--offline`");
    settings.cache = settings.cache.join("other");
    assert!(error(&settings).1.contains("HF_ENDPOINT"));
    drop(server);
}

#[test]
fn answers_that_are_no_hub_are_refused() {
    let (server, _cache, settings) = start(hub());
    server.change(|hub| hub.commit = "../../etc".into());
    let (message, _) = error(&settings);
    assert!(message.contains("names the commit"), "{message}");
}

#[cfg(unix)]
#[test]
fn the_cache_can_be_moved() {
    let (server, cache, settings) = start(hub());
    let first = fetch_with("org/name", &settings).unwrap();
    // One file by hf-hub, one by ourselves from content that was there.
    let pointer = first.join("config.json");
    std::fs::remove_file(&pointer).unwrap();
    fetch_with("org/name", &settings).unwrap();
    let moved = tempfile::tempdir().unwrap();
    let target = moved.path().join("models--org--name");
    std::fs::rename(cache.path().join("models--org--name"), &target).unwrap();
    let folder = target.join("snapshots").join(COMMIT);
    assert_holds(&folder, &server, "config.json");
    assert_holds(&folder, &server, "model.safetensors");
}
