//! Products of bf16 numbers by instructions that multiply them in pairs.
//!
//! A left side is read where it lies, a right side is packed panel by panel. A side in f32, such as a low-rank
//! factor, takes part as the sum of two bf16 numbers, which keeps 16 of its 24 bits and costs one more pass
//! over few columns.

mod left;
mod pack;
#[cfg(test)]
mod tests;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::{Right, Shared};
use crate::number::Number;
use crate::pairs::{BLOCK, Engine, SIDE, Step, Sums};
use crate::scratch::Scratch;
pub(super) use left::Pairs;
use pack::Part;

/// Bytes of packed right side that pass by the left side at once: a part of a second-level cache.
const PANELS_BYTES: usize = 512 << 10;
/// Tasks for each thread.
const TASKS: usize = 3;

/// What is summed: `left·right`, and a second product of small depth.
pub(super) struct Sum<'a, T> {
    pub(super) left: &'a Pairs<'a>,
    pub(super) right: &'a Right<'a, T>,
    pub(super) low_rank: Option<(&'a Pairs<'a>, &'a Right<'a, f32>)>,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) add: bool,
}

impl<T: Number> Sum<'_, T> {
    /// Writes the sum into `out`, `[rows, columns]`.
    pub(super) fn write<O: Number>(&self, out: &mut [O]) {
        let (rows, columns) = (self.left.rows(), self.right.columns());
        assert_eq!(out.len(), rows * columns, "output of {rows} x {columns}");
        let mut terms = Vec::with_capacity(3);
        let mut blocks = 0;
        let mut term = |left: &'_ Pairs<'_>, source| {
            terms.push((blocks, source));
            blocks += left.blocks();
        };
        if self.right.is_exact() {
            term(self.left, Source::Main(Part::Whole));
        } else {
            term(self.left, Source::Main(Part::High));
            term(self.left, Source::Main(Part::Low));
        }
        if let Some((left, right)) = self.low_rank {
            term(left, Source::LowRank(left, right));
        }
        let panels = columns.div_ceil(SIDE);
        let row_blocks = rows.div_ceil(SIDE);
        let at_most = (PANELS_BYTES / (blocks * BLOCK * size_of::<bf16>()).max(1)).max(1);
        let threads = rayon::current_num_threads();
        let wanted = if threads == 1 { 1 } else { TASKS * threads };
        let panels_at_once = panels.div_ceil(wanted).min(at_most);
        let panel_parts = panels.div_ceil(panels_at_once);
        // Rows are cut too where the columns alone do not keep every thread busy: each cut packs again.
        let row_parts = wanted.div_ceil(panel_parts).clamp(1, row_blocks.div_ceil(4));
        let rows_at_once = row_blocks.div_ceil(row_parts);
        let row_parts = row_blocks.div_ceil(rows_at_once);
        let run = Run { sum: self, terms, blocks, out: Shared(out.as_mut_ptr()) };
        let each = |task: usize| {
            let first_panel = task / row_parts * panels_at_once;
            let first_row = task % row_parts * rows_at_once;
            let panels = first_panel..(first_panel + panels_at_once).min(panels);
            run.part(panels, first_row..(first_row + rows_at_once).min(row_blocks));
        };
        let tasks = panel_parts * row_parts;
        if tasks == 1 { each(0) } else { (0..tasks).into_par_iter().for_each(each) }
    }
}

/// A term of the sum.
#[derive(Clone, Copy)]
enum Source<'a> {
    Main(Part),
    LowRank(&'a Pairs<'a>, &'a Right<'a, f32>),
}

struct Run<'a, T, O> {
    sum: &'a Sum<'a, T>,
    /// Where each term begins in a packed panel, in blocks.
    terms: Vec<(usize, Source<'a>)>,
    /// Blocks of a packed panel.
    blocks: usize,
    out: Shared<O>,
}

impl<T: Number, O: Number> Run<'_, T, O> {
    /// Some panels of columns of some blocks of rows.
    fn part(&self, panels: Range<usize>, row_blocks: Range<usize>) {
        let engine = self.sum.left.engine();
        let (rows, columns) = (self.sum.left.rows(), self.sum.right.columns());
        let place = |panel: usize| panel * SIDE..((panel + 1) * SIDE).min(columns);
        let size = self.blocks * BLOCK;
        let mut packed = Scratch::new(panels.len() * size / 2);
        let packed: &mut [bf16] = bytemuck::cast_slice_mut(&mut packed);
        let mut used = Vec::with_capacity(panels.len() * self.terms.len());
        for (panel, into) in panels.clone().zip(packed.chunks_exact_mut(size.max(1))) {
            for (start, source) in &self.terms {
                used.push(self.pack(engine, *source, place(panel), &mut into[start * BLOCK..]));
            }
        }
        let parts = self.blocks.div_ceil(engine.blocks_at_once()).max(1);
        let at_once = self.blocks.div_ceil(parts);
        // Of every panel, where they wait for the next part of the depth.
        let waiting = if parts > 1 { panels.len() } else { 1 };
        let mut waiting: Vec<Sums> = (0..waiting).map(|_| Sums::new()).collect();
        let mut steps = Vec::with_capacity(self.terms.len());
        engine.with_tiles(|| {
            for (row_block, part) in
                row_blocks.flat_map(|it| (0..parts).map(move |part| (it, part)))
            {
                let of_rows = (rows - row_block * SIDE).min(SIDE);
                let depth = part * at_once..(part + 1) * at_once;
                for (index, panel) in panels.clone().enumerate() {
                    let of_columns = place(panel);
                    steps.clear();
                    for (term, (start, source)) in self.terms.iter().enumerate() {
                        let used = &used[index * self.terms.len() + term];
                        let first = used.start.max(depth.start.saturating_sub(*start));
                        let end = used.end.min(depth.end.saturating_sub(*start));
                        if first >= end {
                            continue;
                        }
                        let left = match source {
                            Source::Main(_) => self.sum.left,
                            Source::LowRank(left, _) => left,
                        };
                        let (left, stride) = left.at(row_block, first);
                        let right = packed[index * size + (start + first) * BLOCK..].as_ptr();
                        steps.push(Step { blocks: end - first, left, stride, right });
                    }
                    let sums = &mut waiting[if parts > 1 { index } else { 0 }];
                    let size = [of_rows, of_columns.len()];
                    // SAFETY: each step lies within both sides, the block within the output, where it
                    // belongs to this task.
                    unsafe {
                        match part {
                            0 => engine.sum(&steps, size, sums),
                            _ => engine.sum_more(&steps, size, sums),
                        }
                        if part + 1 < parts {
                            continue;
                        }
                        let at = row_block * SIDE * columns + of_columns.start;
                        let bias = self.sum.bias.map(|bias| &bias[of_columns.clone()]);
                        let at = (self.out.get().add(at), columns);
                        engine.store(sums, (bias, self.sum.add), size, at);
                    }
                }
            }
        });
    }

    /// Packs a panel of a term's right side; the blocks that are not zero.
    fn pack(
        &self,
        engine: Engine,
        source: Source<'_>,
        columns: Range<usize>,
        into: &mut [bf16],
    ) -> Range<usize> {
        match source {
            Source::LowRank(left, right) => {
                pack::in_parts(right, engine, columns, left.blocks(), into);
                0..left.blocks()
            }
            Source::Main(part) => pack::panel(self.sum.right, engine, columns, part, into),
        }
    }
}
