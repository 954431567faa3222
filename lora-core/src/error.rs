//! The error of this crate: what failed, in which file, and the way out.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with what a person or a file gave us.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is there but its content is wrong.
    #[error("`{}`: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line, key or tensor.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A setting that can't be used.
    #[error("{reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

impl Error {
    /// A file that could not be read.
    pub fn read(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Read { path: path.as_ref().to_path_buf(), source }
    }

    /// A file that could not be written.
    pub fn write(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Write { path: path.as_ref().to_path_buf(), source }
    }

    /// A file whose content is wrong.
    pub fn malformed(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.as_ref().to_path_buf(), reason: reason.into(), hint: None }
    }

    /// A setting that can't be used.
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid { reason: reason.into(), hint: None }
    }

    /// The same error with a way out; errors of the operating system keep theirs.
    #[must_use]
    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::Malformed { hint, .. } | Self::Invalid { hint, .. } => *hint = Some(text.into()),
            _ => {}
        }
        self
    }

    /// The way out, where one is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Malformed { hint, .. } | Self::Invalid { hint, .. } => hint.as_deref(),
            Self::Write { source, .. } => write_hint(source),
            Self::Read { .. } => None,
        }
    }
}

/// The way out of a failed write, where one is known.
pub fn write_hint(source: &io::Error) -> Option<&'static str> {
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Some("free some space and try again; an interrupted training goes on with `--resume`")
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Some("choose a folder that you may write to")
        }
        _ => None,
    }
}
