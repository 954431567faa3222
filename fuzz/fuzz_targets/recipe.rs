//! Any text as a recipe: a run or a list of problems, never a panic. What a run renders is read back as
//! the same run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lora_train::recipe::{Command, Run, RunConfig};

fuzz_target!(|text: &str| {
    let Ok(config) = RunConfig::from_text(text, &[], Command::Inspect) else { return };
    let Ok(run) = config.resolve() else { return };
    let again = RunConfig::from_text(&run.to_toml(), &[], Command::Inspect).unwrap().resolve();
    let again = again.unwrap();
    assert_eq!(Run { notes: Vec::new(), ..run }, Run { notes: Vec::new(), ..again });
});
