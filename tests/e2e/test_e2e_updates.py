"""A task with `update: true` continues the expert of an earlier task in a new version."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from cuts import CutAt, CutError
from lightning.pytorch import Callback
from small_runs import NO_FIGURES, FitWords, Recipe, read_csv, small_task
from torch import Tensor

import dmole
from dmole.allocation import UniformAllocator
from dmole.cli.config_files import read_settings
from dmole.cli.main import main
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.editing.table import expert_rows
from dmole.metrics import read_matrix
from dmole.report.identity import check_comparable
from dmole.report.runs import load_run
from dmole.routing import AllExpertsRouter, OracleRouter, SharedRouter
from dmole.serving.watch import is_finished
from dmole.storage.predictions import read_stage
from dmole.storage.tensors import read_tensor_file
from dmole.streams import AutoStream, SequentialStream
from experiments.extended_content import compare_extended

TENSORS = "adapter_model.safetensors"


def update_of(name: str, version: int = 2, **options: Any) -> Task:
    """Return an update on samples that no other task has."""
    task = small_task(name)
    train = str(task.train).replace("train?", "train?seed=7&")
    given = {"train": train, "test": None, "update": True} | options
    return replace(task, name=f"{name}-v{version}", **given)


class First(Callback):
    """Keeps the experts as they are when the training of a stage begins."""

    def __init__(self) -> None:
        self.experts: dict[str, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        name = pl_module.stage.expert
        tensors = pl_module.library.tensors(name)
        self.experts[name] = {key: value.clone() for key, value in tensors.items()}


@pytest.fixture(scope="module")
def starts() -> First:
    return First()


@pytest.fixture(scope="module")
def parent(quick_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two tasks; no test may change it."""
    return shutil.copytree(quick_run, tmp_path_factory.mktemp("runs") / "small" / "version_0")


NEW = "synthetic://paint/train?size=32&seed=7"


@pytest.fixture(scope="module")
def run(parent: Path) -> Path:
    """Folder of the run that continues the first task of the parent; no test may change it."""
    assert main(["add", str(parent), "--update", "paint", "--train", NEW, *NO_FIGURES]) == 0
    return parent.with_name("version_1")


def gates(run: Path, task: str, stage: int) -> set[str]:
    rows = read_csv(run / "routing.csv")
    return {
        name
        for row in rows
        if (row["true_task"], row["stage"], row["phase"]) == (task, str(stage), "test")
        for name in row["gate_set"].split("+")
    }


def test_the_old_version_is_kept_and_the_new_one_learns(run: Path, parent: Path) -> None:
    kept, before = (folder / "experts" / "paint" / TENSORS for folder in (run, parent))
    assert kept.read_bytes() == before.read_bytes()
    old, new = (read_tensor_file(run / "experts" / n / TENSORS) for n in ("paint", "paint-v2"))
    assert {key: tensor.shape for key, tensor in old.items()} == {
        key: tensor.shape for key, tensor in new.items()
    }
    assert any(not torch.equal(old[key], new[key]) for key in old)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["experts"]["paint-v2"] == {"starts_from": "paint"}
    task = read_settings(run / "config.yaml")["data"]["tasks"][2]
    assert (task["name"], task["update"], task["max_new_tokens"]) == ("paint-v2", True, 4)


def test_samples_of_the_task_get_the_new_version_and_the_oracle_matrix_shows_its_effect(
    run: Path,
) -> None:
    assert gates(run, "paint", 2) & {"paint", "paint-v2"} == {"paint"}
    assert gates(run, "paint", 3) & {"paint", "paint-v2"} == {"paint-v2"}
    matrix, names = read_matrix(run / "evaluation_matrix.csv")
    oracle, _ = read_matrix(run / "oracle_matrix.csv")
    assert names == ["paint", "count"]
    assert matrix.shape == (4, 2)
    assert np.isfinite(oracle[3]).all()
    metrics = json.loads((run / "metrics.json").read_text())
    expected = oracle[3, 0] - oracle[1, 0], oracle[3, 1] - oracle[2, 1]
    assert metrics["oracle"]["BWT"] == pytest.approx(sum(expected) / 2)
    assert metrics["routing"]["own_first"] is not None
    own = {row["gate_set"].split("+")[0]: int(row["count"]) for row in _last(run, "paint")}
    total = sum(own.values()) + sum(int(row["count"]) for row in _last(run, "count"))
    hits = own.get("paint-v2", 0) + sum(
        int(row["count"]) for row in _last(run, "count") if row["gate_set"].startswith("count")
    )
    assert metrics["routing"]["own_first"] == pytest.approx(100 * hits / total)


def _last(run: Path, task: str) -> list[dict[str, str]]:
    rows = read_csv(run / "routing.csv")
    return [r for r in rows if (r["true_task"], r["stage"], r["phase"]) == (task, "3", "test")]


