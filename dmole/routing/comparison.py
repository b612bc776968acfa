"""The routers that are compared on the experts of a finished run, by name.

A new router is one entry of `ROUTERS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from dmole.messages import excerpt
from dmole.routing.autoencoder_router import AutoencoderRouter
from dmole.routing.generative import GenerativeRouter
from dmole.routing.key_router import KeyRouter
from dmole.routing.prototype_routers import AnchorRouter, TextPrototypeRouter
from dmole.routing.ridge_router import RidgeRouter
from dmole.routing.routers import OracleRouter, Router

ALL = "all"
"""Stands for all routers that can choose among the experts of the run."""

ROUTERS: dict[str, type[Router]] = {
    "disco": TextPrototypeRouter,
    "hide": AnchorRouter,
    "autoencoder": AutoencoderRouter,
    "task_keys": KeyRouter,
    "ridge": RidgeRouter,
    "mr_lora": GenerativeRouter,
    "oracle": OracleRouter,
}
"""Routers that can be fitted to the experts of a finished run, by name."""


def unfitted(name: str, own: Router) -> Router:
    """Return a router to fit, with the settings of the run's own router if it is of that class.

    Args:
        name: Name of `ROUTERS`.
        own: The router of the run with its settings, not fitted.
    """
    kind = ROUTERS[name]
    return deepcopy(own) if type(own) is kind else kind()


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
