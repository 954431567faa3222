"""What `lora bench generate --model FILE.gguf` does, done by llama.cpp: same arguments, same line of JSON.

    python llama.py generate --model model.gguf --prompt-tokens 64 --new-tokens 128

Needs xllamacpp, which is llama.cpp in a wheel. `cargo xtask bench --peer` makes an environment with it, or
takes the Python that LORA_LLAMA_PYTHON names. llama.cpp computes with the weights as the file has them, so
that `--precision` does not count here.
"""

import argparse
import json
import os
import platform
import random
import sys

SEED = 1
WARMUP_TOKENS = 8
# Tokens of any vocabulary.
TOKENS = 256


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
    generate.add_argument("--paced", action="store_true", help="wait for a line before each generation")
    return parser.parse_args()


def server(asked):
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = asked.model
    settings.n_ctx = asked.prompt_tokens + asked.new_tokens + 1
    settings.n_parallel = 1
    settings.cpuparams.n_threads = asked.threads
    settings.cpuparams_batch.n_threads = asked.threads
    return xllamacpp.Server(settings)


def decode(model, prompt, new_tokens):
    """Time of the prompt, and mean time of each token after the first, in milliseconds."""
    found = model.handle_completions(
        {
            "prompt": prompt,
            "n_predict": new_tokens,
            "temperature": 0,
            # Otherwise it would find the prompt in its cache.
            "cache_prompt": False,
            "ignore_eos": True,
        }
    )
    if "timings" not in found:
        raise SystemExit(f"llama.cpp answered without times: {found}")
    timings = found["timings"]
    counts = timings["prompt_n"], timings["predicted_n"]
    if counts != (len(prompt), new_tokens):
        raise SystemExit(f"llama.cpp read and wrote {counts} tokens, not {len(prompt)} and {new_tokens}")
    # Its clock starts when the first token is there, so that its own tokens per second count one too many.
    return timings["prompt_ms"], timings["predicted_ms"] / (new_tokens - 1)


def peak_megabytes():
    """The most that this process has held at once, from the operating system."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if platform.system() == "Darwin" else peak * 1024 / 1e6


def main():
    asked = arguments()
    import xllamacpp

    model = server(asked)
    numbers = random.Random(SEED)
    prompt = [numbers.randrange(TOKENS) for _ in range(asked.prompt_tokens)]
    decode(model, prompt, WARMUP_TOKENS)
    runs = []
    for _ in range(asked.runs):
        if asked.paced:
            # A dot says that a line is waited for, so that programs take turns.
            print(".", flush=True)
            if not sys.stdin.readline():
                break
        runs.append(decode(model, prompt, asked.new_tokens))
    if not runs:
        raise SystemExit("no more turns came before everything was timed")
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
        "versions": {"xllamacpp": xllamacpp.__version__},
    }
    print(json.dumps(line), flush=True)
    # An orderly end would wait for the threads of its server.
    os._exit(0)


if __name__ == "__main__":
    main()
