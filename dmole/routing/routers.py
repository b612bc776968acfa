"""Base classes of the routers, and the routers without learned state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmole.routing.gates import gate_set_name, gates_from_order
from dmole.routing.query import Meter, RouteQuery
from dmole.routing.storage import read_index, read_tensors, write_index, write_tensors
from dmole.storage.versions import UPDATES, checked_updates, newest_versions

if TYPE_CHECKING:
    from dmole.routing.mixing import Mixing


@dataclass(frozen=True)
class RouterFit:
    """Measurements of a router's fit to the samples of an expert.

    Args:
        losses_heldout: Losses on the held-out slice, ``(N,)``.
        threshold: The expert is used for samples with a loss below this.
        quantiles: Distribution of the held-out losses by name (min, Q10, ..., max, mean, std).
        rounding: Whether the held-out losses are so small that rounding of the embeddings alone
            determines the threshold, because the held-out samples repeat those of the fit.
    """

    losses_heldout: Tensor
    threshold: float
    quantiles: dict[str, float]
    rounding: bool = False


@dataclass(frozen=True)
class Routing:
    """The experts of each sample of a batch.

    Args:
        gates: Float32 ``(B, E)``, columns in the order of the query's experts; 0 for experts that
            are not in ``order``. A router with other weights than 0 and 1 sets
            :attr:`Router.soft`.
        order: Names of each sample's experts, best (or current) first; empty for the base model.
        losses: Reconstruction losses ``(B, E)``, infinite where an expert has no autoencoder;
            None where no loss was computed.
    """

    gates: Tensor
    order: list[tuple[str, ...]]
    losses: Tensor | None = None

    def gate_sets(self) -> list[str]:
        """Return the name of each sample's gate set in reports."""
        return [gate_set_name(names) for names in self.order]

    def weights(self, experts: Sequence[str]) -> list[tuple[float, ...]]:
        """Return the weights of each sample's experts, in their order; empty if all are 1.

        Args:
            experts: Experts of the query.
        """
        column = {name: index for index, name in enumerate(experts)}
        rows = zip(self.gates.tolist(), self.order, strict=True)
        found = [tuple(row[column[name]] for name in names) for row, names in rows]
        return [() if all(weight == 1 for weight in row) else row for row in found]

    def padded(self, samples: int) -> Routing:
        """Return the routing of a batch in which samples without meaning follow.

        Args:
            samples: Samples of the batch. Those that follow use the experts of the last one.
        """
        if samples == len(self.order):
            return self
        rows = torch.arange(samples).clamp_max(len(self.order) - 1)  # (samples,)
        return Routing(
            self.gates[rows],
            [self.order[row] for row in rows.tolist()],
            None if self.losses is None else self.losses[rows],
        )


def too_few(samples: int, router: str, least: int) -> str:
    """Return why a router cannot be fitted to so few training samples; empty if it can.

    Example:
        >>> too_few(1, "AutoencoderRouter", 2)
        'has 1 training sample, AutoencoderRouter needs at least 2'
    """
    if samples >= least:
        return ""
    noun = "sample" if samples == 1 else "samples"
    return f"has {samples} training {noun}, {router} needs at least {least}"


