//! Rows of a matrix shared out over the threads, each worked on with the machine's widest vectors.

use pulp::{Arch, NullaryFnOnce};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

/// Calls `body` on every item of `rows`, of about `width` elements each, in any order.
///
/// `rows` is a parallel iterator or a tuple of those that go in step, such as
/// `(x.par_chunks(width), y.par_chunks_mut(width))`. Little work stays on the calling thread.
/// Write `body` as `#[inline(always)] |row| ...` or it isn't compiled for the wider vectors.
#[inline(always)]
pub(crate) fn for_each_row<R>(width: usize, rows: R, body: impl Fn(R::Item) + Send + Sync)
where
    R: IntoParallelIterator,
    R::Iter: IndexedParallelIterator,
{
    let rows = rows.into_par_iter();
    let least = rows_per_task(rows.len(), width);
    rows.with_min_len(least).for_each(
        #[inline(always)]
        |row| {
            Arch::new().dispatch(
                #[inline(always)]
                || body(row),
            );
        },
    );
}

/// Runs `work` compiled for the machine's widest vectors.
///
/// A closure that changes what it captures, or only looks at it: one that consumes it is called through a
/// function that isn't inlined, and its loops stay narrow.
#[inline(always)]
pub(crate) fn wide<R>(work: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Wide(work))
}

struct Wide<F>(F);

impl<R, F: FnMut() -> R> NullaryFnOnce for Wide<F> {
    type Output = R;

    #[inline(always)]
    fn call(mut self) -> R {
        (self.0)()
    }
}

/// The fewest rows a task may have: all `count` of them where handing out costs more than it saves.
pub(crate) fn rows_per_task(count: usize, width: usize) -> usize {
    let rows = if count * width < ALONE { count } else { ELEMENTS_PER_TASK.div_ceil(width.max(1)) };
    rows.max(1)
}

/// Work of fewer elements than this isn't shared out.
const ALONE: usize = 32 * 1024;

const ELEMENTS_PER_TASK: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::slice::{ParallelSlice, ParallelSliceMut};

    #[test]
    fn every_row_is_done_once() {
        for (count, width) in [(0, 4), (1, 1), (5, 3), (1000, 100), (3, 40_000), (70_000, 1)] {
            let x: Vec<f32> = (0..count * width).map(|i| i as f32).collect();
            let mut y = vec![0.0; count * width];
            for_each_row(width, (x.par_chunks(width), y.par_chunks_mut(width)), |(x, y)| {
                for (y, x) in y.iter_mut().zip(x) {
                    *y += x + 1.0;
                }
            });
            assert!(y.iter().zip(&x).all(|(y, x)| *y == x + 1.0), "{count} rows of {width}");
        }
    }

    #[test]
    fn little_work_stays_on_the_calling_thread() {
        let caller = std::thread::current().id();
        for_each_row(100, 0..300usize, |_| assert_eq!(std::thread::current().id(), caller));
        assert_eq!(rows_per_task(300, 100), 300);
        assert_eq!(rows_per_task(400, 100), 82);
        assert_eq!(rows_per_task(2, 49_152), 1);
    }
}
