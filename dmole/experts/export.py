"""Experts as PEFT adapters: ``PeftModel.from_pretrained(base, run/experts/<name>)`` loads them.

PEFT has no layout for experts with routers or branches, and its layout for prompt tuning puts the
tokens in front of the one that begins a sequence. Such experts are saved as ``mixture.json`` and
``mixture.safetensors``.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from dmole.experts.shape import ExpertShape
from dmole.experts.soft_prompts import PromptShape, Shape, shape_from_list
from dmole.storage.files import read_json, write_json
from dmole.storage.tensors import read_tensor_file, write_tensor_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from dmole.experts.library import ExpertLibrary

PREFIX = "base_model.model."
"""Before the path of a linear in the tensor names of PEFT."""
MIXTURE = "mixture.json"
"""File that describes the linears of an expert without a PEFT layout."""
_PARTS = {"lora_a": "lora_A", "lora_b": "lora_B"}


def save_expert(library: ExpertLibrary, name: str, folder: Path, base_model: str) -> None:
    """Write one expert in the PEFT adapter layout.

    Args:
        library: Holds the expert.
        name: Name of the expert.
        folder: Receives ``adapter_config.json`` and ``adapter_model.safetensors``.
        base_model: Name or path of the base model, written to the config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    architecture = library.architecture()[name]
    if any(len(numbers) != 2 for numbers in architecture.values()):
        write_tensor_file(folder / "mixture.safetensors", library.state_dict(name), name)
        write_json(folder / MIXTURE, {"base_model": base_model, "layers": architecture})
        return
    tensors = {
        f"{PREFIX}{path}.{_PARTS[part]}.weight": tensor.float().cpu()
        for key, tensor in library.tensors(name).items()
        for path, _, part in (key.rpartition("."),)
    }
    write_tensor_file(folder / "adapter_model.safetensors", tensors, name)
    write_json(folder / "adapter_config.json", _config(library, name, base_model))


def load_expert(
    library: ExpertLibrary, name: str, folder: Path, saved_as: str | None = None
) -> None:
    """Add an expert from a folder in the PEFT adapter layout.

    Args:
        library: Receives the expert.
        name: Name of the expert in the library.
        folder: Written by :func:`save_expert` or by PEFT.
        saved_as: Name that the expert must have been saved under, if its file states one; None
            accepts any name.

    Raises:
        ValueError: If a file is missing, the adapter is not plain LoRA, belongs to another expert,
            or its tensors do not fit the model; names the folder. The library is then unchanged.
    """
    shapes, tensors = read_expert(folder, saved_as)
    library.add_shapes(name, shapes)
    try:
        library.load_state_dict(name, tensors)
    except BaseException:
        library.remove(name)
        raise


def read_expert(
    folder: Path, saved_as: str | None = None
) -> tuple[dict[str, Shape], dict[str, Tensor]]:
    """Return the shapes of an expert by linear and its tensors, keyed as in the library.

    Args:
        folder: Written by :func:`save_expert` or by PEFT.
        saved_as: See :func:`load_expert`.

    Raises:
        ValueError: If a file is missing, the adapter is not plain LoRA or belongs to another
            expert; names the folder.
    """
    if (folder / MIXTURE).is_file():
        return _read_mixture(folder, saved_as)
    config = _read_config(folder)
    saved = read_tensor_file(folder / "adapter_model.safetensors", saved_as)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for key, tensor in sorted(saved.items()):  # A before B: the rank is that of A, if present
        path, part = _split_key(key, folder)
        if tensor.ndim != 2 or not tensor.numel() or not tensor.is_floating_point():
            form = f"{tuple(tensor.shape)} of {tensor.dtype}"
            raise ValueError(f"expert {folder}: tensor {key} has shape {form}")
        tensors[f"{path}.{part}"] = tensor
        ranks.setdefault(path, tensor.shape[0 if part == "lora_a" else 1])
    alphas = _alphas(config, folder)
    _check_ranks(config, ranks, folder)
    return {path: ExpertShape(rank, alphas(path)) for path, rank in ranks.items()}, tensors


