"""The routers that are compared on the experts of a finished run, by name.

A new router is one entry of `ROUTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Protocol, TypeVar

from dmole.messages import excerpt
from dmole.routing.autoencoder_router import AutoencoderRouter
from dmole.routing.generative import GenerativeRouter
from dmole.routing.key_router import KeyRouter
from dmole.routing.prototype_routers import AnchorRouter, TextPrototypeRouter
from dmole.routing.ridge_router import RidgeRouter
from dmole.routing.routers import OracleRouter, Router

R = TypeVar("R", bound=Router)

ALL = "all"
"""Stands for all routers."""


class Refit(Protocol):
    """A finished run whose router is fitted again.

    The implementation is `dmole.callbacks.router_refit.RunRefit`, which also has the state,
    the module and the training samples of each stage.
    """

    @property
    def own(self) -> Router:
        """The router of the run with its settings, not fitted."""

    @property
    def owner(self) -> Mapping[str, str]:
        """The expert of each learned task."""

    def fit(self, router: R) -> R:
        """Fit a router to the embeddings of each stage, in order, and return it."""

    def fit_names(self, router: GenerativeRouter) -> Router:
        """Train the adapter of a router on samples of all stages, and return the router."""


def _autoencoder(run: Refit) -> Router:
    """Return autoencoders with the settings of the run, or the defaults if it has none."""
    own = run.own
    return run.fit(deepcopy(own) if isinstance(own, AutoencoderRouter) else AutoencoderRouter())


def _generative(run: Refit) -> Router:
    """Return a router that asks the model, with the settings of the run or the defaults."""
    own = run.own
    return run.fit_names(deepcopy(own) if isinstance(own, GenerativeRouter) else GenerativeRouter())


def _oracle(run: Refit) -> Router:
    """Return an oracle that knows the experts whose names are not those of their tasks."""
    router = OracleRouter()
    router.owner = run.owner
    return router


ROUTERS: dict[str, Callable[[Refit], Router]] = {
    "disco": lambda run: run.fit(TextPrototypeRouter()),
    "hide": lambda run: run.fit(AnchorRouter()),
    "autoencoder": _autoencoder,
    "task_keys": lambda run: run.fit(KeyRouter()),
    "ridge": lambda run: run.fit(RidgeRouter()),
    "mr_lora": _generative,
    "oracle": _oracle,
}
"""What returns a fitted router for the experts of a run, by name."""


def router_names(names: Sequence[str]) -> list[str]:
    """Return the routers to compare, each once.

    Args:
        names: Names of `ROUTERS`, or `ALL`.

    Raises:
        ValueError: If a name is unknown; lists the names.

    Example:
        >>> router_names(["ridge", "disco", "ridge"])
        ['ridge', 'disco']
    """
    for name in names:
        if name not in ROUTERS and name != ALL:
            raise ValueError(
                f"--router: there is no router {excerpt(name)}; there are {', '.join(ROUTERS)}, "
                f"and {ALL}"
            )
    chosen = [each for name in names for each in (ROUTERS if name == ALL else (name,))]
    return list(dict.fromkeys(chosen))
