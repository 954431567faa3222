//! Products by instructions that multiply bf16 numbers in pairs.
//!
//! A left side in bf16 is read where it lies, a right side is packed panel by panel. A side in f32 that meets one in
//! bf16, such as a low-rank factor, takes part as the sum of two bf16 numbers, which keeps 16 of its 24 bits and
//! costs one more pass over few columns. Where both sides are f32, each number is the sum of three, and nothing
//! is lost; a right side in bf16 meets such a left one as it is, in half as many products.

mod left;
mod pack;
mod shares;
#[cfg(test)]
mod tests;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::{Right, Shared};
use crate::number::Number;
use crate::pairs::{BLOCK, DEPTH, Engine, SIDE, Step, Sums, THIRDS};
use crate::scratch::Scratch;
use crate::stream::Stream;
pub(super) use left::Pairs;
use pack::Part;
use shares::{Shares, wanted_tasks};

/// Bytes of packed right side that pass by the left side at once: a part of a second-level cache.
const PANELS_BYTES: usize = 1 << 20;
/// Panels that each row should meet on its way: so many halve what is read of the left side, at the cost of sums
/// that wait.
const PANELS_AT_LEAST: usize = 8;

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
        let exact = self.right.is_exact();
        let operands = match (self.left.are_thirds(), exact) {
            (false, _) => Operands::Whole,
            (true, true) => Operands::LeftThirds,
            (true, false) => Operands::Thirds,
        };
        if operands == Operands::Whole && !exact {
            term(self.left, Source::Main(Part::High));
            term(self.left, Source::Main(Part::Low));
        } else {
            term(self.left, Source::Main(Part::Whole));
        }
        match self.low_rank {
            Some((left, right)) if operands == Operands::LeftThirds => {
                for third in (0..THIRDS).rev() {
                    term(left, Source::LowRank(left, right, third..third + 1));
                }
            }
            Some((left, right)) => term(left, Source::LowRank(left, right, 0..THIRDS)),
            None => {}
        }
        let panels = columns.div_ceil(SIDE);
        let row_blocks = rows.div_ceil(SIDE);
        let threads = rayon::current_num_threads();
        let tasks_each = self.left.engine().tasks_per_thread(operands == Operands::Thirds);
        let wanted = wanted_tasks(panels, threads, tasks_each);
        let depth = Depth::new(operands, self.left.engine(), blocks, panels.div_ceil(wanted));
        let fitting = depth.panels_that_fit();
        let shares = Shares::new([panels, row_blocks], threads, wanted, fitting);
        if self.left.is_unsplit() && !shares.may_split_each(operands == Operands::Thirds) {
            return Sum { left: &self.left.split_up(), ..*self }.write(out);
        }
        let run = Run { sum: self, terms, depth, out: Shared(out.as_mut_ptr()) };
        let each = |task: usize| {
            let [panels, row_blocks] = shares.of(task);
            run.part(panels, row_blocks);
        };
        let tasks = shares.tasks();
        if tasks == 1 { each(0) } else { (0..tasks).into_par_iter().for_each(each) }
    }
}

/// What blocks of both sides are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operands {
    /// Bf16 numbers, be they parts of others.
    Whole,
    /// On the left thirds of f32 numbers, on the right bf16 numbers, be they a third of others.
    LeftThirds,
    /// Thirds of f32 numbers.
    Thirds,
}

/// A term of the sum.
#[derive(Clone)]
enum Source<'a> {
    Main(Part),
    /// The last says which thirds of the right side, where there are thirds.
    LowRank(&'a Pairs<'a>, &'a Right<'a, f32>, Range<usize>),
}

/// How the depth is walked: in passes, for each of which every panel is packed anew, and these in parts.
struct Depth {
    operands: Operands,
    /// Blocks of all terms together.
    blocks: usize,
    /// Numbers of a packed block.
    block_numbers: usize,
    /// Blocks that are summed before those of the next panel.
    part_blocks: usize,
    parts: usize,
    parts_of_pass: usize,
}

impl Depth {
    /// Where each row should meet `panels` of them on its way, or as many as it should at least.
    fn new(operands: Operands, engine: Engine, blocks: usize, panels: usize) -> Self {
        let block_numbers = if operands == Operands::Thirds { THIRDS * BLOCK } else { BLOCK };
        let fitting = blocks_that_fit(block_numbers) / panels.clamp(1, PANELS_AT_LEAST);
        let passes = blocks.div_ceil(fitting).max(1);
        // A block in thirds is 24 products for 14 tiles, or 12 for 8, which a second-level cache keeps up with.
        let at_once =
            if operands == Operands::Whole { engine.blocks_at_once() } else { usize::MAX };
        let parts_of_pass = blocks.div_ceil(passes).div_ceil(at_once).max(1);
        let part_blocks = blocks.div_ceil(passes * parts_of_pass).max(1);
        let parts = blocks.div_ceil(part_blocks).max(1);
        Self { operands, blocks, block_numbers, part_blocks, parts, parts_of_pass }
    }

