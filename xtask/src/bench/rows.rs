//! What is measured, against what, and what is wanted: all of it as data.

use serde::Serialize;
use std::ffi::OsString;
use std::path::PathBuf;

/// Our binary.
pub(crate) const OURS: &str = "ours";
/// Our binary training an adapter beside an unquantized base, in turn with itself at what that is compared with.
pub(crate) const OURS_ADAPTER: &str = "ours, adapter";
/// Our binary beside weights that need all bits of f32, where those of the others are bf16 numbers.
pub(crate) const OURS_F32: &str = "ours, weights of 24 bits";
/// PyTorch with PEFT as people start with it.
pub(crate) const PEER: &str = "peer";
/// The same with adapters in bf16 too.
pub(crate) const PEER_ADAPTERS: &str = "peer, bf16 adapters";
/// The same with weights in f32 under `torch.autocast`.
pub(crate) const PEER_AUTOCAST: &str = "peer, autocast";
/// The same in f32, with products rounded to bf16 inside oneDNN.
pub(crate) const PEER_PRODUCTS: &str = "peer, bf16 products";
/// Burn's own modules and its `apply_lora`: lora-cli/examples/burn_apply_lora.rs.
pub(crate) const BURN: &str = "burn";
/// llama.cpp through xllamacpp.
pub(crate) const LLAMA: &str = "llama.cpp";

/// One piece of work, which several programs do with the same arguments.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    /// Words of the command line; [`GGUF`] and [`WRITTEN`] stand for files.
    pub(crate) arguments: &'static str,
    /// How long it runs, and how long in the short form.
    pub(crate) length: [&'static str; 2],
    /// Who does it, each with what it is told besides.
    pub(crate) by: &'static [(&'static str, &'static str)],
    /// Whether the short form leaves it out.
    pub(crate) is_long: bool,
}

/// The word in [`Work::arguments`] that stands for the file of SmolLM2.
pub(crate) const GGUF: &str = "GGUF";
/// Words that stand for the same model as our binary writes it, and the number format of each.
pub(crate) const WRITTEN: [(&str, &str); 2] = [("GGUF-BF16", "bf16"), ("GGUF-Q8", "q8_0")];

/// The most there can be: they end when their ratio stands still.
const STEPS: [&str; 2] = ["--warmup-steps 2 --steps 40", "--warmup-steps 1 --steps 3"];
/// Of works in which no turns are taken.
const WITHOUT_TURNS: [&str; 2] = ["--warmup-steps 2 --steps 7", "--warmup-steps 1 --steps 3"];
/// For slow programs that are far from what decides a row.
const FEW_STEPS: [&str; 2] = ["--warmup-steps 1 --steps 2"; 2];
/// A long sequence takes a minute a step, and its memory is known after the second.
const TWO_STEPS: [&str; 2] = ["--warmup-steps 1 --steps 1"; 2];
const TOKENS: [&str; 2] = ["--new-tokens 128 --runs 5", "--new-tokens 32 --runs 1"];
const LOADS: [&str; 2] = ["--runs 5", "--runs 1"];

const ONLY_OURS: &[(&str, &str)] = &[(OURS, "")];
const BOTH: &[(&str, &str)] = &[(OURS, ""), (PEER, "")];

