//! Which device computes: the name a person gives, resolved to a Burn device with the reason.
//!
//! The only file outside `ops/` that knows which backends are compiled in.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{DType, Device};
#[cfg(feature = "gpu")]
use burn::tensor::{DeviceKind, DeviceType};

use crate::error::{Error, Result};
use crate::free_memory::free_bytes;

/// An implementation of tensors that can be compiled in. The best comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// NVIDIA cards.
    Cuda,
    /// AMD cards.
    Rocm,
    /// Apple's graphics interface.
    Metal,
    /// Any GPU with a Vulkan driver.
    Vulkan,
    /// Any GPU; the graphics interface is found at run time.
    Wgpu,
    /// The interface of browsers.
    Webgpu,
    /// The processor, through Burn's `flex`.
    Cpu,
    /// The processor, through Burn's `ndarray`: a second implementation to compare with.
    Ndarray,
}

impl Backend {
    /// Every backend there is, compiled in or not, the best first.
    pub const ALL: [Self; 8] = [
        Self::Cuda,
        Self::Rocm,
        Self::Metal,
        Self::Vulkan,
        Self::Wgpu,
        Self::Webgpu,
        Self::Cpu,
        Self::Ndarray,
    ];

    /// Its name on the command line, which is its Cargo feature too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
            Self::Metal => "metal",
            Self::Vulkan => "vulkan",
            Self::Wgpu => "wgpu",
            Self::Webgpu => "webgpu",
            Self::Cpu => "cpu",
            Self::Ndarray => "ndarray",
        }
    }

    /// What it is, in a few words.
    pub fn description(self) -> &'static str {
        match self {
            Self::Cuda => "NVIDIA cards",
            Self::Rocm => "AMD cards",
            Self::Metal => "Apple graphics",
            Self::Vulkan => "any GPU with a Vulkan driver",
            Self::Wgpu => "any GPU, by the graphics interface found",
            Self::Webgpu => "the interface of browsers",
            Self::Cpu => "Burn flex with SIMD and all cores",
            Self::Ndarray => "a second CPU implementation, to compare with",
        }
    }

    /// Whether it runs on the processor itself, without a driver.
    pub fn is_processor(self) -> bool {
        matches!(self, Self::Cpu | Self::Ndarray)
    }

    /// Whether this program has it.
    pub fn is_compiled(self) -> bool {
        match self {
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Rocm => cfg!(feature = "rocm"),
            Self::Metal => cfg!(feature = "metal"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Webgpu => cfg!(feature = "webgpu"),
            Self::Cpu => cfg!(feature = "cpu"),
            Self::Ndarray => cfg!(feature = "ndarray"),
        }
    }

    /// Its devices on this machine, real cards before software that imitates one.
    fn devices(self) -> Vec<Device> {
        match self {
            #[cfg(feature = "cpu")]
            Self::Cpu => vec![Device::flex()],
            #[cfg(feature = "ndarray")]
            #[expect(deprecated, reason = "kept as an independent second implementation")]
            Self::Ndarray => vec![Device::ndarray()],
            #[cfg(feature = "cuda")]
            Self::Cuda => listed(DeviceType::Cuda),
            #[cfg(feature = "rocm")]
            Self::Rocm => listed(DeviceType::Rocm),
            #[cfg(feature = "metal")]
            Self::Metal => listed(DeviceType::Metal),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => listed(DeviceType::Vulkan),
            #[cfg(feature = "webgpu")]
            Self::Webgpu => listed(DeviceType::WebGpu),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => listed(DeviceType::Wgpu),
            #[allow(unreachable_patterns, reason = "with every feature on, nothing is left")]
            _ => Vec::new(),
        }
    }

    /// Whether `device` is a processor that imitates a graphics card.
    fn is_software(self, device: &Device) -> bool {
        match self {
            #[cfg(feature = "vulkan")]
            Self::Vulkan => *device == Device::vulkan(DeviceKind::Cpu),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => *device == Device::wgpu(DeviceKind::Cpu),
            #[cfg(feature = "webgpu")]
            Self::Webgpu => *device == Device::webgpu(DeviceKind::Cpu),
            _ => {
                let _ = device;
                false
            }
        }
    }

    /// The largest single buffer that every device of this backend allows, in bytes: 128 MiB, WebGPU's
    /// guaranteed binding size and llvmpipe's limit. Cards that allow more lose little by the split, and
    /// compute the same numbers as those that do not. `None` where memory is the only limit.
    pub fn buffer_limit(self) -> Option<usize> {
        match self {
            Self::Wgpu | Self::Vulkan | Self::Metal | Self::Webgpu => Some(128 << 20),
            Self::Cuda | Self::Rocm | Self::Cpu | Self::Ndarray => None,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A driver's devices, real cards first. A driver that fails while it is asked has none.
#[cfg(feature = "gpu")]
fn listed(of: DeviceType) -> Vec<Device> {
    let found = catch_unwind(|| Device::enumerate(of).into_vec());
    found.unwrap_or_default()
}

/// A device as a person names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The best device present.
    Auto,
    /// A device of a certain backend.
    Named {
        /// The backend.
        backend: Backend,
        /// Which of its devices, in the order of [`found_devices`]; the first where none is given.
        index: Option<usize>,
    },
}

impl DeviceSpec {
    /// The processor, through Burn's `flex`.
    pub const CPU: Self = Self::Named { backend: Backend::Cpu, index: None };

    /// Reads `auto`, a backend's name, or that and a number: `vulkan:1`.
    ///
    /// # Errors
    /// A name that is not known, a number that is none, or a number where there is one device only.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index)),
            None => (text, None),
        };
        let Some(backend) = Backend::ALL.into_iter().find(|backend| backend.name() == name) else {
            let names: Vec<&str> = Backend::ALL.iter().map(|backend| backend.name()).collect();
            return Err(Error::invalid(format!("unknown device `{text}`")).with_hint(format!(
                "use `auto`, or one of {}; a number picks one of several cards, as in `vulkan:1`",
                names.join(", ")
            )));
        };
        let Some(index) = index else { return Ok(Self::Named { backend, index: None }) };
        if backend.is_processor() {
            return Err(Error::invalid(format!(
                "`{text}`: there is one {name} device, without a number"
            ))
            .with_hint(format!("use `{name}`")));
        }
        let Ok(index) = index.parse() else {
            return Err(Error::invalid(format!(
                "`{text}`: `{index}` is not the number of a device"
            ))
            .with_hint(format!("use `{name}:0` for the first; `lora doctor` lists them")));
        };
        Ok(Self::Named { backend, index: Some(index) })
    }

    /// Opens the device.
    ///
    /// # Errors
    /// A backend that is not compiled in, or of which this machine has no such device.
    pub fn open(self) -> Result<OpenDevice> {
        match self {
            Self::Auto => open_best(),
            Self::Named { backend, index } => open_named(backend, index),
        }
    }
}

