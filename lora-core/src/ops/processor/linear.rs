//! Linear layers on one input with their low-rank updates, in one pass forward and one backward.

mod gradients;

use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Device, Distribution, Tensor};
use half::bf16;
use lora_kernels::dropout::Dropout;
use lora_kernels::filled;
use lora_kernels::matmul::{
    Beside, Left, Patch, Product, Right, Rows, Stored, dot_rows, thin_width,
};
use lora_kernels::number::Number;

use super::{Flat, Format, Parents, by_format, dense, flat, numbers, tensor};
use crate::ops::{Layer, Weight};
use crate::packed::Blocks;
use crate::parameter::read_f32;
use crate::profile::timed;

/// Up to as many rows are multiplied with the weights as these lie, row by row.
const FEW: usize = 4;

/// As [`crate::ops::lora_linear`].
pub(in crate::ops) fn lora_linear(x: &Tensor<2>, layers: &[Layer]) -> Option<Tensor<2>> {
    let serves = |layer: &Layer| {
        let weight = match &layer.weight {
            Weight::Dense(weight) => !weight.is_tracked() || weight.dtype() == DType::F32,
            Weight::Packed(_) => true,
        };
        weight && layer.bias.as_ref().is_none_or(|bias| !bias.is_tracked())
    };
    if !layers.iter().all(serves) {
        return None;
    }
    if are_mixed(layers, x.dtype()) {
        let each = layers.iter().map(std::slice::from_ref);
        let each = each.map(|layer| by_format!(x.dtype(), of_format, x, layer));
        return each.collect::<Option<Vec<_>>>().map(|outputs| Tensor::cat(outputs, 1));
    }
    by_format!(x.dtype(), of_format, x, layers)
}

/// Whether weights rest in several formats, of which one would not do for all: where some are merged, or packed.
fn are_mixed(layers: &[Layer], compute: DType) -> bool {
    let mut formats = layers.iter().filter_map(|layer| match &layer.weight {
        Weight::Dense(weight) => Some(weight.dtype()),
        // What is unpacked has the format of the others, if that has all bits.
        Weight::Packed(_) => (compute == DType::F32).then_some(DType::F32),
    });
    let first = formats.next();
    formats.any(|other| Some(other) != first)
}

/// Layers that read one input, with what both passes need of them.
struct Joined {
    layers: Vec<One>,
    d_in: usize,
    /// Sum of the outputs' widths.
    d_out: usize,
    /// Sum of the ranks.
    rank: usize,
    /// That of all weights that are not packed.
    format: Option<DType>,
}

struct One {
    weight: AtRest,
    d_out: usize,
    low_rank: Vec<Update>,
    /// First output and first rank of this layer.
    place: [usize; 2],
    /// Whether the weight's own gradient is wanted.
    wanted: bool,
}

/// A weight as it lies.
enum AtRest {
    /// `[d_in, d_out]`, its rows or its columns dense.
    Dense(Flat),
    Packed(Arc<Blocks>),
}

/// The numbers of packed weights, for one pass; empty for the others.
type Unpacked<T> = Vec<Vec<T>>;

struct Update {
    /// `[d_in, rank]`, f32, dense.
    a: Flat,
    /// `[rank, d_out]`, f32, its rows or its columns dense.
    b: Flat,
    rank: usize,
    /// s, over the share that dropout keeps.
    scale: f32,
    dropout: Option<Dropout>,
    /// Its first rank.
    place: usize,
    /// Whether gradients of A and of B are wanted.
    wanted: [bool; 2],
}

