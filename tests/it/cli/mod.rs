//! Everything that a person sees of the `lora` binary: help, results, and the answer to each kind of
//! bad input, as snapshots of exit status, standard output and standard error.

mod adapters;
mod arguments;
mod bench;
mod convert;
mod devices;
mod disk_full;
mod help;
mod killed;
pub(crate) mod lab;
mod model_input;
mod quantize;
mod recipe_input;
mod tiny;
mod use_it;
