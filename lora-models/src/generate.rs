//! Text from a decoder: prompt in, tokens out one by one, streamed as whole characters.

use std::ops::ControlFlow;
use std::time::Instant;

use burn::tensor::Tensor;
use lora_core::ops::awake;
use lora_core::parameter::read_f32;

use crate::decoder::{Decoder, Input};
use crate::error::{Error, Result};
use crate::kv_cache::KvCache;
use crate::sampling::{Sampler, SamplingConfig};
use crate::tokenizer::Tokenizer;

/// When to stop and how to choose.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// At most this many new tokens.
    pub max_tokens: usize,
    /// How the next token is chosen.
    pub sampling: SamplingConfig,
    /// Texts that end the generation; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the generation.
    pub eos: Vec<u32>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Eos,
    /// A stop text appeared.
    Stop,
    /// The limit of tokens, or of the model's positions.
    Length,
    /// The caller ended it.
    Interrupted,
}

/// A finished generation.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The new text.
    pub text: String,
    /// The new tokens, the ending one not included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time for the prompt.
    pub prompt_seconds: f64,
    /// Time for the new tokens.
    pub seconds: f64,
}

/// Continues `prompt`; `on_text` receives the text as it appears.
///
/// # Errors
/// An empty prompt, one that is longer than the model's positions, or a token out of the vocabulary.
pub fn generate(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated> {
    let mut stream = tokenizer.stream();
    let mut output = Output { text: String::new(), shown: 0, stop: &options.stop };
    let mut stopped = None;
    let mut each = |token: u32| -> Result<ControlFlow<()>> {
        if let Some(text) = stream.push(token)? {
            stopped = output.push(&text, on_text);
        }
        Ok(if stopped.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    let found = generate_tokens(decoder, prompt, options, &mut each)?;
    if stopped.is_none() {
        if let Some(rest) = stream.finish()? {
            stopped = output.push(&rest, on_text);
        }
        output.flush(on_text);
    }
    let finish = stopped.unwrap_or(found.finish);
    Ok(Generated { text: output.text, finish, ..found })
}

/// As [`generate`], without a tokenizer: `on_token` receives each token. Stop texts are not looked for,
/// and the text stays empty.
///
/// # Errors
/// As [`generate`], and whatever `on_token` gives.
pub fn generate_tokens(
    decoder: &Decoder,
    prompt: &[u32],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(u32) -> Result<ControlFlow<()>>,
) -> Result<Generated> {
    let mut generation = Generation::new(decoder, prompt, options)?;
    let mut interrupted = None;
    let started = Instant::now();
    for token in generation.by_ref() {
        if on_token(token)?.is_break() {
            interrupted = Some(Finish::Interrupted);
            break;
        }
    }
    let prompt_seconds = generation.prompt_seconds;
    Ok(Generated {
        text: String::new(),
        tokens: generation.history[prompt.len()..].to_vec(),
        finish: interrupted.unwrap_or(generation.finish),
        prompt_tokens: prompt.len(),
        prompt_seconds,
        seconds: started.elapsed().as_secs_f64() - prompt_seconds,
    })
}

/// The tokens of a generation, each computed when it is asked for; the first one takes the time of the prompt.
pub struct Generation<'a> {
    decoder: &'a Decoder,
    eos: &'a [u32],
    sampler: Sampler,
    cache: KvCache,
    /// Prompt and new tokens.
    history: Vec<u32>,
    /// How many of them the model has read.
    read: usize,
    /// How many may still come.
    left: usize,
    finish: Finish,
    prompt_seconds: f64,
}

impl<'a> Generation<'a> {
    /// Continues `prompt`; stop texts are not looked for.
    ///
    /// # Errors
    /// As [`generate`].
    pub fn new(decoder: &'a Decoder, prompt: &[u32], options: &'a GenerateOptions) -> Result<Self> {
        decoder.config().refuse_encoder("writes no text")?;
        check_prompt(decoder, prompt)?;
        let room = decoder.config().max_position_embeddings - prompt.len();
        Ok(Self {
            decoder,
            eos: &options.eos,
            sampler: Sampler::new(options.sampling.clone()),
            cache: KvCache::new(),
            history: prompt.to_vec(),
            read: 0,
            left: options.max_tokens.min(room),
            finish: Finish::Length,
            prompt_seconds: 0.0,
        })
    }
}

impl Iterator for Generation<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let started = Instant::now();
        let input = Input::single(&self.history[self.read..], self.read);
        let mut logits = last_logits(self.decoder, &input, &mut self.cache);
        if self.read == 0 {
            self.prompt_seconds = started.elapsed().as_secs_f64();
        }
        self.read = self.history.len();
        let token = self.sampler.sample(&mut logits, &self.history);
        if self.eos.contains(&token) {
            (self.finish, self.left) = (Finish::Eos, 0);
            return None;
        }
        self.history.push(token);
        Some(token)
    }
}

