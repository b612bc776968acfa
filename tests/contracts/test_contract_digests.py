"""Rearranging the code changes no number: every method's run is what a reference commit made."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments import digests
from experiments.run_content import run_content

ROOT = Path(__file__).resolve().parents[2]

REFERENCE = "50fb6b6f3ad67464bb3ba321f4eea03d557c156f"
"""The commit whose numbers count.

Move it to the commit before yours when a change is meant to change numbers, tensors or answers,
and state it in its message; a change that is not meant to must leave this as it is.
"""


@pytest.fixture(scope="module")
def commit() -> str:
    try:
        return str(digests.find_commit(REFERENCE))
    except LookupError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_every_method_learns_and_answers_as_with_the_reference_commit(
    commit: str, tmp_path: Path
) -> None:
    found = digests.compare(commit, [], tmp_path)
    assert {one.method: one.differing for one in found if one.differing} == {}
    assert len(found) >= 28
    # equal numbers would say little if all methods had the same
    assert len({one.here["evaluation_matrix"] for one in found}) > len(found) / 2


def test_a_commit_that_is_not_there_is_named() -> None:
    with pytest.raises(LookupError, match=r"git|no commit 0{40}"):
        digests.find_commit("0" * 40)


def test_a_comparison_names_what_differs_and_which_run_failed() -> None:
    ours, theirs = {"plan": "1", "router": "2", "replay": "3"}, {"plan": "1", "router": "4"}
    assert digests.Comparison("dmole", theirs, ours).differing == ["replay", "router"]
    assert digests.Comparison("dmole", ours, ours).differing == []
    assert digests.Comparison("dmole", ours, None).differing == ["the run failed"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with little in it."""
    run = tmp_path / "run"
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(2)}
    for place in ("experts/paint/adapter_model", "experts/common/mixture", "router/paint"):
        path = run / f"{place}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={"format": "pt"})
    adapter = {"r": 8, "lora_alpha": 16, "rank_pattern": {}, "alpha_pattern": {}, "bias": "none"}
    index = {"name": "paint", "threshold": 0.5, "quantiles": {"min": 0.25}}
    scores = {"AVG": 50.0, "Last": 50.0, "BWT": None, "per_task": {"paint": {"AVG": 50.0}}}
    answer = {"id": "a", "prediction": "red", "references": ["red"], "score": 100.0}
    texts = {
        "experts/experts.json": ["common", "paint"],
        "experts/paint/adapter_config.json": adapter | {"target_modules": ["a", "b"]},
        "experts/common/mixture.json": {"base_model": "tiny", "layers": {"a": [1, 2.0, 4]}},
        "router/router.json": {"format": 1, "router": "AutoencoderRouter", "tasks": [index]},
        "metrics.json": scores | {"definitions": {"AVG": "mean"}, "fingerprints": {"base": "5a"}},
        "predictions/stage_1.jsonl": answer | {"task": "paint", "gate_set": "paint"},
        "timing.json": {"seconds": 1.5},
        "allocation.csv": "stage,layer,rank\n1,vision.0,8\n",
        "routing.csv": "stage,gate_set,count\n1,paint,4\n",
        "evaluation_matrix.csv": "stage,paint\n0,0.0\n1,50.0\n",
        "oracle_matrix.csv": "stage,paint\n0,\n1,50.0\n",
    }
    for name, content in texts.items():
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
    return run


Change = Callable[[Path], None]


def text(name: str, old: str, new: str) -> Change:
    """Replace words of a file."""

    def change(run: Path) -> None:
        before = (run / name).read_text(encoding="utf-8")
        assert before.count(old) == 1
        (run / name).write_text(before.replace(old, new), encoding="utf-8")

    return change


def element(name: str) -> Change:
    """Change one number of a tensor file in its last bit."""

    def change(run: Path) -> None:
        tensors = load_file(run / name)
        tensors["a.weight"].view(torch.int32)[1, 2] += 1
        save_file(tensors, run / name)

    return change


def rewritten(run: Path) -> None:
    """Write tensors in another order, with another remark and another time."""
    for path in run.rglob("*.safetensors"):
        tensors = dict(reversed(load_file(path).items()))
        save_file(tensors, path, metadata={"sha256": "another"})
        os.utime(path, (1, 1))


NOTICED = {
    "experts/paint": element("experts/paint/adapter_model.safetensors"),
    "experts/common": element("experts/common/mixture.safetensors"),
    "experts/paint/shape": text(
        "experts/paint/adapter_config.json", '"lora_alpha": 16', '"lora_alpha": 8'
    ),
    "experts/common/shape": text("experts/common/mixture.json", "2.0", "3.0"),
    "experts": text("experts/experts.json", '"common", "paint"', '"paint", "common"'),
    "router/paint": element("router/paint.safetensors"),
    "router": text("router/router.json", "0.5", "0.5000001"),
    "plan": text("allocation.csv", "vision.0", "vision.1"),
    "routing": text("routing.csv", ",4", ",3"),
    "evaluation_matrix": text("evaluation_matrix.csv", "1,50.0", "1,50.1"),
    "oracle_matrix": text("oracle_matrix.csv", "stage,paint", "stage,count"),
    "predictions/stage_1/paint": text("predictions/stage_1.jsonl", ': "red"', ': "blue"'),
    "metrics/AVG": text("metrics.json", '"AVG": 50.0, "Last"', '"AVG": 51.0, "Last"'),
    "metrics/Last": text("metrics.json", '"Last": 50.0', '"Last": 49.0'),
    "metrics/BWT": text("metrics.json", "null", "-1.0"),
    "metrics/per_task": text("metrics.json", '{"AVG": 50.0}', '{"AVG": 49.0}'),
}
"""A change to a run folder by the only name whose digest it changes."""


@pytest.mark.parametrize("name", NOTICED)
def test_a_change_of_content_changes_the_digest_of_its_name_alone(name: str, folder: Path) -> None:
    before = run_content(folder)
    assert set(before) == set(NOTICED)
    NOTICED[name](folder)
    after = run_content(folder)
    assert [key for key in before if after[key] != before[key]] == [name]


@pytest.mark.parametrize(
    "change",
    [
        rewritten,
        text("timing.json", "1.5", "2.5"),
        text("metrics.json", "5a", "6b"),
        text("router/router.json", '"format": 1', '"format": 2'),
        text("router/router.json", "threshold", "limit"),
        text("allocation.csv", "layer,rank", "unit,width"),
        text("evaluation_matrix.csv", "1,50.0", "1,50.00"),
        text("predictions/stage_1.jsonl", '["red"]', '["red", "scarlet"]'),
    ],
)
def test_times_formats_and_names_of_columns_change_nothing(change: Change, folder: Path) -> None:
    before = run_content(folder)
    change(folder)
    assert run_content(folder) == before


def test_an_expert_that_is_missing_has_no_digest(folder: Path) -> None:
    before = run_content(folder)
    (folder / "experts" / "paint" / "adapter_model.safetensors").unlink()
    assert set(before) - set(run_content(folder)) == {"experts/paint"}
