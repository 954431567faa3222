//! Texts of the model before and after training.

use std::ops::ControlFlow;

use lora_models::chat_template::{Conversation, Message};
use lora_models::generate::{GenerateOptions, generate};
use lora_models::sampling::SamplingConfig;
use lora_models::{Checkpoint, Decoder};
use serde_json::json;

use crate::error::Result;

/// Answers `prompt` greedily: through the chat template where the model has one.
///
/// # Errors
/// A template that raises, or a prompt longer than the model's positions.
pub fn sample(
    checkpoint: &Checkpoint,
    decoder: &Decoder,
    prompt: &str,
    max_tokens: usize,
) -> Result<String> {
    let tokens = prompt_tokens(checkpoint, prompt, None)?;
    let options = GenerateOptions {
        max_tokens,
        sampling: SamplingConfig::greedy(),
        stop: Vec::new(),
        eos: checkpoint.eos_tokens.clone(),
    };
    let tokenizer = &checkpoint.tokenizer;
    let mut ignore = |_: &str| ControlFlow::Continue(());
    Ok(generate(decoder, tokenizer, &tokens, &options, &mut ignore)?.text)
}

/// Tokens of a prompt: one user turn of the chat template, or the text itself, with BOS where the model
/// expects one and the text does not begin with it.
///
/// # Errors
/// A template that raises.
pub fn prompt_tokens(
    checkpoint: &Checkpoint,
    prompt: &str,
    system: Option<&str>,
) -> Result<Vec<u32>> {
    let text = match &checkpoint.chat_template {
        Some(template) => {
            let mut messages = Vec::new();
            if let Some(system) = system {
                messages.push(message("system", system));
            }
            messages.push(message("user", prompt));
            template.render(&Conversation { messages, tools: None }, true)?
        }
        None => prompt.to_owned(),
    };
    let mut tokens = checkpoint.tokenizer.encode(&text)?;
    let special = checkpoint.tokenizer.special();
    if let (true, Some(bos)) = (special.add_bos, special.bos)
        && tokens.first() != Some(&bos)
    {
        tokens.insert(0, bos);
    }
    Ok(tokens)
}

fn message(role: &str, content: &str) -> Message {
    let mut message = Message::new();
    message.insert("role".into(), json!(role));
    message.insert("content".into(), json!(content));
    message
}