    /// Blocks of a panel that are packed at once.
    fn blocks_of_pass(&self) -> usize {
        (self.parts_of_pass * self.part_blocks).min(self.blocks)
    }

    fn panels_that_fit(&self) -> usize {
        (blocks_that_fit(self.block_numbers) / self.blocks_of_pass().max(1)).max(1)
    }

    fn passes(&self) -> impl Iterator<Item = Pass> {
        (0..self.parts).step_by(self.parts_of_pass).map(|first| {
            let parts = first..(first + self.parts_of_pass).min(self.parts);
            let end = (parts.end * self.part_blocks).min(self.blocks);
            Pass { blocks: first * self.part_blocks..end, parts }
        })
    }
}

fn blocks_that_fit(block_numbers: usize) -> usize {
    PANELS_BYTES / (block_numbers * size_of::<bf16>())
}

/// A range of the depth for which panels are packed.
struct Pass {
    blocks: Range<usize>,
    parts: Range<usize>,
}

impl Pass {
    /// Its blocks among the first so many.
    fn blocks_within(&self, count: usize) -> Range<usize> {
        self.blocks.start.min(count)..self.blocks.end.min(count)
    }
}

/// Packed panels of a task, for one pass.
struct Panels<'a> {
    numbers: &'a mut [bf16],
    /// Numbers of a panel.
    size: usize,
    /// Blocks of each term that are not zero, panel by panel.
    used: Vec<Range<usize>>,
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
        let depth = &self.depth;
        let size = depth.blocks_of_pass() * depth.block_numbers;
        let mut packed = Scratch::new(panels.len() * size / 2);
        let numbers: &mut [bf16] = bytemuck::cast_slice_mut(&mut packed);
        let mut packed = Panels { numbers, size, used: Vec::new() };
        // Sums of every panel wait for the next part of the depth, and those of every row for the next pass.
        let of_row = if depth.parts > 1 { panels.len() } else { 1 };
        let waiting_rows = if depth.parts > depth.parts_of_pass { row_blocks.len() } else { 1 };
        let mut sums = Scratch::new(waiting_rows * of_row * SIDE * SIDE);
        let sums: &mut [Sums] = bytemuck::cast_slice_mut(&mut sums);
        let unsplit = self.sum.left.is_unsplit();
        let mut split =
            Scratch::new(if unsplit { depth.blocks_of_pass() * THIRDS * BLOCK / 2 } else { 0 });
        let split: &mut [bf16] = bytemuck::cast_slice_mut(&mut split);
        let mut steps = Vec::with_capacity(self.terms.len());
        let of_output = self.sum.left.rows() * self.sum.right.columns();
        // SAFETY: each block is written once, and the output read when all parts of it are done.
        let stream = unsafe { Stream::begin::<O>(engine, of_output) };
        for pass in depth.passes() {
            self.pack_panels(&panels, &pass, &mut packed);
            engine.with_tiles(|| {
                for (row, row_block) in row_blocks.clone().enumerate() {
                    let blocks = pass.blocks_within(self.sum.left.blocks());
                    if unsplit && !blocks.is_empty() {
                        self.sum.left.split_block(row_block, blocks, split);
                    }
                    for part in pass.parts.clone() {
                        for (index, panel) in panels.clone().enumerate() {
                            let sides = (&pass, &packed, &*split);
                            self.steps_of(row_block, index, part, sides, &mut steps);
                            let at = row % waiting_rows * of_row + index % of_row;
                            // SAFETY: the steps are those of this part; the block belongs to this task.
                            unsafe {
                                self.add_up(
                                    &steps,
                                    row_block,
                                    panel,
                                    part,
                                    &mut sums[at],
                                    stream.as_ref(),
                                );
                            }
                        }
                    }
                }
            });
        }
    }

    fn columns_of(&self, panel: usize) -> Range<usize> {
        panel * SIDE..((panel + 1) * SIDE).min(self.sum.right.columns())
    }

    fn pack_panels(&self, panels: &Range<usize>, pass: &Pass, into: &mut Panels<'_>) {
        into.used.clear();
        for (index, panel) in panels.clone().enumerate() {
            let numbers = &mut into.numbers[index * into.size..][..into.size];
            for (start, source) in &self.terms {
                let place = (*start, &pass.blocks);
                into.used.push(self.pack(source, self.columns_of(panel), place, numbers));
            }
        }
    }

    /// What a part of the depth of a block of rows and a panel is summed from, the latter by its place in the task.
    fn steps_of(
        &self,
        row_block: usize,
        panel: usize,
        part: usize,
        (pass, packed, split): (&Pass, &Panels<'_>, &[bf16]),
        steps: &mut Vec<Step>,
    ) {
        let blocks = part * self.depth.part_blocks..(part + 1) * self.depth.part_blocks;
        steps.clear();
        for (term, (start, source)) in self.terms.iter().enumerate() {
            let used = &packed.used[panel * self.terms.len() + term];
            let first = used.start.max(blocks.start.saturating_sub(*start));
            let end = used.end.min(blocks.end.saturating_sub(*start));
            if first >= end {
                continue;
            }
            let (left, stride) = match source {
                Source::Main(_) if self.sum.left.is_unsplit() => {
                    let at = (start + first - pass.blocks.start) * THIRDS * BLOCK;
                    (split[at..].as_ptr(), DEPTH)
                }
                Source::Main(_) => self.sum.left.at(row_block, first),
                Source::LowRank(left, ..) => left.at(row_block, first),
            };
            let at = (start + first - pass.blocks.start) * self.depth.block_numbers;
            let right = packed.numbers[panel * packed.size + at..].as_ptr();
            steps.push(Step { blocks: end - first, left, stride, right });
        }
    }

    /// Sums a part of the depth, and writes what the last one ends.
    ///
    /// # Safety
    /// The steps are those of the part; the block belongs to one task, within [`crate::pairs::Engine::with_tiles`].
    unsafe fn add_up(
        &self,
        steps: &[Step],
        row_block: usize,
        panel: usize,
        part: usize,
        sums: &mut Sums,
        stream: Option<&Stream>,
    ) {
        let engine = self.sum.left.engine();
        let (rows, columns) = (self.sum.left.rows(), self.columns_of(panel));
        let size = ((rows - row_block * SIDE).min(SIDE), columns.len());
        // SAFETY: each step lies within both sides, the block within the output.
        unsafe {
            match (self.depth.operands, part) {
                (Operands::Thirds, _) => engine.sum_thirds(steps, size, part > 0, sums),
                (Operands::LeftThirds, _) => engine.sum_left_thirds(steps, size, part > 0, sums),
                (Operands::Whole, 0) => engine.sum(steps, size, sums),
                (Operands::Whole, _) => engine.sum_more(steps, size, sums),
            }
            if part + 1 == self.depth.parts {
                let stride = self.sum.right.columns();
                let at = self.out.get().add(row_block * SIDE * stride + columns.start);
                let bias = self.sum.bias.map(|bias| &bias[columns]);
                engine.store(sums, bias, self.sum.add, size, (at, stride), stream);
            }
        }
    }

    /// Packs what a range of the whole depth has of a term's right side in some columns; gives the blocks of the term
    /// that are not zero.
    fn pack(
        &self,
        source: &Source<'_>,
        columns: Range<usize>,
        (start, depth): (usize, &Range<usize>),
        into: &mut [bf16],
    ) -> Range<usize> {
        let engine = self.sum.left.engine();
        let blocks = match source {
            Source::LowRank(left, ..) => left.blocks(),
            Source::Main(_) => self.sum.left.blocks(),
        };
        let blocks = depth.start.saturating_sub(start)..depth.end.saturating_sub(start).min(blocks);
        if blocks.is_empty() {
            return blocks;
        }
        let into = &mut into[(start + blocks.start - depth.start) * self.depth.block_numbers..];
        match (source, self.depth.operands) {
            (Source::LowRank(_, right, _), Operands::Whole) => {
                pack::in_parts(right, engine, columns, blocks, into)
            }
            (Source::LowRank(_, right, which), _) => {
                pack::thirds(right, engine, columns, which.clone(), blocks, into)
            }
            (Source::Main(_), Operands::Thirds) => {
                pack::thirds(self.sum.right, engine, columns, 0..THIRDS, blocks, into)
            }
            (Source::Main(part), _) => {
                pack::panel(self.sum.right, engine, columns, *part, blocks, into)
            }
        }
    }
}
