//! The order in which an epoch shows the examples: seeded, the same on every machine.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::Dataset;

/// Indices of the examples of one epoch, in their order.
///
/// A file of weight `w` gives `⌊w⌋` copies of each of its examples, and the fraction that is left
/// is drawn anew in every epoch without repetition. Without `shuffle` the examples stay in the order
/// of the files.
pub fn epoch_order(dataset: &Dataset, seed: u64, epoch: u64, shuffle: bool) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch);
    let mut order = Vec::with_capacity(examples_per_epoch(dataset));
    for (file, members) in by_file(dataset).iter().enumerate() {
        let (copies, drawn) = share(dataset.weights[file], members.len());
        for _ in 0..copies {
            order.extend_from_slice(members);
        }
        if drawn > 0 {
            let mut rest = members.clone();
            rest.shuffle(&mut random);
            rest.truncate(drawn);
            rest.sort_unstable();
            order.extend_from_slice(&rest);
        }
    }
    if shuffle {
        order.shuffle(&mut random);
    }
    order
}

/// Number of examples in one epoch, the same in each.
pub fn examples_per_epoch(dataset: &Dataset) -> usize {
    let files = by_file(dataset);
    let counts = files.iter().zip(&dataset.weights).map(|(members, &weight)| {
        let (copies, drawn) = share(weight, members.len());
        copies * members.len() + drawn
    });
    counts.sum()
}

fn by_file(dataset: &Dataset) -> Vec<Vec<usize>> {
    let mut files = vec![Vec::new(); dataset.weights.len()];
    for (index, example) in dataset.examples.iter().enumerate() {
        files[example.file].push(index);
    }
    files
}

/// Whole copies, and how many examples the fraction is worth.
fn share(weight: f64, members: usize) -> (usize, usize) {
    let copies = weight.floor();
    (copies as usize, ((weight - copies) * members as f64).round() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Example;

    fn dataset(files: &[(usize, f64)]) -> Dataset {
        let mut dataset = Dataset::default();
        for (file, &(members, weight)) in files.iter().enumerate() {
            dataset.weights.push(weight);
            for _ in 0..members {
                dataset.examples.push(Example {
                    tokens: vec![1],
                    learned: vec![false],
                    file,
                    line: 1,
                    ..Example::default()
                });
            }
        }
        dataset
    }

    #[test]
    fn an_epoch_shows_everything_once() {
        let dataset = dataset(&[(50, 1.0), (30, 1.0)]);
        let mut order = epoch_order(&dataset, 7, 0, true);
        assert_ne!(order, (0..80).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..80).collect::<Vec<_>>());
        assert_eq!(epoch_order(&dataset, 7, 0, false), (0..80).collect::<Vec<_>>());
    }

    #[test]
    fn seed_and_epoch_decide_the_order() {
        let dataset = dataset(&[(50, 1.0)]);
        let first = epoch_order(&dataset, 7, 0, true);
        assert_eq!(first, epoch_order(&dataset, 7, 0, true));
        assert_ne!(first, epoch_order(&dataset, 7, 1, true));
        assert_ne!(first, epoch_order(&dataset, 8, 0, true));
    }

    #[test]
    fn the_order_is_the_same_on_every_machine() {
        assert_eq!(epoch_order(&dataset(&[(10, 1.0)]), 1, 2, true), [7, 1, 6, 4, 3, 5, 8, 0, 9, 2]);
    }

    #[test]
    fn weights_repeat_and_draw() {
        let dataset = dataset(&[(10, 2.3), (10, 0.5), (10, 0.0)]);
        assert_eq!(examples_per_epoch(&dataset), 28);
        let order = epoch_order(&dataset, 3, 0, true);
        assert_eq!(order.len(), 28);
        let times = |index: usize| order.iter().filter(|&&other| other == index).count();
        assert!((0..10).all(|index| (2..=3).contains(&times(index))));
        assert!((10..20).all(|index| times(index) <= 1));
        assert_eq!((20..30).map(times).sum::<usize>(), 0);
        assert_eq!((0..10).map(times).sum::<usize>(), 23);
        let drawn = |epoch| {
            let mut order = epoch_order(&dataset, 3, epoch, true);
            order.sort_unstable();
            order
        };
        assert_ne!(drawn(0), drawn(1), "another half in the next epoch");
    }
}
