"""Runs on a stream without task boundaries: segments, files, resume, bad input."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CutAfter, CutError
from run_digests import run_digests
from small_runs import Recipe, read_csv, small_task

from dmole.callbacks import ContinualCallback
from dmole.metrics import read_matrix
from dmole.routing import AutoencoderRouter, KeyRouter
from dmole.run.run_folder import LAST
from dmole.streams import AutoStream, SequentialStream, Stage, Stream

FIRST, SECOND = 36, 24
"""Training samples of the two tasks."""
TASKS = [small_task("paint", FIRST, 2), small_task("count", SECOND, 2)]
RULE = {"window": 12, "limit": 0.5, "min_segment": SECOND}


@pytest.fixture(scope="module")
def make() -> Callable[..., Recipe]:
    def make(*callbacks: ContinualCallback, **parts: Any) -> Recipe:
        defaults = {"tasks": TASKS, "stream": AutoStream(**RULE), "curriculum": "off"}
        return Recipe(
            **defaults | parts,
            callbacks=callbacks,
            data={"batch_size": 9},
            trainer={"checkpoint_every_n_steps": 1},
        )

    return make


Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def whole(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make().build(tmp_path_factory.mktemp("whole")).fit()


def test_a_run_finds_its_tasks_and_gives_each_an_expert(whole: Path) -> None:
    rows = read_csv(whole / "segments.csv")
    assert {row["expert"] for row in rows} == {"segment_1", "segment_2"}
    second = [row for row in rows if row["stage"] == "2"]
    assert abs(int(second[0]["start"]) - FIRST) <= 3
    assert 0 < int(second[0]["alarm"]) - FIRST < RULE["window"]
    assert sum(int(row["count"]) for row in rows) == FIRST + SECOND
    assert (whole / "experts" / "segment_2").is_dir()


def test_the_columns_of_the_matrix_are_the_true_tasks(whole: Path) -> None:
    matrix, names = read_matrix(whole / "oracle_matrix.csv")
    assert list(names) == ["paint", "count"]
    # a task counts as learned with its segment
    assert [[value != value for value in row] for row in matrix.tolist()] == [
        [True, True],
        [False, True],
        [False, False],
    ]


@pytest.fixture(scope="module")
def cut(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of runs with one that was cut within its second segment."""
    folder = tmp_path_factory.mktemp("cut")
    with pytest.raises(CutError):
        make(CutAfter(5)).build(folder).fit()  # the first segment has four steps
    return folder


@pytest.mark.slow
def test_a_run_cut_within_a_segment_resumes_bit_for_bit_without_a_new_search(
    make: Make, whole: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cut, tmp_path / "runs")
    monkeypatch.setattr("dmole.trainer.find_segments", None)
    resumed = make().build(tmp_path / "runs").fit("auto")
    assert run_digests(resumed) == run_digests(whole)


@pytest.mark.slow
def test_a_run_cut_before_its_segments_are_found_resumes_bit_for_bit(
    make: Make, whole: Path, tmp_path: Path
) -> None:
    def raise_cut(*args: Any) -> Any:
        raise CutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmole.callbacks.segments.embed_samples", raise_cut)
        with pytest.raises(CutError):
            make().build(tmp_path).fit()
    file = tmp_path / "dmole" / "version_0" / LAST
    assert torch.load(file, weights_only=True)["stream"] == {}
    resumed = make().build(tmp_path).fit("auto")
    assert run_digests(resumed) == run_digests(whole)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (AutoStream(**RULE | {"limit": 0.25}), "stream setting 'limit'"),
        (SequentialStream(), "order of stages"),
    ],
)
def test_a_run_is_not_resumed_with_another_stream(
    make: Make, cut: Path, other: Any, name: str
) -> None:
    with pytest.raises(ValueError, match=f"made with another {name}"):
        make(stream=other).build(cut).fit("auto")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"router": KeyRouter}, "AutoStream needs a router that rejects samples, .* not KeyRouter"),
        (
            {"tasks": [TASKS[0], replace(TASKS[1], epochs=2)]},
            "epochs of tasks 'paint' and 'count' differ",
        ),
    ],
)
def test_what_cannot_be_learned_without_labels_is_refused_before_anything_is_written(
    make: Make, tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make(**parts).build(tmp_path).fit()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.*"))


def test_allocate_finds_the_segments_and_writes_nothing(make: Make, tmp_path: Path) -> None:
    parts = make().build(tmp_path)
    plans = parts.trainer.allocate(parts.module, parts.data)
    assert list(plans) == ["segment_1", "segment_2"]
    assert not list(tmp_path.rglob("*.*"))
    assert isinstance(parts.module.router, AutoencoderRouter)
    assert parts.module.router.fitted == ()


class Known(Stream):
    """The tasks with known boundaries, under the names of segments."""

    def stages(self, task_names: Sequence[str]) -> list[Stage]:
        return [
            Stage(i, f"segment_{i}", (name,), f"segment_{i}")
            for i, name in enumerate(task_names, start=1)
        ]


@pytest.mark.slow
def test_a_run_whose_segments_are_the_tasks_equals_one_with_known_boundaries(
    make: Make, whole: Path, tmp_path: Path
) -> None:
    starts = {row["expert"]: int(row["start"]) for row in read_csv(whole / "segments.csv")}
    assert starts == {"segment_1": 0, "segment_2": FIRST}
    known = run_digests(make(stream=Known()).build(tmp_path).fit())
    found = run_digests(whole)
    assert found.pop("segments.csv")
    assert found == known
