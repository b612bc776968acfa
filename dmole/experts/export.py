"""Experts as PEFT adapters: ``PeftModel.from_pretrained(base, run/experts/<task>)`` loads them."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dmole.files import atomic_path, write_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

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
        ValueError: If a file is missing, the adapter is no plain LoRA or its tensors do not fit
            the model; names it. The library is then as it was.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        saved = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"cannot read expert {folder}: {error}") from error
    alphas = _alphas(config, folder)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for key, tensor in sorted(saved.items()):  # A before B: the rank is A's, if it is there
        path, part = _place(key, folder)
        if tensor.ndim != 2:
            raise ValueError(f"expert {folder}: tensor {key} has shape {tuple(tensor.shape)}")
        tensors[f"{path}.{part}"] = tensor
        ranks.setdefault(path, tensor.shape[0 if part == "lora_a" else 1])
    library.add(name, ranks, {path: alphas(path) for path in ranks})
    try:
        library.load_state_dict(name, tensors)
    except ValueError:
        library.remove(name)
        raise


_PLAIN = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "use_rslora": False}
"""What an adapter must be, where it says so; ours always does."""


def _alphas(config: dict[str, Any], folder: Path) -> Callable[[str], float]:
    """Return the scaling numerator by path, after making sure that the adapter is plain LoRA."""
    for key, wanted in {**_PLAIN, "use_dora": False}.items():
        if config.get(key, wanted) != wanted:
            raise ValueError(f"expert {folder}: {key} must be {wanted!r}, got {config[key]!r}")
    if "lora_alpha" not in config:
        raise ValueError(f"expert {folder}: adapter_config.json has no lora_alpha")
    pattern = config.get("alpha_pattern") or {}
    return lambda path: float(pattern.get(path, config["lora_alpha"]))


def _place(key: str, folder: Path) -> tuple[str, str]:
    """Return path of the linear and our name of the tensor for a key of the file."""
    path, _, part = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
    for ours, theirs in _PARTS.items():
        if part == theirs and path and key == f"{_PREFIX}{path}.{part}.weight":
            return path, ours
    raise ValueError(f"expert {folder}: tensor {key} is unknown")


def _config(library: ExpertLibrary, name: str, base_model: str) -> dict[str, object]:
    """Return the PEFT description; ranks that differ from the commonest go to the patterns."""
    layers = library.architecture()[name]
    rank = Counter(int(r) for r, _ in layers.values()).most_common(1)[0][0]
    alpha = Counter(a for _, a in layers.values()).most_common(1)[0][0]
    return {
        **_PLAIN,
        "base_model_name_or_path": base_model,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": library.dropout,
        "target_modules": sorted(layers),
        "rank_pattern": {p: int(r) for p, (r, _) in layers.items() if int(r) != rank},
        "alpha_pattern": {p: a for p, (_, a) in layers.items() if a != alpha},
    }