/// A device ready for use.
#[derive(Debug, Clone)]
pub struct OpenDevice {
    /// The device tensors are made on.
    pub device: Device,
    /// What it belongs to.
    pub backend: Backend,
    /// Its name as [`DeviceSpec::parse`] takes it: `cpu`, `vulkan:0`.
    pub name: String,
    /// What the driver calls it; empty for the processor.
    pub label: String,
    /// What kernels are compiled for; empty for the processor.
    pub target: String,
    /// Why this one.
    pub reason: String,
}

impl OpenDevice {
    /// The device in one line: `vulkan:0 (NVIDIA H100), the best device found`.
    pub fn describe(&self) -> String {
        let label =
            if self.label.is_empty() { String::new() } else { format!(" ({})", self.label) };
        format!("{}{label}, {}", self.name, self.reason)
    }

    /// Whether sums and products in `dtype` work there.
    pub fn supports(&self, dtype: DType) -> bool {
        // What the processor has no instructions for, flex computes in f32 and rounds.
        self.backend == Backend::Cpu || self.device.supports_dtype(dtype)
    }
}

/// A device that is there.
#[derive(Debug, Clone)]
pub struct FoundDevice {
    /// The device, not opened.
    pub device: Device,
    /// What it belongs to.
    pub backend: Backend,
    /// Its name as [`DeviceSpec::parse`] takes it.
    pub name: String,
    /// Whether it is a processor that imitates a graphics card.
    pub software: bool,
}

/// Every device of every backend compiled in, the best first; those that only imitate a card last.
pub fn found_devices() -> Vec<FoundDevice> {
    let mut found = Vec::new();
    for backend in compiled_backends() {
        for (index, device) in backend.devices().into_iter().enumerate() {
            let software = backend.is_software(&device);
            let name = match backend.is_processor() {
                true => backend.name().to_owned(),
                false => format!("{backend}:{index}"),
            };
            found.push(FoundDevice { device, backend, name, software });
        }
    }
    found.sort_by_key(|device| device.software);
    found
}

