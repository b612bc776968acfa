"""Tensor files with a digest, since safetensors detects a truncated file but no changed number."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dmole.messages import one_line
from dmole.storage.files import atomic_path, check_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

_DIGEST = "sha256"
_EXPERT = "expert"


def write_tensor_file(
    path: Path, tensors: Mapping[str, Tensor], expert: str | None = None, *, flush: bool = True
) -> None:
    """Write tensors, with their digest in the metadata of the safetensors file.

    Equal tensors and names give equal bytes.

    Args:
        path: The file.
        tensors: The tensors by name.
        expert: Name of the expert that the tensors belong to, for the metadata.
        flush: Whether to wait until the disk has the file.

    Raises:
        OSError: If the file cannot be written, for example because the disk is full; names it.
    """
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    metadata = {"format": "pt", _DIGEST: tensor_digest(contiguous)}
    if expert is not None:
        metadata[_EXPERT] = expert
    with atomic_path(path, flush=flush) as temporary:
        try:
            save_file(contiguous, temporary, metadata=metadata)
        except SafetensorError as error:
            if (number := re.search(r"(?:os error|code:) (\d+)", str(error))) is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        _sort_metadata(temporary)


def read_tensor_file(
    path: Path, expert: str | None = None, *, finite: bool = True
) -> dict[str, Tensor]:
    """Return the tensors of a file without executing code from it.

    A file without digest and name, as other programs write it, is read without these checks.

    Args:
        path: The file.
        expert: Name of the expert that the file must belong to; None accepts any.
        finite: Whether each number must be finite.

    Raises:
        ValueError: If the file is missing or damaged, belongs to another expert, or a number in it
            is not finite.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # a header may name a type that torch does not have
        raise ValueError(f"cannot read {path}: {one_line(error)}") from error
    owner = metadata.get(_EXPERT)
    if expert is not None and owner not in (None, expert):
        raise ValueError(f"{path} holds the tensors of expert {owner!r}, not of {expert!r}")
    if metadata.get(_DIGEST) not in (None, tensor_digest(tensors)):
        raise ValueError(f"cannot read {path}: it is damaged, its tensors are not those written")
    for key, tensor in tensors.items() if finite else ():
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


class DigestCache:
    """Digests of groups of tensors, computed again only if a tensor was changed or replaced.

    A change in place is recognized by the version that torch counts for each tensor, so the
    tensors must not be changed through ``.data``.

    Args:
        compute: Returns the digest of named tensors.
    """

    def __init__(self, compute: Callable[[Mapping[str, Tensor]], str]) -> None:
        self._compute = compute
        # the tensors are kept, so that no other tensor gets the address of one that is gone
        self._known: dict[str, tuple[Mapping[str, Tensor], list[tuple[object, ...]], str]] = {}

    def of(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        """Return the digest of the tensors of a name."""
        identity = [_identity(key, tensor) for key, tensor in tensors.items()]
        known = self._known.get(name)
        if known is None or known[1] != identity:
            known = self._known[name] = (dict(tensors), identity, self._compute(tensors))
        return known[2]

    def forget(self, name: str) -> None:
        """Forget the tensors of a name."""
        self._known.pop(name, None)


def _identity(key: str, tensor: Tensor) -> tuple[object, ...]:
    """Return name, address, version and shape of a tensor.

    Torch does not count changes of a tensor of inference mode, which is equal to none therefore.
    """
    if tensor.is_inference():
        return (object(),)
    return key, tensor.data_ptr(), tensor._version, tuple(tensor.shape)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, whose order is random in each process.

    The file begins with the length of the header, 8 bytes, and the header, JSON padded with spaces.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:
            raise RuntimeError(f"the header of {path} has {len(text)} bytes instead of {length}")
        file.seek(8)
        file.write(text.ljust(length))
