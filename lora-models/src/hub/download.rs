//! Fetching a model's files through `hf-hub`, and what that leaves open: one commit for all files,
//! new attempts, a download that was complete but not moved, a resumed file of the wrong size.

use std::io;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::api::{Progress, RepoInfo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::settings::Settings;
use super::{HubId, HubProgress, snapshot};
use crate::{Error, Result};

const ATTEMPTS: u32 = 5;
/// Progress is told once per so many bytes.
const PROGRESS_BYTES: u64 = 256 << 10;

pub(super) fn fetch(id: &HubId, settings: &Settings) -> Result<PathBuf> {
    let cache = Cache::new(settings.cache.clone());
    let api = ApiBuilder::from_cache(cache.clone())
        .with_endpoint(settings.endpoint.clone())
        .with_token(settings.token.clone())
        .with_progress(false)
        .with_user_agent("lora", env!("CARGO_PKG_VERSION"))
        .build()
        .map_err(|error| Error::invalid(format!("the hub's client can't be set up: {error}")))?;
    let asked = Repo::with_revision(id.model.clone(), RepoType::Model, id.revision.clone());
    let info = describe(&api.repo(asked.clone()), id, settings)?;
    // All files come from one commit, even where the branch moves on meanwhile.
    let commit = Repo::with_revision(id.model.clone(), RepoType::Model, info.sha.clone());
    let model = Model {
        id,
        settings,
        repo: api.repo(commit.clone()),
        cache: cache.repo(commit),
        folder: snapshot::model_folder(id, &settings.cache).join("snapshots").join(&info.sha),
        api,
    };
    let available: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let wanted = snapshot::select(id, &available)?;
    for file in &wanted {
        model.fetch_file(file)?;
    }
    if wanted.contains(&snapshot::INDEX) {
        let index = model.folder.join(snapshot::INDEX);
        for shard in snapshot::shards(&index)? {
            if !available.contains(&shard) {
                return Err(Error::malformed(
                    &index,
                    format!("it names `{shard}`, which `{id}` on the hub does not have"),
                )
                .with_hint("the upload is incomplete: try another revision"));
            }
            model.fetch_file(&shard)?;
        }
    }
    // Only now, so that offline finds whole models.
    let reference = cache.repo(asked).create_ref(&info.sha);
    reference.map_err(|error| Error::write(&settings.cache, error))?;
    Ok(model.folder)
}

/// Commit and files of a revision.
fn describe(repo: &ApiRepo, id: &HubId, settings: &Settings) -> Result<RepoInfo> {
    let request = repo.info_request().config().http_status_as_error(false).build();
    let mut response = request.call().map_err(|error| unreachable(&error, id, settings))?;
    let status = response.status().as_u16();
    if status != 200 {
        let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_string);
        let (code, message) = (header("x-error-code"), header("x-error-message"));
        return Err(refused(status, code.as_deref(), message.as_deref(), id, settings));
    }
    let endpoint = &settings.endpoint;
    let info: RepoInfo = response.body_mut().read_json().map_err(|error| {
        Error::invalid(format!("`{endpoint}` does not answer as a hub does: {error}"))
            .with_hint("check HF_ENDPOINT")
    })?;
    // It becomes the name of a folder.
    if !safe_name(&info.sha) {
        return Err(Error::invalid(format!("`{endpoint}` names the commit `{}`", info.sha)));
    }
    Ok(info)
}

fn safe_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

struct Model<'a> {
    id: &'a HubId,
    settings: &'a Settings,
    api: Api,
    repo: ApiRepo,
    cache: CacheRepo,
    folder: PathBuf,
}

impl Model<'_> {
    fn fetch_file(&self, file: &str) -> Result<()> {
        let pointer = self.folder.join(file);
        if pointer.is_file() {
            return Ok(());
        }
        let mut wait = self.settings.retry_wait;
        for attempt in 1.. {
            let error = match self.attempt(file, &pointer) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if attempt == ATTEMPTS || !error.may_pass() {
                return Err(self.explain(error, file));
            }
            std::thread::sleep(wait);
            wait *= 2;
        }
        Ok(())
    }

    fn attempt(&self, file: &str, pointer: &Path) -> std::result::Result<(), Failure> {
        let metadata = self.api.metadata(&self.repo.url(file))?;
        let size = metadata.size() as u64;
        if !safe_name(metadata.etag()) {
            return Err(Failure::Answer(format!("names the content `{}`", metadata.etag())));
        }
        let blob = self.cache.blob_path(metadata.etag());
        // hf-hub's name for a download under way.
        let part = blob.with_extension("part");
        if pointer.is_symlink() {
            // It leads nowhere, or there would be nothing to fetch.
            std::fs::remove_file(pointer)?;
        }
        match std::fs::metadata(&part).map(|part| part.len()) {
            // hf-hub would ask for no bytes, which servers refuse.
            Ok(length) if length == size => std::fs::rename(&part, &blob)?,
            Ok(length) if length > size => std::fs::remove_file(&part)?,
            _ => {}
        }
        if std::fs::metadata(&blob).is_ok_and(|blob| blob.len() == size) {
            // The same content in another revision, or just renamed.
            link(&blob, pointer, file)?;
            return Ok(());
        }
        let mut meter = Meter { settings: self.settings, file, done: 0, total: size, told: 0 };
        meter.tell();
        self.repo.download_with_progress(file, meter)?;
        let length = std::fs::metadata(&blob)?.len();
        if length != size {
            // A server that ignores from where to go on, or a connection that was cut.
            std::fs::remove_file(&blob)?;
            std::fs::remove_file(pointer)?;
            return Err(Failure::Size { length, size });
        }
        Ok(())
    }

    fn explain(&self, failure: Failure, file: &str) -> Error {
        let (id, settings) = (self.id, self.settings);
        match failure {
            Failure::Io(error) => Error::write(&settings.cache, error),
            Failure::Size { length, size } => Error::invalid(format!(
                "`{file}` of `{id}` came with {length} bytes instead of {size}"
            ))
            .with_hint("run it again to go on"),
            Failure::Answer(what) => {
                Error::invalid(format!("`{}` {what} for `{file}`", settings.endpoint))
            }
            Failure::Hub(error) => match status(&error) {
                Some(status) => {
                    let Error::Invalid { reason, hint } = refused(status, None, None, id, settings)
                    else {
                        return Error::invalid(error.to_string());
                    };
                    Error::Invalid { reason: format!("`{file}`: {reason}"), hint }
                }
                None => {
                    let reason = root(&error);
                    Error::invalid(format!("download of `{file}` of `{id}`: {reason}"))
                        .with_hint("run it again: it goes on where it stopped")
                }
            },
        }
    }
}

