//! Mistakes in the arguments.

use super::lab::Lab;

#[test]
fn mistakes_in_arguments_are_named() {
    let lab = Lab::new();
    let cases: [(&str, &[&str]); 12] = [
        ("unknown_command", &["trian", "recipe.toml"]),
        ("unknown_option", &["train", "recipe.toml", "--ouput", "x"]),
        ("train_without_recipe", &["train"]),
        ("set_without_value", &["train", "recipe.toml", "--set", "train.steps"]),
        ("merge_without_output", &["merge", "builtin:", "adapter"]),
        ("merge_unknown_dtype", &["merge", "builtin:", "a", "--output", "b", "--dtype", "int4"]),
        ("negative_temperature", &["generate", "builtin:", "--temperature=-1"]),
        ("top_p_of_zero", &["generate", "builtin:", "--top-p", "0"]),
        ("empty_stop", &["generate", "builtin:", "--stop", ""]),
        ("merged_without_adapter", &["generate", "builtin:", "--merged", "--prompt", "x"]),
        ("system_without_chat", &["generate", "builtin:", "--system", "x", "--prompt", "y"]),
        ("evaluate_without_data", &["evaluate", "builtin:"]),
    ];
    for (name, arguments) in cases {
        lab.check_lora(&format!("arguments_{name}"), arguments);
    }
    assert!(lab.names().is_empty(), "something was written: {:?}", lab.names());
}
