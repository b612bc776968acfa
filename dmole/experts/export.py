"""Experts as PEFT adapters: ``PeftModel.from_pretrained(base, run/experts/<task>)`` loads them."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from dmole.files import atomic_path, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from dmole.experts.library import ExpertLibrary

_PREFIX = "base_model.model."
_PARTS = {"lora_a": "lora_A", "lora_b": "lora_B"}


def save_expert(library: ExpertLibrary, name: str, folder: Path, base_model: str) -> None:
    """Write one expert in the PEFT adapter layout.

    Args:
        library: Holds the expert.
        name: Which one.
        folder: Receives ``adapter_config.json`` and ``adapter_model.safetensors``.
        base_model: Name or path of the base model, noted in the config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{_PREFIX}{path}.{_PARTS[part]}.weight": tensor.float().cpu().contiguous()
        for key, tensor in library.state_dict(name).items()
        for path, _, part in (key.rpartition("."),)
    }
    with atomic_path(folder / "adapter_model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", _config(library, name, base_model))


def load_expert(library: ExpertLibrary, name: str, folder: Path) -> None:
    """Add an expert from a folder in the PEFT adapter layout.

    Raises:
        ValueError: If a file is missing or its tensors do not fit the model; names it.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        saved = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read expert {folder}: {error}") from error
    ranks = {}
    tensors = {}
    names = {peft: ours for ours, peft in _PARTS.items()}
    for key, tensor in saved.items():
        path, _, part = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        tensors[f"{path}.{names.get(part, part)}"] = tensor
        if part == "lora_A":
            ranks[path] = tensor.shape[0]
    pattern = config.get("alpha_pattern", {})
    alphas = {path: float(pattern.get(path, config["lora_alpha"])) for path in ranks}
    library.add(name, ranks, alphas)
    library.load_state_dict(name, tensors)


def _config(library: ExpertLibrary, name: str, base_model: str) -> dict[str, object]:
    """Return the PEFT description; ranks that differ from the commonest go to the patterns."""
    layers = library.architecture()[name]
    rank = Counter(int(r) for r, _ in layers.values()).most_common(1)[0][0]
    alpha = Counter(a for _, a in layers.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": library.dropout,
        "target_modules": sorted(layers),
        "rank_pattern": {p: int(r) for p, (r, _) in layers.items() if int(r) != rank},
        "alpha_pattern": {p: a for p, (_, a) in layers.items() if a != alpha},
        "bias": "none",
        "use_rslora": False,
        "fan_in_fan_out": False,
    }