/// The backends of this program, the best first.
pub fn compiled_backends() -> Vec<Backend> {
    Backend::ALL.into_iter().filter(|backend| backend.is_compiled()).collect()
}

fn open_best() -> Result<OpenDevice> {
    let mut refused = Vec::new();
    for found in found_devices() {
        let reason = match (found.software, refused.is_empty()) {
            (true, _) => "no other device was found",
            (false, true) => "the best device found",
            (false, false) => "the best device that opens",
        };
        match opened(&found, reason) {
            Ok(open) => return Ok(open),
            Err(error) => refused.push(error.to_string()),
        }
    }
    let names: Vec<&str> = compiled_backends().iter().map(|backend| backend.name()).collect();
    let reason = match names.is_empty() {
        true => "this program was built without any backend".to_owned(),
        false => format!("no device was found for {}", names.join(", ")),
    };
    let why = refused.iter().map(|reason| format!("; {reason}")).collect::<String>();
    Err(Error::invalid(format!("{reason}{why}")).with_hint(format!(
        "to compute on the processor, build with `{}`",
        build_command(Backend::Cpu)
    )))
}

fn open_named(backend: Backend, index: Option<usize>) -> Result<OpenDevice> {
    if !backend.is_compiled() {
        return Err(Error::invalid(format!("this program was built without `{backend}`")).with_hint(
            format!(
                "build it with the feature `{backend}`: `{}`; `lora doctor` lists what is in this one",
                build_command(backend)
            ),
        ));
    }
    let all: Vec<FoundDevice> =
        found_devices().into_iter().filter(|found| found.backend == backend).collect();
    if all.is_empty() {
        return Err(Error::invalid(format!("no {backend} device: {}", missing_driver(backend)))
            .with_hint(
                "`--device auto` takes the best device there is; `lora doctor` lists them",
            ));
    }
    let wanted = match index {
        Some(index) => format!("{backend}:{index}"),
        None => all[0].name.clone(),
    };
    let Some(found) = all.iter().find(|found| found.name == wanted) else {
        let names: Vec<&str> = all.iter().map(|found| found.name.as_str()).collect();
        return Err(Error::invalid(format!("there is no device `{wanted}`"))
            .with_hint(format!("this machine has {}", names.join(", "))));
    };
    opened(found, "asked for by name")
}

fn opened(found: &FoundDevice, reason: &str) -> Result<OpenDevice> {
    let (label, target) = guarded(&found.name, || None, || identity(&found.device))?;
    Ok(OpenDevice {
        device: found.device.clone(),
        backend: found.backend,
        name: found.name.clone(),
        label,
        target,
        reason: reason.to_owned(),
    })
}

/// What the driver calls a device, and what kernels are compiled for; asking opens it.
#[cfg(feature = "gpu")]
fn identity(device: &Device) -> (String, String) {
    device.identity().map(|found| (found.name, found.fingerprint)).unwrap_or_default()
}

/// Processors have no driver to ask.
#[cfg(not(feature = "gpu"))]
fn identity(_device: &Device) -> (String, String) {
    Default::default()
}

fn build_command(backend: Backend) -> String {
    match backend {
        Backend::Cpu => "cargo build --release".to_owned(),
        _ => format!("cargo build --release --features {backend}"),
    }
}

fn missing_driver(backend: Backend) -> &'static str {
    match backend {
        Backend::Cuda => "the NVIDIA driver (libcuda) is missing, or it sees no card",
        Backend::Rocm => "the ROCm runtime (libamdhip64) is missing, or it sees no card",
        Backend::Vulkan => "no Vulkan driver is installed, or it sees no card",
        Backend::Metal => "Metal is there on Apple's systems alone",
        Backend::Wgpu | Backend::Webgpu => "no graphics driver is installed, or it sees no card",
        Backend::Cpu | Backend::Ndarray => "the processor is always there",
    }
}

/// Runs `work` on a device and turns what a driver throws into an error: a device that is lost, out of
/// memory, or refuses a kernel makes Burn panic, whatever the call. `needs` says how much memory the work
/// wants, where that is known; it is asked only when the device had too little.
///
/// # Errors
/// The device failed; says how, and which settings need less of it.
pub fn guarded<T>(
    device: &str,
    needs: impl FnOnce() -> Option<String>,
    work: impl FnOnce() -> T,
) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).or_else(|payload| {
        let said = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or_default();
        match device_failure(device, needs, said) {
            Some(error) => Err(error),
            // A fault of the program, not of the device: whoever is above reports it.
            None => std::panic::resume_unwind(payload),
        }
    })
}