def _read_mixture(folder: Path, saved_as: str | None) -> tuple[dict[str, Shape], dict[str, Tensor]]:
    path = folder / MIXTURE
    content = read_json(path, "expert")
    try:
        linears = content["layers"]
        shapes = {str(linear): shape_from_list(numbers) for linear, numbers in linears.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"cannot read expert {path}: {error!r}") from error
    tensors = read_tensor_file(folder / "mixture.safetensors", saved_as)
    parts: dict[str, dict[str, Tensor]] = {linear: {} for linear in shapes}
    for key, tensor in tensors.items():
        linear, _, part = key.rpartition(".")
        parts.setdefault(linear, {})[part] = tensor
    for linear, saved in parts.items():
        if linear not in shapes or not _describes(linears[linear], shapes[linear], saved):
            raise ValueError(f"expert {path}: linear {linear} does not match its tensors")
    return shapes, tensors


def _describes(numbers: object, shape: Shape, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a linear's numbers match its tensors; allocates no memory."""
    if isinstance(shape, PromptShape):
        prompt = tensors.get("tokens")
        if prompt is None or len(tensors) > 1 or prompt.ndim != 2:
            return False
        return numbers == [len(prompt)] and prompt.is_floating_point()
    rows = {key: len(tensor) for key, tensor in tensors.items() if tensor.ndim == 2}
    ups = sum(key.startswith("lora_b") for key in rows)
    texts = tensors["text_router"].shape[-1] if "text_router" in rows else 0
    usage = tensors["usage"].numel() if "usage" in tensors else 0
    sizes = (*(rows.get(key, 0) for key in ("lora_a", "router", "fusion")), ups, texts, usage)
    counts = (shape.rank, shape.heads, shape.fused, shape.branches)
    described = (*counts, shape.text_width, shape.usage)
    return math.isfinite(shape.alpha) and numbers == shape.to_list() and sizes == described


_PLAIN = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "use_rslora": False}
"""Settings that an adapter must have if it states them; adapters written here always do."""


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the config of an adapter; raise unless it is plain LoRA."""
    path = folder / "adapter_config.json"
    config = read_json(path, "expert")
    if not isinstance(config, dict):
        raise ValueError(f"cannot read expert {path}: it must hold keys and values")
    for key, value in {**_PLAIN, "use_dora": False}.items():
        if config.get(key, value) != value:
            raise ValueError(f"expert {folder}: {key} must be {value!r}, got {config[key]!r}")
    if "lora_alpha" not in config:
        raise ValueError(f"expert {folder}: adapter_config.json has no lora_alpha")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            raise ValueError(f"expert {folder}: {key} must hold keys and values")
    return config


def _alphas(config: dict[str, Any], folder: Path) -> Callable[[str], float]:
    """Return a function from the path of a linear to its scaling numerator."""
    pattern = config.get("alpha_pattern") or {}
    for value in (config["lora_alpha"], *pattern.values()):
        if not _is_number(value) or not math.isfinite(value):
            raise ValueError(f"expert {folder}: lora_alpha must be a finite number, got {value!r}")
    return lambda path: float(pattern.get(path, config["lora_alpha"]))


def _check_ranks(config: dict[str, Any], ranks: dict[str, int], folder: Path) -> None:
    """Raise if the config states another rank than the tensors have."""
    pattern = config.get("rank_pattern") or {}
    for path, rank in ranks.items():
        stated = pattern.get(path, config.get("r", rank))
        if not _is_number(stated) or stated != rank:
            raise ValueError(
                f"expert {folder}: linear {path} has rank {rank} in its tensors, "
                f"{str(stated)[:40]} in adapter_config.json"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _split_key(key: str, folder: Path) -> tuple[str, str]:
    """Return the path of the linear and the library's tensor name for a key of the file."""
    path, _, part = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
    for ours, theirs in _PARTS.items():
        if part == theirs and path and key == f"{PREFIX}{path}.{part}.weight":
            return path, ours
    raise ValueError(f"expert {folder}: tensor {key} is unknown")


def _config(library: ExpertLibrary, name: str, base_model: str) -> dict[str, object]:
    """Return the PEFT config; values other than the most common go to the patterns."""
    linears = library.architecture()[name]
    rank = Counter(int(r) for r, _ in linears.values()).most_common(1)[0][0]
    alpha = Counter(a for _, a in linears.values()).most_common(1)[0][0]
    return {
        **_PLAIN,
        "base_model_name_or_path": base_model,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": library.dropout,
        "target_modules": sorted(linears),
        "rank_pattern": {p: int(r) for p, (r, _) in linears.items() if int(r) != rank},
        "alpha_pattern": {p: a for p, (_, a) in linears.items() if a != alpha},
    }
