//! Keys and values of the tokens that a generation has seen, one pair of tensors per block.

use burn::tensor::Tensor;

/// The cache of one sequence.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    blocks: Vec<Option<(Tensor<4>, Tensor<4>)>>,
    length: usize,
}

impl KvCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of tokens held.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds the keys and values of new tokens to those of a block and gives all of them.
    ///
    /// # Shapes
    /// - keys, values: `[1, groups, t, head_dim]`
    /// - output: `[1, groups, past + t, head_dim]` each
    pub(crate) fn append(
        &mut self,
        block: usize,
        keys: Tensor<4>,
        values: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        if self.blocks.len() <= block {
            self.blocks.resize(block + 1, None);
        }
        let all = match self.blocks[block].take() {
            Some((past_keys, past_values)) => {
                (Tensor::cat(vec![past_keys, keys], 2), Tensor::cat(vec![past_values, values], 2))
            }
            None => (keys, values),
        };
        self.blocks[block] = Some(all.clone());
        all
    }

    /// Counts tokens that every block has appended.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }
}
