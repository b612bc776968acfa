"""Keeps past experts in host memory while no sample of a batch uses them."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmole.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from dmole.experts.expert import ExpertPart
    from dmole.experts.library import ExpertLibrary


class PastExperts:
    """Keeps frozen experts in host memory, and loads those that a batch uses.

    The parameters of an expert that is not loaded are empty, so that moving the model or setting up
    distributed training does not move them. Their values are those of :meth:`held`.

    Args:
        library: The experts.
        limit: Maximum number of frozen experts that stay loaded between batches; a batch may use
            more. None keeps all experts loaded.

    Attributes:
        loads: Number of experts loaded so far.

    Raises:
        ValueError: If the limit is negative.
    """

    def __init__(self, library: ExpertLibrary, limit: int | None = None) -> None:
        if limit is not None and limit < 0:
            raise ValueError(f"past_experts_on_device must not be negative, got {limit}")
        self.limit = limit
        self.loads = 0
        self._library = library
        self._held: dict[str, dict[str, Tensor]] = {}
        self._loaded: OrderedDict[str, None] = OrderedDict()  # of those held; oldest use first

    @property
    def loaded(self) -> tuple[str, ...]:
        """Held experts that are loaded, those that were not used for longest first."""
        return tuple(self._loaded)

    def held(self, name: str) -> Mapping[str, Tensor] | None:
        """Return the parameters of an expert in host memory; None if it is not kept there."""
        return self._held.get(name)

    def hold(self, training: Collection[str]) -> list[str]:
        """Keep all experts but those in training in host memory, and unload them.

        Args:
            training: Experts that train; they are loaded and no longer kept in host memory.

        Returns:
            Experts that were not kept there before.
        """
        if self.limit is None:
            return []
        for name in training:
            self.release(name)
        frozen = [name for name in self._library.names if name not in training]
        new = [name for name in frozen if name not in self._held]
        for name in new:
            self._hold(name)
        self._unload(self._loaded)
        return new

    def release(self, name: str) -> None:
        """Load an expert and stop keeping it in host memory."""
        self.require((name,))
        self.forget(name)

    def require(self, names: Iterable[str]) -> None:
        """Load experts that a forward uses. None is unloaded before :meth:`trim`."""
        if not self._held:
            return
        for name in names:
            if name in self._held:
                if name not in self._loaded:
                    self._load(name)
                self._loaded[name] = None
                self._loaded.move_to_end(name)

    def trim(self) -> None:
        """Unload the experts beyond the limit, those that were not used for longest first.

        No graph may need them: autograd keeps the parameters of a forward, not their values.
        """
        if self.limit is not None and len(self._loaded) > self.limit:
            self._unload(list(self._loaded)[: len(self._loaded) - self.limit])

    def unload(self, name: str) -> None:
        """Unload an expert whose held values were changed."""
        if name in self._loaded:
            self._unload((name,))

    def forget(self, name: str) -> None:
        """Drop what is held of an expert."""
        self._held.pop(name, None)
        self._loaded.pop(name, None)

    def _hold(self, name: str) -> None:
        held = {}
        with _plain_tensors():
            for key, expert, part in self._parameters(name):
                data = expert.get_parameter(part).data
                value = data.cpu()
                held[key] = value.pin_memory() if data.is_cuda else value
                expert.get_parameter(part).data = data.new_empty(0)
        self._held[name] = held

    def _load(self, name: str) -> None:
        held = self._held[name]
        with _plain_tensors():
            for key, expert, part in self._parameters(name):
                parameter = expert.get_parameter(part)  # empty, where the model is
                parameter.data = to_device(held[key], parameter.device)
        self.loads += 1

    def _unload(self, names: Iterable[str]) -> None:
        for name in list(names):
            with _plain_tensors():
                for _, expert, part in self._parameters(name):
                    parameter = expert.get_parameter(part)
                    parameter.data = parameter.data.new_empty(0)
            del self._loaded[name]

    def _parameters(self, name: str) -> Iterator[tuple[str, ExpertPart, str]]:
        """Yield key in the library, expert and name in it of each parameter; buffers are small."""
        for path, expert in self._library.parts(name):
            for part, _ in expert.named_parameters():
                yield f"{path}.{part}", expert, part


def _plain_tensors() -> torch.inference_mode:
    """Return a context whose tensors may enter a graph later, though an evaluation loads them."""
    return torch.inference_mode(mode=False)
