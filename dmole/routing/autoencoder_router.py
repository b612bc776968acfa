"""The router of D-MoLE: one reconstructor per expert selects experts by reconstruction loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dmole.routing.bank import AutoencoderBank
from dmole.routing.gates import batch_vote, choose_partner, select_experts
from dmole.routing.meter import BankMeter
from dmole.routing.preprocessing import quantile_table
from dmole.routing.query import Measures, Meter, RouteQuery
from dmole.routing.routers import LearningRouter, RouterFit, Routing, route_by_name
from dmole.routing.trained import BiasInit, Kind, build_reconstructor
from dmole.storage.seeds import router_seed
from dmole.storage.versions import newest_versions, versions_of

Vote = Literal["sample", "batch"]
Ranking = Literal["loss", "relative", "likelihood"]


class AutoencoderRouter(LearningRouter):
    """Use the experts whose autoencoders reproduce a sample best: none, one or two by default.

    Args:
        reconstructor: ``pca`` (closed form), ``mlp_linear``, or ``mlp_sigmoid`` (the release).
        components: Width of the bottleneck.
        standardize: Standardize L2-normalized embeddings by the first task's statistics. Off
            in the release. On, it separates the samples of other tasks far better.
        quantile: Quantile of the losses on a held-out slice that sets the threshold.
        threshold_scale: Factor on the threshold; may be changed at any time.
        max_experts: Maximum number of experts of a sample at test time.
        second_ratio: Use a second expert only where its loss is within this factor of the first
            one's loss, or whatever ``ranking`` compares; None is the published rule.
        vote: ``sample`` routes each sample independently; ``batch`` takes a vote (the release).
        vote_support: Share of the votes that a second expert or a partner needs.
        heldout_fraction: Share of the embeddings that sets the threshold, left out of the fit.
        partner: Whether a past expert helps while a new one trains.
        min_steps: Minimum number of steps per epoch of a trained reconstructor. A task with few
            embeddings gets smaller batches than 1,024.
        patience: Epochs without improvement before a trained reconstructor stops.
        max_epochs: Maximum number of epochs of a trained reconstructor.
        bias_init: Initial output bias, see :class:`~dmole.routing.trained.MLPReconstructor`.
        seed: Seed of the held-out slice and of a trained reconstructor; combined with the expert.
        std_floor: Minimum deviation that a standardized dimension is divided by, relative to the
            typical one, see :meth:`~dmole.routing.preprocessing.Preprocessor.fit`. Runs from
            before this argument have 0.001.
        ranking: Which of the experts that accept a sample come first: those of the smallest
            ``loss`` (published), of the smallest loss ``relative`` to their threshold, or of the
            largest ``likelihood`` under Gaussians that share one covariance, see
            :class:`~dmole.routing.pooled.PooledGaussian`. The last separates alike tasks far
            better.

    Raises:
        ValueError: If an argument is out of range, or ``mlp_sigmoid`` is combined with
            standardized embeddings, which lie outside the range of a sigmoid.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672. The threshold rule is ours: the
        release reads the threshold from a file that no script writes.

    Example:
        >>> import torch
        >>> from dmole.routing import AutoencoderRouter, RouteQuery
        >>> router = AutoencoderRouter(max_experts=1)
        >>> rows = torch.randn(2, 100, 4, generator=torch.Generator().manual_seed(0))
        >>> near, far = rows + torch.tensor([[9.0, 0, 0, 0], [0, 9.0, 0, 0]])[:, None]  # two tasks
        >>> _ = router.fit("near", near), router.fit("far", far)
        >>> samples = torch.stack([near[0], far[0]])
        >>> query = RouteQuery(samples, ["?", "?"], "test", None, ["near", "far"])
        >>> router.route(query).order
        [('near',), ('far',)]
    """

    needs_embeddings = True
    selects_experts = True
    least_samples = 2  # one is held out for the threshold

    def __init__(
        self,
        *,
        reconstructor: Kind = "pca",
        components: int = 128,
        standardize: bool = True,
        quantile: float = 0.99,
        threshold_scale: float = 1.0,
        max_experts: int = 2,
        second_ratio: float | None = None,
        vote: Vote = "sample",
        vote_support: float = 0.3,
        heldout_fraction: float = 0.2,
        partner: bool = True,
        min_steps: int = 1,
        patience: int = 10,
        max_epochs: int = 1000,
        bias_init: BiasInit = "default",
        seed: int = 42,
        std_floor: float = 1.0,
        ranking: Ranking = "loss",
    ) -> None:
        _check_choice("reconstructor", reconstructor, Kind)
        _check_choice("ranking", ranking, Ranking)
        _check_choice("vote", vote, Vote)
        if reconstructor == "mlp_sigmoid" and standardize:
            raise ValueError("reconstructor mlp_sigmoid needs standardize: false: it emits 0 to 1")
        for name, value in {
            "quantile": quantile,
            "heldout_fraction": heldout_fraction,
            "vote_support": vote_support,
        }.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        if not 0 < std_floor < math.inf:
            raise ValueError(f"std_floor must be a positive number, got {std_floor}")
        if max_experts < 1:
            raise ValueError(f"max_experts must be at least 1, got {max_experts}")
        if second_ratio is not None and second_ratio < 1:
            raise ValueError(f"second_ratio must be at least 1, got {second_ratio}")
        self.reconstructor: Kind = reconstructor
        self.standardize = standardize
        self.quantile = quantile
        self.threshold_scale = threshold_scale
        self.max_experts = max_experts
        self.second_ratio = second_ratio
        self.vote: Vote = vote
        self.vote_support = vote_support
        self.heldout_fraction = heldout_fraction
        self.partner = partner
        self.seed = seed
        self.std_floor = std_floor
        self.ranking: Ranking = ranking
        fitter = build_reconstructor(
            reconstructor,
            components,
            min_steps=min_steps,
            patience=patience,
            max_epochs=max_epochs,
            bias_init=bias_init,
        )
        kept = components if ranking == "likelihood" else 0
        self._bank = AutoencoderBank(fitter, standardize, heldout_fraction, std_floor, kept)

    @property
    def threshold_scale(self) -> float:
        """Factor on every threshold; 0 always selects the base model, infinity the best expert."""
        return self._threshold_scale

    @threshold_scale.setter
    def threshold_scale(self, scale: float) -> None:
        if not scale >= 0:
            raise ValueError(f"threshold_scale must be at least 0, got {scale}")
        self._threshold_scale = scale

    @property
    def fitted(self) -> tuple[str, ...]:
        """Experts that have a reconstructor, in the order of their fits."""
        return self._bank.experts

    def threshold(self, expert: str) -> float:
        """Return the expert's threshold, including the scale."""
        return self._bank.threshold(expert, self.quantile) * self.threshold_scale

    def fit(
        self, expert: str, embeddings: Tensor, generator: torch.Generator | None = None
    ) -> RouterFit:
        """Fit the expert's reconstructor and threshold; see :meth:`Router.fit`.

        Raises:
            ValueError: If there are fewer than two embeddings or one is not finite.
        """
        if generator is None:
            generator = torch.Generator().manual_seed(router_seed(self.seed, expert))
        self._bank.fit(expert, embeddings, generator)
        return self.summary(expert)

    def summary(self, expert: str) -> RouterFit:
        """Return the summary that :meth:`fit` returned for an expert."""
        losses = self._bank.heldout_losses(expert)
        threshold = self._bank.threshold(expert, self.quantile)
        rounding = threshold <= self._bank.rounding_loss(expert)
        return RouterFit(losses, self.threshold(expert), quantile_table(losses), rounding)

    def needs(self, query: RouteQuery) -> bool:
        """Return whether an autoencoder is evaluated."""
        return bool(self._candidates(query)) and query.measures is None

    def meter(self, query: RouteQuery) -> Meter | None:
        """Return what computes losses by sample and expert; see :meth:`Router.meter`."""
        experts = self._candidates(query)
        return (
            BankMeter(self._bank, experts, ranks=self.ranking == "likelihood") if experts else None
        )

    def losses(self, embeddings: Tensor, experts: Sequence[str]) -> Tensor:
        """Return the loss of raw embeddings ``(N, D)`` under each named expert, ``(N, E)``."""
        return self._bank.losses(embeddings, experts)

    def reconstruct(self, embeddings: Tensor, expert: str) -> tuple[Tensor, Tensor]:
        """Return input and output of an expert's autoencoder.

        Args:
            embeddings: Raw embeddings ``(N, D)``.
            expert: Name of the expert.

        Returns:
            The preprocessed embeddings and their reconstructions, both ``(N, D)``, float32.
        """
        return self._bank.reconstruct(embeddings, expert)

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample; see :meth:`Router.route`."""
        return self.route_at(query, (self.threshold_scale,))[0]

    def route_at(self, query: RouteQuery, scales: Sequence[float]) -> list[Routing]:
        """Return the routing under each factor on the thresholds; see :meth:`Router.route_at`."""
        experts, samples = list(query.experts), len(query.task_names)  # E columns, B rows
        lead = (experts[query.current_column()],) if query.training else ()
        candidates = self._candidates(query)
        if not candidates:
            return [route_by_name([lead] * samples, experts)] * len(scales)
        measures = query.measures or self._measure(query.require_embeddings(), candidates)
        errors = measures.losses  # (B, C)
        ranks = self._ranks(measures, candidates)  # (B, C)
        newest = newest_versions(experts, self.updates)
        columns = [experts.index(newest[name]) for name in candidates]
        losses = torch.full((samples, len(experts)), math.inf)  # (B, E)
        losses[:, [experts.index(name) for name in candidates]] = errors
        found = []
        for scale in scales:
            taus = [self._bank.threshold(name, self.quantile) * scale for name in candidates]
            thresholds = torch.tensor(taus, dtype=errors.dtype)
            order = self._choose(errors, thresholds, ranks, columns, query.training)  # B of E
            names = [lead + tuple(experts[column] for column in chosen) for chosen in order]
            found.append(route_by_name(names, experts, losses))
        return found

    def _candidates(self, query: RouteQuery) -> list[str]:
        """Return the experts whose autoencoder is evaluated, ``C`` of the ``E`` experts."""
        fitted = [name for name in query.experts if name in self.fitted]
        if not query.training:
            return fitted
        own = versions_of(str(query.current), self.updates)
        return [name for name in fitted if name not in own] if self.partner else []

    def _measure(self, embeddings: Tensor, experts: Sequence[str]) -> Measures:
        ranks = BankMeter(self._bank, experts, ranks=self.ranking == "likelihood").ranks(embeddings)
        return Measures(self.losses(embeddings, experts), ranks)

    def _ranks(self, measures: Measures, experts: Sequence[str]) -> Tensor:
        """Return the values ``(B, C)`` whose smallest is the first of the accepting experts."""
        if measures.ranks is not None:
            return measures.ranks
        if self.ranking == "relative":  # at scale 1: the scale is the same for all experts
            taus = [self._bank.threshold(name, self.quantile) for name in experts]
            return measures.losses / torch.tensor(taus, dtype=measures.losses.dtype)
        return measures.losses

    def _choose(
        self,
        losses: Tensor,
        thresholds: Tensor,
        ranks: Tensor,
        newest: Sequence[int],
        training: bool,
    ) -> list[tuple[int, ...]]:
        """Return the experts of each sample as values of ``newest``, best first."""
        if self.vote == "batch":
            winners = batch_vote(
                losses,
                thresholds,
                support=self.vote_support,
                max_experts=1 if training else self.max_experts,
                support_first=training,
                ranks=ranks,
                newest=newest,
            )
            return [winners] * len(losses)
        if training:
            partners = choose_partner(losses, thresholds, ranks, newest)
            return [() if column is None else (column,) for column in partners]
        return select_experts(
            losses,
            thresholds,
            max_experts=self.max_experts,
            second_ratio=self.second_ratio,
            ranks=ranks,
            newest=newest,
        )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return reconstructors and held-out losses; see :meth:`LearningRouter.tensors`."""
        return {expert: self._bank.tensors(expert) for expert in self.fitted}

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the result of :meth:`tensors`; see :meth:`LearningRouter.restore`."""
        sigmoid = self.reconstructor == "mlp_sigmoid"
        self._bank.load(tensors, relu=self.reconstructor != "pca", sigmoid=sigmoid)

    def multiply_adds(self, width: int) -> int:
        """Return the multiplications of a sample: those of the matrices of all autoencoders."""
        entries = self.tensors().values()
        return sum(each.numel() for entry in entries for each in entry.values() if each.ndim == 2)

    def kind(self) -> dict[str, Any]:
        """Return the kind of the reconstructors."""
        return {"reconstructor": self.reconstructor, "standardize": self.standardize}

    def describe(self, expert: str) -> dict[str, Any]:
        """Return the threshold at scale 1 and the quantiles of the held-out losses."""
        return {
            "threshold": self._bank.threshold(expert, self.quantile),
            "quantiles": quantile_table(self._bank.heldout_losses(expert)),
        }


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {get_args(choices)}, got {value!r}")
