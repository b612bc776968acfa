"""Experts merged into the weights of the base model, for programs that know no experts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dmole.inference import load
from dmole.models.quantization import entries
from dmole.storage.folders import new_folder

if TYPE_CHECKING:
    from dmole.experts import ExpertLibrary
    from dmole.inference import RoutedModel

DTYPES = ("float32", "bfloat16", "float16")


def merge_run(
    run: str | Path,
    names: Sequence[str],
    output: Path,
    *,
    dtype: str | None = None,
    base: str | None = None,
    trusted: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> None:
    """Write the base model with experts added to its weights, and its processor.

    Each linear with experts gets ``W + sum (alpha / r) B A``, computed in float64 and rounded once
    to the dtype of the output. transformers loads the folder alone.

    Args:
        run: A run folder, a bundle or ``hf://org/name``.
        names: The experts.
        output: The folder to make.
        dtype: One of `DTYPES`; None keeps the dtype of the base model.
        base: Folder or hub name of the base model, if it is not where the run had it.
        trusted: Modules outside dmole whose classes the run may name.
        trust_remote_code: Whether code in the folder of the base model may run.

    Raises:
        ValueError: If the output exists, an expert is unknown, named twice or weighted by token,
            the base model is quantized or shares the weight of a linear, or the experts act
            together only by weights of each token.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    with new_folder(output) as folder:
        model = load(run, base=base, trusted=trusted, trust_remote_code=trust_remote_code)
        chosen = model.expert_names("+".join(names))
        if not chosen:
            raise ValueError("--experts base is the base model alone: there is nothing to merge")
        _check_plain(model, chosen)
        merge_experts(model.library, chosen, None if dtype is None else getattr(torch, dtype))
        _save(model, folder)


def merge_experts(
    library: ExpertLibrary, names: Sequence[str], dtype: torch.dtype | None = None
) -> None:
    """Add experts to the weights of their model in place, and remove all experts of the library.

    The sum of one linear at a time is held in float64.

    Args:
        library: The experts on their model.
        names: Experts to add.
        dtype: Dtype of the whole model afterwards; None keeps that of each weight.
    """
    added: dict[str, list[Any]] = {}
    for name in names:
        for path, expert in library.experts(name):
            added.setdefault(path, []).append(expert)
    for name in library.names:
        library.remove(name)
    for path, experts in added.items():
        linear: Any = library.model.get_submodule(path)
        weight = linear.weight
        merged = _merged(weight, experts).to(weight.dtype if dtype is None else dtype)
        linear.weight = nn.Parameter(merged, requires_grad=False)
    if dtype is not None:
        library.model.to(dtype)


@torch.no_grad()
def _merged(weight: torch.Tensor, experts: Sequence[Any]) -> torch.Tensor:
    """Return the weight of one linear with its experts, (out, in) in float64."""
    products = (e.scaling * (e.up.double() @ e.lora_a.double()) for e in experts)
    update: torch.Tensor = reduce(torch.add, products)
    return weight.double() + update


def _check_plain(model: RoutedModel, names: Sequence[str]) -> None:
    """Refuse experts and base models whose sum is no plain weight."""
    base = model.backbone.model
    if any(entries(p) != p.numel() or not p.is_floating_point() for p in base.parameters()):
        raise ValueError(
            "the base model is quantized: experts are merged into weights of full precision alone"
        )
    if model.router.mixing is not None:
        raise ValueError(
            f"the router of the run ({type(model.router).__name__}) weighs experts by token, which "
            "no plain weight does"
        )
    for name in names:
        if model.library.has_prompt(name):
            raise ValueError(f"the expert {name!r} is a soft prompt, which no weight equals")
    used: dict[int, list[str]] = {}
    for path, parameter in base.named_parameters(remove_duplicate=False):
        used.setdefault(parameter.data_ptr(), []).append(path)
    for name in names:
        for path, expert in model.library.experts(name):
            if expert.shape.branches != 1 or expert.shape.heads:
                raise ValueError(
                    f"the expert {name!r} is a mixture ({path}), which no plain weight equals"
                )
            linear: Any = base.get_submodule(path)
            if len(users := used[linear.weight.data_ptr()]) > 1:
                raise ValueError(f"the weight of {path} is shared with {users[-1]}: cannot merge")


def _save(model: RoutedModel, folder: Path) -> None:
    """Save model and processor in the form of transformers, without a place on this machine."""
    base: Any = model.backbone.model
    base.save_pretrained(folder)
    model.backbone.processor.save_pretrained(folder)
    usual = (folder / "config.json").stat().st_mode
    for path in folder.glob("*.safetensors"):  # safetensors writes them for the owner alone
        path.chmod(usual)
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
