//! `lora bench`: the lines that `cargo xtask bench` makes its table of.

use serde_json::Value;

use super::lab::Lab;

/// The smallest model with this vocabulary.
const SMALL: [&str; 6] = ["--blocks", "1", "--device", "cpu", "--precision", "f32"];

#[test]
fn steps_are_timed() {
    let line = bench(&["train", "--batch", "1", "--sequence", "8", "--steps", "2"]);
    assert_eq!(line["kind"], "train");
    for key in ["tok_s", "step_ms"] {
        assert_eq!(numbers(&line[key]).len(), 2, "{key}: {line}");
    }
    for key in ["loss_first", "loss_last", "trainable_parameters"] {
        assert!(line[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {line}");
    }
    let parts: f64 =
        line["profile_ms"].as_object().unwrap().values().filter_map(Value::as_f64).sum();
    let steps: f64 = numbers(&line["step_ms"]).iter().sum::<f64>() / 2.0;
    assert!(parts > 0.5 * steps && parts < 1.1 * steps, "{parts} ms of {steps}: {line}");
}

#[test]
fn turns_may_end_before_the_steps() {
    let paced = |turns: &[u8]| {
        let length = ["bench", "train", "--batch", "1", "--sequence", "8", "--warmup-steps", "1"];
        let arguments = [&length[..], &["--steps", "9", "--paced"], &SMALL].concat();
        Lab::new().output(&arguments, turns)
    };
    let output = paced(b"\n\n\n");
    let text = String::from_utf8_lossy(&output.stdout);
    // A dot for each turn, for the one that did not come, and for the end.
    let line = text.strip_prefix(".\n.\n.\n.\n.\n").unwrap_or_else(|| panic!("{text}"));
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(numbers(&line["step_ms"]).len(), 2, "{line}");

    let output = paced(b"\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("no more turns came"), "{said}");
}

#[test]
fn tokens_are_timed() {
    let line = bench(&["generate", "--prompt-tokens", "3", "--new-tokens", "4", "--runs", "2"]);
    assert_eq!(line["kind"], "generate");
    for name in ["base", "unmerged", "merged"] {
        for key in ["tok_s", "step_ms", "prompt_ms"] {
            assert_eq!(numbers(&variant(&line, name)[key]).len(), 2, "{name}, {key}: {line}");
        }
    }
}

#[test]
fn products_are_timed() {
    let line = bench(&["products", "--batch", "1", "--sequence", "64", "--steps", "1"]);
    assert_eq!(line["kind"], "products");
    let of = |name, key: &str| numbers(&variant(&line, name)[key])[0];
    let [limit, alone, inside] = ["limit", "alone", "inside"].map(|name| of(name, "gflop_s"));
    // How far each is below is the machine's affair, the other tests on it included.
    assert!(alone < 1.5 * limit && inside < 1.5 * limit, "{line}");
    let [step, sum] = ["step", "sum"].map(|name| of(name, "step_ms"));
    assert!(step > 0.0 && sum > 0.0, "{line}");
}

#[test]
fn loading_is_timed() {
    let line = run(&["load", "builtin:", "--device", "cpu", "--precision", "f32"]);
    assert_eq!(line["kind"], "load");
    assert_eq!(numbers(&line["step_ms"]).len(), 1);
}

#[test]
fn what_leaves_nothing_to_time() {
    let lab = Lab::new();
    lab.check_lora_exactly("bench_no_steps", &["bench", "train", "--steps", "0"]);
    lab.check_lora_exactly("bench_no_adapter", &["bench", "generate", "--targets", "full"]);
    lab.check_lora_exactly("bench_no_products", &["bench", "products", "--precision", "f16"]);
}

/// The line of a work on the small model.
fn bench(arguments: &[&str]) -> Value {
    run(&[arguments, &SMALL].concat())
}

/// The line of a work, with what `cargo xtask bench` reads of all of them.
fn run(arguments: &[&str]) -> Value {
    let output = Lab::new().output(&[&["bench"], arguments].concat(), b"");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().count(), 1, "{text}");
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&line["device"], &line["dtype"]), (&"cpu".into(), &"f32".into()), "{line}");
    for key in ["threads", "start_rss_mb", "peak_rss_mb"] {
        assert!(line[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {line}");
    }
    line
}

fn variant<'a>(line: &'a Value, name: &str) -> &'a Value {
    let variants = line["variants"].as_array().unwrap();
    variants.iter().find(|variant| variant["variant"] == name).unwrap()
}

/// Times or speeds, all of them above zero.
fn numbers(list: &Value) -> Vec<f64> {
    let numbers: Vec<f64> = list.as_array().unwrap().iter().filter_map(Value::as_f64).collect();
    assert!(!numbers.is_empty() && numbers.iter().all(|number| *number > 0.0), "{list}");
    numbers
}
