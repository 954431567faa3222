"""The other side of encoders.rs: what PEFT and transformers make of an encoder's files.

    python encoders.py BASE ADAPTER MERGED < texts.json > found.json
"""

import json
import sys
import warnings

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

base_folder, adapter_folder, merged_folder = sys.argv[1:]
texts = json.load(sys.stdin)
tokenizer = Tokenizer.from_file(f"{base_folder}/tokenizer.json")
tokenizer.no_padding()
tokenizer.no_truncation()


def load(folder, **settings):
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, **settings).eval()


@torch.no_grad()
def second(model):
    """The probability of the second label."""
    found = []
    for text in texts:
        encoded = tokenizer.encode(text)
        inputs = dict(input_ids=torch.tensor([encoded.ids]), token_type_ids=torch.tensor([encoded.type_ids]))
        found.append(model(**inputs).logits.softmax(-1)[0, 1].item())
    return found


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    base = load(base_folder, num_labels=2, ignore_mismatched_sizes=True)
    ours = PeftModel.from_pretrained(base, adapter_folder).eval()
complaints = [str(warning.message) for warning in caught if "keys" in str(warning.message)]
merged = load(merged_folder)
json.dump(
    dict(
        model=second(ours),
        merged=second(merged),
        labels=merged.config.id2label,
        complaints=complaints,
    ),
    sys.stdout,
)
