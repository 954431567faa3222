//! Adapters as numbers to calculate with: sums, merges, differences, truncation to a rank, norms and
//! spectra. Plain data in, plain data out, on what [`crate::peft`] reads; no Burn types, no model.
//!
//! An adapter is here what it adds to each linear layer, ΔW = s·A·B with A `[d_in, rank]` and B
//! `[rank, d_out]` (PEFT stores both turned round and writes B·A). ΔW itself is formed only where a rule is
//! about its elements: [`combine()`] with [`Combination::OnUpdates`] and a rule that prunes. Everything else
//! works on the factors, whose cost grows with the rank and not with the layer.

pub mod combine;
pub mod difference;
pub mod extract;
pub mod low_rank;
pub mod merge;
mod plain;
mod result;
pub mod scale;
pub mod shrink;
pub mod spectrum;
pub mod subspace;
pub mod verify;

pub use combine::{Combination, Combined, Weighted, combine};
pub use difference::{Difference, difference};
pub use extract::{Extraction, extract};
pub use low_rank::LowRank;
pub use merge::{Election, Merge};
pub use scale::scale;
pub use shrink::{Keep, Shrunk, shrink};
pub use verify::{Norms, verify};
