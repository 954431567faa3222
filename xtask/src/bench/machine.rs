//! The machine a table was made on, and how much of it other programs took meanwhile. What a system does
//! not say is `None`: only Linux has `/proc`.

use serde::Serialize;
use std::env;
use std::fs;
use std::thread;
use std::time::Instant;

/// Instructions that decide how fast numbers are multiplied.
const SIMD: [&str; 8] =
    ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"];

/// Says with how many threads our binary computes.
pub(crate) const THREADS_VARIABLE: &str = "RAYON_NUM_THREADS";

/// Ticks in a second of the times in `/proc`; the kernel shows no other number to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// The processor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    /// Those of its instructions that matter here.
    pub(crate) simd: Vec<String>,
    /// Over one minute, before the first run.
    pub(crate) load_average: Option<f64>,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let (processor, simd) = processor(&information);
        Self { processor, cores: cores(), simd, load_average: load_average() }
    }

    /// Whether it is known to multiply no bf16 numbers.
    pub(crate) fn lacks_bf16(&self) -> bool {
        !self.simd.is_empty() && !self.simd.iter().any(|known| BF16.contains(&known.as_str()))
    }
}

/// Those of [`SIMD`] that multiply bf16 numbers.
const BF16: [&str; 2] = ["avx512_bf16", "amx_bf16"];

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Threads to compute with: as many as the variable says that our binary reads, else one for each core.
pub(crate) fn threads() -> usize {
    let asked = env::var(THREADS_VARIABLE).ok().and_then(|number| number.parse().ok());
    asked.filter(|&number| number > 0).unwrap_or_else(cores)
}

/// The load average over one minute.
pub(crate) fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Name and instructions out of `/proc/cpuinfo`.
fn processor(information: &str) -> (String, Vec<String>) {
    let value = |key: &str| {
        let mut lines = information.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.trim() == key).map(|(_, value)| value.trim().to_owned())
    };
    let name =
        value("model name").unwrap_or_else(|| format!("unknown processor ({})", env::consts::ARCH));
    let flags = value("flags").unwrap_or_default();
    let has = |wanted: &&str| flags.split_whitespace().any(|flag| flag == *wanted);
    (name, SIMD.into_iter().filter(has).map(str::to_owned).collect())
}

/// What the processor has done since it started, in ticks.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    /// All programs together, and what the hypervisor took.
    busy: f64,
    /// The children of this process that have ended.
    children: f64,
}

impl Ticks {
    fn now() -> Option<Self> {
        let all = fs::read_to_string("/proc/stat").ok()?;
        let own = fs::read_to_string("/proc/self/stat").ok()?;
        Some(Self { busy: busy(&all)?, children: children(&own)? })
    }
}

/// A clock that also watches the other programs.
#[derive(Debug)]
pub(crate) struct Watch {
    start: Instant,
    before: Option<Ticks>,
}

impl Watch {
    pub(crate) fn start() -> Self {
        Self { before: Ticks::now(), start: Instant::now() }
    }

    /// Seconds, and the part of the machine in percent that went to others than our children, which
    /// must have ended. The kernel's ticks are too long to tell it of less than a second.
    pub(crate) fn stop(&self) -> (f64, Option<f64>) {
        let seconds = self.start.elapsed().as_secs_f64();
        let after = Ticks::now().filter(|_| seconds >= 1.0);
        let others = self.before.zip(after).map(|(before, after)| {
            let ticks = (after.busy - before.busy) - (after.children - before.children);
            let all = seconds * TICKS_PER_SECOND * cores() as f64;
            (100.0 * ticks / all).clamp(0.0, 100.0)
        });
        (seconds, others)
    }
}

/// User, nice, system, interrupts and stolen time out of the first line of `/proc/stat`.
fn busy(all: &str) -> Option<f64> {
    let line = all.lines().next()?.strip_prefix("cpu ")?;
    let numbers: Vec<f64> = line.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    [0, 1, 2, 5, 6, 7].into_iter().map(|index| numbers.get(index).copied()).sum()
}

/// User and system time of ended children: fields 16 and 17 of `/proc/self/stat`, of which the second
/// is a name in brackets that may hold anything.
fn children(own: &str) -> Option<f64> {
    let (_, rest) = own.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(13);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_processor_is_read() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2 fma sha_ni\n\n\
                    processor\t: 1\nmodel name\t: other\n";
        let simd = vec!["avx2".to_owned(), "fma".to_owned()];
        assert_eq!(processor(text), ("AMD EPYC".to_owned(), simd));
        assert!(processor("").0.starts_with("unknown processor"));
    }

    #[test]
    fn times_are_read() {
        assert_eq!(busy("cpu  10 2 3 900 50 1 1 4 0 0\ncpu0 1\n"), Some(21.0));
        assert_eq!(busy("nothing"), None);
        let own = "7 (a) b) R 1 7 7 0 -1 4 1 2 3 4 50 60 700 80 20 0 1 0";
        assert_eq!(children(own), Some(780.0));
        assert_eq!(children("7 (a)"), None);
    }

    #[test]
    fn a_watch_gives_a_part_of_the_machine() {
        let watch = Watch::start();
        assert_eq!(watch.stop().1, None);
        thread::sleep(Duration::from_secs(1));
        let (seconds, others) = watch.stop();
        assert!(seconds >= 1.0);
        assert_eq!(others.is_some(), cfg!(target_os = "linux"));
        assert!(others.is_none_or(|percent| (0.0..=100.0).contains(&percent)));
    }
}
