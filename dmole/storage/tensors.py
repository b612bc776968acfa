"""Tensor files with a digest, since safetensors detects a truncated file but no changed number."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dmole.messages import one_line
from dmole.storage.files import atomic_path, check_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_KEY = "sha256"


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, with their digest in the metadata of the safetensors file."""
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        digest = tensor_digest(contiguous)
        save_file(contiguous, temporary, metadata={"format": "pt", _KEY: digest})


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file without executing code from it.

    A file without a digest, as other programs write it, is read without this check.

    Raises:
        ValueError: If the file is missing or damaged, or a number in it is not finite.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get(_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # a header may name a type that torch does not have
        raise ValueError(f"cannot read {path}: {one_line(error)}") from error
    if stated is not None and stated != tensor_digest(tensors):
        raise ValueError(f"cannot read {path}: it is damaged, its tensors are not those written")
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"cannot use {path}: tensor {key} holds a number that is not finite")
    return tensors


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