enum Failure {
    Hub(ApiError),
    /// Of our own files.
    Io(io::Error),
    Size {
        length: u64,
        size: u64,
    },
    Answer(String),
}

impl Failure {
    /// Whether another attempt may go better.
    fn may_pass(&self) -> bool {
        match self {
            Self::Io(_) | Self::Answer(_) => false,
            Self::Size { .. } => true,
            Self::Hub(ApiError::IoError(error)) => error.kind() != io::ErrorKind::StorageFull,
            Self::Hub(ApiError::LockAcquisition(_)) => false,
            Self::Hub(error) => match status(error) {
                Some(status) => status >= 500 || status == 408 || status == 429,
                None => matches!(error, ApiError::RequestError(_)),
            },
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Hub(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match &**error {
            ureq::Error::StatusCode(status) => Some(*status),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status(error),
        _ => None,
    }
}

fn root(error: &ApiError) -> String {
    match error {
        ApiError::LockAcquisition(path) => {
            format!("another process is fetching it (`{}` is locked)", path.display())
        }
        ApiError::RequestError(error) => error.to_string(),
        ApiError::IoError(error) => error.to_string(),
        other => other.to_string(),
    }
}

fn unreachable(error: &ureq::Error, id: &HubId, settings: &Settings) -> Error {
    let endpoint = &settings.endpoint;
    let hint = match snapshot::find_complete(id, &settings.cache) {
        Ok(_) => "the model is in the cache: use it with `--offline`",
        Err(_) => "check the network, proxies and HF_ENDPOINT",
    };
    Error::invalid(format!("`{endpoint}` can't be reached for `{id}`: {error}")).with_hint(hint)
}

fn refused(
    status: u16,
    code: Option<&str>,
    message: Option<&str>,
    id: &HubId,
    settings: &Settings,
) -> Error {
    let (endpoint, model) = (&settings.endpoint, &id.model);
    let said = message.map_or_else(String::new, |message| format!(": {message}"));
    match (status, code) {
        (404, Some("RevisionNotFound")) => {
            Error::invalid(format!("`{model}` has no revision `{}`", id.revision))
                .with_hint(format!("see {endpoint}/{model}/commits/main"))
        }
        (404, _) => Error::invalid(format!("`{endpoint}` has no `{id}`"))
            .with_hint("check the spelling; a local folder of this name does not exist either"),
        (401 | 403, _) if settings.token.is_none() => {
            Error::invalid(format!("`{id}` is private, gated, or does not exist{said}"))
                .with_hint("set HF_TOKEN to a token that may read it, or check the spelling")
        }
        (401 | 403, _) => Error::invalid(format!("the token may not read `{id}`{said}")).with_hint(
            format!("accept the model's terms at {endpoint}/{model}, or set another HF_TOKEN"),
        ),
        _ => Error::invalid(format!("`{endpoint}` answers {status} for `{id}`{said}"))
            .with_hint("try again later"),
    }
}

/// Makes the snapshot's file point to its content.
fn link(blob: &Path, pointer: &Path, file: &str) -> io::Result<()> {
    if let Some(parent) = pointer.parent() {
        std::fs::create_dir_all(parent)?;
    }
    #[cfg(unix)]
    {
        // Relative, so that the cache can be moved: snapshots, the commit, and folders in the name.
        let up = 2 + Path::new(file).components().count() - 1;
        let name = blob.file_name().unwrap_or_default();
        let target: PathBuf =
            std::iter::repeat_n("..", up).collect::<PathBuf>().join("blobs").join(name);
        std::os::unix::fs::symlink(target, pointer)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        std::fs::hard_link(blob, pointer).or_else(|_| std::fs::copy(blob, pointer).map(|_| ()))
    }
}

/// Tells the caller how far a file is.
struct Meter<'a> {
    settings: &'a Settings,
    file: &'a str,
    done: u64,
    total: u64,
    told: u64,
}

impl Meter<'_> {
    fn tell(&mut self) {
        self.told = self.done;
        if let Some(progress) = &self.settings.progress {
            progress(HubProgress {
                file: self.file.to_string(),
                bytes_done: self.done,
                bytes_total: self.total,
            });
        }
    }
}

impl Progress for Meter<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.total = size as u64;
        self.done = 0;
        self.told = 0;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        if self.done >= self.told + PROGRESS_BYTES {
            self.tell();
        }
    }

    fn finish(&mut self) {
        self.tell();
    }
}
