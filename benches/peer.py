"""What `lora bench` does, done by PyTorch, transformers and PEFT: same arguments, same line of JSON.

    python peer.py train --precision bf16 --targets all --batch 4 --sequence 256
    python peer.py generate --precision f32 --prompt-tokens 64 --new-tokens 128

`cargo xtask bench --peer` runs it in turn with `lora bench`. `--way` names the other ways in which people
make the peer train in bf16; the work stays the same.
"""

import argparse
import copy
import json
import os
import platform
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SEED = 1
RANK = 8
ALPHA = 16
LEARNING_RATE = 2e-4
TOO_FEW_TURNS = "no more turns came before everything was timed"
WARMUP_TOKENS = 8
VARIANTS = ["base", "unmerged", "merged"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MODULES = {"all": [*ATTENTION, "gate_proj", "up_proj", "down_proj"], "qv": ["q_proj", "v_proj"]}

# default        weights in the precision asked for, adapters in f32
# bf16-adapters  adapters in bf16 as well
# autocast       weights in f32, matrix products in bf16 by torch.autocast
# bf16-products  weights and activations in f32, matrix products rounded to bf16 inside oneDNN, where the
#                processor has instructions for that
WAYS = ["default", "bf16-adapters", "autocast", "bf16-products"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    works = parser.add_subparsers(dest="work", required=True)
    train = works.add_parser("train")
    train.add_argument("--batch", type=int, default=4)
    train.add_argument("--sequence", type=int, default=256)
    train.add_argument("--recompute", action="store_true")
    train.add_argument("--warmup-steps", type=int, default=2)
    train.add_argument("--steps", type=int, default=7)
    train.add_argument("--targets", choices=["all", "qv", "full"], default="all")
    train.add_argument("--way", choices=WAYS, default="default")
    generate = works.add_parser("generate")
    generate.add_argument("--targets", choices=["all", "qv"], default="all")
    generate.add_argument("--variants", type=lambda text: text.split(","), default=VARIANTS)
    generate.add_argument("--prompt-tokens", type=int, default=64)
    generate.add_argument("--new-tokens", type=int, default=128)
    generate.add_argument("--runs", type=int, default=3)
    for work in (train, generate):
        work.add_argument("--precision", choices=["f32", "bf16"], default="f32")
        work.add_argument("--blocks", type=int, default=30)
        work.add_argument("--threads", type=int, default=os.cpu_count())
        work.add_argument("--paced", action="store_true", help="wait for a line before each step")
    return parser.parse_args()


def fresh(dtype, blocks):
    """SmolLM2-135M's shape with random weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=blocks,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        initializer_range=0.02,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def adapted(model, targets, f32_adapters=True):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=MODULES[targets],
    )
    return get_peft_model(model, config, autocast_adapter_dtype=f32_adapters)


def train(asked):
    import contextlib

    import torch

    in_f32 = asked.precision == "f32" or asked.way in ("autocast", "bf16-products")
    model = fresh(torch.float32 if in_f32 else torch.bfloat16, asked.blocks)
    if asked.way == "bf16-products":
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    if asked.targets != "full":
        model = adapted(model, asked.targets, f32_adapters=asked.way != "bf16-adapters")
    if asked.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0)

    losses, step_ms = [], []
    for step in range(asked.warmup_steps + asked.steps):
        tokens = torch.randint(0, 49152, (asked.batch, asked.sequence))
        autocast = contextlib.nullcontext()
        if asked.way == "autocast":
            autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        if not has_turn(asked.paced):
            break
        start = time.perf_counter()
        with autocast:
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step >= asked.warmup_steps:
            step_ms.append((time.perf_counter() - start) * 1e3)
    # So that who measures knows when the last step ended.
    has_turn(asked.paced)
    if not step_ms:
        raise SystemExit(TOO_FEW_TURNS)
    count = asked.batch * asked.sequence
    return {
        "tokens": count,
        "recompute": asked.recompute,
        "trainable_parameters": sum(parameter.numel() for parameter in trainable),
        "tok_s": [count * 1e3 / step for step in step_ms],
        "step_ms": step_ms,
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }


def has_turn(paced):
    """A dot says that a line is waited for, so that programs take turns step by step; no more lines come where
    enough was timed."""
    if not paced:
        return True
    print(".", flush=True)
    return bool(sys.stdin.readline())


def generate(asked):
    import torch

    base = fresh(torch.float32 if asked.precision == "f32" else torch.bfloat16, asked.blocks).eval()
    prompt = torch.randint(0, 49152, (1, asked.prompt_tokens))
    models, runs = {}, {}
    for variant in asked.variants:
        models[variant] = with_adapter(base, variant, asked.targets)
        runs[variant] = []
        decode(models[variant], prompt, WARMUP_TOKENS)
    for _ in range(asked.runs):
        if not has_turn(asked.paced):
            break
        for variant, model in models.items():
            runs[variant].append(decode(model, prompt, asked.new_tokens))
    if not all(runs.values()):
        raise SystemExit(TOO_FEW_TURNS)

    def result(variant):
        prompt_ms, token_ms = zip(*runs[variant])
        speeds = [1e3 / token for token in token_ms]
        return {"variant": variant, "tok_s": speeds, "step_ms": token_ms, "prompt_ms": prompt_ms}

    return {
        "prompt_tokens": asked.prompt_tokens,
        "new_tokens": asked.new_tokens,
        "variants": [result(variant) for variant in asked.variants],
    }


def with_adapter(base, variant, targets):
    """A model of its own for each variant, as get_peft_model changes the one it is given."""
    if variant == "base":
        return base
    import torch

    model = adapted(copy.deepcopy(base), targets).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.uniform_(-0.02, 0.02)
    return model.merge_and_unload() if variant == "merged" else model


def decode(model, prompt, new_tokens):
    """Time of the prompt, and mean time of each token after the first, in milliseconds."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    class Clock(LogitsProcessor):
        def __call__(self, input_ids, scores):
            stamps.append(time.perf_counter())
            return scores

    stamps = [time.perf_counter()]
    with torch.inference_mode():
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([Clock()]),
        )
    end = time.perf_counter()
    count = output.shape[1] - prompt.shape[1]
    assert count == new_tokens == len(stamps) - 1, f"{count} tokens came, not {new_tokens}"
    return (stamps[1] - stamps[0]) * 1e3, (end - stamps[1]) * 1e3 / (count - 1)


def memory_megabytes():
    """What this process holds now and the most that it has held at once, from the operating system."""
    try:
        with open("/proc/self/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        return [int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")]
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = peak / 1e6 if platform.system() == "Darwin" else peak * 1024 / 1e6
        return [peak, peak]


def main():
    asked = arguments()
    # All of it before the memory is looked at, as the libraries load much of themselves late.
    import peft
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: F401

    start, _ = memory_megabytes()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(SEED)
    found = {"train": train, "generate": generate}[asked.work](asked)
    line = {"kind": asked.work, "device": "cpu", "dtype": asked.precision, "threads": asked.threads, **found}
    line["start_rss_mb"] = start
    line["peak_rss_mb"] = memory_megabytes()[1]
    line["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