@pytest.mark.slow
def test_a_finished_run_is_extended_by_an_update_as_if_it_had_been_planned(
    run: Path, tmp_path: Path, fit_words: FitWords
) -> None:
    tasks = read_settings(run / "config.yaml")["data"]["tasks"]
    config = tmp_path / "three.yaml"
    config.write_text(yaml.safe_dump({"data": {"tasks": tasks}}))
    assert main(fit_words(tmp_path / "runs", "--config", str(config), *NO_FIGURES)) == 0
    found = compare_extended(tmp_path / "runs" / "small" / "version_0", run)
    assert found.all, found
    assert found.empty == 0


def test_a_loaded_run_routes_like_the_run_and_lists_both_versions(run: Path) -> None:
    model = dmole.load(run)
    assert model.experts == ("paint", "count", "paint-v2")
    data = ContinualDataModule([small_task("paint", test_size=8)])
    expected = [line["gate_set"] for line in read_stage(run, 3)["paint"]]
    found = [
        model.route([image.load() for image in sample.images], sample.prompt).experts
        for sample in data.test_samples("paint")
    ]
    assert ["+".join(names) or "base" for names in found] == expected
    assert any(names[:1] == ("paint-v2",) for names in found)
    rows = expert_rows(run)
    assert [(row.name, row.replaced_by) for row in rows] == [
        ("paint", "paint-v2"),
        ("count", None),
        ("paint-v2", None),
    ]
    assert rows[2].tasks == ["paint", "paint-v2"]
    own = [int(row["count"]) for row in _last(run, "paint") if "paint-v2" in row["gate_set"]]
    assert rows[2].routed == pytest.approx(100 * sum(own) / rows[2].samples)


