"""Edits of runs whose files hold more, less or something else than those of a plain run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from edited_runs import edit, forge, make_run
from strangers import refused

from dmole.cli.main import main
from dmole.editing.bringing_in import rebased, standing_alone
from dmole.editing.source import open_run
from dmole.storage.disabled import read_disabled


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder; no test may change it."""
    return make_run(tmp_path_factory.mktemp("runs") / "version_0")


def test_a_disabled_expert_stays_off_when_it_is_renamed(plain: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(plain, run)
    assert main(["experts", str(run), "disable", "paint"]) == 0
    edited = edit(run, "rename", "paint", "color", output=tmp_path / "edited")
    assert read_disabled(edited) == ("color",)


def test_an_evaluation_that_would_leave_out_a_disabled_expert_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", router="KeyRouter")
    assert main(["experts", str(run), "disable", "paint"]) == 0
    capsys.readouterr()
    other = make_run(tmp_path / "other", ["caption"], "KeyRouter")
    for words in (["remove", "count"], ["import", str(other), "caption"]):
        line = refused(["experts", str(run), *words, "--output", str(tmp_path / "new")], capsys)
        assert "'paint' of" in line
        assert line.endswith("enable it first")
    edited = edit(run, "remove", "paint", output=tmp_path / "edited")  # what is off may go
    assert read_disabled(edited) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprints": 5}, "fingerprints must hold keys and values, got int"),
        ({"fingerprints": {"data": []}}, "fingerprints.data must hold keys and values, got list"),
        ({"fingerprints": {"data": {"paint": "x"}}}, "data.paint must hold keys and values"),
        ({"experts": ["paint"]}, "experts must hold keys and values, got list"),
        ({"experts": {"paint": 5}}, "experts.paint must hold keys and values, got int"),
        ({"experts": {"paint": {}}}, "experts.paint.starts_from must be the name of an expert"),
        ({"experts": {"paint": {"starts_from": 3}}}, "experts.paint.starts_from must be the"),
    ],
)
def test_figures_of_another_form_are_refused_by_their_key(
    change: dict[str, Any], message: str, plain: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(plain, run)
    forge(run, "metrics.json", json.loads((run / "metrics.json").read_text()) | change)
    with pytest.raises(ValueError, match=re.escape(f"{run / 'metrics.json'}: ")) as caught:
        open_run(run)
    assert message in str(caught.value)


def test_the_segments_of_a_renamed_expert_have_its_new_name(plain: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(plain, run)
    header = "stage,expert,start,alarm,true_task,owner,count"
    forge(run, "segments.csv", f"{header}\n1,paint,0,,paint,paint,9\n2,count,9,9,paint,paint,1\n")
    edited = edit(run, "rename", "paint", "color", output=tmp_path / "edited")
    assert (edited / "segments.csv").read_text().splitlines() == [
        header,
        "1,color,0,,paint,color,9",  # the task keeps its name
        "2,count,9,9,paint,color,1",
    ]


def test_an_edit_with_several_processes_is_refused(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    words = ["experts", str(plain), "remove", "paint", "--output", str(output)]
    line = refused([*words, "--trainer.devices", "2"], capsys)
    assert "dmole experts uses one device, not 2: leave out --trainer.devices" in line
    assert not output.exists()


def test_the_paths_of_an_imported_task_are_found_from_a_root_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    moved = rebased({"name": "read", "train": "read.json"}, "~/data", "/elsewhere")
    assert moved["train"] == str(tmp_path / "data" / "read.json")


def test_an_update_without_test_samples_is_tested_as_the_task_that_it_continues() -> None:
    first = {
        "name": "a",
        "train": "may.json",
        "test": "test.tsv",
        "image_root": "images",
        "format": "vlmevalkit",
        "max_new_tokens": 4,
        "metric": "contains",
        "epochs": 3,
    }
    update = {"name": "a-v2", "train": "june.json", "image_root": "june", "update": True}
    update |= {"format": "auto", "max_new_tokens": 32, "metric": "exact_match", "epochs": 1}
    of_first = {key: first[key] for key in ("test", "format", "max_new_tokens", "metric")}
    changes = standing_alone(update, [first, update])
    assert changes == {
        "update": False,
        "image_root": "june",
        "test_image_root": "images",
        **of_first,
    }
    assert standing_alone(update | {"test": "t.json"}, [first, update]) == {"update": False}
    del first["image_root"]  # images are beside the test file, not in the folder of the update
    assert standing_alone(update, [first, update])["image_root"] is None
