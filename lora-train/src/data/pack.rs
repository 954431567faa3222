//! Examples into sequences: several documents share one, and every document knows its own.

use super::{Answer, Example};

/// One or several documents, one after the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Whether the token is a target.
    pub learned: Vec<bool>,
    /// Position within its document: 0, 1, 2, … and again from 0.
    pub positions: Vec<u32>,
    /// The document of each token: 0, 1, 2, …
    pub documents: Vec<u32>,
    /// The segment of each token of labelled documents, else empty.
    pub segments: Vec<u32>,
    /// Where labelled documents begin, and what is to be said of them.
    pub answers: Vec<(usize, Answer)>,
}

impl Sequence {
    /// Number of tokens that are targets.
    pub fn learned_tokens(&self) -> usize {
        self.learned.iter().filter(|&&learned| learned).count()
    }

    fn push(&mut self, example: &Example) {
        let document = self.documents.last().map_or(0, |last| last + 1);
        if let Some(label) = &example.label {
            self.answers.push((self.tokens.len(), label.answer));
            self.segments.extend_from_slice(&label.segments);
        }
        self.tokens.extend_from_slice(&example.tokens);
        self.learned.extend_from_slice(&example.learned);
        self.positions.extend((0u32..).take(example.tokens.len()));
        self.documents.resize(self.tokens.len(), document);
    }
}

/// Packed or not, as the recipe says.
pub fn sequences(
    examples: &[Example],
    order: &[usize],
    max_tokens: usize,
    packing: bool,
) -> Vec<Sequence> {
    if packing { pack(examples, order, max_tokens) } else { unpacked(examples, order) }
}

/// One document per sequence.
pub fn unpacked(examples: &[Example], order: &[usize]) -> Vec<Sequence> {
    let mut sequences = Vec::with_capacity(order.len());
    for &index in order {
        let mut sequence = Sequence::default();
        sequence.push(&examples[index]);
        if !sequence.tokens.is_empty() {
            sequences.push(sequence);
        }
    }
    sequences
}

/// Puts each example, in the order given, into the first sequence that still has room for it.
///
/// An example longer than `max_tokens` gets a longer sequence of its own: nothing is cut here.
pub fn pack(examples: &[Example], order: &[usize], max_tokens: usize) -> Vec<Sequence> {
    let mut room = Room::new(order.len(), max_tokens);
    let mut sequences: Vec<Sequence> = Vec::new();
    for &index in order {
        let example = &examples[index];
        let length = example.tokens.len();
        if length == 0 {
            continue;
        }
        // An overlong example closes the first sequence that is still empty.
        let slot = room.take(length.min(max_tokens));
        if slot >= sequences.len() {
            sequences.resize_with(slot + 1, Sequence::default);
        }
        sequences[slot].push(example);
    }
    sequences
}

/// The room left in each sequence, as a tree of maxima: the first that fits is found in log n.
struct Room {
    /// Node 1 is the root; the leaves are the second half.
    most: Vec<usize>,
    leaves: usize,
}

impl Room {
    fn new(sequences: usize, max_tokens: usize) -> Self {
        let leaves = sequences.next_power_of_two();
        Self { most: vec![max_tokens; 2 * leaves], leaves }
    }