class Router(ABC):
    """Selects the experts of each sample."""

    needs_embeddings: bool = False
    """Whether the router is fitted to embeddings and routes by them."""
    least_samples: int = 1
    """Minimum number of training samples of a stage."""
    mixing: Mixing | None = None
    """Weights of the experts within linears; None sums the experts, weighed by the gates alone."""
    vision_width: int | None = None
    """Number of leading dimensions of an embedding that come from the vision encoder."""
    soft: bool = False
    """Whether gates have other weights than 0 and 1."""
    asks_model: bool = False
    """Whether the base model chooses, with an adapter of the form of the newest expert."""
    averages: bool = False
    """Whether only the last block of the language model weighs a sample's experts; all other
    linears average them."""
    refits_all: bool = False
    """Whether a fit to the samples of an expert changes the choice among the experts before it."""
    common: str | None = None
    """Name of an expert that trains in every stage in addition to the stage's expert."""
    selects_experts: bool = False
    """Whether the router selects the experts of tasks, so that one can have several versions."""
    updates: Mapping[str, str] = MappingProxyType({})
    """The version that each updated expert continues. Samples of all versions get the newest."""

    def add_update(self, expert: str, past: str) -> None:
        """Make an expert the next version of another one.

        Raises:
            ValueError: If the router does not select experts, or the expert is a version already.
        """
        if not self.selects_experts:
            raise ValueError(
                f"expert {expert!r} cannot be a new version of {past!r}: {type(self).__name__} "
                "does not select the experts of tasks"
            )
        self.updates = checked_updates({**self.updates, expert: past})

    @abstractmethod
    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample.

        Args:
            query: The samples, the phase and the available experts.

        Raises:
            ValueError: If the current expert is not among the experts while training.
        """

    def route_at(self, query: RouteQuery, scales: Sequence[float]) -> list[Routing]:
        """Return the routing under each of some factors on the thresholds, losses computed once.

        Args:
            query: As for :meth:`route`.
            scales: Factors on every threshold, in place of the router's own.

        Raises:
            ValueError: If the router has no thresholds.
        """
        raise ValueError(f"a {type(self).__name__} has no thresholds to scale")

    def needs(self, query: RouteQuery) -> bool:
        """Return whether :meth:`route` needs embeddings for this query, which holds none yet."""
        return self.needs_embeddings

    def asks(self, query: RouteQuery) -> bool:
        """Return whether :meth:`route` needs the experts that the base model names."""
        return False

    def meter(self, query: RouteQuery) -> Meter | None:
        """Return what computes the measures of a query in parts; None where nothing is measured.

        The measures of a sample under an expert stay the same until the expert is fitted again,
        so they are computed once, by one of the ranks.
        """
        return None

    def trained_with(self, expert: str, experts: Sequence[str]) -> tuple[str, ...]:
        """Return the experts that were active when an expert was trained: the oracle's gate set.

        Args:
            expert: Name of the expert.
            experts: All experts, in the order they were added.
        """
        return (expert,)

    def stored_numbers(self) -> int:
        """Return how many numbers the router has learned."""
        return 0

    def multiply_adds(self, width: int) -> int:
        """Return the multiplications that route a sample in the test phase.

        The encoders that make embeddings are left out.

        Args:
            width: Length of an embedding.
        """
        return 0

    def set_vision_width(self, width: int) -> None:
        """Set the vision width of the base model's embeddings; called once."""
        self.vision_width = width

    def set_text_width(self, width: int) -> None:
        """Set the width of the base model's embeddings of instructions; called once."""
        if self.mixing is not None:
            self.mixing.text_width = width

    def fit(
        self, expert: str, embeddings: Tensor, generator: torch.Generator | None = None
    ) -> RouterFit | None:
        """Learn to recognize the samples that an expert was trained on.

        Args:
            expert: Name of the expert.
            embeddings: Embeddings of its training samples, ``(N, D)``.
            generator: Source of randomness; None derives one from the router's seed and the name.

        Returns:
            Measurements of the fit; None if the router does not learn.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the learned state, for a checkpoint."""
        return self._saved_updates()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`.

        Raises:
            ValueError: If the state belongs to another kind of router.
        """
        if unknown := sorted(state.keys() - {UPDATES}):
            raise ValueError(f"{type(self).__name__} has no state, got {unknown}")
        self._load_updates(state)

    def _saved_updates(self) -> dict[str, Any]:
        """Return the part of state and index for versions; empty if no expert was updated."""
        return {UPDATES: dict(self.updates)} if self.updates else {}

    def _load_updates(self, content: Mapping[str, Any]) -> None:
        self.updates = checked_updates(content.get(UPDATES, {}))

    def save(self, folder: str | Path) -> None:
        """Write ``router.json`` and one tensor file per fitted expert into the folder."""
        index = {"router": type(self).__name__, "experts": [], **self._saved_updates()}
        write_index(Path(folder), index)

    def load(self, folder: str | Path) -> None:
        """Load a router written by :meth:`save`.

        Raises:
            ValueError: If the folder holds no router, or a router of another kind.
        """
        self._load_updates(read_index(Path(folder), type(self).__name__))


class LearningRouter(Router):
    """A router that learns tensors for each expert and stores them in checkpoints and folders.

    A subclass returns its learned tensors in :meth:`tensors` and restores them in :meth:`restore`.
    """

    @abstractmethod
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the learned tensors by expert and tensor name, in order of learning."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replace the learned tensors by a result of :meth:`tensors`.

        Raises:
            ValueError: If the tensors belong to another kind of router.
        """

    def stored_numbers(self) -> int:
        """Return how many numbers the router has learned."""
        entries = self.tensors().values()
        return sum(tensor.numel() for entry in entries for tensor in entry.values())

    def multiply_adds(self, width: int) -> int:
        """Return the multiplications of a sample: one for each number, as for a mean or a key."""
        return self.stored_numbers()

    def kind(self) -> dict[str, Any]:
        """Return the settings that a saved router must share with this one."""
        return {}

    def describe(self, expert: str) -> dict[str, Any]:
        """Return the entry of an expert in ``router.json``, in plain JSON types."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return kind and tensors, for a checkpoint."""
        return {"kind": self.kind(), "experts": self.tensors(), **self._saved_updates()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`; see :meth:`Router.load_state_dict`."""
        if state.get("kind") != self.kind():
            raise ValueError(f"router state is of {state.get('kind')}, this is {self.kind()}")
        self.restore(state["experts"])
        self._load_updates(state)

    def save(self, folder: str | Path) -> None:
        """Write the tensors of each expert, then the index; see :meth:`Router.save`."""
        for name, tensors in self.tensors().items():
            write_tensors(Path(folder), name, tensors)
        self.save_index(folder)

    def save_index(self, folder: str | Path) -> None:
        """Write the index of files of tensors that are there."""
        experts = [{"name": name, **self.describe(name)} for name in self.tensors()]
        index = {"router": type(self).__name__, "kind": self.kind(), "experts": experts}
        write_index(Path(folder), index | self._saved_updates())

    def load(self, folder: str | Path) -> None:
        """Load a router written by :meth:`save`; see :meth:`Router.load`."""
        index = read_index(Path(folder), type(self).__name__)
        names = [entry["name"] for entry in index["experts"]]
        tensors = {name: read_tensors(Path(folder), name) for name in names}
        # an index of format 1 may lack the kind where it is empty
        state = {"kind": index.get("kind", {}), "experts": tensors}
        self.load_state_dict(state | {key: index[key] for key in (UPDATES,) if key in index})


class OracleRouter(Router):
    """Use the expert of a sample's true task alone, or the base model if there is none.

    A reference, not a method: with it no learned task can be lost.

    Example:
        >>> from dmole.routing import OracleRouter, RouteQuery
        >>> query = RouteQuery(None, ["count", "new"], "test", None, ["paint", "count"])
        >>> OracleRouter().route(query).order
        [('count',), ()]
    """

    selects_experts = True
    owner: Mapping[str, str] = MappingProxyType({})
    """Expert of each task whose expert has another name than the task."""

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample; see :meth:`Router.route`."""
        if query.training:
            name = query.experts[query.current_column()]
            return route_by_name([(name,)] * len(query.task_names), query.experts)
        newest = newest_versions(query.experts, self.updates)
        names = (self.owner.get(task, task) for task in query.task_names)
        order = [(newest[name],) if name in newest else () for name in names]
        return route_by_name(order, query.experts)


