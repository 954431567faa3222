//! Carries out a recipe as `lora train` does, and watches it.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::path::Path;

use lora_train::recipe::{Command, RunConfig};
use lora_train::{Event, TrainOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let overrides = ["train.steps=20".to_owned()];
    let recipe = Path::new("recipes/tiny_smoke.toml");
    let run = RunConfig::load(recipe, &overrides, Command::Train)?.resolve()?;
    let outcome = lora_train::train(&run, &TrainOptions::default(), &mut |event| match event {
        Event::Step(step) => println!("step {}: loss {:.3}", step.step, step.loss),
        Event::Sample { when, text, .. } => println!("{when}: {text}"),
        _ => {}
    })?;
    println!("adapter: {:?}", outcome.result);
    Ok(())
}