/// In the order of a round; what is compared with each other stands together.
pub(crate) const WORKS: [Work; 21] = [
    work(
        "train-f32",
        "train --precision f32 --targets all --batch 4 --sequence 256",
        STEPS,
        &[(OURS, ""), (PEER, ""), (OURS_F32, "--weights f32")],
    ),
    work(
        "apply-lora",
        "train --precision f32 --targets all --batch 4 --sequence 256",
        FEW_STEPS,
        &[(OURS, ""), (BURN, "")],
    ),
    work(
        "full-f32",
        "train --precision f32 --batch 4 --sequence 256",
        STEPS,
        &[(OURS, "--targets full"), (PEER, "--targets full"), (OURS_ADAPTER, "--targets all")],
    ),
    work(
        "train-bf16",
        "train --precision bf16 --targets all --batch 4 --sequence 256",
        STEPS,
        &[(OURS, ""), (PEER, ""), (PEER_ADAPTERS, "--way bf16-adapters")],
    ),
    work(
        "ways-bf16",
        "train --precision bf16 --targets all --batch 4 --sequence 256",
        FEW_STEPS,
        &[(PEER_AUTOCAST, "--way autocast"), (PEER_PRODUCTS, "--way bf16-products")],
    ),
    work(
        "full-bf16",
        "train --precision bf16 --batch 4 --sequence 256",
        STEPS,
        &[
            (OURS, "--targets full"),
            (PEER, "--targets full"),
            (PEER_AUTOCAST, "--targets full --way autocast"),
            (OURS_ADAPTER, "--targets all"),
        ],
    ),
    work(
        "train-nf4",
        "train --precision bf16 --targets all --batch 4 --sequence 256",
        STEPS,
        &[(OURS, "--quantize nf4"), (OURS_ADAPTER, "")],
    ),
    work("qv-bf16", "train --precision bf16 --targets qv --batch 4 --sequence 256", STEPS, BOTH),
    work(
        "recompute-bf16",
        "train --precision bf16 --targets all --batch 4 --sequence 256 --recompute",
        STEPS,
        BOTH,
    ),
    work(
        "sequence-512",
        "train --precision bf16 --batch 1 --sequence 512 --recompute",
        TWO_STEPS,
        BOTH,
    ),
    work(
        "sequence-1024",
        "train --precision bf16 --batch 1 --sequence 1024 --recompute",
        TWO_STEPS,
        BOTH,
    ),
    long(work(
        "sequence-2048",
        "train --precision bf16 --batch 1 --sequence 2048 --recompute",
        TWO_STEPS,
        BOTH,
    )),
    long(work(
        "sequence-4096",
        "train --precision bf16 --batch 1 --sequence 4096 --recompute",
        TWO_STEPS,
        BOTH,
    )),
    work("decode-f32", "generate --precision f32 --prompt-tokens 64", TOKENS, BOTH),
    // What is merged into bf16 numbers needs all bits of f32, and is read as slowly as a base that does.
    work(
        "merged-f32",
        "generate --precision f32 --weights f32 --variants base,merged --prompt-tokens 64",
        TOKENS,
        ONLY_OURS,
    ),
    work("decode-bf16", "generate --precision bf16 --prompt-tokens 64", TOKENS, BOTH),
    work(
        "products-f32",
        "products --precision f32 --batch 4 --sequence 256",
        WITHOUT_TURNS,
        ONLY_OURS,
    ),
    work(
        "products-bf16",
        "products --precision bf16 --batch 4 --sequence 256",
        WITHOUT_TURNS,
        ONLY_OURS,
    ),
    work("load-f32", "load GGUF --precision f32", LOADS, ONLY_OURS),
    work(
        "decode-gguf-bf16",
        "generate --model GGUF-BF16 --precision bf16 --variants base --prompt-tokens 64",
        TOKENS,
        &[(OURS, ""), (LLAMA, "")],
    ),
    work(
        "decode-gguf-q8",
        "generate --model GGUF-Q8 --precision bf16 --variants base --prompt-tokens 64",
        TOKENS,
        &[(OURS, "--quantize keep"), (LLAMA, "")],
    ),
];

const fn work(
    name: &'static str,
    arguments: &'static str,
    length: [&'static str; 2],
    by: &'static [(&'static str, &'static str)],
) -> Work {
    Work { name, arguments, length, by, is_long: false }
}

const fn long(work: Work) -> Work {
    Work { is_long: true, ..work }
}

/// A row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) quantity: Quantity,
    pub(crate) ours: Source,
    /// The best of these is what ours is compared with.
    pub(crate) against: &'static [Source],
    pub(crate) target: Option<Target>,
}

/// Where a number comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Source {
    pub(crate) work: &'static str,
    pub(crate) by: &'static str,
    /// Of a generation: `base`, `unmerged`, `merged`; of products: `step`, `sum`, `inside`, `limit`. Empty
    /// elsewhere.
    pub(crate) variant: &'static str,
}

/// What a row compares; the ratio is always ours divided by the other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quantity {
    /// Tokens per second; more is better.
    Speed,
    /// Milliseconds per generated token.
    TokenTime,
    /// Milliseconds.
    StepTime,
    /// Billions of operations per second; more is better.
    Rate,
    /// Peak of the resident memory, in megabytes.
    Memory,
    /// Seconds until a model is ready.
    Time,
}

/// What the ratio has to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

const PEER_BF16: &[Source] = &[by("train-bf16", PEER)];
/// In f32 too: on a processor without bf16 instructions that is what a person would choose.
const PEER_FASTEST: &[Source] = &[
    by("train-bf16", PEER),
    by("train-bf16", PEER_ADAPTERS),
    by("ways-bf16", PEER_AUTOCAST),
    by("ways-bf16", PEER_PRODUCTS),
    by("train-f32", PEER),
];

