//! Which device computes: the name a person gives, resolved to a Burn device with the reason.
//!
//! The only file outside `ops/` that knows which backends are compiled in.

use burn::tensor::Device;

use crate::error::{Error, Result};

/// A device as a person names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The best device present.
    Auto,
    /// The processor, through Burn's `flex` backend.
    Cpu,
}

/// A device ready for use.
#[derive(Debug, Clone)]
pub struct OpenDevice {
    /// The device tensors are made on.
    pub device: Device,
    /// Its name, `cpu`.
    pub name: String,
    /// Why this one.
    pub reason: String,
}

/// A backend that was compiled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledBackend {
    /// Name on the command line.
    pub name: &'static str,
    /// What it is.
    pub description: &'static str,
}

impl DeviceSpec {
    /// Reads `auto` or `cpu`.
    ///
    /// # Errors
    /// A name that is not known, or a backend that is not compiled in.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            other => Err(Error::invalid(format!("unknown device `{other}`"))
                .with_hint("use `auto` or `cpu`; this build has no other backend")),
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// Never for the processor.
    pub fn open(self) -> Result<OpenDevice> {
        let reason = match self {
            Self::Auto => "the best device compiled into this binary",
            Self::Cpu => "asked for by name",
        };
        Ok(OpenDevice { device: Device::flex(), name: "cpu".into(), reason: reason.into() })
    }
}

/// The backends of this binary, best first.
pub fn compiled_backends() -> Vec<CompiledBackend> {
    vec![CompiledBackend { name: "cpu", description: "Burn flex with SIMD and all cores" }]
}
