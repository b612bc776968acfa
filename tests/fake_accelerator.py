"""A device in Python whose tensors wrap tensors of the CPU; it tells waits and copies of the host.

An operator on device and host tensors together fails as with CUDA. Import it in a process of its
own: it registers a device of torch and replaces ``torch.tensor``.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

import dmole

ROOT, TORCH = (f"{Path(package.__file__).parent}/" for package in (dmole, torch))
WAITS = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
    "_unique2",
    "bincount",
}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
SCALARS = {"_local_scalar_dense", "equal", "is_nonzero"}


class _Module(_DummyBackendModule):
    """The functions that torch calls of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def is_autocast_enabled(self) -> bool:
        return False

    def device(self, index: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def set_device(self, index: Any) -> None:
        pass

    def synchronize(self, *args: Any) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend("fake", backend_module=_Module())
DEVICE = torch.device("fake", 0)
WAITED: collections.Counter[str] = collections.Counter()
"""Waits by kind and the innermost line of the package that causes them."""
UPLOADED: collections.Counter[str] = collections.Counter()
"""Elements copied from the host to the device, by the innermost line of the package."""


@dataclass(frozen=True)
class Copy:
    """A tensor that goes from the host to the device or back."""

    upload: bool
    shape: tuple[int, ...]
    nbytes: int


COPIED: list[Callable[[Copy], None]] = []
"""Functions that are told each copy."""
COLLECTIVES: collections.Counter[str] = collections.Counter()
"""Collective operations by name, kind of what they get (device, host, objects) and line."""


class FakeTensor(torch.Tensor):
    """A tensor on the device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls: type[FakeTensor], inner: torch.Tensor) -> FakeTensor:
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        out.inner = inner
        return out

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: FakeTensor) -> None:
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    def tolist(self) -> Any:
        _wait("tolist")
        return self.inner.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:  # `torch.save` copies what it writes
        _wait("copy to the host")
        _tell(self.inner, upload=False)
        return self.inner.detach().clone().__reduce_ex__(protocol)

    def __repr__(self, **kwargs: Any) -> str:
        _wait("text")
        return repr(self.inner)

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor of a device has no numpy array")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class OnDevice(TorchDispatchMode):
    """Lets factories such as ``torch.zeros`` make tensors of the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _wait(kind: str) -> None:
    """Count a wait if the innermost line outside of torch is one of the package."""
    if line := _line():
        WAITED[f"{kind} at {line}"] += 1


def _line() -> str:
    """Return the innermost line outside of torch; empty if it is not one of the package."""
    line = _caller()
    return line.removeprefix(ROOT) if line.startswith(ROOT) else ""


def _caller() -> str:
    """Return file and number of the innermost line outside of torch."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(TORCH) or frame.f_globals is globals():
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _tell(tensor: torch.Tensor, *, upload: bool) -> None:
    if upload and (line := _line()):
        UPLOADED[line] += tensor.numel()
    copy = Copy(upload, tuple(tensor.shape), tensor.numel() * tensor.element_size())
    for told in COPIED:
        told(copy)


def _is_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == "fake"


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, FakeTensor) else value


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name = func._schema.name.removeprefix("aten::")
    if name.startswith("c10d::"):
        return _collective(func, name.removeprefix("c10d::"), args)
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    ours = [t for t in tensors if isinstance(t, FakeTensor)]
    target = kwargs.get("device")
    if not ours and not _is_device(target):
        return func(*args, **kwargs)
    if name == "_to_copy":
        return _copied(func, args[0], kwargs)
    if name == "copy_":
        return _copied_into(func, args)
    _refuse_mixing(func, name, args, tensors)
    if name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _wait(name)
    if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
        _wait("index by a mask")
    if _is_device(target):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner_args, inner_kwargs = pytree.tree_map(_inner, (args, kwargs))
    out = func(*inner_args, **inner_kwargs)
    if name in SCALARS:
        return out
    wrapped = pytree.tree_map_only(torch.Tensor, FakeTensor, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if ours else wrapped


def _collective(func: Any, name: str, args: Any) -> Any:
    """Run an operation of several ranks, which a backend of devices takes device tensors for."""
    tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    frame, functions = sys._getframe(1), []
    while frame is not None and frame.f_code.co_filename.startswith((__file__, TORCH)):
        functions.append(frame.f_code.co_name)
        frame = frame.f_back
    kind = "device" if all(isinstance(t, FakeTensor) for t in tensors) else "host"
    if any("_object" in function for function in functions):
        kind = "objects"  # bytes, which torch puts on the device of the backend
    if name != "barrier":  # it has a tensor of torch's own
        COLLECTIVES[f"{name} of {kind} at {_caller().removeprefix(ROOT)}"] += 1
    return func(*pytree.tree_map(_inner, args))


def _copied(func: Any, value: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    here = isinstance(value, FakeTensor)
    target = kwargs.get("device")
    there = here if target is None else _is_device(target)
    if here and not there:
        _wait("copy to the host")
    if there and not here and not kwargs.get("non_blocking"):
        _wait("copy to the device")
    if here != there:
        _tell(value, upload=there)
    out = func(_inner(value), **{k: v for k, v in kwargs.items() if k != "device"})
    return FakeTensor(out.clone() if out is _inner(value) else out) if there else out


def _copied_into(func: Any, args: Any) -> Any:
    ours, theirs = (isinstance(arg, FakeTensor) for arg in args[:2])
    if not ours:
        _wait("copy to the host")
    elif not theirs and not (len(args) > 2 and args[2]):
        _wait("copy to the device")
    if ours != theirs:
        _tell(args[1], upload=ours)
    func(_inner(args[0]), _inner(args[1]))
    return args[0]


def _refuse_mixing(func: Any, name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    host = [t for t in tensors if not isinstance(t, FakeTensor) and t.ndim]
    if name in INDEXED and isinstance(args[0], FakeTensor):
        if any(isinstance(i, torch.Tensor) and not isinstance(i, FakeTensor) for i in args[1]):
            _wait("index of the host")
        host = [t for t in args[2:3] if isinstance(t, torch.Tensor) and t.ndim]
        host = [t for t in host if not isinstance(t, FakeTensor)]
    if host:
        raise RuntimeError(f"{func}: a tensor {tuple(host[0].shape)} of the host beside the device")


def _making(make: Any) -> Any:
    def made(data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not _is_device(kwargs.get("device")) or isinstance(data, FakeTensor):
            out: torch.Tensor = make(data, *args, **kwargs)
            return out
        _wait("tensor from the host")
        inner = make(data, *args, **{**kwargs, "device": "cpu"})
        _tell(inner, upload=True)
        return FakeTensor(inner)

    return made


_device_constructors()  # keeps the functions that follow ``with torch.device("meta")``
torch.tensor, torch.as_tensor = _making(torch.tensor), _making(torch.as_tensor)


def _scalar(value: FakeTensor) -> Any:
    _wait("item")
    return value.inner.item()


_library = torch.library.Library("aten", "IMPL")
_library.impl("_local_scalar_dense", _scalar, "PrivateUse1")
