//! Fine-tunes the carried model on examples from an iterator, saves the adapter and uses it.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::ops::ControlFlow;

use lora_core::LoraConfig;
use lora_core::device::DeviceSpec;
use lora_core::placement::{Placement, Precision, Quantize};
use lora_models::{Checkpoint, OpenOptions, Trainable};
use lora_train::data::{Encoder, Row};
use lora_train::recipe::{DataSettings, Length, TrainSettings};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = DeviceSpec::Auto.open()?;
    let (placement, _) = Placement::new(&device, Precision::Auto, Quantize::None, false)?;
    let checkpoint = Checkpoint::open("builtin:", &OpenOptions::default())?;
    let mut decoder = checkpoint.load(&placement)?;
    decoder.attach("greeter", &LoraConfig::new(8, 16.0), 0)?;

    let data = DataSettings { max_tokens: 64, ..DataSettings::default() };
    let encoder = Encoder::new(&data, &checkpoint.tokenizer, None)?;
    let mut examples = Vec::new();
    for name in ["Ada", "Grace", "Emmy", "Sofya"] {
        let (prompt, completion) = (format!("{name}:"), format!(" Hello, {name}!"));
        examples.extend(encoder.encode(&Row::Pair { prompt, completion })?);
    }

    let train = TrainSettings {
        length: Length::Steps(10),
        learning_rate: 1e-2,
        ..TrainSettings::default()
    };
    let trainable = Trainable::Adapter("greeter".into());
    lora_train::fit(&mut decoder, &trainable, examples, &data, &train, &mut |step| {
        println!("step {}: loss {:.3}", step.step, step.loss);
        ControlFlow::Continue(())
    })?;

    let folder = std::env::temp_dir().join(format!("greeter-{}", std::process::id()));
    decoder.export("greeter", Some(&checkpoint.source))?.save(&folder)?;
    println!("Emmy:{}", lora_train::samples::sample(&checkpoint, &decoder, "Emmy:", 16)?);
    println!("PEFT loads the adapter from {}", folder.display());
    Ok(())
}
