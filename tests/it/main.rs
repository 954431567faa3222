//! The integration tests, in one binary: linking Burn is slow.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests may panic and print")]

mod cli;
mod equalities;
mod exchange;
mod parity;
mod smollm2;

/// As in the binary: glibc gives the pages of every tensor back, which halves the speed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
