//! A tensor that belongs to a model: frozen data, or a leaf that training changes.
//!
//! Frozen tensors are plain values without automatic differentiation. Burn treats them as constants
//! wherever they meet a tracked tensor, so that the frozen base has no gradient and no graph of its own.

use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use half::bf16;

use crate::decompose::transposed;
use crate::ops::{Weight, cast};
use crate::packed::Packed;

/// A tensor of a model, with the copies that adapters put in its place (`modules_to_save`).
#[derive(Debug, Clone)]
pub struct Parameter<const D: usize> {
    value: Value<D>,
    /// Whether a dense matrix lies as its transpose, column by column.
    by_columns: bool,
    /// The base value, kept while an adapter's copy stands in its place.
    base: Option<Value<D>>,
    active: Option<String>,
    /// Copies of adapters that are not active now.
    resting: Vec<(String, Tensor<D>)>,
}

#[derive(Debug, Clone)]
enum Value<const D: usize> {
    Dense(Tensor<D>),
    /// F32 numbers that rest in bf16, which has all of their bits.
    InBf16(Tensor<D>),
    /// In few bits, and how it is read: as it lies, or turned.
    Packed {
        packed: Packed,
        turned: bool,
        unpack: fn(&Packed) -> Tensor<D>,
    },
}

impl<const D: usize> Value<D> {
    fn tensor(&self) -> Tensor<D> {
        match self {
            Self::Dense(tensor) => tensor.clone(),
            Self::InBf16(tensor) => cast(tensor.clone(), DType::F32),
            Self::Packed { packed, unpack, .. } => unpack(packed),
        }
    }
}

/// The numbers in bf16, if that has all bits of each of them: of most models that are published.
pub fn exact_bf16(numbers: &[f32]) -> Option<Vec<bf16>> {
    const BEYOND: u32 = 0xffff;
    // By pieces: most numbers that are none are found in the first.
    let is_exact = |numbers: &[f32]| {
        numbers.iter().fold(0, |beyond, number| beyond | number.to_bits() & BEYOND) == 0
    };
    let upper = |number: &f32| bf16::from_bits((number.to_bits() >> 16) as u16);
    numbers.chunks(1024).all(is_exact).then(|| numbers.iter().map(upper).collect())
}

impl<const D: usize> Parameter<D> {
    /// A frozen parameter.
    pub fn new(value: Tensor<D>) -> Self {
        Self::of(Value::Dense(value))
    }

    /// A frozen parameter of f32 numbers that rest in bf16, as [`exact_bf16`] found them.
    pub fn in_bf16(value: Tensor<D>) -> Self {
        Self::of(Value::InBf16(value))
    }

    fn of(value: Value<D>) -> Self {
        Self { value, by_columns: false, base: None, active: None, resting: Vec::new() }
    }

    /// The tensor as the forward pass uses it; what rests in fewer bits is unpacked by every call.
    pub fn value(&self) -> Tensor<D> {
        self.value.tensor()
    }

    /// As [`Self::value`], in bf16 where it rests so: for operations that take it in a format of its own.
    pub fn at_rest(&self) -> Tensor<D> {
        match &self.value {
            Value::InBf16(value) => value.clone(),
            value => value.tensor(),
        }
    }

    /// The tensor without any adapter's copy.
    pub fn base_value(&self) -> Tensor<D> {
        self.base.as_ref().unwrap_or(&self.value).tensor().inner()
    }

    /// What is held in few bits, where the forward pass uses that.
    pub fn packed(&self) -> Option<&Packed> {
        match &self.value {
            Value::Dense(_) | Value::InBf16(_) => None,
            Value::Packed { packed, .. } => Some(packed),
        }
    }

    /// Replaces the tensor, one in fewer bits by a dense one; it stays tracked if it was.
    pub fn set(&mut self, value: Tensor<D>) {
        let tracked = self.is_tracked();
        self.value = Value::Dense(value.inner());
        self.track(tracked);
    }

    /// Makes the tensor a leaf whose gradient is kept, or plain data again.
    pub fn track(&mut self, on: bool) {
        if !on && !matches!(self.value, Value::Dense(_)) {
            return;
        }
        let plain = self.value.tensor().inner();
        self.value = Value::Dense(if on { plain.autodiff().require_grad() } else { plain });
    }

