"""The other side of foreign.rs: what llama.cpp and mlx-lm make of our files, and files of theirs.

    python foreign.py < work.json > found.json

Each task of the list names a tool. Needs xllamacpp (llama.cpp in a wheel) and mlx-lm with mlx[cpu].
"""

import json
import sys
from pathlib import Path


def llama_cpp(task):
    """Greedy tokens after a prompt of tokens, with the logarithms of the likeliest probabilities."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = task["model"]
    settings.n_ctx = 256
    settings.n_parallel = 1
    settings.warmup = False
    settings.cpuparams.n_threads = 2
    settings.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if task.get("adapter"):
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path = task["adapter"]
        adapter.scale = 1.0
        settings.lora_adapters = [adapter]
    server = xllamacpp.Server(settings)
    found = server.handle_completions(
        {
            "prompt": task["prompt"],
            "n_predict": task["new_tokens"],
            "temperature": 0,
            "n_probs": task["likeliest"],
            "cache_prompt": False,
            "ignore_eos": True,
            # Those that are no text by themselves are left out of the list that is read below.
            "logit_bias": [[token, False] for token in task.get("banned", [])],
        }
    )
    steps = found["choices"][0]["logprobs"]["content"]
    return {
        "tokens": [step["id"] for step in steps],
        "likeliest": [
            [[token["id"], token["logprob"]] for token in step["top_logprobs"]] for step in steps
        ],
    }


def mlx_model(folder):
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(folder))
    model.update(tree_map(lambda weight: weight.astype(mx.float32), model.parameters()))
    return model


def mlx_logits(model, prompt):
    import mlx.core as mx

    return model(mx.array([prompt])).flatten().tolist()


def mlx_read(task):
    """Logits of a model with an adapter that we wrote."""
    from mlx_lm.tuner.utils import load_adapters

    return {"logits": mlx_logits(load_adapters(mlx_model(task["model"]), task["adapter"]), task["prompt"])}


def mlx_write(task):
    """Logits of a model with an adapter as mlx-lm's training would save it."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import save_config

    mx.random.seed(0)
    model = mlx_model(task["model"])
    model.freeze()
    parameters = {"rank": 3, "dropout": 0.0, "scale": 5.0}
    linear_to_lora_layers(model, 2, dict(parameters), use_dora=task["dora"])
    # Magnitudes are vectors and stay near what they are.
    model.update(
        tree_map(
            lambda weight: (
                weight * (1 + 0.1 * mx.random.normal(weight.shape))
                if weight.ndim == 1
                else mx.random.normal(weight.shape) * 0.1
            ),
            model.trainable_parameters(),
        )
    )
    folder = Path(task["adapter"])
    folder.mkdir(parents=True)
    settings = {
        "fine_tune_type": "dora" if task["dora"] else "lora",
        "num_layers": 2,
        "lora_parameters": parameters,
        "model": task["model"],
        "iters": 1000,
    }
    save_config(settings, folder / "adapter_config.json")
    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    return {"logits": mlx_logits(model, task["prompt"])}


tools = {"llama.cpp": llama_cpp, "mlx read": mlx_read, "mlx write": mlx_write}
json.dump([tools[task["tool"]](task) for task in json.load(sys.stdin)], sys.stdout)
