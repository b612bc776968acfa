"""Fold a LoRA adapter into its base model and save the result as a new base model.

python merge_adapter.py BASE ADAPTER OUTPUT
"""

from __future__ import annotations

import sys

from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor


def merge(base: str, adapter: str, output: str) -> None:
    """Write the base model with the adapter folded into its weights, and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(base)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(output)
    AutoProcessor.from_pretrained(base).save_pretrained(output)


if __name__ == "__main__":
    merge(*sys.argv[1:])
