//! The bytes of a file, mapped into memory rather than copied; or bytes that are there already.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result};

/// All bytes of a file.
#[derive(Debug)]
pub(crate) enum FileBytes {
    Mapped(Mmap),
    Held(Cow<'static, [u8]>),
}

impl FileBytes {
    /// Maps the file; nothing is read until it is used.
    #[expect(unsafe_code, reason = "a file that is mapped can be changed by others")]
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::read(path, source))?;
        // SAFETY: the mapping is read-only and owned by the value returned. Like every program that
        // maps a file, we rely on nobody cutting it short meanwhile; every file this project writes
        // is renamed into place and so never changed under a reader.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::read(path, source))?;
        Ok(Self::Mapped(map))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Held(bytes) => bytes,
        }
    }
}
