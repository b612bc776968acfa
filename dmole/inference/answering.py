"""Answers batches of requests with a base model, experts and a router."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmole.data.batch import Batch
from dmole.data.collate import Collator
from dmole.experts import ExpertLibrary, Gates
from dmole.inference.decoding import AnswerProgress, OnText, as_criteria
from dmole.inference.precision import autocast
from dmole.inference.requests import Answer, Request, Route, with_common
from dmole.models.embedder import Embedder
from dmole.models.generation import end_ids
from dmole.models.naming import name_experts
from dmole.models.shared_vision import SharedVision
from dmole.routing import AutoencoderRouter, GenerativeRouter, RouteQuery, Router, Routing
from dmole.routing.routers import route_by_name

if TYPE_CHECKING:
    from dmole.data.image_store import ImageStore
    from dmole.data.sample import Sample
    from dmole.inference.residency import ExpertResidency
    from dmole.models.backbone import Backbone

UNKNOWN_TASK = "prompt"
"""Task name of requests whose task nobody knows; the router chooses their experts."""


class AnsweringModel:
    """A base model with experts and a router that answers requests.

    It is not thread-safe: one thread calls it at a time.

    Args:
        backbone: The base model; experts are added to it in place.
        router: Chooses the experts of a request.
        beams: Width of the beam search; 1 is greedy.
        generation: Further settings of generation, see `dmole.models.generation.SETTINGS`.
        max_length: Maximum number of tokens of a prompt; None takes that of the base model.
        precision: As of Lightning's trainer: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        store: Keeps outputs of the vision encoder by image, see `dmole.models.vision_cache`; None
            keeps those of the batch only.

    Attributes:
        library: The experts.
        residency: Keeps used experts in memory; None keeps all.
        collator: Makes the tensors of requests.
        embedder: Makes the embeddings that the router reads.
    """

    def __init__(
        self,
        backbone: Backbone,
        router: Router,
        *,
        beams: int = 1,
        generation: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        precision: str = "32-true",
        store: ImageStore | None = None,
    ) -> None:
        self.backbone = backbone
        self.router = router
        self.beams = beams
        self.precision = precision
        backbone.set_generation(dict(generation or {}))
        self.library = ExpertLibrary(
            backbone.model, backbone.parts.modality_of, mixing=router.mixing
        )
        router.set_vision_width(backbone.vision_width)
        router.set_text_width(backbone.text_width)
        self.embedder = Embedder(backbone)
        self.vision = SharedVision(backbone, self.library, store)
        self.residency: ExpertResidency | None = None
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
            ValueError: If an expert is unknown, or the one that all tasks share is named alone.
            ValueError: If an image cannot be read or a prompt is too long; names the request by
                its index.
        """
        if not requests:
            return []
        batch = self._batch(requests)
        with self.vision.shared():
            routes = self._routes(requests, batch)
            lengths = batch.host.inputs["attention_mask"].sum(dim=1).tolist()  # (B,)
            order = [route.experts for route in routes]
            if self.residency is not None:
                self.residency.require(itertools.chain(*order))
            gates = self._gates(order, batch, [route.weights for route in routes])
            with autocast(self.precision, self.device), self.library.context.use(gates):
                progress = self._generate(
                    batch, [request.max_new_tokens for request in requests], on_text
                )
        if self.residency is not None:
            self.residency.record(order)
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
        """Return the experts of each request: those that it names, or the router's choice.

        The expert that all tasks share, if there is one, joins those that a request names.
        """
        return self._routes(requests, self._batch(requests)) if requests else []

    @torch.no_grad()
    def embed(self, requests: Sequence[Request]) -> Tensor:
        """Return the router embeddings of requests, ``(B, D)`` fp32 on the CPU."""
        return self._embed(self._batch(requests))

    def prompt_tokens(self, request: Request) -> int:
        """Return the number of tokens of a request's prompt, image tokens included.

        Raises:
            ValueError: If an image cannot be read or the prompt is too long.
        """
        return int(self._batch([request]).inputs["attention_mask"].sum())

    def _named(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the experts that answer if these are named."""
        for name in names:
            if name not in self.experts:
                known = ", ".join(self.experts) or "none"
                raise ValueError(f"there is no expert {name!r}; the experts are {known}")
        if len(set(names)) < len(names):
            raise ValueError(f"an expert is named twice: {'+'.join(names)}")
        return with_common(names, self.router.common)

    def _batch(self, requests: Sequence[Request]) -> Batch:
        samples: list[tuple[Sample, str]] = [
            (request.sample(str(index)), UNKNOWN_TASK) for index, request in enumerate(requests)
        ]
        batch = self.collator(samples, generation=True)
        # an id of its own, since embeddings are cached by id
        batch.sample_ids = [str(next(self._requests)) for _ in samples]
        return batch.to(self.device)

    def _embed(self, batch: Batch) -> Tensor:
        with self.library.context.use(None), self.vision.recorded():
            return self.embedder(batch, remember=False)

    def _routes(self, requests: Sequence[Request], batch: Batch) -> list[Route]:
        named = [None if r.experts is None else self._named(r.experts) for r in requests]
        if None not in named:
            return [Route(names or ()) for names in named]
        routing = self._routing(requests, batch)
        losses, thresholds = self._measures(routing)
        chosen = zip(routing.order, losses, routing.weights(self.experts), strict=True)
        return [
            Route(order, loss, thresholds, weights) if names is None else Route(names)
            for names, (order, loss, weights) in zip(named, chosen, strict=True)
        ]

    def _routing(self, requests: Sequence[Request], batch: Batch) -> Routing:
        query = RouteQuery(None, batch.task_names, "test", None, self.experts)
        if isinstance(self.router, GenerativeRouter) and self.router.asks(query):
            return self.router.route(replace(query, named=self._ask(self.router, requests)))
        with torch.autocast(self.device.type, enabled=False):  # same result at any precision
            if self.router.needs(query):
                query = RouteQuery(self._embed(batch), batch.task_names, "test", None, self.experts)
            return self.router.route(query)

    def _ask(self, router: GenerativeRouter, requests: Sequence[Request]) -> list[str]:
        """Return the expert that the base model names for each request."""
        asked = [
            (router.asked(request.sample(str(index))), UNKNOWN_TASK)
            for index, request in enumerate(requests)
        ]
        batch = self.collator(asked, generation=True)
        ((_, names),) = name_experts(self, router, [batch], self.experts)
        return names

    def _measures(self, routing: Routing) -> tuple[list[dict[str, float]], dict[str, float]]:
        """Return the losses of each sample by expert, and the thresholds of the experts."""
        router = getattr(self.router, "router", self.router)  # inside CommonExpertRouter
        if routing.losses is None or not isinstance(router, AutoencoderRouter):
            return [{} for _ in routing.order], {}
        columns = [i for i, name in enumerate(self.experts) if name in router.fitted]
        names = [self.experts[column] for column in columns]
        rows = [dict(zip(names, row, strict=True)) for row in routing.losses[:, columns].tolist()]
        return rows, {name: router.threshold(name) for name in names}

    def _gates(
        self,
        order: Sequence[tuple[str, ...]],
        batch: Batch,
        weights: Sequence[tuple[float, ...]] | None = None,
    ) -> Gates | None:
        if not self.experts:
            return None
        routing = route_by_name(order, self.experts, weights=weights)
        host = batch.host
        rows = self.backbone.vision_rows(host.inputs, host.image_counts, self.beams)
        texts = None
        if self.router.mixing is not None and self.router.mixing.needs_texts:
            texts = self.embedder.texts(batch)  # (B, D)
        mask = batch.inputs.get("attention_mask")
        gates = Gates(self.experts, routing.gates, rows, mask, texts=texts)
        gates.order = order
        if self.router.averages:
            gates.average_outside(self.backbone.last_linears)
        return gates

    def _generate(
        self, batch: Batch, limits: Sequence[int], on_text: OnText | None
    ) -> AnswerProgress:
        """Generate the answers of a batch, each up to its limit."""
        progress = AnswerProgress(
            limits, end_ids(self.backbone.model), self.backbone.decode, on_text
        )
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
