//! Bytes with a scale for each row.

use rayon::prelude::*;

#[derive(Clone)]
pub(super) struct Int8 {
    codes: Vec<i8>,
    /// max|w| of each row.
    maxima: Vec<f32>,
}

impl Int8 {
    pub(super) fn of(numbers: &[f32], columns: usize) -> Self {
        let rows = numbers.par_chunks(columns.max(1));
        let maxima: Vec<f32> = rows
            .clone()
            .map(|row| row.iter().fold(0.0, |largest: f32, number| largest.max(number.abs())))
            .collect();
        let mut codes = vec![0; numbers.len()];
        let into = codes.par_chunks_mut(columns.max(1));
        into.zip(rows).zip(&maxima).for_each(|((codes, row), largest)| {
            let factor = if *largest > 0.0 { 127.0 / largest } else { 0.0 };
            for (code, number) in codes.iter_mut().zip(row) {
                *code = (number * factor).round_ties_even() as i8;
            }
        });
        Self { codes, maxima }
    }

    pub(super) fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.maxima.len()
    }

    #[inline(always)]
    pub(super) fn scale(&self, row: usize) -> f32 {
        self.maxima[row] / 127.0
    }

    pub(super) fn codes(&self) -> &[i8] {
        &self.codes
    }

    #[inline(always)]
    pub(super) fn unpack(&self, row: usize, start: usize, out: &mut [f32]) {
        let scale = self.scale(row);
        for (out, code) in out.iter_mut().zip(&self.codes[start..]) {
            *out = f32::from(*code) * scale;
        }
    }
}