fn of_format<T: Format>(x: &Tensor<2>, layers: &[Layer]) -> Option<Tensor<2>> {
    let mut parents = Parents::default();
    let input = dense::<T>(flat(x)?);
    let wants_input = parents.add(x);
    let joined = Joined::new(layers, &mut parents)?;
    let mut bias = Vec::new();
    if layers.iter().any(|layer| layer.bias.is_some()) {
        bias.resize(joined.d_out, 0.0);
        for (layer, one) in layers.iter().zip(&joined.layers) {
            let Some(of_layer) = &layer.bias else { continue };
            let of_layer = dense::<f32>(flat(of_layer)?);
            bias[one.place[0]..][..one.d_out].copy_from_slice(numbers(&of_layer));
        }
    }
    let bias = (!bias.is_empty()).then_some(&bias[..]);
    let n = input.shape()[0];
    let shape = [n, joined.d_out];
    let drops = joined.updates().any(|(_, update)| update.dropout.is_some());
    if n <= FEW && !drops && joined.layers.iter().all(One::rows_are_outputs) {
        let output = joined.few_rows::<T>(numbers(&input), n, bias);
        let output = tensor(output, &shape);
        return Some(parents.node("linear, backward", output, move |upper| {
            // Rare: a graph over so few rows is met in tests alone.
            let x = numbers::<T>(&input);
            let narrow = joined.narrow(x, &joined.left(x, [n, joined.d_in]));
            joined.backward::<T>(&input, &narrow, upper, wants_input)
        }));
    }
    let left = timed("linear, pack", || joined.left(numbers::<T>(&input), [n, joined.d_in]));
    let narrow = timed("linear, x·A", || joined.narrow(numbers::<T>(&input), &left));
    let output = joined.forward::<T>(&left, &narrow, bias);
    drop(left);
    let output = tensor(output, &shape);
    Some(parents.node("linear, backward", output, move |upper| {
        joined.backward::<T>(&input, &narrow, upper, wants_input)
    }))
}

/// A seed from the device's generator, so that seeding the device repeats the masks.
fn seed(device: &Device) -> u64 {
    let drawn = Tensor::<1>::random([2], Distribution::Default, &device.clone().inner());
    let drawn = read_f32(drawn).into_iter().map(|part| (part * (1 << 24) as f32) as u64);
    drawn.fold(0, |seed, part| seed << 24 | part)
}

/// What is kept of x, as ones and zeros, `[n, d]` in f32: the mask that [`lora_linear`] would draw now.
pub(in crate::ops) fn dropout_mask(x: &Tensor<2>, keep: f64) -> Option<Tensor<2>> {
    let [n, width] = x.dims();
    flat(x)?;
    let dropout = Dropout { seed: seed(&x.device()), keep: keep as f32 };
    let kept: Vec<f32> = filled(n * width, |out| dropout.apply(&vec![1.0; n * width], width, out));
    Some(Tensor::from_primitive::<burn::backend::Flex>(tensor(kept, &[n, width])))
}

impl Joined {
    fn new(layers: &[Layer], parents: &mut Parents) -> Option<Self> {
        let (mut d_out, mut rank, mut d_in) = (0, 0, 0);
        let mut all = Vec::with_capacity(layers.len());
        for layer in layers {
            let [rows, width] = layer.weight.dims();
            let weight = AtRest::new(&layer.weight)?;
            let wanted = match &layer.weight {
                Weight::Dense(weight) => parents.add(weight),
                Weight::Packed(_) => false,
            };
            let place = [d_out, rank];
            let mut low_rank = Vec::with_capacity(layer.low_rank.len());
            for part in &layer.low_rank {
                let wanted = [parents.add(&part.a), parents.add(&part.b)];
                let [_, of_part] = part.a.dims();
                let a = dense::<f32>(flat(&part.a)?);
                let b = flat(&part.b)?;
                let columns_dense = is_transposed(&b) && b.dtype() == DType::F32;
                let b = if columns_dense { b } else { dense::<f32>(b) };
                let scale = (part.scale / (1.0 - part.dropout)) as f32;
                let keep = (1.0 - part.dropout) as f32;
                let dropout =
                    (part.dropout > 0.0).then(|| Dropout { seed: seed(&part.a.device()), keep });
                let place = rank;
                low_rank.push(Update { a, b, rank: of_part, scale, dropout, place, wanted });
                rank += of_part;
            }
            d_in = rows;
            d_out += width;
            all.push(One { weight, d_out: width, low_rank, place, wanted });
        }
        // All dense ones have one; packed ones take whichever it is.
        let format = all.iter().find_map(|one: &One| one.weight.format());
        Some(Self { layers: all, d_in, d_out, rank, format })
    }

