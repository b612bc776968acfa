"""Regularizers are called around a stage, with its data and its experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from memory_meter import saved_bytes
from torch import Tensor

from dmole.callbacks import Regularization
from dmole.regularizers import ElasticWeights
from dmole.regularizers.base import Regularizer, StageView, Step
from dmole.routing import CommonExpertRouter, CommonMixing, OracleRouter
from dmole.run import Interrupted

World = Any
MakeWorld = Callable[..., World]


class Diary(Regularizer):
    """Writes down each call, and looks at samples after a stage."""

    def __init__(self, samples: int = 0) -> None:
        super().__init__()
        self.samples = samples
        self.calls: list[tuple[str, StageView | None]] = []
        self.seen: list[list[str]] = []
        self.modes: list[bool] = []
        self.losses: list[float] = []

    def before_stage(self, stage: StageView) -> None:
        self.calls.append(("before", stage))

    def forward(self, step: Step) -> Tensor:
        return torch.zeros(())

    def after_step(self) -> None:
        self.calls.append(("step", None))

    def after_stage(self, stage: StageView) -> None:
        self.calls.append(("after", stage))
        for batch in stage.samples(self.samples, 2) if self.samples else ():
            self.seen.append(list(batch.sample_ids))
            self.modes.append(stage.library.model.training)
            self.losses.append(float(stage.step(batch)[0].detach()))


def run(built: World, index: int = 1) -> None:
    """Go through a stage without training."""
    callback = Regularization()
    built.begin(index)
    built.module.train()
    callback.setup(built.trainer, built.module, "fit")
    callback.on_train_batch_end(built.trainer, built.module, None, None, 0)
    callback.on_stage_trained(built.state, built.module)


def test_each_regularizer_is_called_before_during_and_after_a_stage(world: MakeWorld) -> None:
    terms = [Diary(), Diary()]
    run(world(regularizers=terms))
    for term in terms:
        assert [name for name, _ in term.calls] == ["before", "step", "after"]


def test_a_test_loop_is_no_stage(world: MakeWorld) -> None:
    term = Diary()
    built = world(regularizers=[term])
    Regularization().setup(built.trainer, built.module, "test")
    assert term.calls == []


def test_a_regularizer_sees_the_stage_and_all_its_experts(world: MakeWorld) -> None:
    term = Diary()
    router = CommonExpertRouter(OracleRouter(), CommonMixing())
    built = world(router=router, regularizers=[term])
    run(built, 2)
    for _, view in (call for call in term.calls if call[1] is not None):
        assert view is not None
        assert (view.index, view.tasks, view.all_tasks) == (2, ("count",), ("paint", "count"))
        assert view.experts == ("count", "common")
        assert view.library is built.module.library
        names = {key.split("/")[0] for key in view.parameters()}
        assert names == {"count", "common"}


def test_samples_are_a_seeded_part_of_what_the_stage_trains_on(world: MakeWorld) -> None:
    seen = []
    for number in (0, 99):
        torch.manual_seed(number)  # other draws must not matter
        term = Diary(samples=4)
        built = world(regularizers=[term])
        run(built)
        seen.append(term.seen)
        assert [len(batch) for batch in term.seen] == [2, 2]
        ids = [sample.id for sample in built.data.train_samples("paint")]
        flat = [name for batch in term.seen for name in batch]
        assert flat == sorted(flat, key=ids.index)
        assert set(flat) < set(ids)
    assert seen[0] == seen[1]


def test_looking_back_is_without_dropout_and_leaves_the_modes_as_they_were(
    world: MakeWorld,
) -> None:
    term = Diary(samples=6)
    built = world(regularizers=[term], dropout=0.5)
    run(built)
    assert term.modes == [False, False, False]
    assert built.module.backbone.model.training
    again = Diary(samples=6)
    run(world(regularizers=[again], dropout=0.5))
    assert again.losses == term.losses


class WeighedElasticWeights(ElasticWeights):
    """Notes the bytes of activations that autograd keeps."""

    kept = 0

    def after_stage(self, stage: StageView) -> None:
        with saved_bytes(stage.library.model.parameters()) as kept:
            super().after_stage(stage)
            self.kept = kept()


def test_the_importance_of_parameters_is_measured_with_recomputed_activations(
    world: MakeWorld,
) -> None:
    terms = []
    for recomputed in (False, True):
        term = WeighedElasticWeights(samples=2)
        run(world(regularizers=[term], dropout=0.5, activation_checkpointing=recomputed))
        terms.append(term)
    kept, recomputed_term = terms
    assert 0 < recomputed_term.kept < 0.5 * kept.kept
    importance = kept.extra_tensors()
    assert any(value.any() for name, value in importance.items() if "importance" in name)
    for name, value in recomputed_term.extra_tensors().items():
        assert torch.equal(value, importance[name]), name


def test_a_request_to_end_cuts_the_look_back_short_and_ends(world: MakeWorld) -> None:
    term = Diary(samples=6)
    built = world(regularizers=[term])
    built.state.interruption.signum = 15
    with pytest.raises(Interrupted):
        run(built)
    assert len(term.seen) == 1


def test_without_regularizers_nothing_is_checked_or_moved(world: MakeWorld) -> None:
    built = world()
    built.state.interruption.signum = 15
    run(built)  # the trainer ends the run after the phase