    /// Takes room from the first sequence that has it. There are as many sequences as examples, so
    /// that an empty one is always left.
    fn take(&mut self, length: usize) -> usize {
        let mut node = 1;
        while node < self.leaves {
            node *= 2;
            if self.most[node] < length {
                node += 1;
            }
        }
        let leaf = node - self.leaves;
        self.most[node] -= length;
        while node > 1 {
            node /= 2;
            self.most[node] = self.most[2 * node].max(self.most[2 * node + 1]);
        }
        leaf
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Token `i` of example `e` is unique: `1000 e + i`.
    fn examples(lengths: &[usize]) -> Vec<Example> {
        (0u32..)
            .zip(lengths)
            .map(|(number, &length)| Example {
                tokens: (0u32..).take(length).map(|at| 1000 * number + at).collect(),
                learned: (0..length).map(|at| at % 2 == 1).collect(),
                file: 0,
                line: 1,
                ..Example::default()
            })
            .collect()
    }

    #[test]
    fn the_first_sequence_with_room_gets_it() {
        let order = [0, 1, 2, 3, 4];
        let packed = pack(&examples(&[6, 5, 3, 4, 2]), &order, 10);
        // 6 | 5 | 6+3 | 5+4 | the 2 finds no room in either
        let lengths: Vec<usize> = packed.iter().map(|sequence| sequence.tokens.len()).collect();
        assert_eq!(lengths, [9, 9, 2]);
        assert_eq!(packed[0].tokens, [0, 1, 2, 3, 4, 5, 2000, 2001, 2002]);
        assert_eq!(packed[0].positions, [0, 1, 2, 3, 4, 5, 0, 1, 2]);
        assert_eq!(packed[0].documents, [0, 0, 0, 0, 0, 0, 1, 1, 1]);
    }

    #[test]
    fn an_overlong_example_stands_alone() {
        let packed = pack(&examples(&[2, 12, 3]), &[0, 1, 2], 10);
        assert_eq!(packed.len(), 2);
        assert_eq!(packed[0].tokens, [0, 1, 2000, 2001, 2002]);
        assert_eq!(packed[1].tokens.len(), 12);
    }

    #[test]
    fn unpacked_keeps_one_document_each() {
        let sequences = unpacked(&examples(&[2, 0, 3]), &[2, 1, 0]);
        assert_eq!(sequences.len(), 2);
        assert_eq!(sequences[0].tokens, [2000, 2001, 2002]);
        assert!(sequences.iter().all(|sequence| sequence.documents.iter().all(|&d| d == 0)));
    }

    proptest! {
        #[test]
        fn every_token_is_kept_once_and_documents_stay_whole(
            lengths in prop::collection::vec(0usize..40, 0..60),
            max_tokens in 1usize..50,
        ) {
            let examples = examples(&lengths);
            let order: Vec<usize> = (0..examples.len()).rev().collect();
            let packed = pack(&examples, &order, max_tokens);
            let mut seen = Vec::new();
            for sequence in &packed {
                let size = sequence.tokens.len();
                prop_assert!(size > 0);
                prop_assert_eq!(sequence.learned.len(), size);
                prop_assert_eq!(sequence.positions.len(), size);
                prop_assert_eq!(sequence.documents.len(), size);
                let documents = sequence.documents[size - 1] + 1;
                prop_assert!(size <= max_tokens || documents == 1);
                for document in 0..documents {
                    let of = |at: &usize| sequence.documents[*at] == document;
                    let places: Vec<usize> = (0..size).filter(of).collect();
                    let number = sequence.tokens[places[0]] as usize / 1000;
                    seen.push(number);
                    let tokens: Vec<u32> = places.iter().map(|&at| sequence.tokens[at]).collect();
                    prop_assert_eq!(&tokens, &examples[number].tokens);
                    let learned: Vec<bool> =
                        places.iter().map(|&at| sequence.learned[at]).collect();
                    prop_assert_eq!(&learned, &examples[number].learned);
                    let positions: Vec<u32> =
                        places.iter().map(|&at| sequence.positions[at]).collect();
                    let expected: Vec<u32> = (0u32..).take(places.len()).collect();
                    prop_assert_eq!(positions, expected);
                }
            }
            seen.sort_unstable();
            let expected: Vec<usize> = (0..lengths.len()).filter(|&n| lengths[n] > 0).collect();
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn no_sequence_could_have_taken_a_later_document(
            lengths in prop::collection::vec(1usize..20, 1..40),
        ) {
            let examples = examples(&lengths);
            let order: Vec<usize> = (0..examples.len()).collect();
            let packed = pack(&examples, &order, 20);
            // First-fit: a document that opens a sequence fitted into none before it, as full as
            // they were then.
            for (index, sequence) in packed.iter().enumerate().skip(1) {
                let opener = sequence.tokens[0] as usize / 1000;
                for before in &packed[..index] {
                    let then = before.tokens.iter().filter(|&&t| (t as usize / 1000) < opener);
                    prop_assert!(then.count() + lengths[opener] > 20);
                }
            }
        }
    }
}
