"""Keeps the largest singular directions of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from dmole.curriculum.rules.base import (
    GradientRule,
    Training,
    input_parameters,
    output_parameters,
)


class WeightSubspace(GradientRule):
    r"""Trains a linear outside of the largest singular directions of its weight.

    With the weight :math:`W = U S V^\top` under all earlier experts and its :math:`k` largest
    singular directions :math:`U_k, V_k`, the new update :math:`s B A` descends

    .. math:: G_A \leftarrow G_A - G_A V_k V_k^\top, \qquad G_B \leftarrow G_B - U_k U_k^\top G_B

    and its :math:`A` starts in the complement of :math:`V_k`. As long as both stay there,
    :math:`W + s B A` has the same :math:`k` singular triplets.

    An optimizer that scales entries one by one, such as Adam, moves parameters out of the
    complement, though their gradients are in it. ``exact`` projects the parameters after each step,
    too.

    Args:
        preserved: Share of the singular directions of each linear that is kept, at most all but
            one; 0 disables the rule.
        exact: Whether to project parameters after each step.

    Raises:
        ValueError: If the share is not in [0, 1).

    Source:
        OSF in peft, after https://arxiv.org/abs/2504.07097. There the whole rest of the weight
        trains, as factors; here a low-rank update does.
    """

    def __init__(self, preserved: float = 0.5, exact: bool = True) -> None:
        if not 0 <= preserved < 1:
            raise ValueError(f"preserved must be in [0, 1), got {preserved}")
        self.preserved = preserved
        self.exact = exact
        self._outputs: dict[str, Tensor] = {}  # U_k, (out, k)
        self._inputs: dict[str, Tensor] = {}  # V_k, (in, k)

    def before_stage(self, training: Training) -> None:
        """Decompose the weights, and move updates that are still zero into the complement.

        Raises:
            ValueError: If the weight of a linear is quantized or split over processes.
        """
        self._outputs, self._inputs = {}, {}
        if not self.preserved:
            return
        library = training.library
        fixed = [name for name in library.names if name not in training.experts]
        held = {name: library.tensors(name) for name in fixed}
        for path in training.paths():
            weight = _weight(training, path, held)
            smaller = min(weight.shape)
            kept = min(round(self.preserved * smaller), smaller - 1)  # one direction must train
            left, _, right = torch.linalg.svd(weight, full_matrices=False)
            self._outputs[path] = left[:, :kept].contiguous()
            self._inputs[path] = right[:kept].t().contiguous()
        for path, update in training.updates():
            if update.shape.rank and not update.up.any():
                low = update.get_parameter("lora_a")
                rows = low.to(training.device, copy=True)
                _remove_inputs(rows, self._inputs[path])
                low.copy_(rows)

    def derived(self) -> list[Tensor]:
        """Return the singular directions."""
        return [*self._outputs.values(), *self._inputs.values()]

    def apply(self, training: Training) -> None:
        """Project the gradients."""
        for path, update in training.updates() if self.preserved else ():
            for parameter in input_parameters(update):
                _remove_inputs(parameter.grad, self._inputs[path])
            for parameter in output_parameters(update):
                _remove_outputs(parameter.grad, self._outputs[path])

    def after_step(self, training: Training) -> None:
        """Project the parameters, if the rule is exact."""
        if not self.preserved or not self.exact:
            return
        for path, update in training.updates():
            for parameter in input_parameters(update):
                _remove_inputs(parameter, self._inputs[path])
            for parameter in output_parameters(update):
                _remove_outputs(parameter, self._outputs[path])


def _remove_inputs(rows: Tensor | None, basis: Tensor) -> None:
    """Remove directions from rows ``(r, in)`` in place."""
    if rows is not None:
        rows -= (rows @ basis) @ basis.t()


def _remove_outputs(columns: Tensor | None, basis: Tensor) -> None:
    """Remove directions from columns ``(out, r)`` in place."""
    if columns is not None:
        columns -= basis @ (basis.t() @ columns)


def _weight(training: Training, path: str, held: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """Return the weight of a linear under the experts that do not train, ``(out, in)`` float32.

    Args:
        training: The experts.
        path: Full path of the linear.
        held: Tensors of the experts that do not train, by name.
    """
    linear = training.linear(path)
    weight = linear.weight
    size = (linear.out_features, linear.in_features)
    if isinstance(weight, DTensor) or not weight.is_floating_point() or weight.shape != size:
        raise ValueError(
            f"WeightSubspace: the weight of {path} is quantized or split over processes; use "
            "dense weights, and trainer.strategy ddp"
        )
    total = weight.detach().to(training.device, torch.float32, copy=True)
    for name, tensors in held.items():
        if f"{path}.lora_b" in tensors:
            scaling = linear.expert(name).scaling
            up, low = (tensors[f"{path}.{part}"].to(total.device) for part in ("lora_b", "lora_a"))
            total += scaling * (up @ low)
    return total
