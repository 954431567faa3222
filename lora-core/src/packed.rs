//! Frozen matrices in few bits: at rest, and in training. A pass unpacks what it multiplies with and lets it
//! go again; the backward pass unpacks once more.
//!
//! y = x·Q + s·(x·A)·B with Q what a quantiser left of W (QLoRA, Dettmers et al. 2023,
//! <https://arxiv.org/abs/2305.14314>).

use std::fmt;
use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use half::bf16;
use lora_kernels::blocks::Planes;
pub use lora_kernels::blocks::{Blocks, GgufFormat, gguf};

use crate::ops;
use crate::table::indices;

/// A matrix `[rows, columns]` in few bits on a device; cheap to clone.
#[derive(Clone)]
pub struct Packed(Arc<Inner>);

struct Inner {
    shape: [usize; 2],
    bytes: usize,
    format: &'static str,
    held: Held,
    device: Device,
    dtype: DType,
}

#[expect(clippy::large_enum_variant, reason = "one for each matrix of a model")]
enum Held {
    /// On the processor, whose kernels unpack pieces where they meet them.
    Blocks(Arc<Blocks>),
    /// Elsewhere, for tensor operations.
    Planes(OnDevice),
}

/// `w = level(code)·scale + minimum`, each group of columns with a scale.
struct OnDevice {
    /// Words of several codes, the first in the lowest bits, `[rows, columns·bits / 32]`.
    words: Tensor<2, Int>,
    bits: usize,
    offset: f32,
    /// `[16]`
    levels: Option<Tensor<1>>,
    /// `[rows, groups]`
    scales: Tensor<2>,
    minima: Option<Tensor<2>>,
}

impl Packed {
    /// `blocks` on a device; unpacked they have the format `dtype`.
    ///
    /// # Errors
    /// The blocks themselves, where the device would need other ones: those of one row may not run on into the
    /// next there.
    pub fn new(blocks: Blocks, device: &Device, dtype: DType) -> std::result::Result<Self, Blocks> {
        let (shape, format) = (blocks.shape(), blocks.format());
        let (held, bytes) = if ops::has_kernels(device) {
            let bytes = blocks.bytes();
            (Held::Blocks(Arc::new(blocks)), bytes)
        } else {
            let planes = blocks.planes().filter(|it| shape[1].is_multiple_of(32 / it.bits));
            let Some(planes) = planes else { return Err(blocks) };
            let per_word = 32 / planes.bits;
            let bytes = 4 * (planes.codes.len() / per_word + planes.scales.len())
                + 4 * planes.minima.as_ref().map_or(0, Vec::len);
            (Held::Planes(OnDevice::new(planes, shape, device)), bytes)
        };
        Ok(Self(Arc::new(Inner { shape, bytes, format, held, device: device.clone(), dtype })))
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.0.shape
    }

    /// Bytes that it takes on its device.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// What the format is called.
    pub fn format(&self) -> &'static str {
        self.0.format
    }

    /// The blocks, where the processor's kernels have them.
    pub fn blocks(&self) -> Option<&Arc<Blocks>> {
        match &self.0.held {
            Held::Blocks(blocks) => Some(blocks),
            Held::Planes(_) => None,
        }
    }

    /// All numbers, `[rows, columns]`.
    pub fn unpack(&self) -> Tensor<2> {
        let Inner { held, device, dtype, .. } = &*self.0;
        match held {
            Held::Blocks(blocks) => dense(blocks, (device, *dtype)),
            Held::Planes(planes) => ops::cast(planes.unpack(), *dtype),
        }
    }

    /// The numbers of some rows, `[n, columns]`.
    ///
    /// # Panics
    /// For a row that it does not have.
    pub fn select(&self, rows: &[i32]) -> Tensor<2> {
        let Inner { shape: [_, columns], held, device, dtype, .. } = &*self.0;
        match held {
            Held::Blocks(blocks) => {
                let mut numbers = vec![0.0; rows.len() * columns];
                for (row, numbers) in rows.iter().zip(numbers.chunks_mut(*columns)) {
                    let row = *row as usize;
                    blocks.unpack_rows(row..row + 1, numbers);
                }
                Tensor::from_data(
                    TensorData::new(numbers, [rows.len(), *columns]),
                    (device, *dtype),
                )
            }
            Held::Planes(planes) => ops::cast(planes.of_rows(rows, device).unpack(), *dtype),
        }
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, columns] = self.shape();
        write!(f, "Packed({} {rows} x {columns})", self.format())
    }
}

fn dense(blocks: &Blocks, (device, dtype): (&Device, DType)) -> Tensor<2> {
    let shape = blocks.shape();
    let count = shape[0] * shape[1];
    let data = if dtype == DType::BF16 {
        let numbers: Vec<bf16> = lora_kernels::filled(count, |out| blocks.unpack(out));
        TensorData::new(numbers, shape)
    } else {
        let numbers: Vec<f32> = lora_kernels::filled(count, |out| blocks.unpack(out));
        TensorData::new(numbers, shape)
    };
    Tensor::from_data(data, (device, dtype))
}

impl OnDevice {
    fn new(planes: Planes, [rows, columns]: [usize; 2], device: &Device) -> Self {
        let Planes { codes, bits, offset, levels, group, scales, minima } = planes;
        let per_word = 32 / bits;
        let words = codes.chunks_exact(per_word).map(|codes| {
            let parts = codes.iter().enumerate();
            parts.fold(0u32, |word, (at, code)| word | u32::from(*code) << (at * bits))
        });
        let words: Vec<i32> = words.map(u32::cast_signed).collect();
        let grouped = |numbers: Vec<f32>| {
            Tensor::from_data(TensorData::new(numbers, [rows, columns / group]), device)
        };
        Self {
            words: Tensor::from_data(TensorData::new(words, [rows, columns / per_word]), device),
            bits,
            offset,
            levels: levels.map(|it| Tensor::from_data(TensorData::new(it.to_vec(), [16]), device)),
            scales: grouped(scales),
            minima: minima.map(grouped),
        }
    }

    /// `[rows, columns]`, f32.
    fn unpack(&self) -> Tensor<2> {
        let ([rows, words], [_, groups]) = (self.words.dims(), self.scales.dims());
        let per_word = 32 / self.bits;
        let columns = words * per_word;
        let mask = (1i32 << self.bits) - 1;
        let parts = (0..per_word).map(|at| {
            let shift = (at * self.bits) as i32;
            self.words.clone().bitwise_right_shift_scalar(shift).bitwise_and_scalar(mask)
        });
        let codes: Tensor<3, Int> = Tensor::stack(parts.collect(), 2);
        let levels: Tensor<3> = match &self.levels {
            Some(levels) => {
                let codes = codes.reshape([rows * columns]);
                levels.clone().select(0, codes).reshape([rows, groups, columns / groups])
            }
            None => codes.float().reshape([rows, groups, columns / groups]) - self.offset,
        };
        let mut numbers = levels * self.scales.clone().unsqueeze_dim(2);
        if let Some(minima) = &self.minima {
            numbers = numbers + minima.clone().unsqueeze_dim(2);
        }
        numbers.reshape([rows, columns])
    }

    fn of_rows(&self, rows: &[i32], device: &Device) -> Self {
        let at = indices(rows, device);
        Self {
            words: self.words.clone().select(0, at.clone()),
            scales: self.scales.clone().select(0, at.clone()),
            minima: self.minima.as_ref().map(|minima| minima.clone().select(0, at)),
            levels: self.levels.clone(),
            ..*self
        }
    }
}