@pytest.mark.slow
def test_taking_the_new_version_out_brings_the_old_one_back(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experts", str(run), "remove", "paint"]) == 1
    assert "'paint' of" in (text := capsys.readouterr().err)
    assert "was updated by 'paint-v2'" in text
    assert main(["experts", str(run), "disable", "paint"]) == 1
    assert "was updated by 'paint-v2'" in capsys.readouterr().err
    back = tmp_path / "back"
    assert main(["experts", str(run), "remove", "paint-v2", "--output", str(back)]) == 0
    (now, names), (before, _) = (
        read_matrix(folder / "evaluation_matrix.csv") for folder in (back, run)
    )
    assert names == ["paint", "count"]
    np.testing.assert_array_equal(now, before[:3])


def test_a_new_version_is_enabled_together_with_the_old_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = str(shutil.copytree(run, tmp_path / "copy"))
    assert main(["experts", copy, "disable", "paint", "paint-v2"]) == 0
    assert main(["experts", copy, "enable", "paint-v2"]) == 1
    assert "'paint-v2' of" in (text := capsys.readouterr().err)
    assert "continues 'paint', which is disabled" in text
    assert main(["experts", copy, "enable", "paint", "paint-v2"]) == 0


def test_a_run_that_names_versions_of_experts_it_lacks_is_loaded_without_them(
    run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "digests.json").unlink()
    file = copy / "router" / "router.json"
    content = json.loads(file.read_text())
    content["updates"] |= {"paint": "a", "a": "b", "c": "paint-v2"}
    file.write_text(json.dumps(content))
    assert dmole.load(copy).router.updates == {"paint-v2": "paint"}
    assert [row.replaced_by for row in expert_rows(copy)] == ["paint-v2", None, None]


@pytest.mark.slow
def test_an_evaluation_repeats_the_matrix_of_a_run_with_an_update(
    run: Path, tmp_path: Path
) -> None:
    assert main(["evaluate", str(run), "--output", str(tmp_path / "again")]) == 0
    for name in ("evaluation_matrix.csv", "oracle_matrix.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.slow
def test_an_imported_version_stands_alone(run: Path, parent: Path, tmp_path: Path) -> None:
    words = ["import", str(run), "paint-v2", "--output", str(tmp_path / "out")]
    assert main(["experts", str(parent), *words]) == 0
    assert [row.replaced_by for row in expert_rows(tmp_path / "out")] == [None] * 3
    _, names = read_matrix(tmp_path / "out" / "evaluation_matrix.csv")
    assert names == ["paint", "count", "paint-v2"]  # tested on the test samples of paint


def test_a_newest_version_joins_a_loaded_model_in_place_of_the_old_one(
    run: Path, parent: Path
) -> None:
    model = dmole.load(parent)
    model.add_expert(run, "paint-v2")
    assert model.router.updates == {"paint-v2": "paint"}
    with pytest.raises(ValueError, match="'paint' was updated by 'paint-v2', which answers"):
        model.remove_expert("paint")
    model.remove_expert("paint-v2")
    assert model.router.updates == {}


def test_an_update_of_a_shared_expert_trains_it_further_without_a_version(tmp_path: Path) -> None:
    recipe = Recipe(
        ("paint", update_of("paint")),
        stream=SequentialStream(shared_expert="shared"),
        allocator=UniformAllocator,
        router=SharedRouter,
        curriculum="off",
    )
    built = recipe.build(tmp_path)
    folder = built.fit()
    assert built.module.library.names == ("shared",)
    matrix, names = read_matrix(folder / "evaluation_matrix.csv")
    assert (names, matrix.shape) == (["paint"], (3, 1))


def test_a_second_version_continues_the_first_update_and_the_oracle_knows_it(
    tmp_path: Path,
) -> None:
    first = First()
    recipe = Recipe(
        ("paint", update_of("paint"), update_of("paint", 3, test=small_task("paint").test)),
        allocator=UniformAllocator,
        router=OracleRouter,
        curriculum="off",
        callbacks=[first],
    )
    built = recipe.build(tmp_path)
    folder = built.fit()
    for name, past in (("paint-v2", "paint"), ("paint-v3", "paint-v2")):
        ended = built.module.library.tensors(past)
        assert all(torch.equal(first.experts[name][key], ended[key]) for key in ended)
    starts = json.loads((folder / "metrics.json").read_text())["experts"]
    assert [start["starts_from"] for start in starts.values()] == [None, "paint", "paint-v2"]
    matrix, names = read_matrix(folder / "evaluation_matrix.csv")
    oracle, _ = read_matrix(folder / "oracle_matrix.csv")
    assert names == ["paint", "paint-v3"]
    assert matrix[3, 0] == matrix[3, 1] == oracle[3, 0]  # the same samples, the same expert
    assert gates(folder, "paint", 3) == {"paint-v3"}


@pytest.fixture(scope="module")
def updated_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an updated run that was extended by a second update, with a test of its own."""
    folder = tmp_path_factory.mktemp("twice")
    parts: dict[str, Any] = {"allocator": UniformAllocator, "curriculum": "off"}
    first = Recipe(("paint", update_of("paint")), **parts).build(folder).fit()
    again = small_task("paint").test
    changed = ("paint", update_of("paint", test=again), update_of("paint", 3))
    refused = Recipe(changed, **parts).build(folder)
    with pytest.raises(ValueError, match="was made with another data of paint-v2"):
        refused.fit(first)
    tasks = ("paint", update_of("paint"), update_of("paint", 3, test=again))
    return Recipe(tasks, trainer={"fill_rows": True}, **parts).build(folder).fit(first)


@pytest.mark.slow
def test_an_updated_run_is_extended_by_a_second_update(updated_twice: Path) -> None:
    first = updated_twice.with_name("version_0")
    (before, _), (now, names) = (
        read_matrix(run / "evaluation_matrix.csv") for run in (first, updated_twice)
    )
    assert names == ["paint", "paint-v3"]
    np.testing.assert_array_equal(now[:3, 0], before[:, 0])
    np.testing.assert_array_equal(now[:, 1], now[:, 0])  # the same samples; old rows are filled
    content = json.loads((updated_twice / "router" / "router.json").read_text())
    assert content["updates"] == {"paint-v2": "paint", "paint-v3": "paint-v2"}


def test_samples_of_an_update_are_not_those_of_an_unseen_task(updated_twice: Path) -> None:
    accepted = {row["gate_set"] for row in read_csv(updated_twice / "routing.csv")} - {"base"}
    assert "paint" in accepted  # samples of paint-v3 before its stage
    rates = json.loads((updated_twice / "metrics.json").read_text())["routing"]
    assert rates["unseen_accepted"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": AllExpertsRouter}, "update: true, which needs a router that selects"),
        ({"stream": AutoStream()}, "AutoStream finds its experts in the samples"),
    ],
)
def test_a_method_without_experts_of_tasks_refuses_an_update(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    recipe = replace(Recipe(("paint", update_of("paint"))), **changes)
    with pytest.raises(ValueError, match=message):
        recipe.build(tmp_path).fit()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_whose_update_was_not_trained_is_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts: dict[str, Any] = {"allocator": UniformAllocator, "curriculum": "off"}
    tasks = ("paint", update_of("paint"))
    cut = Recipe(tasks, callbacks=[CutAt(2, "train")], **parts).build(tmp_path)
    with pytest.raises(CutError):
        cut.fit()
    run = cut.trainer.run_dir
    (run / "config.yaml").write_text(yaml.safe_dump({"trainer": {"name": "cut"}}))
    assert not is_finished(run)
    with pytest.raises(ValueError, match="has learned 1 of 2 tasks: did it finish"):
        check_comparable([load_run(run)])
    assert Recipe(tasks, **parts).build(tmp_path).fit(run) == run
    assert is_finished(run)
    assert check_comparable([load_run(run)]) == []


def test_a_dry_run_places_an_update_on_the_units_of_the_expert_that_it_continues(
    tmp_path: Path,
) -> None:
    update = update_of("paint", train=small_task("count").train)
    parts = Recipe(("paint", "count", update)).build(tmp_path)
    plans = parts.trainer.allocate(parts.module, parts.data)
    units = {name: [(e.unit, e.rank) for e in plan.experts] for name, plan in plans.items()}
    assert units["paint-v2"] == units["paint"]
    assert units["paint-v2"] != units["count"]  # which its own scores would choose


def test_add_refuses_an_update_of_an_unknown_task(
    quick_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--update", "find", "--train", "x.json", *NO_FIGURES]
    assert main(["add", str(quick_run), *words]) == 1
    assert "has no task 'find' to update; it has paint, count" in capsys.readouterr().err
