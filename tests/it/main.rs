//! The integration tests, in one binary: linking Burn is slow.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests may panic and print")]

mod algebra;
mod cli;
mod encoders;
mod exchange;
mod families;
mod foreign;
mod gemma3;
mod minilm;
mod smollm2;

/// The float64 references of the conformance suite, which runs no `#[test]`: here they are held against
/// finite differences.
#[path = "../conformance/reference.rs"]
mod reference;

/// As in the binary: glibc gives the pages of every tensor back, which halves the speed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
