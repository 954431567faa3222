//! The metadata values of a GGUF file and the cursor that reads its little-endian primitives, every
//! read checked against what is left of the file.

use std::fmt;

/// A metadata value; GGUF knows these thirteen types.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Type 0.
    U8(u8),
    /// Type 1.
    I8(i8),
    /// Type 2.
    U16(u16),
    /// Type 3.
    I16(i16),
    /// Type 4.
    U32(u32),
    /// Type 5.
    I32(i32),
    /// Type 6.
    F32(f32),
    /// Type 7.
    Bool(bool),
    /// Type 8.
    String(String),
    /// Type 9.
    Array(Array),
    /// Type 10.
    U64(u64),
    /// Type 11.
    I64(i64),
    /// Type 12.
    F64(f64),
}

/// A metadata array: all values of one type, kept as such because vocabularies are large.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Bytes.
    U8(Vec<u8>),
    /// Signed bytes.
    I8(Vec<i8>),
    /// 16-bit integers.
    U16(Vec<u16>),
    /// Signed 16-bit integers.
    I16(Vec<i16>),
    /// 32-bit integers.
    U32(Vec<u32>),
    /// Signed 32-bit integers.
    I32(Vec<i32>),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// Truth values.
    Bool(Vec<bool>),
    /// Strings.
    String(Vec<String>),
    /// Arrays.
    Array(Vec<Array>),
    /// 64-bit integers.
    U64(Vec<u64>),
    /// Signed 64-bit integers.
    I64(Vec<i64>),
    /// 64-bit floats.
    F64(Vec<f64>),
}

impl Value {
    /// An integer of any type that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(number) => Some(number.into()),
            Self::U16(number) => Some(number.into()),
            Self::U32(number) => Some(number.into()),
            Self::U64(number) => Some(number),
            Self::I8(number) => number.try_into().ok(),
            Self::I16(number) => number.try_into().ok(),
            Self::I32(number) => number.try_into().ok(),
            Self::I64(number) => number.try_into().ok(),
            _ => None,
        }
    }

    /// A float of either type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(number) => Some(number.into()),
            Self::F64(number) => Some(number),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = *self { Some(value) } else { None }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// What this is, for messages: "a string", "an array of 3 u32".
    pub fn describe(&self) -> String {
        match self {
            Self::U8(_) => "a u8".to_owned(),
            Self::I8(_) => "an i8".to_owned(),
            Self::U16(_) => "a u16".to_owned(),
            Self::I16(_) => "an i16".to_owned(),
            Self::U32(_) => "a u32".to_owned(),
            Self::I32(_) => "an i32".to_owned(),
            Self::F32(_) => "an f32".to_owned(),
            Self::Bool(_) => "a bool".to_owned(),
            Self::String(_) => "a string".to_owned(),
            Self::Array(array) => format!("an array of {array}"),
            Self::U64(_) => "a u64".to_owned(),
            Self::I64(_) => "an i64".to_owned(),
            Self::F64(_) => "an f64".to_owned(),
        }
    }
}

/// A value as a listing shows it: scalars in full, arrays by length and type.
impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(number) => number.fmt(formatter),
            Self::I8(number) => number.fmt(formatter),
            Self::U16(number) => number.fmt(formatter),
            Self::I16(number) => number.fmt(formatter),
            Self::U32(number) => number.fmt(formatter),
            Self::I32(number) => number.fmt(formatter),
            Self::F32(number) => number.fmt(formatter),
            Self::Bool(value) => value.fmt(formatter),
            Self::String(text) => text.fmt(formatter),
            Self::Array(array) => array.fmt(formatter),
            Self::U64(number) => number.fmt(formatter),
            Self::I64(number) => number.fmt(formatter),
            Self::F64(number) => number.fmt(formatter),
        }
    }
}

impl Array {
    /// How many values.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U16(values) => values.len(),
            Self::I16(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::String(values) => values.len(),
            Self::Array(values) => values.len(),
            Self::U64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values where all are integers that are not negative.
    pub fn as_u64s(&self) -> Option<Vec<u64>> {
        fn all<T: Copy + TryInto<u64>>(values: &[T]) -> Option<Vec<u64>> {
            values.iter().map(|&value| value.try_into().ok()).collect()
        }
        match self {
            Self::U8(values) => all(values),
            Self::I8(values) => all(values),
            Self::U16(values) => all(values),
            Self::I16(values) => all(values),
            Self::U32(values) => all(values),
            Self::I32(values) => all(values),
            Self::U64(values) => all(values),
            Self::I64(values) => all(values),
            _ => None,
        }
    }
}

/// "3 u32".
impl fmt::Display for Array {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::F32(_) => "f32",
            Self::Bool(_) => "bool",
            Self::String(_) => "strings",
            Self::Array(_) => "arrays",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F64(_) => "f64",
        };
        write!(formatter, "{} {kind}", self.len())
    }
}

/// Arrays may hold arrays; nobody nests them deeper than this.
const DEEPEST_ARRAY: usize = 4;