/// Logits of every position of one sequence, `[t, v]`, row-major.
///
/// # Errors
/// As [`generate`].
pub fn all_logits(decoder: &Decoder, tokens: &[u32]) -> Result<Vec<f32>> {
    check_prompt(decoder, tokens)?;
    let hidden = decoder.forward(&Input::single(tokens, 0), None);
    Ok(read_f32(decoder.logits(hidden)))
}

fn check_prompt(decoder: &Decoder, prompt: &[u32]) -> Result<()> {
    let config = decoder.config();
    if prompt.is_empty() {
        return Err(Error::invalid("the prompt is empty").with_hint("give at least one token"));
    }
    if prompt.len() > config.max_position_embeddings {
        return Err(Error::invalid(format!(
            "the prompt has {} tokens, the model reads at most {}",
            prompt.len(),
            config.max_position_embeddings
        ))
        .with_hint("shorten the prompt"));
    }
    match prompt.iter().find(|token| **token as usize >= config.vocab_size) {
        Some(token) => Err(Error::invalid(format!(
            "token {token} is out of the model's vocabulary of {}",
            config.vocab_size
        ))
        .with_hint("the tokenizer and the weights do not belong together")),
        None => Ok(()),
    }
}

fn last_logits(decoder: &Decoder, input: &Input, cache: &mut KvCache) -> Vec<f32> {
    awake(decoder.device(), || {
        let hidden: Tensor<2> = decoder.forward(input, Some(cache));
        let last = hidden.narrow(0, input.columns - 1, 1);
        read_f32(decoder.logits(last))
    })
}

/// The text so far; what may be the beginning of a stop text is held back.
struct Output<'a> {
    text: String,
    shown: usize,
    stop: &'a [String],
}

impl Output<'_> {
    fn push(
        &mut self,
        piece: &str,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Option<Finish> {
        self.text.push_str(piece);
        let stop = self.stop.iter().filter(|stop| !stop.is_empty());
        if let Some(at) = stop.filter_map(|stop| self.text.find(stop.as_str())).min() {
            self.text.truncate(at);
            self.flush(on_text);
            return Some(Finish::Stop);
        }
        let safe = self.text.len() - self.held_back();
        self.show(safe, on_text)
    }

    fn flush(&mut self, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) {
        let _ = self.show(self.text.len(), on_text);
    }

    fn show(
        &mut self,
        until: usize,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Option<Finish> {
        if until <= self.shown {
            return None;
        }
        let flow = on_text(&self.text[self.shown..until]);
        self.shown = until;
        flow.is_break().then_some(Finish::Interrupted)
    }

    /// Length of the longest end of the text that begins a stop text.
    fn held_back(&self) -> usize {
        let longest = |stop: &String| {
            let ends = stop.char_indices().map(|(at, _)| at).filter(|at| *at > 0);
            ends.filter(|at| self.text.ends_with(&stop[..*at])).max().unwrap_or(0)
        };
        self.stop.iter().map(longest).max().unwrap_or(0)
    }
}
