//! Keys and values of the tokens that a generation has seen, one pair of tensors per block.

use burn::tensor::Tensor;

/// Room for as many tokens is made at once; then twice as much each time.
const FIRST_TOKENS: usize = 128;

/// The cache of one sequence.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    /// Keys and values of each block, `[1, groups, room, head_dim]`.
    blocks: Vec<Option<[Tensor<4>; 2]>>,
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
        let tokens = keys.dims()[2];
        if self.blocks.len() <= block {
            self.blocks.resize(block + 1, None);
        }
        let past = self.length;
        let held = self.blocks[block].take();
        let [held_keys, held_values] = match held {
            Some([keys, values]) => [Some(keys), Some(values)],
            None => [None, None],
        };
        let all = [with_room(held_keys, keys, past), with_room(held_values, values, past)];
        let [seen_keys, seen_values] = all.clone();
        self.blocks[block] = Some(all);
        let seen = past + tokens;
        (seen_keys.narrow(2, 0, seen), seen_values.narrow(2, 0, seen))
    }

    /// Counts tokens that every block has appended.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }
}

/// Writes `new` behind the first `past` tokens of `held`, in place while there is room.
fn with_room(held: Option<Tensor<4>>, new: Tensor<4>, past: usize) -> Tensor<4> {
    let [b, groups, tokens, width] = new.dims();
    let room = held.as_ref().map_or(0, |held| held.dims()[2]);
    let all = match held {
        Some(held) if past + tokens <= room => held,
        held => {
            let room = (2 * room).max(FIRST_TOKENS).max(past + tokens);
            let options = (&new.device(), new.dtype());
            let larger = Tensor::zeros([b, groups, room, width], options);
            match held {
                Some(held) => {
                    let old = held.narrow(2, 0, past);
                    larger.slice_assign([0..b, 0..groups, 0..past, 0..width], old)
                }
                None => larger,
            }
        }
    };
    all.slice_assign([0..b, 0..groups, past..past + tokens, 0..width], new)
}
