"""Gradients of weights from the input and the output's gradient of a linear."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from families import FAMILIES, MLLAMA_IMAGES, make_backbone, make_batch, make_samples
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dmole.allocation import SensitivityAllocator, score_gradients
from dmole.experts.library import eval_mode
from dmole.models.recomputation import recomputed_in_evaluation
from dmole.module import ContinualModule
from dmole.routing import OracleRouter

IMAGES = {"paligemma": (1, 1, 1), "mllama": MLLAMA_IMAGES}
"""Images of three samples; (1, 0, 2) in the other families."""
Scores = dict[str, float | None]


@pytest.mark.parametrize("reduction", ["sum", pytest.param("fisher", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_linears_score_like_their_weights_also_recomputed_and_in_passes(
    family: str, reduction: str
) -> None:
    torch.manual_seed(0)
    backbone = make_backbone(family)
    module = ContinualModule(
        backbone, SensitivityAllocator(), OracleRouter(), activation_checkpointing=True
    )
    batch = make_batch(backbone, make_samples(IMAGES.get(family, (1, 0, 2))))
    units, model = module.units(), backbone.model
    weights = {u.name: [s for p in u.linears for s in backbone.gradient_sources(p)] for u in units}
    linears = {u.name: [model.get_submodule(path) for path in u.linears] for u in units}

    def scores(scored: Any, *, recompute: bool = False, passes: int = 1) -> Scores:
        recomputed = recomputed_in_evaluation(model) if recompute else nullcontext()
        options: Any = {"reduction": reduction, "passes": passes}
        with eval_mode(backbone), recomputed:
            return score_gradients(model, scored, [batch, batch], module.base_loss, **options)

    exact, found = scores(weights), scores(linears)
    assert all(exact.values())
    assert found == pytest.approx(exact, rel=1e-6)
    assert scores(weights, recompute=True, passes=2) == exact
    assert scores(linears, recompute=True, passes=2) == found


class Reused(nn.Module):
    """Uses its first linear twice, and once more without an effect on the loss."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 3, bias=False)
        self.idle = nn.Linear(4, 4)
        self.recomputes = False
        self.to(dtype)

    def loss(self, x: Tensor) -> Tensor:
        hidden = self.first(x).mul_(2.0).tanh()  # in place, as some models do
        self.first(x)
        for layer in (self.first, self.last):
            again = checkpoint(layer, hidden, use_reentrant=False) if self.recomputes else None
            hidden = (layer(hidden) if again is None else again).tanh()
        return hidden.square().sum()

    def scores(self, batches: list[Tensor], linears: bool, **options: Any) -> Scores:
        layers = dict(self.named_children())
        units = {n: [m] if linears else list(m.parameters()) for n, m in layers.items()}
        loss = options.pop("loss_fn", self.loss)
        return score_gradients(self, units, batches, loss, **options)


def in_parts(model: Reused) -> Callable[[Tensor], list[Tensor]]:
    return lambda x: [model.loss(part) for part in x]  # all forward passes come first


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_batch_norm", "fisher"])
def test_a_linear_that_is_used_several_times_scores_like_its_weight(
    reduction: str, split: bool, recomputes: bool
) -> None:
    model = Reused()
    model.recomputes = recomputes
    batches = [torch.randn(2, 5, 4) for _ in range(3)]
    options = {"reduction": reduction} | ({"loss_fn": in_parts(model)} if split else {})
    exact, found = (model.scores(batches, linears, **options) for linears in (False, True))
    assert exact.pop("idle") is found.pop("idle") is None
    assert found == pytest.approx(exact, rel=1e-6)


def test_gradients_of_linears_are_formed_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    x = torch.tensor([[256.0], [1.0]], dtype=torch.bfloat16)  # bfloat16 has no 257
    scores = score_gradients(model, {"a": [model]}, [x], lambda x: model(x).sum())
    assert scores == {"a": 257.0}


def test_linears_are_left_as_they_were_also_after_an_error() -> None:
    model = Reused()

    def flat(x: Tensor) -> Tensor:
        return (model.first(x) * 0).sum().sqrt()  # value 0, slope not a number

    before = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match="gradient of unit first in batch 0 is not finite"):
        model.scores([torch.ones(1, 4)], True, loss_fn=flat)
    assert (list(model.state_dict()), [p.requires_grad for p in model.parameters()]) == before
    assert not any(module._forward_hooks for module in model.modules())
    assert model.scores([torch.ones(1, 4)], True)["last"]  # nothing is left of the batch before