    /// The packed weights number by number, in the format of the dense ones.
    fn unpacked<T: Format>(&self) -> Unpacked<T> {
        let each = self.layers.iter().map(|layer| match &layer.weight {
            AtRest::Dense(_) => Vec::new(),
            AtRest::Packed(blocks) => timed("linear, unpack", || {
                filled(self.d_in * layer.d_out, |out| blocks.unpack(out))
            }),
        });
        each.collect()
    }

    fn updates(&self) -> impl Iterator<Item = (&One, &Update)> {
        self.layers
            .iter()
            .flat_map(|layer| layer.low_rank.iter().map(move |update| (layer, update)))
    }

    /// Those that see the input as it is.
    fn undropped(&self) -> impl Iterator<Item = (&One, &Update)> {
        self.updates().filter(|(_, update)| update.dropout.is_none())
    }

    /// A matrix that the weights are multiplied with. Beside weights in f32 it is wanted in parts twice, for A or B too.
    fn left<'a, T: Format>(&self, matrix: &'a [T], [rows, depth]: [usize; 2]) -> Left<'a> {
        let left = Left::pack(matrix, [rows, depth], depth);
        if self.weight_format::<T>() == DType::F32 { left.split_up() } else { left }
    }

    /// `s·x·A` of all updates side by side, `[n, ranks]` with columns beyond them.
    fn narrow<T: Format>(&self, x: &[T], left: &Left<'_>) -> Vec<f32> {
        let width = thin_width(self.rank);
        let patches = self.undropped().map(|(_, update)| {
            let shape = [self.d_in, update.rank];
            Patch::straight(numbers(&update.a), shape, [0, update.place]).scaled(update.scale)
        });
        let mut narrow = self.thin(left, [self.d_in, width], patches.collect());
        for (_, update) in self.updates() {
            let Some(dropout) = update.dropout else { continue };
            let x = self.dropped(dropout, x);
            let left = Left::pack(&x, [left.rows(), self.d_in], self.d_in);
            let shape = [self.d_in, update.rank];
            let patch = Patch::straight(numbers(&update.a), shape, [0, 0]).scaled(update.scale);
            let own = self.thin(&left, shape, vec![patch]);
            let rows = narrow.chunks_exact_mut(width).zip(own.chunks_exact(update.rank));
            rows.for_each(|(row, own)| row[update.place..][..update.rank].copy_from_slice(own));
        }
        narrow
    }

    /// What dropout leaves of the input; not kept, since it is made again as fast.
    fn dropped<T: Format>(&self, dropout: Dropout, x: &[T]) -> Vec<T> {
        filled(x.len(), |out| dropout.apply(x, self.d_in, out))
    }

    fn thin(&self, left: &Left, shape: [usize; 2], patches: Vec<Patch<'_, f32>>) -> Vec<f32> {
        if self.rank == 0 {
            return Vec::new();
        }
        let right = Right::new(shape, patches);
        filled(left.rows() * shape[1], |out| {
            Product::new(left, &right).write(out);
        })
    }

    fn weights<'a, T: Format>(
        &'a self,
        unpacked: &'a Unpacked<T>,
        transposed: bool,
    ) -> Right<'a, T> {
        let patches = self.layers.iter().zip(unpacked).map(|(layer, unpacked)| {
            let (from, [rows, columns]) = match &layer.weight {
                AtRest::Dense(weight) => {
                    let strides = weight.layout().strides();
                    let from = &weight.storage::<T>()[weight.layout().start_offset()..];
                    (from, [strides[0] as usize, strides[1] as usize])
                }
                AtRest::Packed(_) => (&unpacked[..], [1, self.d_in]),
            };
            let (shape, steps, place) = match transposed {
                false => ([self.d_in, layer.d_out], [rows, columns], [0, layer.place[0]]),
                true => ([layer.d_out, self.d_in], [columns, rows], [layer.place[0], 0]),
            };
            Patch { numbers: from, shape, steps, place, scale: 1.0 }
        });
        let shape = if transposed { [self.d_out, self.d_in] } else { [self.d_in, self.d_out] };
        Right::new(shape, patches.collect())
    }

    /// `W·x + b + (s·x·A)·B`.
    fn forward<T: Format>(&self, left: &Left, narrow: &[f32], bias: Option<&[f32]>) -> Vec<T> {
        let n = left.rows();
        let narrow_width = thin_width(self.rank);
        let narrow = left.pack_beside(narrow, [n, self.rank], narrow_width);
        let patches = self
            .updates()
            .map(|(layer, update)| Patch { place: [update.place, layer.place[0]], ..update.b() });
        let wide = Right::new([self.rank, self.d_out], patches.collect());
        let low_rank = (self.rank > 0).then_some((&narrow, &wide));
        self.times_weights(left, false, low_rank, bias)
    }

    /// The product with the weights, or with their transposes, and what is added to it.
    fn times_weights<T: Format>(
        &self,
        left: &Left,
        transposed: bool,
        low_rank: Option<(&Left<'_>, &Right<'_, f32>)>,
        bias: Option<&[f32]>,
    ) -> Vec<T> {
        let columns = if transposed { self.d_in } else { self.d_out };
        filled(left.rows() * columns, |out| match self.weight_format::<T>() {
            DType::BF16 => {
                let unpacked = self.unpacked::<bf16>();
                let right = &self.weights(&unpacked, transposed);
                Product { low_rank, bias, ..Product::new(left, right) }.write(out);
            }
            _ => {
                let unpacked = self.unpacked::<f32>();
                let right = &self.weights(&unpacked, transposed);
                Product { low_rank, bias, ..Product::new(left, right) }.write(out);
            }
        })
    }

    /// `dX = dY·Wᵀ + s·(dY·Bᵀ)·Aᵀ`, `dA = s·xᵀ·(dY·Bᵀ)`, `dB = (s·x·A)ᵀ·dY`: those that are wanted.
    fn backward<T: Format>(
        &self,
        input: &Flat,
        narrow: &[f32],
        upper: Flat,
        wants_input: bool,
    ) -> Vec<Flat> {
        let upper = dense::<T>(upper);
        let (x, dy) = (numbers::<T>(input), numbers::<T>(&upper));
        let n = input.shape()[0];
        let width = thin_width(self.rank);
        let left = timed("linear, pack", || self.left(dy, [n, self.d_out]));
        // s·dY·Bᵀ of all updates side by side.
        let patches = self.updates().map(|(layer, update)| {
            update.b().turned([layer.place[0], update.place]).scaled(update.scale)
        });
        let upper_narrow =
            timed("linear, dY·Bᵀ", || self.thin(&left, [self.d_out, width], patches.collect()));
        let mut gradients = Vec::new();
        if wants_input {
            let packed = left.pack_beside(&upper_narrow, [n, self.rank], width);
            let patches = self.undropped().map(|(_, update)| {
                let shape = [self.d_in, update.rank];
                Patch::transposed(numbers(&update.a), shape, [update.place, 0])
            });
            let wide = Right::new([self.rank, self.d_in], patches.collect());
            let low_rank = (self.rank > 0).then_some((&packed, &wide));
            let mut dx: Vec<T> = self.times_weights(&left, true, low_rank, None);
            for (_, update) in self.updates() {
                let Some(dropout) = update.dropout else { continue };
                let left = Left::pack(&upper_narrow[update.place..], [n, update.rank], width);
                let shape = [self.d_in, update.rank];
                let patch = Patch::transposed(numbers::<f32>(&update.a), shape, [0, 0]);
                let right = Right::new([update.rank, self.d_in], vec![patch]);
                let own: Vec<f32> = filled(n * self.d_in, |out| {
                    Product::new(&left, &right).write(out);
                });
                dropout.add(&own, self.d_in, &mut dx);
            }
            gradients.push(tensor(dx, &[n, self.d_in]));
        }
        let own = timed("linear, dW", || self.weight_gradients(x, dy));
        let of_factors =
            timed("linear, dA and dB", || self.factor_gradients(x, dy, narrow, &upper_narrow));
        // As they were counted: of each layer the weight first.
        for (own, of_factors) in own.into_iter().zip(of_factors) {
            gradients.extend(own.into_iter().chain(of_factors));
        }
        gradients
    }

    /// The forward pass of few rows, each weight read once as it lies.
    fn few_rows<T: Format>(&self, x: &[T], n: usize, bias: Option<&[f32]>) -> Vec<T> {
        let x: Vec<f32> = x.iter().map(|number| Number::to_f32(*number)).collect();
        let sizes = [n, self.d_in];
        let mut out = vec![0.0; n * self.d_out];
        match self.weight_format::<T>() {
            DType::BF16 => {
                dot_rows(&x, &self.stored::<bf16>(), sizes, &mut out, self.d_out);
            }
            _ => dot_rows(&x, &self.stored::<f32>(), sizes, &mut out, self.d_out),
        }
        for row in out.chunks_exact_mut(self.d_out) {
            row.iter_mut().zip(bias.into_iter().flatten()).for_each(|(out, bias)| *out += bias);
        }
        out.into_iter().map(<T as Number>::from_f32).collect()
    }

    /// All weights as they lie, `[d_out, d_in]` each, with their updates.
    fn stored<T: Format>(&self) -> Vec<Stored<'_, T>> {
        let mut all = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let weight = match &layer.weight {
                AtRest::Dense(weight) => {
                    let start = weight.layout().start_offset();
                    Rows::Dense(&weight.storage::<T>()[start..start + self.d_in * layer.d_out])
                }
                AtRest::Packed(blocks) => Rows::Packed(blocks),
            };
            let updates = layer
                .low_rank
                .iter()
                .map(|update| Beside::new(numbers(&update.a), update.b(), update.scale, self.d_in));
            all.push(Stored { weight, place: layer.place[0], updates: updates.collect() });
        }
        all
    }

    /// The format that all weights are multiplied in, of activations in the format T.
    fn weight_format<T: Format>(&self) -> DType {
        self.format.unwrap_or(T::dtype())
    }
}

