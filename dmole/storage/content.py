"""Digests and checks of nested content: mappings, lists, tensors and plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def content_digest(content: Any) -> str:
    """Return the SHA-256 of nested content, including the order of mappings.

    Args:
        content: Mappings, lists, tuples, sets, tensors of any shape, and plain values.

    Example:
        >>> content_digest({"a": [1, 2]}) == content_digest({"a": (1, 2)})
        True
        >>> content_digest({"a": 1, "b": 2}) == content_digest({"b": 2, "a": 1})
        False
    """
    digest = hashlib.sha256()
    for part in _parts(content):
        digest.update(part)
    return digest.hexdigest()


def not_finite(content: Any, place: str) -> str | None:
    """Return the place of the first tensor with a NaN or an infinity, None if there is none.

    Args:
        content: Nested content.
        place: Name of the content; the keys of the tensor follow, separated by ``/``.

    Example:
        >>> not_finite({"a": [torch.ones(2), torch.tensor(float("nan"))]}, "state")
        'state/a/1'
    """
    if isinstance(content, Tensor):
        numeric = content.is_floating_point() or content.is_complex()
        return place if numeric and not torch.isfinite(content).all() else None
    if isinstance(content, Mapping):
        entries: Any = content.items()
    elif isinstance(content, list | tuple):
        entries = enumerate(content)
    else:
        return None
    found = (not_finite(value, f"{place}/{key}") for key, value in entries)
    return next((inner for inner in found if inner is not None), None)


def on_host(content: Any) -> Any:
    """Return nested content with its tensors on the CPU; what is there already stays the same.

    Args:
        content: Nested content.

    Example:
        >>> content = {"a": [torch.ones(2)]}
        >>> on_host(content) is content
        True
    """
    if isinstance(content, Tensor):
        return content if content.device.type == "cpu" else content.detach().cpu()
    if isinstance(content, Mapping):
        moved = {key: on_host(value) for key, value in content.items()}
        return content if all(moved[key] is content[key] for key in moved) else moved
    if type(content) in (list, tuple):
        values = [on_host(value) for value in content]
        same = all(new is old for new, old in zip(values, content, strict=True))
        return content if same else type(content)(values)
    return content


def _parts(content: Any) -> Iterator[bytes]:
    """Yield bytes that determine the content; each part states its kind and its length."""
    if isinstance(content, Tensor):
        flat = content.detach().cpu().contiguous().reshape(-1)
        yield f"tensor {content.dtype} {tuple(content.shape)}\n".encode()
        yield flat.view(torch.uint8).numpy().tobytes()
    elif isinstance(content, Mapping):
        yield f"mapping {len(content)}\n".encode()
        for key, value in content.items():
            yield from _parts(key)
            yield from _parts(value)
    elif isinstance(content, list | tuple):
        yield f"list {len(content)}\n".encode()
        for value in content:
            yield from _parts(value)
    elif isinstance(content, set | frozenset):
        yield from _parts(sorted(map(repr, content)))
    else:
        text = content if isinstance(content, bytes) else repr(content).encode()
        yield f"{type(content).__name__} {len(text)}\n".encode()
        yield text
