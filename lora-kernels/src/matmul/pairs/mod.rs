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
use crate::pairs::{BLOCK, Engine, SIDE, Step, Sums, THIRDS};
use crate::scratch::Scratch;
pub(super) use left::Pairs;
use pack::Part;

/// Bytes of packed right side that pass by the left side at once: a part of a second-level cache.
const PANELS_BYTES: usize = 1 << 20;
/// Panels that each row should meet on its way.
const PANELS_AT_LEAST: usize = 4;
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
        let thirds = self.left.are_thirds();
        if thirds || self.right.is_exact() {
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
        let depth = Depth::new(self.left, blocks, panels);
        let threads = rayon::current_num_threads();
        let wanted = if threads == 1 { 1 } else { TASKS * threads };
        let panels_at_once = panels.div_ceil(wanted).min(depth.panels_that_fit());
        let panel_parts = panels.div_ceil(panels_at_once);
        // Rows are cut too where the columns alone do not keep every thread busy: each cut packs again.
        let row_parts = wanted.div_ceil(panel_parts).clamp(1, row_blocks.div_ceil(4));
        let run = Run { sum: self, terms, depth, out: Shared(out.as_mut_ptr()) };
        let each = |task: usize| {
            let share =
                |part: usize, parts: usize, of: usize| part * of / parts..(part + 1) * of / parts;
            let panels = share(task / row_parts, panel_parts, panels);
            run.part(panels, share(task % row_parts, row_parts, row_blocks));
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

/// How the depth is walked.
struct Depth {
    /// Blocks of all terms.
    blocks: usize,
    /// Numbers of a packed one.
    block: usize,
    /// Of those, how many are summed before those of another panel.
    part: usize,
    /// How often.
    parts: usize,
    /// Parts that are packed at once.
    parts_at_once: usize,
}

impl Depth {
    fn new(left: &Pairs<'_>, blocks: usize, panels: usize) -> Self {
        let thirds = left.are_thirds();
        let block = if thirds { THIRDS * BLOCK } else { BLOCK };
        let mut depth = Self { blocks, block, part: blocks, parts: 1, parts_at_once: 1 };
        // Where few panels of the whole depth fit, a part of it at a time: each row that passes by meets several.
        let passes =
            (blocks * PANELS_AT_LEAST.min(panels)).div_ceil(depth.blocks_that_fit()).max(1);
        // Each tile of thirds serves six products, which a second-level cache keeps up with.
        let at_once = if thirds { usize::MAX } else { left.engine().blocks_at_once() };
        depth.parts_at_once = blocks.div_ceil(passes).div_ceil(at_once).max(1);
        depth.part = blocks.div_ceil(passes * depth.parts_at_once).max(1);
        depth.parts = blocks.div_ceil(depth.part).max(1);
        depth
    }

    fn blocks_that_fit(&self) -> usize {
        PANELS_BYTES / (self.block * size_of::<bf16>())
    }

    fn panels_that_fit(&self) -> usize {
        (self.blocks_that_fit() / (self.parts_at_once * self.part)).max(1)
    }
}

struct Run<'a, T, O> {
    sum: &'a Sum<'a, T>,
    /// Where each term begins in the depth, in blocks.
    terms: Vec<(usize, Source<'a>)>,
    depth: Depth,
    out: Shared<O>,
}

impl<T: Number, O: Number> Run<'_, T, O> {
    /// Some panels of columns of some blocks of rows.
    fn part(&self, panels: Range<usize>, row_blocks: Range<usize>) {
        let engine = self.sum.left.engine();
        let (rows, columns) = (self.sum.left.rows(), self.sum.right.columns());
        let place = |panel: usize| panel * SIDE..((panel + 1) * SIDE).min(columns);
        let Depth { blocks, block, part, parts, parts_at_once } = self.depth;
        let thirds = self.sum.left.are_thirds();
        let size = parts_at_once * part * block;
        let mut packed = Scratch::new(panels.len() * size / 2);
        let packed: &mut [bf16] = bytemuck::cast_slice_mut(&mut packed);
        let mut used = Vec::with_capacity(panels.len() * self.terms.len());
        // Of every panel, where they wait for the next part of the depth.
        let whole = parts <= parts_at_once;
        let of_rows = if parts > 1 { panels.len() } else { 1 };
        let waiting = if whole { of_rows } else { of_rows * row_blocks.len() };
        let mut waiting = Scratch::new(waiting * SIDE * SIDE);
        let waiting: &mut [Sums] = bytemuck::cast_slice_mut(&mut waiting);
        let mut steps = Vec::with_capacity(self.terms.len());
        for first_part in (0..parts).step_by(parts_at_once) {
            let at_once = first_part..(first_part + parts_at_once).min(parts);
            let begin = first_part * part;
            let depth = begin..(at_once.end * part).min(blocks);
            used.clear();
            for (panel, into) in panels.clone().zip(packed.chunks_exact_mut(size.max(1))) {
                for (start, source) in &self.terms {
                    used.push(self.pack(engine, *source, place(panel), (*start, &depth), into));
                }
            }
            engine.with_tiles(|| {
                let order =
                    row_blocks.clone().flat_map(|it| at_once.clone().map(move |part| (it, part)));
                for (row_block, index_of_part) in order {
                    let size_of_rows = (rows - row_block * SIDE).min(SIDE);
                    let depth = index_of_part * part..(index_of_part + 1) * part;
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
                            let at = index * size + (start + first - begin) * block;
                            let right = packed[at..].as_ptr();
                            steps.push(Step { blocks: end - first, left, stride, right });
                        }
                        let row = if whole { 0 } else { row_block - row_blocks.start };
                        let sums = &mut waiting[row * of_rows + if parts > 1 { index } else { 0 }];
                        let size = (size_of_rows, of_columns.len());
                        // SAFETY: each step lies within both sides, the block within the output, where it
                        // belongs to this task.
                        unsafe {
                            match index_of_part {
                                _ if thirds => {
                                    engine.sum_thirds(&steps, size, index_of_part > 0, sums);
                                }
                                0 => engine.sum(&steps, size, sums),
                                _ => engine.sum_more(&steps, size, sums),
                            }
                            if index_of_part + 1 < parts {
                                continue;
                            }
                            let at = row_block * SIDE * columns + of_columns.start;
                            let bias = self.sum.bias.map(|bias| &bias[of_columns.clone()]);
                            let at = (self.out.get().add(at), columns);
                            engine.store(sums, bias, self.sum.add, size, at);
                        }
                    }
                }
            });
        }
    }

    /// Packs what a range of the whole depth has of a term's right side in some columns; gives the blocks of the term
    /// that are not zero.
    fn pack(
        &self,
        engine: Engine,
        source: Source<'_>,
        columns: Range<usize>,
        (start, depth): (usize, &Range<usize>),
        into: &mut [bf16],
    ) -> Range<usize> {
        let blocks = match source {
            Source::LowRank(left, _) => left.blocks(),
            Source::Main(_) => self.sum.left.blocks(),
        };
        let blocks = depth.start.saturating_sub(start)..depth.end.saturating_sub(start).min(blocks);
        if blocks.is_empty() {
            return blocks;
        }
        let thirds = self.sum.left.are_thirds();
        let into = &mut into[(start + blocks.start - depth.start) * self.depth.block..];
        match source {
            Source::LowRank(_, right) if thirds => {
                pack::thirds(right, engine, columns, blocks, into)
            }
            Source::Main(_) if thirds => {
                pack::thirds(self.sum.right, engine, columns, blocks, into)
            }
            Source::LowRank(_, right) => pack::in_parts(right, engine, columns, blocks, into),
            Source::Main(part) => pack::panel(self.sum.right, engine, columns, part, blocks, into),
        }
    }
}
