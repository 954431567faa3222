//! How a product is cut into tasks.

use std::ops::Range;

/// Blocks of rows that are multiplied with a packed panel while another is packed.
const ROWS_PER_PANEL: usize = 4;
/// Blocks of rows that a task should have at least: each cut of the rows packs every panel again.
const LEAST_ROWS: usize = 4;

/// How many tasks are worth it: so many for each thread where there are columns enough for that, else one.
pub(super) fn wanted_tasks(panels: usize, threads: usize, tasks_each: usize) -> usize {
    match threads {
        1 => 1,
        _ if panels >= threads * tasks_each => threads * tasks_each,
        _ => threads,
    }
}

/// Panels that a block of rows should meet for each time that it is split: a fifth of the time of their products.
const PANELS_PER_SPLIT: usize = 8;

/// A grid of tasks over panels of columns and blocks of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    panels: usize,
    row_blocks: usize,
    panel_parts: usize,
    row_parts: usize,
}

impl Shares {
    /// The grid of at least `wanted` tasks, as far as there is work for them, that `threads` are through with first,
    /// where a task has at most so many panels; of equals the one with the fewest tasks: each reads its rows once.
    pub(super) fn new(
        [panels, row_blocks]: [usize; 2],
        threads: usize,
        wanted: usize,
        panels_at_most: usize,
    ) -> Self {
        let least_parts = panels.div_ceil(panels_at_most);
        let most_row_parts = row_blocks.div_ceil(LEAST_ROWS).min(wanted);
        let time = |shares: &Self| {
            let [panels, rows] = [shares.panels_at_once(), row_blocks.div_ceil(shares.row_parts)];
            shares.tasks().div_ceil(threads) * panels * (rows + ROWS_PER_PANEL)
        };
        (1..=most_row_parts)
            .flat_map(|row_parts| {
                let parts = least_parts..=panels.min(least_parts + wanted);
                parts.map(move |panel_parts| Self { panels, row_blocks, panel_parts, row_parts })
            })
            .min_by_key(|shares| {
                (wanted.saturating_sub(shares.tasks()), time(shares), shares.tasks())
            })
            .unwrap_or(Self { panels, row_blocks, panel_parts: 1, row_parts: 1 })
    }

    pub(super) fn tasks(&self) -> usize {
        self.panel_parts * self.row_parts
    }

    fn panels_at_once(&self) -> usize {
        self.panels.div_ceil(self.panel_parts)
    }

    /// Whether each task may split the rows that it meets: the same are split by as many tasks as there are parts of
    /// the columns, which has to be little beside multiplying them. With thirds on both sides tasks are many.
    pub(super) fn may_split_each(&self, thirds: bool) -> bool {
        self.panel_parts == 1 || !thirds && self.panels_at_once() >= PANELS_PER_SPLIT
    }

    /// Panels and blocks of rows of a task.
    pub(super) fn of(&self, task: usize) -> [Range<usize>; 2] {
        let share =
            |part: usize, parts: usize, of: usize| part * of / parts..(part + 1) * of / parts;
        let panels = share(task / self.row_parts, self.panel_parts, self.panels);
        [panels, share(task % self.row_parts, self.row_parts, self.row_blocks)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_a_product_once() {
        for panels in [1, 2, 3, 9, 18, 30, 96, 1536] {
            for row_blocks in [1, 3, 4, 5, 32, 100] {
                for threads in [1, 2, 3, 16] {
                    for (tasks_each, at_most) in [(1, 1), (1, 8), (3, 9), (3, 1000)] {
                        let what = format!("{panels} x {row_blocks}, {threads} threads, {at_most}");
                        let sizes = [panels, row_blocks];
                        let wanted = wanted_tasks(panels, threads, tasks_each);
                        let shares = Shares::new(sizes, threads, wanted, at_most);
                        let mut done = vec![0; panels * row_blocks];
                        for task in 0..shares.tasks() {
                            let [panels, rows] = shares.of(task);
                            assert!((1..=at_most).contains(&panels.len()), "{what}: {shares:?}");
                            assert!(!rows.is_empty(), "{what}: {shares:?}");
                            for panel in panels {
                                rows.clone().for_each(|row| done[panel * row_blocks + row] += 1);
                            }
                        }
                        assert!(done.iter().all(|times| *times == 1), "{what}: {shares:?}");
                        let enough = panels >= threads * tasks_each && threads > 1;
                        assert!(!enough || shares.tasks() >= threads * tasks_each, "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_thread_has_as_much_to_do() {
        let grid = |sizes: [usize; 2], threads, tasks_each, at_most| {
            let wanted = wanted_tasks(sizes[0], threads, tasks_each);
            let shares = Shares::new(sizes, threads, wanted, at_most);
            [shares.panel_parts, shares.row_parts]
        };
        assert_eq!(grid([18, 32], 2, 1, 1000), [2, 1], "columns, which are packed once");
        assert_eq!(grid([1, 32], 2, 1, 1000), [1, 2], "rows, where there are no columns to share");
        assert_eq!(grid([1, 32], 2, 3, 1000), [1, 2], "no more of them than there are threads");
        assert_eq!(grid([96, 32], 2, 3, 9), [12, 1], "not eleven: one thread would have one more");
        assert_eq!(grid([18, 32], 16, 1, 1000), [8, 2], "a grid");
        assert_eq!(grid([18, 1], 1, 3, 1000), [1, 1], "alone");
    }

    #[test]
    fn rows_are_split_again_where_that_is_little() {
        let split = |sizes: [usize; 2], threads, thirds| {
            let wanted = wanted_tasks(sizes[0], threads, if thirds { 3 } else { 1 });
            Shares::new(sizes, threads, wanted, 28).may_split_each(thirds)
        };
        assert!(split([48, 32], 2, false), "24 panels for each thread");
        assert!(!split([48, 32], 2, true), "six tasks, which would split each row");
        assert!(!split([18, 32], 16, false), "two panels for each of sixteen threads");
        assert!(split([1, 32], 16, true), "each row once");
    }
}
