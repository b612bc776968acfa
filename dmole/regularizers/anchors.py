"""Quadratic penalties around anchors, and sums of them. Pure functions, no model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def elastic_penalty(
    parameters: Mapping[str, Tensor],
    anchors: Mapping[str, Tensor],
    importance: Mapping[str, Tensor],
) -> Tensor:
    r"""Return the squared distance to the anchors, weighted by importance.

    .. math:: \frac{1}{2} \sum_p F_p \, (\theta_p - \theta^*_p)^2

    Args:
        parameters: The :math:`\theta` by name, any shapes.
        anchors: The :math:`\theta^*` of the same names and shapes; no gradient.
        importance: The :math:`F \ge 0` of the same names and shapes; no gradient.

    Returns:
        Scalar, at least float32; zero where there are no parameters.

    Raises:
        ValueError: If names or shapes differ.

    Source:
        Elastic weight consolidation, 2017, https://arxiv.org/abs/1612.00796.

    Example:
        >>> two = torch.tensor([2.0])
        >>> elastic_penalty({"a": 3 * two}, {"a": two}, {"a": torch.tensor([0.5])})
        tensor(4.)
    """
    if not parameters.keys() == anchors.keys() == importance.keys():
        differing = (parameters.keys() ^ anchors.keys()) | (anchors.keys() ^ importance.keys())
        raise ValueError(f"parameters, anchors and importance differ in {sorted(differing)}")
    total: Tensor | None = None
    for name, parameter in parameters.items():
        _check_shape(name, parameter, anchors[name])
        _check_shape(name, parameter, importance[name])
        moved = _widened(parameter) - _widened(anchors[name].detach())
        part = (_widened(importance[name].detach()) * moved**2).sum()
        total = part if total is None else total.to(part.device) + part
    return torch.zeros(()) if total is None else total / 2


def merge_importance(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], decay: float = 1.0
) -> dict[str, Tensor]:
    r"""Return the importance after one further task, :math:`F \leftarrow \gamma F + F_t`.

    Args:
        old: The :math:`F` by name; empty before the first task.
        new: The :math:`F_t` of the latest task. A name that one mapping lacks counts as zero.
        decay: The :math:`\gamma` in ``[0, 1]``; 1 weighs all tasks equally, 0 uses the last one
            alone.

    Returns:
        New tensors by name; the arguments are unchanged.

    Raises:
        ValueError: If ``decay`` is out of range or shapes differ.

    Source:
        Online EWC in Progress & Compress, 2018, https://arxiv.org/abs/1805.06370.

    Example:
        >>> merge_importance({"a": torch.ones(1)}, {"a": torch.ones(1)}, decay=0.5)
        {'a': tensor([1.5000])}
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    merged = {name: decay * tensor.detach() for name, tensor in old.items()}
    for name, tensor in new.items():
        if name in merged:
            _check_shape(name, merged[name], tensor)
            merged[name] = merged[name] + tensor.detach()
        else:
            merged[name] = tensor.detach().clone()
    return merged


def merge_anchors(
    anchors: Mapping[str, Tensor],
    importance: Mapping[str, Tensor],
    new_anchors: Mapping[str, Tensor],
    new_importance: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], float]:
    r"""Return the anchor of two penalties together, and what is left of them there.

    .. math:: F (\theta - a)^2 + F' (\theta - a')^2 = (F + F') (\theta - c)^2 + \frac{F F'}{F + F'}
        (a' - a)^2, \qquad c = a' + \frac{F}{F + F'} (a - a')

    so that any number of tasks needs two tensors of the size of the parameters. The form has no
    difference of large numbers; :math:`c` is computed in float64 and rounded to the type of
    :math:`a'` once.

    Args:
        anchors: The :math:`a` by name.
        importance: The :math:`F \ge 0` of the same names and shapes.
        new_anchors: The :math:`a'` of the same names and shapes.
        new_importance: The :math:`F' \ge 0` of the same names and shapes.

    Returns:
        The :math:`c` by name; :math:`a'` where both importances are 0. Then half of the last term,
        summed over all entries, which has no gradient.

    Source:
        Completion of the square; ours.

    Example:
        >>> one, two = torch.ones(1), torch.full((1,), 2.0)
        >>> merge_anchors({"a": two}, {"a": one}, {"a": 6 * one}, {"a": 3 * one})
        ({'a': tensor([5.])}, 6.0)
    """
    merged, rest = {}, 0.0
    for name, newer in new_anchors.items():
        old, new = importance[name].double(), new_importance[name].double()
        way = anchors[name].double() - newer.double()
        part = old / (old + new).where(old + new > 0, 1.0)  # in [0, 1]
        merged[name] = (newer.double() + part * way).to(newer.dtype)
        rest += float((part * new * way**2).sum()) / 2
    return merged, rest


def _check_shape(name: str, one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(f"{name} has shapes {tuple(one.shape)} and {tuple(other.shape)}")


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
