"""A finished run whose router is fitted again, alone, to the samples of its stages."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmole.callbacks.embedding import embed_samples
from dmole.callbacks.evaluation_results import task_experts
from dmole.callbacks.router_fitting import RouterFitting, choose_samples
from dmole.callbacks.task_naming import fit_names
from dmole.distributed import broadcast
from dmole.report.run_files import read_config
from dmole.routing import GenerativeRouter, OracleRouter, Router
from dmole.routing.routers import refuse_prompts, too_few

if TYPE_CHECKING:
    from dmole.data import Sample
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.streams.draws import Draw
    from dmole.streams.stream import Stage

log = logging.getLogger("dmole")

LR = 1e-3
"""Learning rate of the adapter of a router where the run states none."""


class RunRefit:
    """A finished run whose router is fitted again.

    Args:
        state: Has the data, and the stages of the run, of which the last is the current one.
        module: Has the experts and the router of the run.
        own: The router of the run with its settings, not fitted.
        run: The run folder.
    """

    def __init__(
        self, state: SequenceState, module: ContinualModule, own: Router, run: Path
    ) -> None:
        self.state = state
        self.module = module
        self.run = run
        self.own = getattr(own, "router", own)  # inside CommonExpertRouter
        self.owner: Mapping[str, str] = task_experts(state, module.router)
        self.updates = module.router.updates
        self._draws = _draws(state)
        self._embeddings: dict[int, Tensor] = {}

    def samples(self, stage: Stage) -> Sequence[tuple[Sample, str]]:
        """Return the training samples of a stage with their tasks, without replayed ones."""
        draw = self._draws.get((stage.index, stage.expert, stage.tasks), stage.draw)
        return self.state.data.arriving_items(replace(stage, draw=draw))

    def embeddings(self, stage: Stage) -> Tensor:
        """Return the embeddings that a router is fitted to after a stage, ``(N, D)``."""
        if stage.index not in self._embeddings:
            items = self.samples(stage)
            chosen = [items[index] for index in self._chosen(stage)]
            rows = embed_samples(self.state, self.module, chosen, "train")
            self._embeddings[stage.index] = rows
        return self._embeddings[stage.index]

    def check(self, router: Router) -> None:
        """Raise unless a router can be fitted to the run and can choose among its experts.

        Args:
            router: The router, without the shared expert of the run.

        Raises:
            ValueError: If it cannot; says why.
        """
        library, common = self.module.library, self.module.router.common
        if router.asks_model and common is not None:
            raise ValueError(f"the tasks of {self.run} share the expert {common!r}")
        if any(map(library.has_prompt, library.names)):
            refuse_prompts(router, str(self.run))
        if not router.needs_embeddings:
            return
        for stage in self.state.plan:
            samples, kind = len(self._chosen(stage)), type(router).__name__
            if problem := too_few(samples, kind, router.least_samples):
                raise ValueError(f"stage {stage.name!r} {problem}")

    def fit(self, router: Router) -> None:
        """Fit a router to the samples of each stage, in order.

        Raises:
            ValueError: If two names have the same tokens, or a loss is not finite.
        """
        if isinstance(router, OracleRouter):
            router.owner = self.owner  # the names of experts need not be those of tasks
            return
        router.set_vision_width(self.module.backbone.vision_width)
        if isinstance(router, GenerativeRouter):
            self._fit_names(router)
        else:
            rows = [(stage.expert, self.embeddings(stage)) for stage in self.state.plan]
            for expert, embeddings in rows if self.state.is_global_zero else ():
                router.fit(expert, embeddings)
        router.load_state_dict(broadcast(router.state_dict()))
        router.updates = self.updates

    def _chosen(self, stage: Stage) -> list[int]:
        """Return which training samples of a stage a router is fitted to."""
        fitting = self.state.callback_of(RouterFitting)
        return choose_samples(len(self.samples(stage)), fitting.embedding_samples, fitting.seed)

    def _fit_names(self, router: GenerativeRouter) -> None:
        """Train the adapter of a router on samples of all stages.

        The samples are drawn from the training data as after the last stage of a run. The
        optimizer is AdamW with the learning rate of the run.
        """
        make = functools.partial(torch.optim.AdamW, lr=_learning_rate(self.run), weight_decay=0.01)
        fit_names(self.state, self.module, router, self.samples, make)


def check_comparable(state: SequenceState, module: ContinualModule, run: Path) -> None:
    """Raise unless the run has an expert for each task, and samples to fit routers to.

    Args:
        state: Has the data, and the stages of the run.
        module: Has the router of the run.
        run: The run folder.

    Raises:
        ValueError: If routers cannot be compared; says why.
    """
    router = module.router
    if not router.selects_experts:
        kind = type(router).__name__
        raise ValueError(
            f"--router needs a run with an expert for each task that answers alone: the "
            f"{kind} of {run} selects none"
        )
    if router.mixing is not None and router.common is None:
        raise ValueError(
            f"--router: the {type(router).__name__} of {run} weighs experts by token, which no "
            "other router can be compared with"
        )
    if not state.plan:
        raise ValueError(f"--router: {run} has learned no task")
    for stage in state.plan:
        if not stage.tasks:
            raise ValueError(
                f"--router: the expert {stage.expert!r} of {run} has no training samples here, "
                "since its task is not among data.tasks"
            )


def _draws(state: SequenceState) -> dict[tuple[int, str, tuple[str, ...]], Draw]:
    """Return the rule that draws the samples of each stage that the run's stream plans."""
    if not state.stream.planned:
        return {}
    stages = state.stream.stages(state.data.training_task_names)
    return {(stage.index, stage.expert, stage.tasks): stage.draw for stage in stages}


def _learning_rate(run: Path) -> float:
    """Return the learning rate of a run's experts."""
    path = run / "config.yaml"
    model = read_config(path)["model"] if path.is_file() else {}
    try:
        return float(model["optimizer"]["init_args"]["lr"])
    except (KeyError, TypeError, ValueError):
        log.info("%s states no learning rate: the router's adapter trains at %g", run, LR)
        return LR
