"""Reads a LoRA adapter that PEFT or a tool around it wrote, for use as an expert.

An expert adds ``alpha / rank * B A`` to linears of blocks. An adapter that does anything else is
refused in one line that names the setting, the tensor or the linear.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmole.messages import excerpt, one_line
from dmole.storage.reading import check_file, read_json
from dmole.storage.tensors import read_tensor_file

CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_PARTS = {"lora_A": "lora_a", "lora_B": "lora_b"}
_KEY = re.compile(r"(?P<path>.+)\.(?P<part>lora_A|lora_B)\.weight")
_SHOWN = 3

_UNCHANGED_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the weights of the base model as they are."""

_IGNORED = frozenset(
    {
        *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode"),
        *("base_model_name_or_path", "target_modules", "exclude_modules", "lora_dropout"),
        *("layers_to_transform", "layers_pattern", "qalora_group_size", "runtime_config"),
        *("megatron_core", "ensure_weight_tying"),
    }
)
"""Settings that say how the adapter was made; the tensors say where it acts."""

_READ = frozenset({"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"})


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as an expert.

    Args:
        base: Base model that its config names.
        ranks: Rank by full path of the linear.
        alphas: Numerator of the scaling ``alpha / rank`` by full path of the linear.
        tensors: ``<linear>.lora_a`` ``(r, in)`` and ``<linear>.lora_b`` ``(out, r)``, float32.
    """

    base: str
    ranks: dict[str, int]
    alphas: dict[str, float]
    tensors: dict[str, Tensor]


def read_adapter(folder: Path, linears: Mapping[str, tuple[int, int]]) -> Adapter:
    """Read an adapter for a model.

    Args:
        folder: Has ``adapter_config.json`` and ``adapter_model.safetensors`` or ``.bin``.
        linears: Inputs and outputs of each linear in the model's blocks, by full path.

    Raises:
        ValueError: If a file is missing or cannot be read, the adapter is not plain LoRA on these
            linears, or a tensor has another shape; names the setting, the tensor or the linear.
    """
    config = _read_config(folder)
    tensors: dict[str, Tensor] = {}
    foreign: list[str] = []
    for key, tensor in sorted(_read_tensors(folder).items()):
        path, part = _split(key, folder)
        if path not in linears:
            foreign.append(path)
        else:
            tensors[f"{path}.{part}"] = tensor.float()
    if foreign:
        raise ValueError(f"adapter {folder}: {_not_linears(foreign)}")
    paths = sorted({key.rpartition(".")[0] for key in tensors})
    if not paths:
        raise ValueError(f"adapter {folder} has no tensors")
    ranks, alphas = {}, {}
    for path in paths:
        rank = ranks[path] = _check_shapes(folder, path, tensors, linears[path])
        alphas[path] = _alpha(config, folder, path, rank)
    return Adapter(str(config.get("base_model_name_or_path")), ranks, alphas, tensors)


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the config of an adapter of plain LoRA."""
    path = folder / CONFIG
    if not path.exists():
        raise ValueError(f"{folder} is no adapter of PEFT: it has no {CONFIG}")
    config = read_json(path, "adapter")
    if not isinstance(config, dict):
        raise ValueError(f"cannot read adapter {path}: it must hold keys and values")
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"adapter {folder}: peft_type {excerpt(config.get('peft_type'))} is no LORA"
        )
    if config.get("init_lora_weights") not in _UNCHANGED_BASE:
        raise ValueError(
            f"adapter {folder}: init_lora_weights {excerpt(config['init_lora_weights'])} changes "
            "the weights of the base model; convert the adapter to plain LoRA when you save it "
            "(path_initial_model_for_weight_conversion)"
        )
    supported = {"bias": ("none", None), "init_lora_weights": _UNCHANGED_BASE}
    for key, value in config.items():
        plain = value in supported.get(key, (None, False)) or value in ([], {}, "")
        if key not in _IGNORED | _READ and not plain:
            raise ValueError(
                f"adapter {folder}: {excerpt(key, quote=False)} {excerpt(value)} is not supported: "
                "an expert is plain LoRA on linears (also use_rslora, rank_pattern, alpha_pattern)"
            )
    for key in ("rank_pattern", "alpha_pattern"):
        _check_pattern(config, key, folder)
    _check_number("lora_alpha", config.get("lora_alpha"), folder)
    return config


