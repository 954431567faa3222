"""The other side of exchange.rs: what PEFT and transformers make of our files, and a file of theirs.

    python exchange.py BASE ADAPTER MERGED THEIRS FROM_GGUF FROM_MLX MODEL [ADAPTER ..] < tokens.json > found.json

BASE is a Hugging Face folder, ADAPTER an adapter written by `lora`, MERGED a folder written by
`lora merge`, THEIRS the folder that an adapter trained by PEFT is written to. FROM_GGUF and FROM_MLX are
adapters, MODEL is a model, written by `lora convert` from other formats; further adapters are ours.
"""

import json
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

base_folder, adapter_folder, merged_folder, their_folder, *others = sys.argv[1:]
from_gguf, from_mlx, model_folder, *more_folders = others
tokens = torch.tensor([json.load(sys.stdin)])


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=tokens).logits.flatten().tolist()


# PEFT warns of missing keys instead of failing.
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ours = PeftModel.from_pretrained(load(base_folder), adapter_folder)
report = ours.load_adapter(adapter_folder, "again")
complaints = [str(warning.message) for warning in caught if "keys" in str(warning.message)]

more = []
for folder in more_folders:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        more.append(logits(PeftModel.from_pretrained(load(base_folder), folder).eval()))
    complaints += [f"{folder}: {warning.message}" for warning in caught if "keys" in str(warning.message)]

merged = AutoModelForCausalLM.from_pretrained(
    merged_folder, dtype=torch.float32, output_loading_info=True
)
merged_model, merged_report = merged

torch.manual_seed(0)
settings = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
theirs = get_peft_model(load(base_folder), settings)
optimizer = torch.optim.AdamW(
    [parameter for parameter in theirs.parameters() if parameter.requires_grad], lr=1e-2
)
for _ in range(5):
    theirs(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
theirs.save_pretrained(their_folder)

text = AutoTokenizer.from_pretrained(merged_folder).decode(tokens[0].tolist())

json.dump(
    {
        "ours": logits(ours),
        "missing": [key for key in report.missing_keys if "lora" in key and ".again." in key],
        "unexpected": list(report.unexpected_keys),
        "complaints": complaints,
        "merged": logits(merged_model.eval()),
        "merged_missing": sorted(merged_report["missing_keys"]),
        "merged_unexpected": sorted(merged_report["unexpected_keys"]),
        "merged_text": text,
        "theirs": logits(theirs.eval()),
        "from_gguf": logits(PeftModel.from_pretrained(load(base_folder), from_gguf)),
        "from_mlx": logits(PeftModel.from_pretrained(load(base_folder), from_mlx)),
        "model": logits(load(model_folder)),
        "model_tokens": AutoTokenizer.from_pretrained(model_folder).encode(text),
        "more": more,
    },
    sys.stdout,
)
