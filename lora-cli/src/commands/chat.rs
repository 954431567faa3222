//! `lora chat`: a conversation on the terminal.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::ops::ControlFlow;

use anyhow::Context as _;
use lora_models::chat_template::Message;
use lora_models::checkpoint::Checkpoint;
use lora_models::decoder::Decoder;
use lora_models::generate::{self, Finish, GenerateOptions};

use super::generate::{encode_chat, message, summary};
use super::open::{self, ADAPTER};
use crate::args::ChatArguments;
use crate::interrupt::Interrupt;
use crate::style;

const COMMANDS: &str = "\
/reset           forget the conversation
/adapter on|off  switch the adapter
/help            this list
/exit            leave";

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Say(&'a str),
    Reset,
    Adapter(bool),
    Help,
    Exit,
    Unknown(&'a str),
    Nothing,
}

/// Talks until the person leaves.
pub(crate) fn run(arguments: &ChatArguments) -> anyhow::Result<()> {
    let quiet = arguments.quiet.quiet;
    let checkpoint = open::open_checkpoint(&arguments.model, arguments.hub.offline, quiet)?;
    checkpoint.config.refuse_encoder("can't talk")?;
    let system: Vec<Message> =
        arguments.system.iter().map(|text| message("system", text)).collect();
    // A model without a template is refused before its weights are read.
    let opening = system.iter().cloned().chain([message("user", "")]).collect();
    encode_chat(&checkpoint, opening)?;

    let adapter = arguments.adapter.adapter.as_deref();
    let (device, formats) = open::compute_beside(&arguments.compute, adapter, quiet);
    let mut decoder = open::load_decoder(&checkpoint, device, formats, quiet)?;
    if let Some(adapter) = &arguments.adapter.adapter {
        open::attach(&mut decoder, adapter, quiet)?;
    }
    if arguments.adapter.merged {
        decoder.merge();
    }
    let mut chat = Chat {
        checkpoint: &checkpoint,
        decoder,
        options: GenerateOptions {
            max_tokens: arguments.sampling.max_tokens,
            sampling: open::sampling(&arguments.sampling),
            stop: arguments.sampling.stop.clone(),
            eos: checkpoint.eos_tokens.clone(),
        },
        system,
        messages: Vec::new(),
        has_adapter: arguments.adapter.adapter.is_some(),
        is_merged: arguments.adapter.merged,
        interrupt: Interrupt::install("")?,
        quiet,
    };
    if !quiet {
        style::say(&style::paint(style::DIM, "/help lists the commands, /exit leaves"));
    }
    chat.talk()
}

/// A conversation under way.
struct Chat<'a> {
    checkpoint: &'a Checkpoint,
    decoder: Decoder,
    options: GenerateOptions,
    system: Vec<Message>,
    messages: Vec<Message>,
    has_adapter: bool,
    is_merged: bool,
    interrupt: Interrupt,
    quiet: bool,
}

impl Chat<'_> {
    fn talk(&mut self) -> anyhow::Result<()> {
        while let Some(text) = self.read()? {
            match parse(&text) {
                Line::Say(said) => self.answer(said)?,
                Line::Reset => {
                    self.messages.clear();
                    style::say("forgotten");
                }
                Line::Adapter(on) => self.switch(on)?,
                Line::Help => style::say(COMMANDS),
                Line::Exit => break,
                Line::Unknown(command) => {
                    style::say(&format!("no command {command}; there are\n{COMMANDS}"));
                }
                Line::Nothing => {}
            }
        }
        Ok(())
    }

    /// A message, over several lines where they end with a backslash; `None` at the end of input.
    fn read(&self) -> anyhow::Result<Option<String>> {
        self.interrupt.set_busy(false);
        let mut text = String::new();
        loop {
            prompt(if text.is_empty() { "> " } else { "… " });
            let mut line = String::new();
            let count = io::stdin().lock().read_line(&mut line).context("cannot read your line")?;
            if count == 0 {
                prompt("\n");
                return Ok((!text.is_empty()).then_some(text));
            }
            let line = line.trim_end_matches(['\n', '\r']);
            match line.strip_suffix('\\') {
                Some(start) => {
                    text.push_str(start);
                    text.push('\n');
                }
                None => {
                    text.push_str(line);
                    return Ok(Some(text));
                }
            }
        }
    }

    fn answer(&mut self, said: &str) -> anyhow::Result<()> {
        self.messages.push(message("user", said));
        let whole = self.system.iter().chain(&self.messages).cloned().collect();
        let prompt = encode_chat(self.checkpoint, whole)?;
        self.interrupt.set_busy(true);
        let interrupt = &self.interrupt;
        let mut written = Ok(());
        let mut on_text = |text: &str| {
            written = style::out(text);
            if written.is_err() || interrupt.is_stopped() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let tokenizer = &self.checkpoint.tokenizer;
        let answer =
            generate::generate(&self.decoder, tokenizer, &prompt, &self.options, &mut on_text);
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // The conversation goes on without the message that could not be answered.
                self.messages.pop();
                style::print_error(&error.into());
                return Ok(());
            }
        };
        written?;
        style::out("\n")?;
        if !self.quiet {
            style::say(&style::paint(style::DIM, &summary(&answer, &self.options)));
        }
        if answer.finish == Finish::Interrupted && answer.text.is_empty() {
            self.messages.pop();
        } else {
            self.messages.push(message("assistant", &answer.text));
        }
        Ok(())
    }

    fn switch(&mut self, on: bool) -> anyhow::Result<()> {
        if !self.has_adapter {
            style::say("there is no adapter; start with --adapter DIR");
            return Ok(());
        }
        if self.is_merged && !on {
            self.decoder.unmerge();
            self.is_merged = false;
        }
        let active = if on { vec![(ADAPTER.to_string(), 1.0)] } else { Vec::new() };
        self.decoder.set_active(&active)?;
        style::say(if on { "adapter on" } else { "adapter off" });
        Ok(())
    }
}

/// A prompt, where a person sits at both ends.
fn prompt(text: &str) {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        // A terminal that is gone shows itself at the next read.
        let _ = style::out(&style::paint(style::HEADING, text));
    }
}

fn parse(text: &str) -> Line<'_> {
    let text = text.trim();
    if text.is_empty() {
        return Line::Nothing;
    }
    if !text.starts_with('/') {
        return Line::Say(text);
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        ["/reset"] => Line::Reset,
        ["/adapter", "on"] => Line::Adapter(true),
        ["/adapter", "off"] => Line::Adapter(false),
        ["/help"] => Line::Help,
        ["/exit" | "/quit"] => Line::Exit,
        _ => Line::Unknown(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        assert_eq!(parse("  hello "), Line::Say("hello"));
        assert_eq!(parse("/reset"), Line::Reset);
        assert_eq!(parse("/adapter  off"), Line::Adapter(false));
        assert_eq!(parse("/adapter"), Line::Unknown("/adapter"));
        assert_eq!(parse("/quit"), Line::Exit);
        assert_eq!(parse(" "), Line::Nothing);
    }
}
