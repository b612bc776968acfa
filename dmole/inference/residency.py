"""Keeps the experts that are used in memory and the others on the CPU or on disk.

With hundreds of experts, most of them idle, their memory matters more than the time to load one.
An expert is loaded before the batch that uses it and unloaded after one that does not.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dmole.inference.activity import ActivityWindow

if TYPE_CHECKING:
    from dmole.experts import ExpertLibrary

log = logging.getLogger("dmole")

Storage = Literal["cpu", "disk"]
ReadExpert = Callable[[str], Mapping[str, Tensor]]
"""Returns the tensors of an expert by name, keyed as in the library."""


class ExpertResidency:
    """Loads experts on demand and unloads those that were not used lately.

    Args:
        library: The experts, all loaded.
        read: Reads an expert from disk.
        max_loaded: Maximum number of experts that stay loaded between batches, pinned ones
            included; None sets no limit. A batch may use more.
        idle_after: Requests without a use after which an expert is unloaded; None sets no limit.
        storage: Where unloaded experts are: ``cpu`` needs experts on another device; ``disk``
            reads the files of the run again.
        pinned: Experts that are never unloaded.
        window: Requests over which activations are counted.
        takeover: Share of the window from which one expert gets a warning; 1 never warns.

    Attributes:
        activity: Activations of the last requests.
        loads: Number of experts loaded again so far.

    Raises:
        ValueError: If a number is out of range, a pinned expert is unknown, or ``storage`` is
            ``cpu`` and experts are there already.
    """

    def __init__(
        self,
        library: ExpertLibrary,
        read: ReadExpert,
        *,
        max_loaded: int | None = None,
        idle_after: int | None = None,
        storage: Storage = "disk",
        pinned: Iterable[str] = (),
        window: int = 1000,
        takeover: float = 0.9,
    ) -> None:
        for name, value in (("max_loaded", max_loaded), ("idle_after", idle_after)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < takeover <= 1:
            raise ValueError(f"takeover must be in (0, 1], got {takeover}")
        if storage not in ("cpu", "disk"):
            raise ValueError(f"storage must be 'cpu' or 'disk', got {storage!r}")
        if storage == "cpu" and any(_on_cpu(library, name) for name in library.names):
            raise ValueError("the experts are on the CPU already: unload them to disk")
        self.activity = ActivityWindow(window)
        self.loads = 0
        self._library = library
        self._read = read
        self._max_loaded = max_loaded
        self._idle_after = idle_after
        self._storage: Storage = storage
        self._takeover = takeover
        self._warned: str | None = None
        self._requests = 0
        self._pinned: set[str] = set()
        self._digests: dict[str, str] = {}  # of unloaded experts
        self._devices: dict[str, torch.device] = {}  # where they were before
        self._last_use = OrderedDict((name, 0) for name in library.names)  # oldest use first
        for name in pinned:
            self.pin(name)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Experts in memory, in the order of the library."""
        return tuple(name for name in self._library.names if name not in self._digests)

    @property
    def unloaded(self) -> tuple[str, ...]:
        """Experts that are not in memory, in the order of the library."""
        return tuple(name for name in self._library.names if name in self._digests)

    def pin(self, name: str) -> None:
        """Load an expert and keep it loaded.

        Raises:
            ValueError: If there is no such expert, or it cannot be loaded.
        """
        if name not in self._library.names:
            raise ValueError(f"there is no expert {name!r} to pin")
        self._pinned.add(name)
        self.require([name])

    def unpin(self, name: str) -> None:
        """Let an expert be unloaded again."""
        self._pinned.discard(name)

    def require(self, names: Iterable[str]) -> None:
        """Load experts before a batch uses them.

        Raises:
            ValueError: If the files of an expert are missing or were changed; names the expert.
        """
        for name in dict.fromkeys(names):
            if name in self._digests:
                self._load(name)

    def record(self, requests: Sequence[Sequence[str]]) -> None:
        """Count the experts of a batch after its answers, and unload idle experts."""
        for experts in requests:
            self._requests += 1
            self.activity.record(experts)
            for name in experts:
                self._last_use[name] = self._requests
                self._last_use.move_to_end(name)
        self._warn_of_takeover()
        for name in self._idle():
            self.unload(name)

    def unload(self, name: str) -> int:
        """Free the memory of an expert, and return the number of bytes.

        With ``storage="cpu"`` an expert on the CPU stays as it is.

        Raises:
            ValueError: If the expert is pinned.
        """
        if name in self._digests:
            return 0
        if name in self._pinned:
            raise ValueError(f"expert {name!r} is pinned")
        if self._storage == "cpu" and _on_cpu(self._library, name):  # the model was moved there
            return 0
        tensors = self._tensors(name).values()
        freed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self._digests[name] = self._library.digest(name)
        for tensor in tensors:
            self._devices[name] = tensor.device
            tensor.data = tensor.data.cpu() if self._storage == "cpu" else tensor.data.new_empty(0)
        return freed

    def digest(self, name: str) -> str:
        """Return the SHA-256 of an expert's tensors, also of an unloaded one."""
        return self._digests.get(name) or self._library.digest(name)

    def forget(self, name: str) -> None:
        """Drop all that is known of an expert, which has left the library."""
        self._digests.pop(name, None)
        self._last_use.pop(name, None)
        self._pinned.discard(name)

    def _load(self, name: str) -> None:
        tensors, values = self._tensors(name), self._values(name)
        if tensors.keys() != values.keys():
            raise ValueError(f"expert {name!r} was changed on disk since it was loaded")
        before = {key: tensor.data for key, tensor in tensors.items()}
        for key, tensor in tensors.items():
            tensor.data = values[key].to(self._devices[name], tensor.dtype)
        if self._library.digest(name) != self._digests[name]:
            for key, tensor in tensors.items():
                tensor.data = before[key]
            raise ValueError(f"expert {name!r} was changed on disk since it was loaded")
        del self._digests[name]
        self._last_use.setdefault(name, self._requests)
        self.loads += 1

    def _values(self, name: str) -> Mapping[str, Tensor]:
        """Return the values of an unloaded expert."""
        return self._tensors(name) if self._storage == "cpu" else self._read(name)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        """Return the parameters and buffers of an expert themselves, keyed as in the library."""
        return {
            f"{path}.{key}": tensor
            for path, expert in self._library.parts(name)
            for key, tensor in [*expert.named_parameters(), *expert.named_buffers()]
        }

    def _idle(self) -> list[str]:
        """Return the loaded experts to unload, those that were not used for longest first."""
        loaded = [name for name in self._last_use if name not in self._digests]
        free = [name for name in loaded if name not in self._pinned]
        excess = 0 if self._max_loaded is None else max(0, len(loaded) - self._max_loaded)
        idle = free[:excess]
        if self._idle_after is not None:
            least = self._requests - self._idle_after
            idle += [name for name in free[excess:] if self._last_use[name] < least]
        return idle

    def _warn_of_takeover(self) -> None:
        """Warn once when an expert answers nearly all requests, and again after it has stopped."""
        name = self.activity.dominant(self._takeover) if self._takeover < 1 else None
        if name is not None and name != self._warned:
            log.warning(
                "expert %r answered %.0f%% of the last %d requests: look at the thresholds of the "
                "other experts, or at the requests",
                name,
                100 * self.activity.share(name),
                self.activity.size,
            )
        self._warned = name


def _on_cpu(library: ExpertLibrary, name: str) -> bool:
    return any(parameter.device.type == "cpu" for _, parameter in library.parameters(name))
