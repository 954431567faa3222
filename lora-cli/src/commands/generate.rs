//! `lora generate`: continues a text, or answers one message.

use std::io::{self, IsTerminal as _, Read as _};
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::Context as _;
use lora_models::chat_template::{Conversation, Message};
use lora_models::checkpoint::Checkpoint;
use lora_models::generate::{self, Finish, GenerateOptions, Generated};

use super::open;
use crate::args::GenerateArguments;
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::style::{self, Problem};

/// Generates once.
pub(crate) fn run(arguments: &GenerateArguments) -> anyhow::Result<ExitCode> {
    let quiet = arguments.quiet.quiet;
    let checkpoint = open::open_checkpoint(&arguments.model, arguments.hub.offline, quiet)?;
    checkpoint.config.refuse_encoder("writes no text")?;
    let prompt = prompt(arguments)?;
    let prompt = if arguments.chat {
        let mut messages = Vec::new();
        messages.extend(arguments.system.as_deref().map(|text| message("system", text)));
        messages.push(message("user", &prompt));
        encode_chat(&checkpoint, messages)?
    } else {
        encode_text(&checkpoint, &prompt)?
    };

    let adapter = arguments.adapter.adapter.as_deref();
    let (device, formats) = open::compute_beside(&arguments.compute, adapter, quiet);
    let mut decoder = open::load_decoder(&checkpoint, device, formats, quiet)?;
    if let Some(adapter) = &arguments.adapter.adapter {
        open::attach(&mut decoder, adapter, quiet)?;
    }
    if arguments.adapter.merged {
        decoder.merge();
    }
    let interrupt = Interrupt::install("")?;
    let options = GenerateOptions {
        max_tokens: arguments.sampling.max_tokens,
        sampling: open::sampling(&arguments.sampling),
        stop: arguments.sampling.stop.clone(),
        eos: checkpoint.eos_tokens.clone(),
    };
    let mut written = Ok(());
    let mut on_text = |text: &str| {
        if !arguments.json {
            written = style::out(text);
        }
        if written.is_err() || interrupt.is_stopped() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let generated =
        generate::generate(&decoder, &checkpoint.tokenizer, &prompt, &options, &mut on_text)?;
    written?;
    if arguments.json {
        style::out_line(&json(&generated, &options)?)?;
    } else {
        style::out("\n")?;
    }
    if !quiet {
        style::say(&style::paint(style::DIM, &summary(&generated, &options)));
    }
    let interrupted = generated.finish == Finish::Interrupted;
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// The prompt from the option, else all of standard input without its last line break.
fn prompt(arguments: &GenerateArguments) -> anyhow::Result<String> {
    let text = match &arguments.prompt {
        Some(text) => text.clone(),
        None => read_standard_input()?,
    };
    if arguments.chat && text.is_empty() {
        let problem = Problem::new("the message is empty");
        return Err(problem.with_hint("pass --prompt TEXT, or text on standard input").into());
    }
    Ok(text)
}

fn read_standard_input() -> anyhow::Result<String> {
    if io::stdin().is_terminal() {
        style::say("reading the prompt from standard input; end it with Ctrl-D");
    }
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count();
        Problem::new(format!("standard input is not UTF-8 in line {}", line + 1))
            .with_hint("convert it first, as with iconv -t UTF-8")
    })?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// A message of a conversation.
pub(crate) fn message(role: &str, content: &str) -> Message {
    [("role", role), ("content", content)]
        .into_iter()
        .map(|(key, value)| (key.to_string(), value.into()))
        .collect()
}

/// A conversation as the model's template writes it, ready for the answer.
pub(crate) fn encode_chat(
    checkpoint: &Checkpoint,
    messages: Vec<Message>,
) -> anyhow::Result<Vec<u32>> {
    let Some(template) = &checkpoint.chat_template else {
        let problem = Problem::new(format!("`{}` has no chat template", checkpoint.source));
        return Err(problem
            .with_hint("it is not a chat model: use `lora generate` with a plain prompt")
            .into());
    };
    let text = template.render(&Conversation { messages, tools: None }, true)?;
    Ok(checkpoint.tokenizer.encode(&text)?)
}

/// A plain text, after the model's opening token if it has one.
fn encode_text(checkpoint: &Checkpoint, text: &str) -> anyhow::Result<Vec<u32>> {
    let special = checkpoint.tokenizer.special();
    let mut tokens = Vec::new();
    if special.add_bos {
        tokens.extend(special.bos);
    }
    tokens.extend(checkpoint.tokenizer.encode(text)?);
    // A model cannot start from nothing.
    if tokens.is_empty() {
        tokens.extend(special.bos.or(special.eos));
    }
    if tokens.is_empty() {
        let problem = Problem::new("the prompt is empty");
        return Err(problem.with_hint("pass --prompt TEXT, or text on standard input").into());
    }
    Ok(tokens)
}

/// `12 tokens in 0.4s, 30 tokens/s, after a prompt of 5; ended by itself`.
pub(crate) fn summary(generated: &Generated, options: &GenerateOptions) -> String {
    let tokens = generated.tokens.len();
    let speed = if generated.seconds > 0.0 { tokens as f64 / generated.seconds } else { 0.0 };
    let mut text = format!(
        "{} in {}, {speed:.0} tokens/s, after a prompt of {}; {}",
        style::counted(tokens as u64, "token", "tokens"),
        style::seconds(generated.seconds),
        generated.prompt_tokens,
        finish(generated.finish),
    );
    if options.sampling.temperature > 0.0 {
        text.push_str(&format!("; seed {}", options.sampling.seed));
    }
    text
}

fn finish(finish: Finish) -> &'static str {
    match finish {
        Finish::Eos => "ended by itself",
        Finish::Stop => "a stop text came",
        Finish::Length => "--max-tokens reached",
        Finish::Interrupted => "interrupted",
    }
}

fn json(generated: &Generated, options: &GenerateOptions) -> anyhow::Result<String> {
    // The likeliest token needs no draw.
    let seed = (options.sampling.temperature > 0.0).then_some(options.sampling.seed);
    let reason = match generated.finish {
        Finish::Eos => "eos",
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Interrupted => "interrupted",
    };
    let object = serde_json::json!({
        "text": generated.text,
        "tokens": generated.tokens,
        "finish": reason,
        "prompt_tokens": generated.prompt_tokens,
        "seed": seed,
        "prompt_seconds": generated.prompt_seconds,
        "seconds": generated.seconds,
    });
    serde_json::to_string(&object).context("cannot write the result as JSON")
}