/// Reads a GGUF file front to back. The errors are reasons without the path.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Where the next byte is read.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Fails unless `count` items of at least `least_bytes` each can still follow.
    pub(crate) fn check_count(
        &self,
        count: u64,
        least_bytes: usize,
        what: &str,
    ) -> Result<usize, String> {
        let left = self.bytes.len() - self.at;
        usize::try_from(count).ok().filter(|&count| count <= left / least_bytes).ok_or_else(|| {
            format!(
                "{what}: {count} of them are announced, but only {left} bytes follow byte {}",
                self.at
            )
        })
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.fixed(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.fixed(what).map(u64::from_le_bytes)
    }

    pub(crate) fn string(&mut self, what: &str) -> Result<String, String> {
        let length = self.u64(what)?;
        let length = self.check_count(length, 1, what)?;
        let start = self.at;
        let text = self.take(length, what)?;
        str::from_utf8(text)
            .map(str::to_owned)
            .map_err(|_| format!("{what}: the string at byte {start} is not UTF-8"))
    }

    pub(crate) fn value(&mut self, what: &str) -> Result<Value, String> {
        let kind = self.u32(what)?;
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.fixed(what)?)),
            1 => Value::I8(i8::from_le_bytes(self.fixed(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.fixed(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.fixed(what)?)),
            4 => Value::U32(self.u32(what)?),
            5 => Value::I32(i32::from_le_bytes(self.fixed(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.fixed(what)?)),
            7 => Value::Bool(u8::from_le_bytes(self.fixed(what)?) != 0),
            8 => Value::String(self.string(what)?),
            9 => Value::Array(self.array(what, 1)?),
            10 => Value::U64(self.u64(what)?),
            11 => Value::I64(i64::from_le_bytes(self.fixed(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.fixed(what)?)),
            other => return Err(format!("{what}: unknown value type {other}")),
        })
    }

    fn array(&mut self, what: &str, depth: usize) -> Result<Array, String> {
        if depth > DEEPEST_ARRAY {
            return Err(format!("{what}: arrays nested more than {DEEPEST_ARRAY} deep"));
        }
        let kind = self.u32(what)?;
        let count = self.u64(what)?;
        Ok(match kind {
            0 => Array::U8(self.numbers(count, what, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(count, what, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(count, what, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(count, what, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(count, what, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(count, what, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, what, f32::from_le_bytes)?),
            7 => Array::Bool(self.numbers(count, what, |[byte]: [u8; 1]| byte != 0)?),
            8 => {
                let count = self.check_count(count, 8, what)?;
                Array::String((0..count).map(|_| self.string(what)).collect::<Result<_, _>>()?)
            }
            9 => {
                let count = self.check_count(count, 12, what)?;
                let arrays = (0..count).map(|_| self.array(what, depth + 1));
                Array::Array(arrays.collect::<Result<_, _>>()?)
            }
            10 => Array::U64(self.numbers(count, what, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, what, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, what, f64::from_le_bytes)?),
            other => return Err(format!("{what}: array of the unknown value type {other}")),
        })
    }

    fn numbers<const SIZE: usize, T>(
        &mut self,
        count: u64,
        what: &str,
        read: impl Fn([u8; SIZE]) -> T,
    ) -> Result<Vec<T>, String> {
        let count = self.check_count(count, SIZE, what)?;
        let bytes = self.take(count * SIZE, what)?;
        Ok(bytes.as_chunks::<SIZE>().0.iter().map(|bytes| read(*bytes)).collect())
    }

    fn fixed<const SIZE: usize>(&mut self, what: &str) -> Result<[u8; SIZE], String> {
        let mut bytes = [0; SIZE];
        bytes.copy_from_slice(self.take(SIZE, what)?);
        Ok(bytes)
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or_else(|| {
            format!("{what}: the file ends at byte {}, cut off or not complete", self.bytes.len())
        })?;
        self.at += count;
        Ok(taken)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn integers_of_every_type_but_never_negative() {
        assert_eq!(Value::U8(7).as_u64(), Some(7));
        assert_eq!(Value::I64(7).as_u64(), Some(7));
        assert_eq!(Value::I32(-1).as_u64(), None);
        assert_eq!(Value::F32(1.0).as_u64(), None);
        assert_eq!(Array::I32(vec![3, 1]).as_u64s(), Some(vec![3, 1]));
        assert_eq!(Array::I32(vec![3, -1]).as_u64s(), None);
    }

    #[test]
    fn every_value_type_is_read() {
        let mut bytes = vec![];
        let mut put = |kind: u32, content: &[u8]| {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(content);
        };
        put(0, &[255]);
        put(1, &[255]);
        put(2, &[1, 2]);
        put(3, &[254, 255]);
        put(4, &[1, 0, 0, 0]);
        put(5, &[255; 4]);
        put(6, &1.5f32.to_le_bytes());
        put(7, &[1]);
        put(8, &[2, 0, 0, 0, 0, 0, 0, 0, b'h', b'i']);
        put(9, &[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0]);
        put(10, &[9, 0, 0, 0, 0, 0, 0, 0]);
        put(11, &[255; 8]);
        put(12, &2.5f64.to_le_bytes());
        let mut cursor = Cursor::new(&bytes);
        let expected = [
            Value::U8(255),
            Value::I8(-1),
            Value::U16(513),
            Value::I16(-2),
            Value::U32(1),
            Value::I32(-1),
            Value::F32(1.5),
            Value::Bool(true),
            Value::String("hi".to_owned()),
            Value::Array(Array::U16(vec![1, 2])),
            Value::U64(9),
            Value::I64(-1),
            Value::F64(2.5),
        ];
        for value in expected {
            assert_eq!(cursor.value("x").unwrap(), value);
        }
        assert_eq!(cursor.position(), bytes.len());
    }

    #[test]
    fn deep_arrays_are_refused() {
        let mut bytes = vec![];
        bytes.extend(9u32.to_le_bytes());
        for _ in 0..1000 {
            bytes.extend(9u32.to_le_bytes());
            bytes.extend(1u64.to_le_bytes());
        }
        let error = Cursor::new(&bytes).value("`key`").unwrap_err();
        assert_eq!(error, "`key`: arrays nested more than 4 deep");
    }
}