pub(crate) const ROWS: [Row; 39] = [
    row("train-f32", "train, f32, every linear layer, 4 × 256 tokens", Quantity::Speed)
        .ours("train-f32", "")
        .against(&[by("train-f32", PEER)])
        .at_least(2.8),
    row("train-f32-24-bits", "the same beside weights that need all bits of f32", Quantity::Speed)
        .ours_by(by("train-f32", OURS_F32))
        .against(&[by("train-f32", PEER)])
        .at_least(2.8),
    row("train-bf16", "train, bf16, every linear layer, 4 × 256 tokens", Quantity::Speed)
        .ours("train-bf16", "")
        .against(PEER_BF16)
        .at_least(2.5),
    row("train-bf16-fastest", "the same against the peer's fastest way", Quantity::Speed)
        .ours("train-bf16", "")
        .against(PEER_FASTEST)
        .at_least(2.0),
    row("train-bf16-qv", "train, bf16, queries and values", Quantity::Speed)
        .ours("qv-bf16", "")
        .against(&[by("qv-bf16", PEER)]),
    row("train-bf16-recompute", "train, bf16, recomputed activations", Quantity::Speed)
        .ours("recompute-bf16", "")
        .against(&[by("recompute-bf16", PEER)]),
    // The target is a step of at most 1.35 times.
    row("train-nf4", "train, bf16, beside a base in NF4, against one in bf16", Quantity::Speed)
        .ours("train-nf4", "")
        .against(&[by("train-nf4", OURS_ADAPTER)])
        .at_least(0.74),
    row("memory-nf4", "peak memory, the same", Quantity::Memory)
        .ours("train-nf4", "")
        .against(&[by("train-nf4", OURS_ADAPTER)]),
    row("full-f32", "train all weights, f32", Quantity::Speed)
        .ours("full-f32", "")
        .against(&[by("full-f32", PEER)]),
    row("full-bf16", "train all weights, bf16", Quantity::Speed)
        .ours("full-bf16", "")
        .against(&[by("full-bf16", PEER), by("full-bf16", PEER_AUTOCAST)]),
    row("factored-f32", "our adapter against our training of all weights, f32", Quantity::Speed)
        .ours_by(by("full-f32", OURS_ADAPTER))
        .against(&[by("full-f32", OURS)])
        .at_least(1.45),
    row("factored-bf16", "our adapter against our training of all weights, bf16", Quantity::Speed)
        .ours_by(by("full-bf16", OURS_ADAPTER))
        .against(&[by("full-bf16", OURS)])
        .at_least(1.45),
    row("apply-lora", "train, f32, against Burn's own `apply_lora`", Quantity::Speed)
        .ours("apply-lora", "")
        .against(&[by("apply-lora", BURN)])
        .at_least(1.5),
    row("memory-apply-lora", "peak memory, f32, against Burn's own `apply_lora`", Quantity::Memory)
        .ours("apply-lora", "")
        .against(&[by("apply-lora", BURN)])
        .at_most(0.6),
    row("memory-f32", "peak memory, f32, every linear layer", Quantity::Memory)
        .ours("train-f32", "")
        .against(&[by("train-f32", PEER)]),
    row("memory-bf16", "peak memory, bf16, every linear layer", Quantity::Memory)
        .ours("train-bf16", "")
        .against(PEER_BF16)
        .at_most(0.35),
    row("memory-recompute", "peak memory, bf16, recomputed activations", Quantity::Memory)
        .ours("recompute-bf16", "")
        .against(&[by("recompute-bf16", PEER)]),
    row("memory-512", "peak memory, bf16, recomputed, one sequence of 512", Quantity::Memory)
        .ours("sequence-512", "")
        .against(&[by("sequence-512", PEER)]),
    row("memory-1024", "peak memory, one sequence of 1024", Quantity::Memory)
        .ours("sequence-1024", "")
        .against(&[by("sequence-1024", PEER)]),
    row("memory-2048", "peak memory, one sequence of 2048", Quantity::Memory)
        .ours("sequence-2048", "")
        .against(&[by("sequence-2048", PEER)]),
    row("memory-4096", "peak memory, one sequence of 4096", Quantity::Memory)
        .ours("sequence-4096", "")
        .against(&[by("sequence-4096", PEER)]),
    row("decode-f32", "generate, f32, base model", Quantity::Speed)
        .ours("decode-f32", "base")
        .against(&[by("decode-f32", PEER).variant("base")]),
    row("decode-f32-unmerged", "generate, f32, adapter beside the weights", Quantity::Speed)
        .ours("decode-f32", "unmerged")
        .against(&[by("decode-f32", PEER).variant("unmerged")]),
    row("decode-f32-merged", "generate, f32, adapter merged", Quantity::Speed)
        .ours("decode-f32", "merged")
        .against(&[by("decode-f32", PEER).variant("merged")]),
    row("decode-bf16", "generate, bf16, base model", Quantity::Speed)
        .ours("decode-bf16", "base")
        .against(&[by("decode-bf16", PEER).variant("base")]),
    row("decode-bf16-unmerged", "generate, bf16, adapter beside the weights", Quantity::Speed)
        .ours("decode-bf16", "unmerged")
        .against(&[by("decode-bf16", PEER).variant("unmerged")]),
    row("decode-bf16-merged", "generate, bf16, adapter merged", Quantity::Speed)
        .ours("decode-bf16", "merged")
        .against(&[by("decode-bf16", PEER).variant("merged")]),
    row(
        "unmerged-f32",
        "our adapter beside the weights against our base, f32",
        Quantity::TokenTime,
    )
    .ours("decode-f32", "unmerged")
    .against(&[by("decode-f32", OURS).variant("base")])
    .at_most(1.10),
    row("unmerged-bf16", "the same, bf16", Quantity::TokenTime)
        .ours("decode-bf16", "unmerged")
        .against(&[by("decode-bf16", OURS).variant("base")])
        .at_most(1.10),
    // Merged is the base with other numbers; 5 % is what two runs of one thing differ by.
    row(
        "merged-f32",
        "our adapter merged against our base of weights that need all bits, f32",
        Quantity::TokenTime,
    )
    .ours("merged-f32", "merged")
    .against(&[by("merged-f32", OURS).variant("base")])
    .at_most(1.05),
    row("merged-bf16", "the same, bf16", Quantity::TokenTime)
        .ours("decode-bf16", "merged")
        .against(&[by("decode-bf16", OURS).variant("base")])
        .at_most(1.05),
    row("products-f32", "a step against the sum of its products alone, f32", Quantity::StepTime)
        .ours("products-f32", "step")
        .against(&[by("products-f32", OURS).variant("sum")])
        .at_most(1.25),
    row("products-bf16", "the same, bf16", Quantity::StepTime)
        .ours("products-bf16", "step")
        .against(&[by("products-bf16", OURS).variant("sum")])
        .at_most(1.25),
    row(
        "product-limit-f32",
        "products with the weights of a block, within a step, against what vectors of f32 do, f32",
        Quantity::Rate,
    )
    .ours("products-f32", "inside")
    .against(&[by("products-f32", OURS).variant("limit")])
    .at_least(0.90),
    row(
        "product-limit-thirds",
        "the same against what tiles do with f32 numbers in three parts and bf16 weights",
        Quantity::Rate,
    )
    .ours("products-f32", "inside")
    .against(&[by("products-f32", OURS).variant("limit in thirds")]),
    row(
        "product-limit-bf16",
        "products with the weights of a block, within a step, against the processor's limit, bf16",
        Quantity::Rate,
    )
    .ours("products-bf16", "inside")
    .against(&[by("products-bf16", OURS).variant("limit")])
    .at_least(0.85),
    row("load", "SmolLM2-135M, from its GGUF file to ready in f32", Quantity::Time)
        .ours("load-f32", "")
        .at_most(1.5),
    row("decode-llama-bf16", "generate, SmolLM2-135M in BF16, against llama.cpp", Quantity::Speed)
        .ours("decode-gguf-bf16", "base")
        .against(&[by("decode-gguf-bf16", LLAMA).variant("base")])
        .at_least(1.0),
    row("decode-llama-q8", "generate, SmolLM2-135M in Q8_0, against llama.cpp", Quantity::Speed)
        .ours("decode-gguf-q8", "base")
        .against(&[by("decode-gguf-q8", LLAMA).variant("base")])
        .at_least(1.0),
];

