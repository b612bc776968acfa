"""The names that a request may give as its ``model``: ``auto``, the base model, the experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dmole.inference.requests import with_common
from dmole.messages import one_line
from dmole.serving.errors import ApiError

AUTO = "auto"
"""Leaves the choice of experts to the router."""

BASE = "base"
"""The base model without experts."""


def chosen_experts(
    model: str, base: str, experts: Sequence[str], common: str | None = None
) -> tuple[str, ...] | None:
    """Return the experts that a model's name stands for; None for the router's choice.

    Args:
        model: ``auto``, ``base``, the name of the base model, an expert, or experts joined by
            ``+``.
        base: Name of the base model.
        experts: Names of the experts.
        common: The one that all tasks share, which joins those that are named.

    Raises:
        ApiError: If there is no such model, with status 404; or it is the common expert alone, with
            status 400.
    """
    if model == AUTO:
        return None
    if model in (BASE, base):
        return ()
    names = tuple(model.split("+"))
    if not set(names) <= set(experts) or len(set(names)) < len(names):
        there = ", ".join([AUTO, BASE, *(name for name in experts if name != common)])
        raise ApiError(
            404,
            f"there is no model {model[:100]!r}; there are {there}, and experts joined by '+'",
            param="model",
            code="model_not_found",
        )
    try:
        return with_common(names, common)
    except ValueError as error:
        raise ApiError(400, one_line(error), param="model") from error


def check_names(base: str, experts: Sequence[str]) -> None:
    """Refuse experts that could not be asked for, since their name means something else.

    Raises:
        ValueError: Names the expert.
    """
    for name in experts:
        if name in (AUTO, BASE, base):
            raise ValueError(
                f"expert {name!r} cannot be served: {AUTO!r}, {BASE!r} and the name of the base "
                "model have a meaning of their own; rename the expert"
            )


def list_models(base: str, experts: Sequence[str], created: int) -> list[dict[str, Any]]:
    """Return the entries of ``/v1/models``.

    Args:
        base: Name of the base model.
        experts: Names of the experts.
        created: Time at which the server started, in seconds since 1970.
    """
    kinds = [(AUTO, "router"), (BASE, "base"), *((name, "expert") for name in experts)]
    return [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "dmole",
            "root": base,
            "dmole": {"kind": kind},
        }
        for name, kind in kinds
    ]