    /// Whether training changes this tensor now.
    pub fn is_tracked(&self) -> bool {
        match &self.value {
            Value::Dense(value) => value.is_autodiff() && value.is_require_grad(),
            Value::InBf16(_) | Value::Packed { .. } => false,
        }
    }

    /// Gives `adapter` a copy of its own, starting from `value`.
    pub fn add_copy(&mut self, adapter: &str, value: Tensor<D>) {
        self.resting.push((adapter.to_owned(), value.inner()));
    }

    /// Whether `adapter` has a copy of its own.
    pub fn has_copy(&self, adapter: &str) -> bool {
        self.active.as_deref() == Some(adapter)
            || self.resting.iter().any(|(name, _)| name == adapter)
    }

    /// Whether it is the copy of `adapter` that the forward pass uses.
    pub fn is_active(&self, adapter: &str) -> bool {
        self.active.as_deref() == Some(adapter)
    }

    /// The copy that `adapter` has.
    pub fn copy_of(&self, adapter: &str) -> Option<Tensor<D>> {
        if self.active.as_deref() == Some(adapter) {
            return Some(self.value().inner());
        }
        let found = self.resting.iter().find(|(name, _)| name == adapter);
        found.map(|(_, value)| value.clone())
    }

    /// Takes the copy of `adapter` away for good.
    pub fn remove_copy(&mut self, adapter: &str) {
        if self.active.as_deref() == Some(adapter) {
            self.activate(None);
        }
        self.resting.retain(|(name, _)| name != adapter);
    }

    /// Puts the copy of `adapter` in place of the base value, or the base value back.
    pub fn activate(&mut self, adapter: Option<&str>) {
        if self.active.as_deref() == adapter {
            return;
        }
        if let (Some(name), Some(base)) = (self.active.take(), self.base.take()) {
            let copy = std::mem::replace(&mut self.value, base).tensor().inner();
            self.resting.push((name, copy));
        }
        let Some(name) = adapter else { return };
        if let Some(index) = self.resting.iter().position(|(resting, _)| resting == name) {
            let (name, copy) = self.resting.swap_remove(index);
            self.base = Some(std::mem::replace(&mut self.value, Value::Dense(copy)));
            self.active = Some(name);
        }
    }
}

impl Parameter<2> {
    /// A frozen matrix that lies as its transpose, which is what is given.
    pub(crate) fn by_columns(transpose: Tensor<2>) -> Self {
        Self { by_columns: true, ..Self::new(transpose.transpose()) }
    }

    /// Replaces the numbers, row-major; they lie as those before did, and a leaf stays a leaf.
    pub(crate) fn write(&mut self, numbers: Vec<f32>, device: &Device) {
        let [rows, columns] = self.dims();
        let value = if self.by_columns {
            let numbers = transposed(&numbers, rows, columns);
            Tensor::from_data(TensorData::new(numbers, [columns, rows]), device).transpose()
        } else {
            Tensor::from_data(TensorData::new(numbers, [rows, columns]), device)
        };
        self.set(value);
    }

    /// The weight `[d_in, d_out]` of a layer whose rows `[d_out, d_in]` are packed.
    pub fn packed_weight(packed: Packed) -> Self {
        let unpack = |packed: &Packed| packed.unpack().transpose();
        Self::of(Value::Packed { packed, turned: true, unpack })
    }

    /// A table `[v, d]` whose rows are packed.
    pub fn packed_table(packed: Packed) -> Self {
        Self::of(Value::Packed { packed, turned: false, unpack: Packed::unpack })
    }

    /// Puts packed rows `[d_out, d_in]` back in the place of the weight `[d_in, d_out]` that was made of them.
    pub(crate) fn put_back(&mut self, packed: Packed) {
        self.value = Self::packed_weight(packed).value;
    }

    /// The base value of a table `[v, d]` as the weight `[d, v]` of a layer; nothing is copied.
    #[must_use]
    pub fn as_weight(&self) -> Self {
        match self.base.as_ref().unwrap_or(&self.value) {
            Value::Dense(rows) => Self::new(rows.clone().inner().transpose()),
            Value::InBf16(rows) => Self::in_bf16(rows.clone().transpose()),
            Value::Packed { packed, .. } => Self::packed_weight(packed.clone()),
        }
    }

    /// As a layer multiplies with it; the parameter is `[d_in, d_out]`.
    pub fn weight(&self) -> Weight {
        match &self.value {
            Value::Dense(value) | Value::InBf16(value) => Weight::Dense(value.clone()),
            Value::Packed { packed, .. } => Weight::Packed(packed.clone()),
        }
    }