def _check_pattern(config: Mapping[str, Any], key: str, folder: Path) -> None:
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"adapter {folder}: {key} must hold keys and values")
    for pattern, value in patterns.items():
        _check_number(f"{key} of {excerpt(pattern)}", value, folder)
        try:
            if set("*+?{") & set(pattern):  # could take exponential time on a path
                raise re.error("quantifiers are not supported")
            re.compile(pattern)
        except (re.error, RecursionError) as error:
            raise ValueError(
                f"adapter {folder}: {key} has {excerpt(pattern)}: {error}; name linears by the end "
                "of their paths"
            ) from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter by key, finite."""
    path = folder / "adapter_model.safetensors"
    if path.exists():
        return read_tensor_file(path)
    path = folder / "adapter_model.bin"
    if not path.exists():
        raise ValueError(f"adapter {folder} has neither adapter_model.safetensors nor .bin")
    check_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        reason = one_line(str(error).partition("\n")[0])
        raise ValueError(f"cannot read {path} as tensors alone: {reason}") from error
    named = isinstance(content, dict) and all(isinstance(key, str) for key in content)
    if not named or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"cannot read {path}: it holds other values than tensors")
    for key, tensor in content.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"cannot use {path}: tensor {excerpt(key)} has a number not finite")
    return dict(content)


def _split(key: str, folder: Path) -> tuple[str, str]:
    """Return the path of the linear and the library's name of the tensor."""
    match = _KEY.fullmatch(key.removeprefix(_PREFIX))
    if match is None or not key.startswith(_PREFIX):
        kind = "an embedding" if "lora_embedding" in key else "no factor of a linear"
        raise ValueError(f"adapter {folder}: tensor {excerpt(key, 150)} is {kind}")
    return match["path"], _PARTS[match["part"]]


def _not_linears(paths: list[str]) -> str:
    names = list(dict.fromkeys(paths))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    shown = ", ".join(excerpt(name, 100, quote=False) for name in names[:_SHOWN])
    return f"{shown}{more}: the blocks of the base model have no such linear"


def _check_shapes(
    folder: Path, path: str, tensors: Mapping[str, Tensor], size: tuple[int, int]
) -> int:
    """Return the rank of a linear whose two factors fit."""
    found = {part: tensors.get(f"{path}.{part}") for part in _PARTS.values()}
    shapes = {part: None if t is None else tuple(t.shape) for part, t in found.items()}
    down, (inputs, outputs) = shapes["lora_a"], size
    rank = down[0] if down else 0
    if not 0 < rank <= max(size) or shapes != {"lora_a": (rank, inputs), "lora_b": (outputs, rank)}:
        raise ValueError(
            f"adapter {folder}: linear {path} has factors of shape {shapes['lora_a']} and "
            f"{shapes['lora_b']}, expected (r, {inputs}) and ({outputs}, r)"
        )
    return rank


def _alpha(config: Mapping[str, Any], folder: Path, path: str, rank: int) -> float:
    """Return the numerator of the scaling alpha / rank that equals the adapter's scaling."""
    stated = _of_linear(config, "rank_pattern", config.get("r"), path)
    if stated is not None and stated != rank:
        raise ValueError(
            f"adapter {folder}: linear {path} has rank {rank} in its tensors, {excerpt(stated)} in "
            f"{CONFIG}"
        )
    alpha = float(_of_linear(config, "alpha_pattern", config["lora_alpha"], path))
    if config.get("use_rslora") not in (True, False, None):
        raise ValueError(f"adapter {folder}: use_rslora must be true or false")
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _of_linear(config: Mapping[str, Any], key: str, default: Any, path: str) -> Any:
    """Return the value of the first pattern that matches the end of a path, as PEFT does."""
    patterns: Mapping[str, Any] = config.get(key) or {}
    found = (p for p in patterns if re.match(rf"(.*\.)?({p})$", path))
    return patterns.get(next(found, ""), default)


def _check_number(name: str, value: object, folder: Path) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"adapter {folder}: {name} must be a finite number, got {excerpt(value)}")
