"""A base model with experts and a router that answers prompts. It needs no Lightning."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from dmole.data.collate import Batch, Collator
from dmole.data.decoding import AS_STORED, ImageOptions
from dmole.experts import ExpertLibrary, Gates
from dmole.inference.decoding import AnswerProgress, OnText, as_criteria
from dmole.inference.precision import autocast
from dmole.inference.requests import DEFAULT_TOKENS, Answer, ImageInput, Request, make_request
from dmole.models.embedder import Embedder
from dmole.models.generation import end_ids
from dmole.routing import AutoencoderRouter, RouteQuery, Router, Routing
from dmole.routing.routers import route_by_name

if TYPE_CHECKING:
    from dmole.data.sample import Sample
    from dmole.models.backbone import Backbone

UNKNOWN_TASK = "prompt"
"""Task name of requests whose task nobody knows; the router chooses their experts."""


@dataclass(frozen=True)
class Route:
    """The router's choice for a request.

    Args:
        experts: Chosen experts, best first; none is the base model alone.
        losses: Loss of the request under each expert; empty if the router compares no losses.
        thresholds: The loss below which each of these experts accepts a request.
    """

    experts: tuple[str, ...]
    losses: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)


class RoutedModel:
    """A base model, its experts and the router that selects them, for answers.

    :func:`dmole.load` makes it. It is not thread-safe: one thread calls it at a time.

    Args:
        backbone: The base model; experts are added to it in place.
        router: Chooses the experts of a request.
        beams: Width of the beam search; 1 is greedy.
        generation: Further settings of generation, see `dmole.models.generation.SETTINGS`.
        max_length: Maximum number of tokens of a prompt; None takes that of the base model.
        images: How images become RGB pictures.
        precision: As of Lightning's trainer: ``32-true``, ``bf16-mixed`` or ``16-mixed``.

    Attributes:
        library: The experts.
        collator: Makes the tensors of requests.
        embedder: Makes the embeddings that the router reads.

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
        beams: int = 1,
        generation: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        images: ImageOptions = AS_STORED,
        precision: str = "32-true",
    ) -> None:
        self.backbone = backbone
        self.router = router
        self.beams = beams
        self.images = images
        self.precision = precision
        backbone.set_generation(dict(generation or {}))
        self.library = ExpertLibrary(
            backbone.model, backbone.parts.modality_of, mixing=router.mixing
        )
        router.set_vision_width(backbone.vision_width)
        self.embedder = Embedder(backbone)
        self._requests = itertools.count()
        limit = backbone.context_length if max_length is None else max_length
        self.collator = Collator(
            backbone.processor, limit, prompts=backbone.prompts, origin=_origin
        )

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts, oldest first."""
        return self.library.names

    @property
    def device(self) -> torch.device:
        """Device of the base model and its experts."""
        return next(self.backbone.parameters()).device

    def to(self, device: str | torch.device) -> RoutedModel:
        """Move base model and experts to a device, and return the model."""
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

        Raises:
            ValueError: If an expert is unknown or named twice.
        """
        if text == "base":
            return ()
        names = (text,) if text in self.experts else tuple(text.split("+"))
        self._check_experts(names)
        return names

    # -- requests --------------------------------------------------------------------------

    @torch.no_grad()
    def answer(self, requests: Sequence[Request], on_text: OnText | None = None) -> list[Answer]:
        """Answer requests in one batch; each may use other experts and another length.

        Args:
            requests: The requests.
            on_text: Receives the index of a request and the next piece of its answer while it is
                generated, and returns whether to continue; with a beam search it receives the whole
                answer at the end.

        Returns:
            The answers in the order of the requests.

        Raises:
            ValueError: If an expert is unknown.
            SampleError: If an image cannot be read or a prompt is too long; names the request by
                its index.
        """
        if not requests:
            return []
        for request in requests:
            self._check_experts(request.experts or ())
        batch = self._batch(requests)
        routes = self._routes(requests, batch)
        lengths = batch.inputs["attention_mask"].sum(dim=1).tolist()  # (B,)
        gates = self._gates([route.experts for route in routes], batch)
        with self._autocast(), self.library.context.use(gates):
            progress = self._generate(
                batch, [request.max_new_tokens for request in requests], on_text
            )
        return [
            Answer(
                text,
                route.experts,
                route.losses,
                route.thresholds,
                prompt_tokens=length,
                new_tokens=len(generated.tokens),
                finish_reason=generated.finish_reason or "length",
            )
            for text, route, length, generated in zip(
                progress.finish(), routes, lengths, progress.answers, strict=True
            )
        ]

    @torch.no_grad()
    def route_requests(self, requests: Sequence[Request]) -> list[Route]:
        """Return the experts of each request: those that it names, or the router's choice."""
        return self._routes(requests, self._batch(requests)) if requests else []

    @torch.no_grad()
    def embed(self, requests: Sequence[Request]) -> Tensor:
        """Return the router embeddings of requests, ``(B, D)`` fp32 on the CPU."""
        return self._embed(self._batch(requests))

    def prompt_tokens(self, request: Request) -> int:
        """Return the number of tokens of a request's prompt, image tokens included.

        Raises:
            SampleError: If an image cannot be read or the prompt is too long.
        """
        return int(self._batch([request]).inputs["attention_mask"].sum())

    def _check_experts(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.experts:
                known = ", ".join(self.experts) or "none"
                raise ValueError(f"there is no expert {name!r}; the experts are {known}")
        if len(set(names)) < len(names):
            raise ValueError(f"an expert is named twice: {'+'.join(names)}")

    def _batch(self, requests: Sequence[Request]) -> Batch:
        samples: list[tuple[Sample, str]] = [
            (request.sample(str(index)), UNKNOWN_TASK) for index, request in enumerate(requests)
        ]
        batch = self.collator(samples, generation=True)
        # an id of its own, since embeddings are cached by id
        batch.sample_ids = [str(next(self._requests)) for _ in samples]
        return _moved(batch, self.device)

    def _embed(self, batch: Batch) -> Tensor:
        with self.library.context.use(None):
            return self.embedder(batch, remember=False)

    def _routes(self, requests: Sequence[Request], batch: Batch) -> list[Route]:
        if all(request.experts is not None for request in requests):
            return [Route(request.experts or ()) for request in requests]
        routing = self._routing(batch)
        losses, thresholds = self._measures(routing)
        return [
            Route(order, loss, thresholds) if request.experts is None else Route(request.experts)
            for request, order, loss in zip(requests, routing.order, losses, strict=True)
        ]

    def _routing(self, batch: Batch) -> Routing:
        query = RouteQuery(None, batch.task_names, "test", None, self.experts)
        with torch.autocast(self.device.type, enabled=False):  # same result at any precision
            if self.router.needs(query):
                query = RouteQuery(self._embed(batch), batch.task_names, "test", None, self.experts)
            return self.router.route(query)

    def _measures(self, routing: Routing) -> tuple[list[dict[str, float]], dict[str, float]]:
        """Return the losses of each sample by expert, and the thresholds of the experts."""
        router = getattr(self.router, "router", self.router)  # inside CommonExpertRouter
        if routing.losses is None or not isinstance(router, AutoencoderRouter):
            return [{} for _ in routing.order], {}
        columns = [i for i, name in enumerate(self.experts) if name in router.fitted]
        names = [self.experts[column] for column in columns]
        rows = [dict(zip(names, row, strict=True)) for row in routing.losses[:, columns].tolist()]
        return rows, {name: router.threshold(name) for name in names}

    def _gates(self, order: Sequence[tuple[str, ...]], batch: Batch) -> Gates | None:
        if not self.experts:
            return None
        weights = route_by_name(order, self.experts).gates
        rows = self.backbone.vision_rows(batch.inputs, batch.image_counts, self.beams)
        return Gates(self.experts, weights, rows, batch.inputs.get("attention_mask"))

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.precision, self.device)

    def _generate(
        self, batch: Batch, limits: Sequence[int], on_text: OnText | None
    ) -> AnswerProgress:
        """Generate the answers of a batch, each up to its limit."""
        decode: Callable[[Any], list[str]] = self.backbone.decode
        progress = AnswerProgress(limits, end_ids(self.backbone.model), decode, on_text)
        if self.beams == 1:
            criteria = as_criteria(progress)
            self.backbone.generate_tokens(batch.inputs, max(limits), stopping_criteria=criteria)
            return progress
        if len(set(limits)) > 1:  # the best beam of a shorter answer is another one
            raise ValueError(
                f"with {self.beams} beams all requests of a batch need one max_new_tokens"
            )
        tokens = self.backbone.generate_tokens(batch.inputs, max(limits), self.beams)
        progress.take(tokens)
        return progress


def _origin(sample: Sample, task: str) -> str:
    return f"request {sample.id}"


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


def _moved(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch to a device."""
    batch.inputs = {key: value.to(device) for key, value in batch.inputs.items()}
    batch.question = {key: value.to(device) for key, value in batch.question.items()}
    return batch
