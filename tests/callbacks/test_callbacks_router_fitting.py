from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmole.callbacks import router_fitting
from dmole.callbacks.router_fitting import RouterFitting
from dmole.data.sample import Sample, Turn
from dmole.data.sequences import SampleList, TaskItems
from dmole.routing import AutoencoderRouter, EmbeddingCache


class Counting(SampleList):
    """Counts the requested samples."""

    touched = 0

    def at(self, index: int) -> Sample:
        self.touched += 1
        return super().at(index)


@pytest.mark.parametrize("most", [2, 7, 20, 50])
def test_the_sample_drawn_is_that_of_a_whole_list_and_no_other_is_touched(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    parts = {
        name: Counting([Sample(f"{name}{i}", (Turn("user", "q"),)) for i in range(size)])
        for name, size in (("a", 8), ("b", 12))
    }
    drawn: list[Any] = []
    monkeypatch.setattr(router_fitting, "embed_samples", lambda *given: drawn.extend(given[2]))
    state: Any = SimpleNamespace(
        data=SimpleNamespace(arriving_items=lambda s: TaskItems([(n, parts[n]) for n in s.tasks])),
        stage=SimpleNamespace(tasks=("a", "b")),
        device="cpu",
    )
    RouterFitting(embedding_samples=most, seed=3)._embeddings(state, None)  # type: ignore[arg-type]
    whole = [(sample, name) for name, samples in parts.items() for sample in samples]
    if len(whole) > most:
        order = torch.randperm(20, generator=torch.Generator().manual_seed(3))[:most]
        whole = [whole[i] for i in sorted(order.tolist())]
    assert drawn == whole
    assert sum(samples.touched for samples in parts.values()) == len(whole)


@pytest.mark.parametrize("distinct", [2, 40])
def test_a_task_whose_samples_repeat_gets_a_warning(
    distinct: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embeddings(self: RouterFitting, state: Any, module: Any) -> Tensor:
        rows = torch.randn(distinct, 16, generator=torch.Generator().manual_seed(0))
        return rows.repeat(40 // distinct, 1)  # (40, 16)

    monkeypatch.setattr(RouterFitting, "_embeddings", embeddings)
    put: list[list[str]] = []
    state: Any = SimpleNamespace(
        is_global_zero=True,
        stage=SimpleNamespace(expert="paint"),
        data=SimpleNamespace(training_task_names=()),
        timed=lambda phase: nullcontext(),
        put=lambda *files: put.append([file.name for file in files if not file.write(tmp_path)]),
    )
    router = AutoencoderRouter(components=4)
    module: Any = SimpleNamespace(router=router, embedder=SimpleNamespace(cache=EmbeddingCache()))
    fitting = RouterFitting()
    fitting.on_experts_final(state, module)
    warned = "held-out samples of expert paint repeat its training samples" in caplog.text
    assert warned == (distinct == 2)
    assert (tmp_path / "router" / "paint.safetensors").is_file()
    state.stage.expert = "count"
    fitting.on_experts_final(state, module)  # the file of the first expert is not written again
    assert put == [[f"router/{n}.safetensors", "router/router.json"] for n in ("paint", "count")]