impl Update {
    /// B as it lies.
    fn b(&self) -> Patch<'_, f32> {
        let (numbers, shape) = (numbers(&self.b), self.b.shape());
        let [rank, d_out] = [shape[0], shape[1]];
        match is_transposed(&self.b) {
            true => Patch::transposed(numbers, [d_out, rank], [0, 0]),
            false => Patch::straight(numbers, [rank, d_out], [0, 0]),
        }
    }
}

impl AtRest {
    /// `None` where the kernels have nothing for it.
    fn new(weight: &Weight) -> Option<Self> {
        let dense = match weight {
            Weight::Dense(dense) => dense,
            Weight::Packed(packed) => return Some(Self::Packed(Arc::clone(packed.blocks()?))),
        };
        let mut flat = flat(dense)?;
        let ([rows, width], strides) = (dense.dims(), flat.layout().strides().to_vec());
        let dense_rows = strides[1] == 1 && strides[0] >= width as isize;
        let dense_columns = strides[0] == 1 && strides[1] >= rows as isize;
        if !dense_rows && !dense_columns {
            flat = flat.to_contiguous();
        }
        [DType::F32, DType::BF16].contains(&flat.dtype()).then_some(Self::Dense(flat))
    }

    fn format(&self) -> Option<DType> {
        match self {
            Self::Dense(flat) => Some(flat.dtype()),
            Self::Packed(_) => None,
        }
    }
}

impl One {
    /// Whether the weights of one output lie next to each other, without gaps.
    fn rows_are_outputs(&self) -> bool {
        match &self.weight {
            AtRest::Dense(weight) => is_transposed(weight),
            AtRest::Packed(_) => true,
        }
    }
}

/// Whether the columns of a matrix lie one after another, without gaps.
fn is_transposed(matrix: &Flat) -> bool {
    let (shape, strides) = (matrix.shape(), matrix.layout().strides());
    strides[0] == 1 && strides[1] == shape[0] as isize
}
