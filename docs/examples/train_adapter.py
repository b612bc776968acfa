"""Train a LoRA on captions with PEFT alone: one epoch of 150 steps on the tiny model.

python train_adapter.py OUTPUT
"""

from __future__ import annotations

import sys

import torch
from peft import LoraConfig, get_peft_model

from dmole import ContinualDataModule, PretrainedBackbone, Task
from dmole.streams.stream import Stage

LINEARS = r".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def train(output: str) -> None:
    """Write the adapter in the layout of PEFT. Model and batches come from dmole."""
    torch.manual_seed(0)
    base = PretrainedBackbone("tiny")
    address = "synthetic://caption/{}?size=1200"
    task = Task("caption", train=address.format("train"), test=address.format("test"))
    data = ContinualDataModule([task], batch_size=8)
    data.attach_processor(base.processor, base.context_length, base.prompts)
    data.set_stage(Stage(1, "caption", ("caption",), "caption"))
    model = get_peft_model(base.model, LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for batch in data.train_dataloader():
        loss = model(**batch.inputs, labels=batch.labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(output)


if __name__ == "__main__":
    train(*sys.argv[1:])
