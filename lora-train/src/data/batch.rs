//! Sequences side by side: padded to the longest, with the target of every position.

use super::{Answer, Sequence};

/// What the model receives in one forward pass, row by row in `[rows, columns]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Sequences.
    pub rows: usize,
    /// Tokens of the longest sequence.
    pub columns: usize,
    /// Token ids.
    pub tokens: Vec<i32>,
    /// The token that position `t` predicts, `t + 1` of the same document; -1 where it is not
    /// learned. Padding is no target because it is marked here, whatever its id. Of labelled documents the first
    /// token has the number of the label.
    pub targets: Vec<i32>,
    /// Position within the document.
    pub positions: Vec<i32>,
    /// Document within the sequence; -1 is padding.
    pub documents: Vec<i32>,
    /// Segment of each token of labelled documents, else empty.
    pub segments: Vec<i32>,
    /// What regressions are to find, for each target that is not -1; their targets are 0.
    pub scores: Vec<f32>,
    /// Targets that are not -1.
    pub learned_tokens: usize,
}

/// Neither a target nor a document.
const NONE: i32 = -1;

impl Batch {
    /// Pads the sequences to the longest with `pad`.
    pub fn collate(sequences: &[Sequence], pad: u32) -> Self {
        let rows = sequences.len();
        let columns = sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0);
        let size = rows * columns;
        let mut batch = Self {
            rows,
            columns,
            tokens: vec![id(pad); size],
            targets: vec![NONE; size],
            positions: vec![0; size],
            documents: vec![NONE; size],
            ..Self::default()
        };
        if sequences.iter().any(|sequence| !sequence.answers.is_empty()) {
            batch.segments = vec![0; size];
        }
        for (row, sequence) in sequences.iter().enumerate() {
            let start = row * columns;
            for at in 0..sequence.tokens.len() {
                batch.tokens[start + at] = id(sequence.tokens[at]);
                batch.positions[start + at] = id(sequence.positions[at]);
                batch.documents[start + at] = id(sequence.documents[at]);
                let next = at + 1;
                if next < sequence.tokens.len()
                    && sequence.learned[next]
                    && sequence.documents[next] == sequence.documents[at]
                {
                    batch.targets[start + at] = id(sequence.tokens[next]);
                    batch.learned_tokens += 1;
                }
            }
            for (at, segment) in sequence.segments.iter().enumerate() {
                batch.segments[start + at] = id(*segment);
            }
            for (at, answer) in &sequence.answers {
                batch.targets[start + at] = match answer {
                    Answer::Class(label) => id(*label),
                    Answer::Score(score) => {
                        batch.scores.push(*score);
                        0
                    }
                };
                batch.learned_tokens += 1;
            }
        }
        batch
    }
}

/// Ids, positions and documents are far below 2³¹.
fn id(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Example, pack};

    fn example(tokens: &[u32], learned: &[usize]) -> Example {
        Example {
            tokens: tokens.to_vec(),
            learned: (0..tokens.len()).map(|at| learned.contains(&at)).collect(),
            line: 1,
            ..Example::default()
        }
    }

    #[test]
    fn targets_stay_inside_their_document() {
        // The first token of the second document is marked by mistake: still no target.
        let sequences =
            pack(&[example(&[5, 6, 7], &[1, 2]), example(&[8, 9], &[0, 1])], &[0, 1], 8);
        let batch = Batch::collate(&sequences, 0);
        assert_eq!((batch.rows, batch.columns), (1, 5));
        assert_eq!(batch.tokens, [5, 6, 7, 8, 9]);
        assert_eq!(batch.targets, [6, 7, -1, 9, -1]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(batch.documents, [0, 0, 0, 1, 1]);
        assert_eq!(batch.learned_tokens, 3);
    }

    #[test]
    fn padding_with_the_end_token_leaves_the_end_token_learned() {
        let end = 2;
        let sequences =
            pack(&[example(&[1, 3, 4, end], &[2, 3]), example(&[1, end], &[1])], &[0, 1], 4);
        let batch = Batch::collate(&sequences, end);
        assert_eq!(batch.tokens, [1, 3, 4, 2, 1, 2, 2, 2]);
        assert_eq!(batch.targets, [-1, 4, 2, -1, 2, -1, -1, -1]);
        assert_eq!(batch.documents, [0, 0, 0, 0, 0, 0, -1, -1]);
        assert_eq!(batch.learned_tokens, 3);
    }

    #[test]
    fn no_sequence_is_an_empty_batch() {
        let batch = Batch::collate(&[], 0);
        assert_eq!((batch.rows, batch.columns, batch.tokens.len()), (0, 0, 0));
    }
}
