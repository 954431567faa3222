//! Reading files, and writing them so that they land whole: whatever happens, a reader sees the old content
//! or the new, never a part.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// Writes the file whole: beside its destination, synced, then renamed over it.
///
/// # Errors
/// The operating system's; the destination is then as it was.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    stage(path, bytes)?.commit()
}

/// Writes what `write` writes, whole: beside its destination, synced, then renamed over it.
///
/// # Errors
/// Those of `write` and of the operating system; the destination is then as it was.
pub fn write_whole_with(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    stage_with(path, write)?.commit()
}

/// Makes a new folder whole: filled beside its place, then renamed to it. Folders above it are made too.
///
/// # Errors
/// Those of `fill` and of the operating system; nothing is then left behind.
pub fn create_folder_whole<E: From<Error>>(
    folder: &Path,
    fill: impl FnOnce(&Path) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let failed = |error| E::from(Error::write(folder, error));
    let create = || {
        fs::create_dir_all(folder_of(folder))?;
        let name = folder.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(PARTIAL).tempdir_in(folder_of(folder))
    };
    let scratch = create().map_err(failed)?;
    fill(scratch.path())?;
    fs::rename(scratch.path(), folder).map_err(failed)?;
    // It is no longer where it would be removed from.
    let _ = scratch.keep();
    sync_folder(folder).map_err(failed)
}

/// The whole content of a file.
///
/// # Errors
/// The operating system's, with the path.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| Error::read(path, error))
}

/// The whole content of a text file, without a byte-order mark.
///
/// # Errors
/// The operating system's, with the path; content that is not UTF-8, with the line.
pub fn read_text(path: &Path) -> Result<String> {
    let mut text = String::from_utf8(read(path)?).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = &error.as_bytes()[..valid];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        Error::malformed(path, format!("line {line} is not UTF-8 (byte {})", valid - start + 1))
            .with_hint("save the file as UTF-8")
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

/// A file that is written and synced but not yet in its place. Dropped, it is removed.
pub(crate) struct Staged {
    file: NamedTempFile,
    path: PathBuf,
}

/// Writes the bytes beside their destination, so that several files can be put in place together.
pub(crate) fn stage(path: &Path, bytes: &[u8]) -> Result<Staged> {
    stage_with(path, |out| out.write_all(bytes))
}

impl Staged {
    /// Puts the file in its place.
    pub(crate) fn commit(self) -> Result<()> {
        let Self { file, path } = self;
        file.persist(&path).map_err(|error| Error::write(&path, error.error))?;
        sync_folder(&path).map_err(|error| Error::write(&path, error))
    }
}

fn stage_with(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Staged> {
    let fill = || {
        let file = create_beside(path)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        write(&mut out)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    let file = fill().map_err(|error| Error::write(path, error))?;
    Ok(Staged { file, path: path.to_path_buf() })
}

/// Puts what was made beside `path` in its place, so that this lasts.
///
/// # Errors
/// The system refuses.
pub fn put_in_place(made: &Path, path: &Path) -> Result<()> {
    let put = fs::rename(made, path).and_then(|()| sync_folder(path));
    put.map_err(|error| Error::write(path, error))
}

/// What a file that is being written is called at its end, until it is whole.
const PARTIAL: &str = ".partial";

/// Whether a file of this name was never written to its end.
pub fn is_partial(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(PARTIAL)
}

fn create_beside(path: &Path) -> io::Result<NamedTempFile> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".partial");
    // Readable to whom the user's umask says, as any other new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder_of(path))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the rename itself last.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { fs::File::open(folder_of(path))?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_written_and_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_whole(&path, b"first, and longer").unwrap();
        write_whole(&path, b"second").unwrap();
        assert_eq!(read(&path).unwrap(), b"second");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_whole(&path, b"old").unwrap();
        let result = write_whole_with(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(matches!(result, Err(Error::Write { path: named, .. }) if named == path));
        assert_eq!(read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn nothing_is_in_place_before_the_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let staged = stage(&path, b"new").unwrap();
        assert!(!path.exists());
        drop(staged);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_missing_folder_and_a_path_without_a_name_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write_whole(&folder.path().join("no/a.bin"), b"").is_err());
        assert!(write_whole(Path::new("/"), b"").is_err());
    }

    #[test]
    fn a_folder_lands_whole_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("new/folder");
        let fill = |path: &Path| write_whole(&path.join("a.bin"), b"a");
        create_folder_whole(&folder, fill).unwrap();
        assert_eq!(names(&folder), ["a.bin"]);
        assert_eq!(names(&parent.path().join("new")), ["folder"]);
        let other = parent.path().join("new/other");
        let fail = |path: &Path| {
            fill(path)?;
            Err(Error::invalid("no"))
        };
        assert!(create_folder_whole(&other, fail).is_err());
        assert!(create_folder_whole(&folder, fill).is_err(), "a folder with something in it");
        assert_eq!(names(&parent.path().join("new")), ["folder"]);
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_what_the_umask_lets_them() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("a"), folder.path().join("b"));
        write_whole(&ours, b"").unwrap();
        fs::write(&plain, b"").unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(ours), mode(plain));
    }

    #[test]
    fn text_loses_its_mark_and_bad_bytes_are_located() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(&path, "\u{feff}grüß").unwrap();
        assert_eq!(read_text(&path).unwrap(), "grüß");
        fs::write(&path, b"one\ntwo \xff\n").unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.ends_with("line 2 is not UTF-8 (byte 5)"), "{error}");
        assert!(matches!(read_text(folder.path()), Err(Error::Read { .. })));
    }
}
