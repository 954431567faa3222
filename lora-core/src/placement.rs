//! Where a model lives and in which number formats: the one value that every loader takes.

use std::fmt;

pub use burn::tensor::DType;
use burn::tensor::Device;

use crate::device::OpenDevice;
use crate::error::{Error, Result};

/// A device and the number formats of a model on it.
///
/// Adapters and the optimizer's state are f32, always; so is what training changes in W0 itself.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Where tensors are made.
    pub device: Device,
    /// Format of the frozen weights at rest.
    pub weights: DType,
    /// Format of activations and matrix products; reductions are f32.
    pub compute: DType,
    /// The largest single buffer, in bytes; `None` where memory is the only limit.
    pub buffer_limit: Option<usize>,
    /// Whether frozen weights of linear layers rest in fewer bits than that.
    pub quantize: Quantize,
    /// Whether frozen matrices in f32 whose numbers are all bf16 numbers rest as these: as exact, half as large,
    /// and multiplied faster.
    pub bf16_where_exact: bool,
}

impl Placement {
    /// Everything in f32 and no limit but memory.
    pub fn f32(device: Device) -> Self {
        Self {
            device,
            weights: DType::F32,
            compute: DType::F32,
            buffer_limit: None,
            quantize: Quantize::None,
            bf16_where_exact: false,
        }
    }

    /// The same with exact bf16 numbers at rest as such, on the processor with its kernels, which multiply them as they
    /// are with f32 numbers.
    #[must_use]
    pub fn in_bf16_where_exact(self) -> Self {
        let bf16_where_exact = self.compute == DType::F32 && crate::ops::has_kernels(&self.device);
        Self { bf16_where_exact, ..self }
    }

    /// The same with the base at rest as `quantize` says.
    #[must_use]
    pub fn quantized(self, quantize: Quantize) -> Self {
        Self { quantize, ..self }
    }

    /// Whether a graph would keep unpacked weights until its backward pass, which a pass that recomputes its
    /// blocks does for one block at a time.
    pub fn keeps_unpacked(&self) -> bool {
        self.quantize != Quantize::None && !crate::ops::has_kernels(&self.device)
    }

    /// The formats that `precision` asks for on `device`, each with its reason.
    ///
    /// `quantize` says how frozen weights rest, `trains_base` that W0 itself is trained; the numbers that
    /// training changes are f32.
    ///
    /// # Errors
    /// A format asked for by name in which the device can't compute; few bits for what is trained.
    pub fn new(
        device: &OpenDevice,
        precision: Precision,
        quantize: Quantize,
        trains_base: bool,
    ) -> Result<(Self, Vec<String>)> {
        if trains_base && quantize != Quantize::None {
            let reason =
                format!("quantize = \"{quantize}\": what is trained can't rest in few bits");
            return Err(Error::invalid(reason).with_hint("leave it out, or train an adapter"));
        }
        let (compute, why) = compute(device, precision)?;
        let (weights, why_weights) = match trains_base {
            true => (DType::F32, "they are trained"),
            false => (compute, "as they are computed with"),
        };
        let placement = Self {
            device: device.device.clone(),
            weights,
            compute,
            buffer_limit: device.backend.buffer_limit(),
            quantize,
            bf16_where_exact: false,
        };
        let placement = if trains_base { placement } else { placement.in_bf16_where_exact() };
        let at_rest = match quantize {
            Quantize::None if placement.bf16_where_exact => {
                "base weights in f32: as they are computed with; at rest in bf16, where that has all \
                 their bits"
                    .to_owned()
            }
            Quantize::None => format!("base weights in {}: {why_weights}", name(weights)),
            few_bits => format!(
                "base weights at rest: {few_bits}, unpacked to {} for each product",
                name(weights)
            ),
        };
        let mut reasons = vec![
            format!("compute in {}: {why}", name(compute)),
            at_rest,
            "adapters and optimizer in f32: small, and updates are smaller than bf16 can add"
                .into(),
        ];
        if placement.keeps_unpacked() {
            let why = "so that one of them is unpacked at a time";
            reasons.push(format!("activations of blocks are computed twice, {why}"));
        }
        Ok((placement, reasons))
    }
}

/// What a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// The fastest format that trains safely on the device.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits with the range of f32.
    Bf16,
    /// 16 bits with more digits and little range.
    F16,
}

impl Precision {
    /// Every value.
    pub const ALL: [Self; 4] = [Self::Auto, Self::F32, Self::Bf16, Self::F16];
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// In how many bits the frozen weights of linear layers rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quantize {
    /// As they are computed with.
    #[default]
    None,
    /// 4.13: NF4 with double quantisation (Dettmers et al. 2023, <https://arxiv.org/abs/2305.14314>).
    Nf4,
    /// 8: bytes with a scale for each output (Dettmers et al. 2022, <https://arxiv.org/abs/2208.07339>).
    Int8,
    /// The blocks of a GGUF file as they come, the table of tokens included.
    Keep,
}

impl Quantize {
    /// Every value.
    pub const ALL: [Self; 4] = [Self::None, Self::Nf4, Self::Int8, Self::Keep];
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Nf4 => "nf4",
            Self::Int8 => "int8",
            Self::Keep => "keep",
        })
    }
}

fn compute(device: &OpenDevice, precision: Precision) -> Result<(DType, &'static str)> {
    let by_name = |dtype: DType| match device.supports(dtype) {
        true => Ok((dtype, "asked for by name")),
        false => Err(Error::invalid(format!(
            "precision = \"{precision}\": `{}` can't compute in {}",
            device.name,
            name(dtype)
        ))
        .with_hint("use precision = \"auto\", which takes what the device can, or \"f32\"")),
    };
    match precision {
        Precision::F32 => Ok((DType::F32, "asked for by name")),
        Precision::Bf16 => by_name(DType::BF16),
        Precision::F16 => by_name(DType::F16),
        Precision::Auto if device.backend.is_processor() => {
            Ok((DType::F32, "the fastest on this processor"))
        }
        Precision::Auto if device.supports(DType::BF16) => {
            Ok((DType::BF16, "half the memory, the range of f32"))
        }
        Precision::Auto => {
            Ok((DType::F32, "the device has no bf16, and f16 overflows in training"))
        }
    }
}

fn name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        _ => "f32",
    }
}