    /// Bytes that it takes as it rests.
    pub fn resident_bytes(&self) -> usize {
        match &self.value {
            Value::Dense(value) | Value::InBf16(value) => {
                value.shape().num_elements() * value.dtype().size()
            }
            Value::Packed { packed, .. } => packed.bytes(),
        }
    }

    /// Rows and columns; nothing is unpacked.
    pub fn dims(&self) -> [usize; 2] {
        match &self.value {
            Value::Dense(value) | Value::InBf16(value) => value.dims(),
            Value::Packed { packed, turned, .. } => {
                let [rows, columns] = packed.shape();
                if *turned { [columns, rows] } else { [rows, columns] }
            }
        }
    }
}

/// A parameter of one or two dimensions, as the optimizer meets it.
pub enum ParameterMut<'a> {
    /// A bias or a norm's weight, `[d]`.
    Vector(&'a mut Parameter<1>),
    /// A matrix, `[d_in, d_out]`.
    Matrix(&'a mut Parameter<2>),
}

impl ParameterMut<'_> {
    /// As [`Parameter::activate`].
    pub fn activate(&mut self, adapter: Option<&str>) {
        match self {
            Self::Vector(parameter) => parameter.activate(adapter),
            Self::Matrix(parameter) => parameter.activate(adapter),
        }
    }

    /// As [`Parameter::remove_copy`].
    pub fn remove_copy(&mut self, adapter: &str) {
        match self {
            Self::Vector(parameter) => parameter.remove_copy(adapter),
            Self::Matrix(parameter) => parameter.remove_copy(adapter),
        }
    }

    /// Shape of the tensor.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Vector(parameter) => parameter.value().dims().to_vec(),
            Self::Matrix(parameter) => parameter.dims().to_vec(),
        }
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether training changes this tensor now.
    pub fn is_tracked(&self) -> bool {
        match self {
            Self::Vector(parameter) => parameter.is_tracked(),
            Self::Matrix(parameter) => parameter.is_tracked(),
        }
    }

    /// Makes the tensor a leaf, or plain data again.
    pub fn track(&mut self, on: bool) {
        match self {
            Self::Vector(parameter) => parameter.track(on),
            Self::Matrix(parameter) => parameter.track(on),
        }
    }

    /// Takes this parameter's gradient out of `gradients`, flattened.
    pub fn take_gradient(&self, gradients: &mut Gradients) -> Option<Tensor<1>> {
        let count = [self.count()];
        match self {
            Self::Vector(parameter) => parameter.value().grad_remove(gradients),
            Self::Matrix(parameter) => {
                parameter.value().grad_remove(gradients).map(|gradient| gradient.reshape(count))
            }
        }
    }

    /// The numbers, row-major, read back from the device.
    pub fn read(&self) -> Vec<f32> {
        match self {
            Self::Vector(parameter) => read_f32(parameter.value()),
            Self::Matrix(parameter) => read_f32(parameter.value()),
        }
    }

    /// Replaces the numbers, row-major; a leaf stays a leaf.
    pub fn write(&mut self, numbers: Vec<f32>, device: &Device) {
        match self {
            Self::Vector(parameter) => {
                let count = numbers.len();
                parameter.set(Tensor::from_data(TensorData::new(numbers, [count]), device));
            }
            Self::Matrix(parameter) => parameter.write(numbers, device),
        }
    }
}

/// Reads a tensor back as f32, row-major.
///
/// # Panics
/// When the device has failed: there are no numbers to go on with.
pub fn read_f32<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.inner().into_data().convert::<f32>();
    match data.try_into_vec::<f32>() {
        Ok(numbers) => numbers,
        Err(error) => panic!("a tensor just converted to f32 is not f32: {error:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rest_in_bf16_where_that_has_all_their_bits() {
        let exact = [0.0, -0.0, 1.5, -2.0_f32.powi(127), f32::INFINITY, 2.0_f32.powi(-130)];
        let found = exact_bf16(&exact).map(|numbers| numbers.into_iter().map(bf16::to_f32));
        assert!(found.is_some_and(|found| found.map(f32::to_bits).eq(exact.map(f32::to_bits))));
        assert_eq!(exact_bf16(&[1.5, 1.0 + f32::EPSILON]), None);
        assert_eq!(exact_bf16(&[0.1]), None);
    }
}
