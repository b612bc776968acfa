"""A finished run as a model that answers prompts. It needs no Lightning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from dmole.data.decoding import AS_STORED, ImageOptions
from dmole.experts.export import read_expert
from dmole.inference.answering import AnsweringModel
from dmole.inference.joining import join, leave
from dmole.inference.requests import DEFAULT_TOKENS, ImageInput, Route, make_request
from dmole.inference.residency import ExpertResidency

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dmole.models.backbone import Backbone
    from dmole.routing import Router


class RoutedModel(AnsweringModel):
    """A base model, its experts and the router that selects them, for answers.

    :func:`dmole.load` makes it. It is not thread-safe: one thread calls it at a time.

    Args:
        backbone: The base model; experts are added to it in place.
        router: Chooses the experts of a request.
        images: How images become RGB pictures.
        options: Further arguments of :class:`~dmole.inference.answering.AnsweringModel`.

    Attributes:
        sources: Folder that each expert was read from.
        base_digest: SHA-256 of the base model's weights as the run recorded it.

    Example:
        >>> from dmole import AutoencoderRouter, PretrainedBackbone
        >>> from dmole.inference import RoutedModel
        >>> model = RoutedModel(PretrainedBackbone("tiny"), AutoencoderRouter())
        >>> model.experts, model.route(prompt="how many?").experts
        ((), ())
    """

    def __init__(
        self,
        backbone: Backbone,
        router: Router,
        *,
        images: ImageOptions = AS_STORED,
        **options: Any,
    ) -> None:
        super().__init__(backbone, router, **options)
        self.images = images
        self.sources: dict[str, Path] = {}
        self.base_digest: str | None = None

    def to(self, device: str | torch.device) -> RoutedModel:
        """Move base model and experts to a device, and return the model."""
        if self.residency is not None:
            self.residency.require(self.experts)  # `to` moves what is loaded
        self.backbone.to(device)
        return self

    # -- one prompt or several -------------------------------------------------------------

    @overload
    def generate(
        self,
        images: ImageInput | Sequence[ImageInput] | None = None,
        prompt: str = ...,
        *,
        expert: str | None = None,
        max_new_tokens: int = DEFAULT_TOKENS,
    ) -> str: ...

    @overload
    def generate(
        self,
        images: Sequence[ImageInput | Sequence[ImageInput] | None] | None = None,
        prompt: Sequence[str] = ...,
        *,
        expert: str | None = None,
        max_new_tokens: int = DEFAULT_TOKENS,
    ) -> list[str]: ...

    def generate(
        self,
        images: Any = None,
        prompt: str | Sequence[str] = "",
        *,
        expert: str | None = None,
        max_new_tokens: int = DEFAULT_TOKENS,
    ) -> str | list[str]:
        """Return the answer to a prompt, or the answers to several.

        Args:
            images: The image or the images of the prompt; for several prompts, one entry for each.
            prompt: One prompt or a list.
            expert: Experts that answer, names joined by ``+``; ``base`` is the base model alone.
                None leaves the choice to the router.
            max_new_tokens: Maximum number of tokens of an answer.

        Raises:
            ValueError: If an expert is unknown, an image cannot be read, or a prompt is too long.
        """
        chosen = None if expert is None else self.expert_names(expert)
        requests = [
            make_request(
                text, each, max_new_tokens=max_new_tokens, experts=chosen, options=self.images
            )
            for text, each in _pairs(prompt, images)
        ]
        texts = [answer.text for answer in self.answer(requests)]
        return texts[0] if isinstance(prompt, str) else texts

    @overload
    def route(
        self, images: ImageInput | Sequence[ImageInput] | None = None, prompt: str = ...
    ) -> Route: ...

    @overload
    def route(
        self,
        images: Sequence[ImageInput | Sequence[ImageInput] | None] | None = None,
        prompt: Sequence[str] = ...,
    ) -> list[Route]: ...

    def route(self, images: Any = None, prompt: str | Sequence[str] = "") -> Route | list[Route]:
        """Return the router's choice for a prompt, or for several; see :meth:`generate`."""
        pairs = _pairs(prompt, images)
        requests = [make_request(text, each, options=self.images) for text, each in pairs]
        routes = self.route_requests(requests)
        return routes[0] if isinstance(prompt, str) else routes

    def expert_names(self, text: str) -> tuple[str, ...]:
        """Return the experts that a text names: ``base``, a name, or names joined by ``+``.

        The expert that all tasks share, if there is one, joins those that are named.

        Raises:
            ValueError: If an expert is unknown or named twice, or that one is named alone.
        """
        if text == "base":
            return ()
        names = (text,) if text in self.experts else tuple(text.split("+"))
        return self._named(names)

    # -- experts ---------------------------------------------------------------------------

    def limit_memory(self, **options: Any) -> ExpertResidency:
        """Unload experts that are not used, from now on, and return what does it.

        Args:
            options: Arguments of :class:`~dmole.inference.ExpertResidency`, such as ``max_loaded``.

        Raises:
            ValueError: If an option is not valid.
        """
        if self.residency is not None:
            self.residency.require(self.experts)
        self.residency = ExpertResidency(self.library, self._read_expert, **options)
        return self.residency

    def add_expert(self, run: str | Path, name: str, trusted: Sequence[str] = ()) -> None:
        """Add an expert of another run on this base model; see `dmole.inference.joining.join`."""
        join(self, Path(run), name, trusted)

    def remove_expert(self, name: str) -> None:
        """Take an expert and its router entry out; see `dmole.inference.joining.leave`."""
        leave(self, name)

    def _read_expert(self, name: str) -> Mapping[str, Tensor]:
        return read_expert(self.sources[name], saved_as=name)[1]


def _pairs(prompt: str | Sequence[str], images: Any) -> list[tuple[str, Any]]:
    """Return prompts with their images.

    Raises:
        ValueError: If there are not as many entries of images as prompts.
    """
    if isinstance(prompt, str):
        return [(prompt, images)]
    if images is None:
        return [(text, None) for text in prompt]
    if isinstance(images, ImageInput) or len(images) != len(prompt):
        count = 1 if isinstance(images, ImageInput) else len(images)
        raise ValueError(f"{len(prompt)} prompts need as many entries of images, got {count}")
    return list(zip(prompt, images, strict=True))
