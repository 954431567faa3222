"""What `lora bench generate --model FILE.gguf` does, done by llama.cpp: same arguments, same line of JSON.

    python llama.py generate --model model.gguf --prompt-tokens 64 --new-tokens 128

Needs llama-cpp-python. `cargo xtask bench` runs it where LORA_LLAMA_PYTHON names a Python that has it. The
weights stay as the file has them, so the precision that is asked for does not count here.
"""

import argparse
import itertools
import json
import os
import platform
import random
import time

SEED = 1
WARMUP_TOKENS = 8


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    works = parser.add_subparsers(dest="work", required=True)
    generate = works.add_parser("generate")
    generate.add_argument("--model", required=True)
    generate.add_argument("--precision", help="ignored")
    generate.add_argument("--variants", choices=["base"], default="base")
    generate.add_argument("--prompt-tokens", type=int, default=64)
    generate.add_argument("--new-tokens", type=int, default=128)
    generate.add_argument("--runs", type=int, default=3)
    generate.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def decode(model, prompt, new_tokens):
    """Time of the prompt, and mean time of each token after the first, in milliseconds."""
    start = time.perf_counter()
    tokens = model.generate(prompt, top_k=1, temp=0.0)
    next(tokens)
    first = time.perf_counter()
    count = sum(1 for _ in itertools.islice(tokens, new_tokens - 1))
    end = time.perf_counter()
    assert count == new_tokens - 1, f"{count + 1} tokens came, not {new_tokens}"
    return (first - start) * 1e3, (end - first) * 1e3 / count


def peak_megabytes():
    """The most that this process has held at once, from the operating system."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if platform.system() == "Darwin" else peak * 1024 / 1e6


def main():
    asked = arguments()
    import llama_cpp

    model = llama_cpp.Llama(
        asked.model,
        n_ctx=asked.prompt_tokens + asked.new_tokens + 1,
        n_threads=asked.threads,
        n_threads_batch=asked.threads,
        verbose=False,
    )
    numbers = random.Random(SEED)
    prompt = [numbers.randrange(model.n_vocab()) for _ in range(asked.prompt_tokens)]
    decode(model, prompt, WARMUP_TOKENS)
    runs = []
    for _ in range(asked.runs):
        # Otherwise it would find the prompt in its cache.
        model.reset()
        runs.append(decode(model, prompt, asked.new_tokens))
    prompt_ms, token_ms = zip(*runs)
    line = {
        "kind": "generate",
        "device": "cpu",
        "dtype": "as stored",
        "threads": asked.threads,
        "prompt_tokens": asked.prompt_tokens,
        "new_tokens": asked.new_tokens,
        "variants": [
            {
                "variant": "base",
                "tok_s": [1e3 / token for token in token_ms],
                "step_ms": token_ms,
                "prompt_ms": prompt_ms,
            }
        ],
        "peak_rss_mb": peak_megabytes(),
        "versions": {"llama-cpp-python": llama_cpp.__version__},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
