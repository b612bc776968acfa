"""Arguments of the trainer that are refused in one line, before Lightning reads them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dmole.messages import excerpt, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST_NAME = 200

RESTRICTED: dict[str, tuple[Any, ...]] = {
    "max_steps": (-1,),
    "max_time": (),
    "min_steps": (),
    "min_epochs": (),
    "fast_dev_run": (False,),
    "limit_test_batches": (1.0,),
    "overfit_batches": (0.0,),
}
"""Allowed values of the arguments that could leave stages or the matrix incomplete."""

_LEAST = {
    "version": 0,
    "num_nodes": 1,
    "accumulate_grad_batches": 1,
    "log_every_n_steps": 0,
    "gradient_clip_val": 0.0,
    "limit_train_batches": 0,
    "check_val_every_n_epoch": 1,
    "reload_dataloaders_every_n_epochs": 0,
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that would fail late, with a traceback, or leave stages incomplete.

    Args:
        arguments: Arguments for Lightning's trainer, by name.

    Raises:
        ValueError: If one is out of range; names it.
    """
    for option, allowed in RESTRICTED.items():
        if arguments.get(option) not in (None, *allowed):
            raise ValueError(f"trainer.{option} cuts stages short: a sequence needs them whole")
    for option, least in _LEAST.items():
        value = arguments.get(option)
        if isinstance(value, (int, float)) and not least <= value < math.inf:
            raise ValueError(f"trainer.{option} must be at least {least}, got {value}")
    _check_name(str(arguments.get("name", "-")))
    check_devices(arguments.get("devices"), str(arguments.get("accelerator") or "auto"))


def _check_name(name: str) -> None:
    if name != visible(name) or len(name) > _LONGEST_NAME:
        raise ValueError(
            f"trainer.name {excerpt(name)} must be at most {_LONGEST_NAME} visible characters"
        )
    if not name.strip() or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"trainer.name must name a folder in default_root_dir, got {name!r}")


def check_devices(devices: Any, accelerator: str) -> None:
    """Refuse devices that do not exist or are no devices.

    Args:
        devices: ``auto``, a number, or a list of numbers, as text or value; None is ``auto``.
        accelerator: Name of the accelerator.

    Raises:
        ValueError: If the value is none of these, or the CPU gets a list or more processes than
            eight and the number of its cores.

    Example:
        >>> check_devices("2", "cpu")
        >>> check_devices(-3, "cpu")
        Traceback (most recent call last):
        ValueError: trainer.devices must be at least 1 on the CPU, got -3
    """
    if devices is None or devices == "auto":
        return
    shown = f"got {devices!r}" if isinstance(devices, str) else f"got {devices}"
    listed = isinstance(devices, (list, tuple)) or "," in str(devices)
    texts = devices if isinstance(devices, (list, tuple)) else str(devices).split(",")
    try:
        numbers = [int(str(text)) for text in texts if str(text).strip() or not listed]
    except ValueError:
        raise ValueError(
            f"trainer.devices must be auto, a number or a list of numbers, {shown}"
        ) from None
    if accelerator == "cpu" or (accelerator == "auto" and not _has_accelerator()):
        limit = max(8, os.cpu_count() or 1)
        if listed:
            raise ValueError(f"trainer.devices lists GPUs, the CPU takes a number, {shown}")
        if numbers[0] < 1:
            raise ValueError(f"trainer.devices must be at least 1 on the CPU, {shown}")
        if numbers[0] > limit:
            raise ValueError(f"trainer.devices must be at most {limit} on this CPU, {shown}")
    elif not numbers or (listed and (min(numbers) < 0 or len(set(numbers)) < len(numbers))):
        raise ValueError(f"trainer.devices must list different GPUs, {shown}")
    elif not listed and (numbers[0] < -1 or numbers[0] == 0):
        raise ValueError(f"trainer.devices must be at least 1, or -1 for all, {shown}")


def check_launched(devices: int, nodes: int) -> None:
    """Refuse another number of processes than torchrun has started.

    With one device, each process would make a run of its own.

    Args:
        devices: Processes of a node, as the trainer understands ``trainer.devices``.
        nodes: Number of nodes.

    Raises:
        ValueError: If the numbers differ.
    """
    started = os.environ.get("WORLD_SIZE", "")
    if (
        "TORCHELASTIC_RUN_ID" in os.environ
        and started.isdigit()
        and int(started) != devices * nodes
    ):
        raise ValueError(
            f"torchrun has started {started} processes, but trainer.devices {devices} and "
            f"trainer.num_nodes {nodes} make {devices * nodes}"
        )


def _has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()
