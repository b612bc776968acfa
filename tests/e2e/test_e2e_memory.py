"""Caches that must not grow with the number of prompts or stages."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from small_runs import Recipe, small_task

from dmole.callbacks import ContinualCallback
from dmole.module import ContinualModule
from dmole.predictor import Predictor
from dmole.regularizers.base import Regularizer, Step
from dmole.routing import SharedRouter
from dmole.run.state import SequenceState
from dmole.streams import SequentialStream


def count_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def test_a_predictor_keeps_nothing_of_earlier_prompts(plain_run: Path) -> None:
    built = Recipe().build(plain_run.parent)
    predictor = Predictor(built.module, built.data, plain_run)
    prompts = [{"prompt": "say the color"}, {"prompt": "say how many there are"}]
    first = predictor(prompts, 1)
    predictor(prompts, 1)
    before = count_objects()
    calls = 25
    for _ in range(calls):
        again = predictor(prompts, 1)
    assert count_objects() - before < calls
    assert len(built.module.embedder.cache) == 0
    assert [row["gate_set"] for row in again] == [row["gate_set"] for row in first]


def test_a_prompt_whose_generation_fails_leaves_no_embedding(
    plain_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = Recipe().build(plain_run.parent)
    predictor = Predictor(built.module, built.data, plain_run)

    def fail(*args: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(built.module.backbone, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        predictor([{"prompt": "say the color"}], 1)
    assert len(built.module.embedder.cache) == 0


class Embeds(Regularizer):
    """Embeds every batch, as some regularizers do."""

    def forward(self, step: Step) -> torch.Tensor:
        return 0.0 * step.embed().sum()


class Sizes(ContinualCallback):
    """Notes the number of cached embeddings at the end of the training of a stage and after."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def on_stage_trained(self, state: SequenceState, module: ContinualModule) -> None:
        self.sizes.append(len(module.embedder.cache))

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        self.sizes.append(len(module.embedder.cache))


@pytest.mark.slow
def test_training_embeddings_of_a_regularizer_are_dropped_after_their_stage(
    tmp_path: Path,
) -> None:
    sizes = Sizes()
    tasks = [small_task(name, epochs=2) for name in ("paint", "count")]
    Recipe(
        tasks=tasks, router=SharedRouter, model={"regularizers": [Embeds()]}, callbacks=[sizes],
        stream=SequentialStream(shared_expert="shared"),
    ).build(tmp_path).fit()  # fmt: skip
    assert sizes.sizes == [0, 8, 0, 8, 0]