/// The error behind what a panic said, if a device was the cause.
pub fn device_failure(
    device: &str,
    needs: impl FnOnce() -> Option<String>,
    said: &str,
) -> Option<Error> {
    failure(device, needs, || free_bytes(device), said)
}

fn failure(
    device: &str,
    needs: impl FnOnce() -> Option<String>,
    free: impl FnOnce() -> Option<u64>,
    said: &str,
) -> Option<Error> {
    const MEMORY: [&str; 6] = [
        "out of memory",
        "OutOfMemory",
        "OUT_OF_DEVICE_MEMORY",
        "OUT_OF_HOST_MEMORY",
        "BufferTooBig",
        "can't allocate buffer",
    ];
    const LOST: [&str; 7] = [
        "device is lost",
        "DeviceLost",
        "device lost",
        "ERROR_DEVICE_LOST",
        "is poisoned\nCaused by",
        "Unable to dynamically load",
        "No possible adapter",
    ];
    // The first lines tell; the rest is a backtrace of the driver.
    const UNWRAPPED: &str = "called `Result::unwrap()` on an `Err` value: ";
    let text = said.strip_prefix(UNWRAPPED).unwrap_or(said);
    let brief: Vec<&str> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
    let brief = brief.join(" ");
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if says(&MEMORY) {
        let needs = needs().map(|needs| format!("; up to {needs} are needed")).unwrap_or_default();
        let free = free().map(|free| format!("; {:.1} GB are free now", free as f64 / 1e9));
        let free = free.unwrap_or_default();
        let reason = format!("`{device}` is out of memory: {brief}{needs}{free}");
        return Some(Error::invalid(reason).with_hint(
            "`lora plan` says what is needed; `train.batch_size`, `data.max_tokens` and \
             `train.loss_chunk_tokens` lower it, `train.recompute = true` most of all; a run goes on \
             from its last checkpoint with `--resume`",
        ));
    }
    says(&LOST).then(|| {
        let hint = "`lora doctor` lists the devices; a run goes on from its last checkpoint with \
                    `--resume`, on this device or another";
        Error::invalid(format!("`{device}` failed: {brief}")).with_hint(hint)
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let error = DeviceSpec::parse(text).and_then(DeviceSpec::open).unwrap_err();
        format!("{error}\n  hint: {}", error.hint().unwrap_or("none"))
    }

    #[test]
    fn names_are_read() {
        assert_eq!(DeviceSpec::parse("auto").unwrap(), DeviceSpec::Auto);
        assert_eq!(DeviceSpec::parse("cpu").unwrap(), DeviceSpec::CPU);
        let second = DeviceSpec::Named { backend: Backend::Vulkan, index: Some(1) };
        assert_eq!(DeviceSpec::parse("vulkan:1").unwrap(), second);
    }

    #[test]
    fn refusals_say_the_way_out() {
        let mut said: Vec<String> =
            ["tpu", "cpu:1", "wgpu:first", "cuda:"].into_iter().map(refused).collect();
        if !cfg!(feature = "rocm") {
            said.push(refused("rocm"));
        }
        insta::assert_snapshot!(said.join("\n\n"));
    }

    #[test]
    fn failures_of_a_device_are_told_from_faults_of_the_program() {
        let memory = "called `Result::unwrap()` on an `Err` value: OutOfMemory { size: 1048576 }";
        let lost = "The device is poisoned\nCaused by:\n  illegal memory access\n  0: frame";
        let said: Vec<String> = [memory, lost]
            .into_iter()
            .map(|text| {
                let (needs, free) = (|| Some("5.4 GB".into()), || Some(1_250_000_000));
                failure("vulkan:0", needs, free, text).unwrap().to_string()
            })
            .collect();
        insta::assert_snapshot!(said.join("\n"));
        assert!(device_failure("cpu", || None, "index out of bounds").is_none());
        let error = guarded("cuda:0", || None, || -> () { panic!("{memory}") }).unwrap_err();
        assert!(error.to_string().starts_with("`cuda:0` is out of memory"), "{error}");
    }

    #[cfg(feature = "cpu")]
    #[test]
    fn without_a_card_auto_is_the_processor() {
        let open = DeviceSpec::Auto.open().unwrap();
        if found_devices().iter().all(|found| found.software || found.backend.is_processor()) {
            assert_eq!(open.describe(), "cpu, the best device found");
        }
    }
}
