//! Event files that TensorBoard reads: scalars only.
//!
//! A file is a sequence of records: length as u64, its checksum, the bytes of an `Event` message
//! of protocol buffers, their checksum, all little-endian. The checksum is CRC-32C, rotated and
//! offset as TFRecord files have it. The few fields needed are written by hand; their numbers
//! come from TensorFlow's `event.proto` and `summary.proto`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Writes an event file of a run.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Begins a new event file in `folder`. Events of `first_step` and later in earlier files of
    /// the folder no longer count: the run goes on from there.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(folder: &Path, first_step: usize) -> Result<Self> {
        let time = now();
        let earlier = fs::read_dir(folder)
            .map_err(|source| Error::read(folder, source))?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().contains("tfevents"))
            .count();
        // TensorBoard reads the files of a folder in the order of their names.
        let name = format!("events.out.tfevents.{:010}.lora.{earlier:04}", time as u64);
        let path = folder.join(name);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(|source| Error::write(&path, source))?;
        let mut writer = Self { path, file };
        writer.write(&version_event(time))?;
        if earlier > 0 {
            writer.write(&restart_event(time, first_step))?;
        }
        Ok(writer)
    }

    /// Writes numbers with their tags, such as `train/loss`, at a step.
    ///
    /// # Errors
    /// The operating system's.
    pub fn scalars(&mut self, step: usize, scalars: &[(&str, f64)]) -> Result<()> {
        self.write(&scalars_event(now(), step, scalars))
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        let result = self.file.write_all(&record(event));
        result.map_err(|source| Error::write(&self.path, source))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// `Event { wall_time, file_version }`, the first of a file.
fn version_event(time: f64) -> Vec<u8> {
    let mut event = Message::event(time, 0);
    event.bytes(3, b"brain.Event:2");
    event.0
}

/// `Event { wall_time, step, session_log: { status: START } }`: drops what earlier files say about
/// this step and later ones.
fn restart_event(time: f64, step: usize) -> Vec<u8> {
    let mut session = Message::default();
    session.number(1, 1);
    let mut event = Message::event(time, step);
    event.bytes(7, &session.0);
    event.0
}

/// `Event { wall_time, step, summary: { value: [{ tag, simple_value }, …] } }`.
fn scalars_event(time: f64, step: usize, scalars: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, number) in scalars {
        let mut value = Message::default();
        value.bytes(1, tag.as_bytes());
        value.key(2, 5);
        value.0.extend_from_slice(&(*number as f32).to_le_bytes());
        summary.bytes(1, &value.0);
    }
    let mut event = Message::event(time, step);
    event.bytes(5, &summary.0);
    event.0
}

/// The bytes of a protocol-buffer message, field by field.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// An `Event` with its time and step; a step of 0 is left out, as the encoding wants it.
    fn event(time: f64, step: usize) -> Self {
        let mut event = Self::default();
        event.key(1, 1);
        event.0.extend_from_slice(&time.to_le_bytes());
        if step > 0 {
            event.number(2, step as u64);
        }
        event
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn number(&mut self, field: u64, number: u64) {
        self.key(field, 0);
        self.varint(number);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// Seven bits a byte, lowest first; the high bit says that more follow.
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

/// A record of an event file.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(event.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_checksum(&length).to_le_bytes());
    record.extend_from_slice(event);
    record.extend_from_slice(&masked_checksum(event).to_le_bytes());
    record
}

/// CRC-32C, rotated and offset so that a checksum of data with checksums in it stays useful.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    // The expected bytes are those of the `tensorboard` package 2.21 for the same events.

    #[test]
    fn scalars_are_the_bytes_of_tensorboard() {
        let scalars = [("train/loss", 2.5), ("train/learning_rate", 2e-4)];
        assert_eq!(
            hex(&record(&scalars_event(1234.5, 300, &scalars))),
            "3d000000000000006049f1ec0900000000004a934010ac022a2f0a110a0a747261696e2f6c6f7373150000\
             20400a1a0a13747261696e2f6c6561726e696e675f726174651517b751399b39091f"
        );
    }

    #[test]
    fn the_first_event_is_the_bytes_of_tensorboard() {
        assert_eq!(
            hex(&record(&version_event(1234.5))),
            "1800000000000000a37f4b220900000000004a93401a0d627261696e2e4576656e743a3265b8d3fb"
        );
    }

    #[test]
    fn a_restart_is_the_bytes_of_tensorboard() {
        assert_eq!(
            hex(&record(&restart_event(1234.5, 7))),
            "0f000000000000006d532b090900000000004a934010073a020801b743e2dd"
        );
    }

    #[test]
    fn each_part_of_a_run_has_its_own_file_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for first_step in [0, 4, 8] {
            let mut writer = EventWriter::open(folder.path(), first_step).unwrap();
            writer.scalars(first_step, &[("train/loss", 1.0)]).unwrap();
        }
        let mut names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 3);
        for (name, suffix) in names.iter().zip(["0000", "0001", "0002"]) {
            assert!(name.ends_with(suffix), "{name}");
        }
        let restart = |name: &String| {
            let bytes = fs::read(folder.path().join(name)).unwrap();
            bytes.windows(4).any(|window| window == [0x3a, 2, 8, 1])
        };
        assert_eq!(names.iter().map(restart).collect::<Vec<_>>(), [false, true, true]);
    }
}
