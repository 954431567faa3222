//! Which device and number format a command takes, and what it says where they are not there.

use super::lab::{Lab, shown};

const RECIPE: &str = "model = \"builtin:\"\n\
    [adapter]\nrank = 2\n\
    [[data.train]]\npath = \"rows.jsonl\"\n\
    [train]\nsteps = 2\nbatch_size = 1\n\
    [output]\nfolder = \"run\"\n";

fn lab(recipe: &str) -> Lab {
    let lab = Lab::new();
    lab.write("recipe.toml", recipe);
    lab.write("rows.jsonl", "{\"text\": \"red apples and green pears\"}\n".repeat(3));
    lab
}

#[test]
fn devices_that_are_not_there() {
    let lab = lab(RECIPE);
    for (name, device) in
        [("unknown", "tpu"), ("not_compiled", "vulkan:1"), ("numbered_processor", "cpu:1")]
    {
        let arguments = ["generate", "builtin:", "--prompt", "x", "--device", device];
        lab.check_lora(&format!("device_{name}"), &arguments);
    }
    // It may be planned here for a machine that has the card.
    let planned = lab.lora(&["plan", "recipe.toml", "--device", "cuda"]);
    assert!(planned.contains("exit status: 0"), "{planned}");
    lab.check_lora("device_unknown_in_plan", &["plan", "recipe.toml", "--device", "tpu"]);
}

#[test]
fn the_flag_stands_above_the_environment_and_that_above_the_recipe() {
    let lab = lab(&format!("device = \"rocm\"\n{RECIPE}"));
    let run = |arguments: &[&str], environment: Option<&str>| {
        let mut command = lab.command(arguments);
        if let Some(device) = environment {
            command.env("LORA_DEVICE", device);
        }
        shown(arguments, &command.output().expect("the binary runs"))
    };
    let refused = run(&["train", "recipe.toml"], None);
    assert!(refused.contains("built without `rocm`"), "{refused}");
    let refused = run(&["train", "recipe.toml"], Some("metal"));
    assert!(refused.contains("built without `metal`"), "{refused}");
    let refused = run(&["train", "recipe.toml", "--device", "cuda"], Some("cpu"));
    assert!(refused.contains("built without `cuda`"), "{refused}");
    let trained = run(&["train", "recipe.toml", "--device", "cpu"], Some("metal"));
    assert!(trained.contains("exit status: 0"), "{trained}");
}

#[test]
fn bf16_is_for_weights_and_activations_and_the_adapter_stays_f32() {
    let lab = lab(RECIPE);
    lab.check_lora("device_bf16", &["train", "recipe.toml", "--precision", "bf16"]);
    let file = std::fs::read(lab.path("run/adapter/adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert!(file.tensors().iter().all(|(_, view)| view.dtype() == safetensors::Dtype::F32));
    let planned = lab.lora(&["plan", "recipe.toml", "--precision", "bf16"]);
    assert!(planned.contains("base weights, bf16"), "{planned}");
}

#[test]
fn what_a_file_has_in_bf16_rests_so_in_f32() {
    // The carried model: 1,266,688 numbers.
    let lab = lab(RECIPE);
    let planned = lab.lora(&["plan", "recipe.toml", "--device", "cpu", "--precision", "f32"]);
    assert!(planned.contains("base weights, bf16           2.5 MB"), "{planned}");
}

#[test]
fn a_run_goes_on_on_a_device_of_another_name() {
    let lab = lab(RECIPE);
    let first = lab.lora(&["train", "recipe.toml", "--device", "auto"]);
    assert!(first.contains("exit status: 0"), "{first}");
    let again = lab.lora(&["train", "recipe.toml", "--device", "cpu", "--resume"]);
    assert!(again.contains("exit status: 0"), "{again}");
}