const fn row(name: &'static str, what: &'static str, quantity: Quantity) -> Row {
    Row { name, what, quantity, ours: by("", OURS), against: &[], target: None }
}

const fn by(work: &'static str, by: &'static str) -> Source {
    Source { work, by, variant: "" }
}

impl Source {
    const fn variant(self, variant: &'static str) -> Self {
        Self { variant, ..self }
    }
}

impl Row {
    const fn ours(self, work: &'static str, variant: &'static str) -> Self {
        Self { ours: Source { work, by: OURS, variant }, ..self }
    }

    const fn ours_by(self, ours: Source) -> Self {
        Self { ours, ..self }
    }

    const fn against(self, against: &'static [Source]) -> Self {
        Self { against, ..self }
    }

    const fn at_least(self, ratio: f64) -> Self {
        Self { target: Some(Target::AtLeast(ratio)), ..self }
    }

    const fn at_most(self, ratio: f64) -> Self {
        Self { target: Some(Target::AtMost(ratio)), ..self }
    }

    /// Every number it needs.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Source> {
        std::iter::once(&self.ours).chain(self.against)
    }
}

impl Work {
    /// The words after the program's name, for our binary and the peers alike; `model` gives the file that a
    /// word stands for.
    pub(crate) fn words(
        &self,
        by: &str,
        quick: bool,
        model: impl Fn(&str) -> PathBuf,
    ) -> Vec<OsString> {
        let more = self.by.iter().find(|(name, _)| *name == by).map_or("", |(_, more)| more);
        let paced = if self.has_turns() { "--paced" } else { "" };
        let texts = [self.arguments, self.length[usize::from(quick)], more, paced];
        let words = texts.iter().flat_map(|text| text.split_whitespace());
        words.map(|word| if is_model(word) { model(word).into() } else { word.into() }).collect()
    }

