"""One pass of the vision encoder for all that read the same images of a batch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dmole.experts.library import modules_without_experts
from dmole.models.vision_cache import WITHOUT_EFFECT, VisionCache

if TYPE_CHECKING:
    from dmole.data.image_store import ImageStore
    from dmole.experts import ExpertLibrary
    from dmole.models.backbone import Backbone


class SharedVision:
    """Returns the output of the vision encoder again for inputs that it has seen in this batch.

    The router's embedding and the answer read the same images, and so do the forward passes of a
    distillation. The encoder runs again if an expert computes in it, if its weights train, or if
    it drops entries at random. Reuse is exact: arguments are compared by value, and precision must
    be the same. In a mixed precision the embedding is computed in full precision, so that a step
    does not reuse it. Where neither experts nor gradients are in the encoder it runs without
    autograd, so that activation checkpointing keeps none of its inputs. Where the base model is
    split over ranks the encoder always runs, since all ranks must run it equally often.

    With a store, outputs are also kept by image for later batches, see
    `dmole.models.vision_cache`.

    Args:
        backbone: The base model.
        library: Its experts.
        store: Keeps outputs of the encoder by image; None keeps those of the batch only.
    """

    def __init__(
        self, backbone: Backbone, library: ExpertLibrary, store: ImageStore | None = None
    ) -> None:
        self._backbone = backbone
        self._root = backbone.parts.vision
        self._encoder: Any = backbone.model.get_submodule(self._root)
        self._library = library
        config: Any = backbone.model.config
        self._cache = None if store is None else VisionCache(self._encoder, config, store)
        self._drops = has_dropout(self._encoder, config.vision_config)
        self._installed = False
        self._recording = False
        self._keep = False
        self._known: tuple[_Call, Any] | None = None

    @property
    def has_store(self) -> bool:
        """Whether outputs are kept by image for later batches."""
        return self._cache is not None

    @contextmanager
    def shared(self, *, keep: bool = False) -> Iterator[None]:
        """Share the passes of one batch in the body of a ``with`` statement.

        Args:
            keep: Whether every output is kept until a later one replaces it. Otherwise only an
                output that was `recorded` is, until the next pass, so that it takes no memory
                during a ``generate`` or a backward pass.
        """
        self._keep = keep
        try:
            with self._wrapped():
                yield
        finally:
            self._keep, self._known = False, None

    @contextmanager
    def cached(self) -> Iterator[None]:
        """Use the store, if there is one, in the body of a ``with`` statement."""
        if self._cache is None:
            yield
            return
        with self._wrapped():
            yield

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        """Replace the ``forward`` of the encoder in the body, once."""
        if self._installed:
            yield
            return
        encoder, before = self._encoder, vars(self._encoder).get("forward")
        encoder.forward = functools.partial(self._forward, encoder.forward)
        self._installed = True
        try:
            yield
        finally:
            self._installed, self._known = False, None
            if before is None:
                del encoder.forward
            else:
                encoder.forward = before

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep the output of the encoder in the body for the next pass over the same images."""
        before, self._recording = self._recording, True
        try:
            with self.cached():
                yield
        finally:
            self._recording = before

    def _forward(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the output of the encoder, by its own ``forward`` unless it is known."""
        frozen = self._is_frozen()
        if self._backbone.in_step:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                return plain(*args, **kwargs)
        call, known = _Call.of(args, kwargs), self._known
        fixed = frozen and not (self._drops and self._encoder.training)
        if not self._keep:
            self._known = None
        if known is not None and fixed and known[0].equals(call):
            return copy.copy(known[1])  # some families change the fields of an output
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            if fixed and self._cache is not None:
                output = self._cache(plain, args, kwargs, call.cast)
            else:
                output = plain(*args, **kwargs)
        if fixed and (self._keep or self._recording):
            self._known = call, copy.copy(output)
        return output

    def _is_frozen(self) -> bool:
        """Return whether no expert computes in the encoder, and none of its weights trains."""
        if self._library.computes_below(self._root):
            return False
        if not torch.is_grad_enabled():
            return True
        if self._library.trains_below(self._root):
            return False
        base = modules_without_experts(self._encoder)
        return not any(p.requires_grad for module in base for p in module.parameters(recurse=False))


@dataclass(frozen=True)
class _Call:
    """The arguments of a pass, and the state of torch that its output depends on."""

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    state: tuple[Any, ...]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Call:
        used = {k: v for k, v in kwargs.items() if v is not None and k not in WITHOUT_EFFECT}
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        kind = next((tensor.device.type for tensor in tensors), "cpu")
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return cls((args, used), (cast, torch.is_inference_mode_enabled()))

    @property
    def cast(self) -> torch.dtype | None:
        """Type of autocast; None without it."""
        cast: torch.dtype | None = self.state[0]
        return cast

    def equals(self, other: _Call) -> bool:
        return self.state == other.state and _equal(self.arguments, other.arguments)


def _equal(one: Any, other: Any) -> bool:
    """Return whether nested arguments have the same values."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        alike = one.dtype == other.dtype and one.device == other.device
        return alike and one.requires_grad == other.requires_grad and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_equal(*pair) for pair in pairs)
    return bool(one == other)


def has_dropout(encoder: nn.Module, config: Any) -> bool:
    """Return whether an encoder drops entries at random in training.

    Args:
        encoder: The vision encoder, without experts.
        config: Its config; attention takes its dropout from there, without a submodule.
    """
    values = config.to_dict().items()
    configured = any(
        "drop" in key and isinstance(value, int | float) and value > 0 for key, value in values
    )
    modules = (m for m in encoder.modules() if isinstance(m, nn.modules.dropout._DropoutNd))
    return configured or any(module.p > 0 for module in modules)