class SharedRouter(Router):
    """Use one expert for every sample, as in sequential fine-tuning of one adapter.

    Args:
        expert: Name of the shared expert; None selects the oldest.

    Example:
        >>> from dmole.routing import RouteQuery, SharedRouter
        >>> query = RouteQuery(None, ["count", "new"], "test", None, ["shared"])
        >>> SharedRouter().route(query).order
        [('shared',), ('shared',)]
    """

    def __init__(self, expert: str | None = None) -> None:
        self.expert = expert

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample; the base model answers before there is an expert."""
        experts = query.experts
        name = self.expert if self.expert is not None else next(iter(experts), None)
        if query.training and name not in experts:
            raise ValueError(f"shared expert {name!r} is not among the experts {list(experts)}")
        chosen = (name,) if name is not None and name in experts else ()
        return route_by_name([chosen] * len(query.task_names), experts)


class AllExpertsRouter(Router):
    """Sum all experts for every sample; in training the current one comes first."""

    def trained_with(self, expert: str, experts: Sequence[str]) -> tuple[str, ...]:
        """Return the expert and all before it, on top of which it was trained."""
        return tuple(experts[: list(experts).index(expert) + 1])

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample; see :meth:`Router.route`."""
        names = list(query.experts)
        if query.training:
            names.insert(0, names.pop(query.current_column()))
        return route_by_name([tuple(names)] * len(query.task_names), query.experts)


def refuse_prompts(router: Router, owner: str) -> None:
    """Raise if a router cannot choose among soft prompts.

    A soft prompt is used or not, so no router can weigh it, and no adapter can have its form.

    Args:
        router: The router.
        owner: What has the soft prompts, for the message.

    Raises:
        ValueError: If the router weighs experts or trains an adapter of their form.
    """
    kind, remedy = type(router).__name__, f"use a router that selects the experts of {owner}"
    if router.soft:
        raise ValueError(f"a {kind} weighs experts, but a soft prompt has no weight: {remedy}")
    if router.asks_model:
        raise ValueError(
            f"a {kind} trains an adapter of an expert's form, which a soft prompt lacks: {remedy}"
        )


def route_by_name(
    order: Sequence[tuple[str, ...]],
    experts: Sequence[str],
    losses: Tensor | None = None,
    weights: Sequence[tuple[float, ...]] | None = None,
) -> Routing:
    """Return the routing for the named experts of each sample.

    Args:
        order: Experts of each sample, best first.
        experts: Experts of the query.
        losses: See :class:`Routing`.
        weights: Weights of each sample's experts, in their order; an empty tuple, and None for all
            samples, is a weight of 1 for each expert.
    """
    column = {name: index for index, name in enumerate(experts)}
    columns = [[column[name] for name in names] for names in order]
    gates = gates_from_order(columns, len(experts))  # (B, E)
    for row, (chosen, values) in enumerate(zip(columns, weights or (), strict=False)):
        if values:
            gates[row, chosen] = torch.tensor(values)
    return Routing(gates, list(order), losses)