    /// How many turns are not timed; `None` where turns are not steps.
    pub(crate) fn warmup_turns(&self, quick: bool) -> Option<usize> {
        let mut words = self.length[usize::from(quick)].split_whitespace();
        words.find(|word| *word == "--warmup-steps")?;
        words.next()?.parse().ok()
    }

    /// Whether it trains in bf16.
    pub(crate) fn trains_in_bf16(&self) -> bool {
        self.arguments.starts_with("train --precision bf16")
    }

    /// Whether its steps are turns that programs can take.
    pub(crate) fn has_turns(&self) -> bool {
        ["train ", "generate "].iter().any(|word| self.arguments.starts_with(word))
    }

    /// Whether it reads the file that `cargo xtask fetch smollm2` brings, or one made of it.
    pub(crate) fn needs_gguf(&self) -> bool {
        self.arguments.split_whitespace().any(is_model)
    }

    /// Whether it reads the file that this word stands for.
    pub(crate) fn reads(&self, model: &str) -> bool {
        self.arguments.split_whitespace().any(|word| word == model)
    }
}

/// Whether the word stands for a file.
fn is_model(word: &str) -> bool {
    word == GGUF || WRITTEN.iter().any(|(name, _)| *name == word)
}

impl Target {
    pub(crate) fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(limit) => ratio >= limit,
            Self::AtMost(limit) => ratio <= limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn every_row_has_its_work() {
        for row in &ROWS {
            for source in row.sources() {
                let work = WORKS.iter().find(|work| work.name == source.work);
                let known = work.is_some_and(|work| work.by.iter().any(|(by, _)| *by == source.by));
                assert!(known, "`{}` names {source:?}", row.name);
            }
            assert_eq!(ROWS.iter().filter(|other| other.name == row.name).count(), 1);
        }
        for work in &WORKS {
            let used = ROWS.iter().flat_map(Row::sources).any(|source| source.work == work.name);
            assert!(used, "no row shows `{}`", work.name);
        }
    }

    #[test]
    fn a_work_becomes_one_command_line() {
        let words = |work: &str, by, quick| {
            let work = WORKS.iter().find(|found| found.name == work).unwrap();
            let words = work.words(by, quick, |word| format!("{word}.gguf").into());
            words.join(OsStr::new(" ")).into_string().unwrap()
        };
        assert_eq!(
            words("train-bf16", PEER_ADAPTERS, false),
            "train --precision bf16 --targets all --batch 4 --sequence 256 --warmup-steps 2 --steps 40 \
             --way bf16-adapters --paced"
        );
        assert_eq!(
            words("train-f32", OURS, true),
            "train --precision f32 --targets all --batch 4 --sequence 256 --warmup-steps 1 --steps 3 --paced"
        );
        assert_eq!(words("load-f32", OURS, false), "load GGUF.gguf --precision f32 --runs 5");
        let decode = words("decode-gguf-q8", LLAMA, true);
        assert!(decode.starts_with("generate --model GGUF-Q8.gguf --precision bf16 "), "{decode}");
    }
}
