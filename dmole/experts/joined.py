"""Several experts as one LoRA, for programs that apply one adapter to a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmole.experts.export import PREFIX, read_expert
from dmole.experts.soft_prompts import PromptShape
from dmole.storage.files import write_json
from dmole.storage.tensors import write_tensor_file


@dataclass(frozen=True)
class Adapter:
    """A plain LoRA without scaling.

    Args:
        downs: ``A`` of each linear, ``(rank, in)``.
        ups: ``B`` of each linear with the scaling ``alpha / rank`` in it, ``(out, rank)``.
    """

    downs: dict[str, Tensor]
    ups: dict[str, Tensor]

    @property
    def rank(self) -> int:
        """Largest rank of a linear."""
        return max(len(down) for down in self.downs.values())


def read_plain(folder: Path, name: str) -> Adapter:
    """Return the expert in a folder in PEFT layout, with its scaling folded into ``B``.

    Raises:
        ValueError: If the folder holds no plain LoRA; names it.
    """
    read, tensors = read_expert(folder, name)
    shapes = {path: shape for path, shape in read.items() if not isinstance(shape, PromptShape)}
    if len(shapes) < len(read):
        raise ValueError(f"expert {folder} is a soft prompt, which no LoRA equals")
    for path, shape in shapes.items():
        if shape.branches != 1 or shape.heads:
            raise ValueError(f"expert {folder} is a mixture ({path}), which no plain LoRA equals")
        if not tensors.keys() >= {f"{path}.lora_a", f"{path}.lora_b"}:
            raise ValueError(f"expert {folder}: linear {path} lacks lora_A or lora_B")
    downs = {path: tensors[f"{path}.lora_a"].float() for path in shapes}
    folded = {
        path: tensors[f"{path}.lora_b"].float() * (shape.alpha / shape.rank)
        for path, shape in shapes.items()
    }
    return Adapter(downs, folded)


def join(adapters: Sequence[Adapter]) -> Adapter:
    """Return one adapter whose update is the sum of those of several: ranks are concatenated."""
    downs: dict[str, list[Tensor]] = {}
    ups: dict[str, list[Tensor]] = {}
    for adapter in adapters:
        for path in adapter.downs:
            downs.setdefault(path, []).append(adapter.downs[path])
            ups.setdefault(path, []).append(adapter.ups[path])
    return Adapter(
        {path: torch.cat(parts) for path, parts in downs.items()},
        {path: torch.cat(parts, dim=1) for path, parts in ups.items()},
    )


def write_uniform(adapter: Adapter, folder: Path, name: str, base_model: str) -> None:
    """Write an adapter in PEFT layout with one rank for all linears and scaling 1.

    Linears of a smaller rank are filled up with zeros, since programs other than PEFT read neither
    ``rank_pattern`` nor ``alpha_pattern``.

    Args:
        adapter: The adapter.
        folder: Receives ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: Its name, for the metadata.
        base_model: ``base_model_name_or_path`` of its config.
    """
    folder.mkdir(parents=True)
    rank = adapter.rank
    tensors = {}
    for path, down in sorted(adapter.downs.items()):
        missing = rank - len(down)
        up = adapter.ups[path]
        tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, missing))
        tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.nn.functional.pad(up, (0, missing))
    write_tensor_file(folder / "adapter_model.safetensors", tensors, name)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "task_type": None,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(adapter.downs),
    }
    write_json(folder / "adapter_config.json", config)
