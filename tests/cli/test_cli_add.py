"""`dmole add`: the config of a run with one more task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dmole.cli.add import _config_of, _data_root, extended_config
from dmole.cli.main import main

FILE = Path("runs/a/version_0/config.yaml")
TASKS = [{"name": "paint"}, {"name": "count"}, {"name": "pope", "eval_only": True}]
NEW = {"name": "read", "train": "r.json", "test": "t.json"}


def config(**data: Any) -> dict[str, Any]:
    trainer = {"name": "a", "accept_changes": True, "fill_rows": True}
    return {"trainer": trainer, "data": {"tasks": TASKS, **data}, "ckpt_path": "elsewhere"}


def test_a_new_task_follows_those_that_are_learned() -> None:
    made = extended_config(config(), NEW, FILE)
    assert [task["name"] for task in made["data"]["tasks"]] == ["paint", "count", "read", "pope"]
    assert made["data"]["tasks"][2] == NEW
    assert made["trainer"] == {"name": "a"}
    assert made["ckpt_path"] is None


def test_files_are_those_of_the_working_directory_also_where_the_run_has_a_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    made = extended_config(config(data_root="/data"), NEW, FILE)
    assert made["data"]["tasks"][2] == {**NEW, "train": str(tmp_path / "r.json")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (config(tasks=[{"name": "READ"}]), "has a task 'READ' already: choose another --name"),
        (config(tasks=["read"]), "data.tasks must be a list of tasks"),
        (config(tasks=None), "is no config of a run"),
        ({"data": 1, "trainer": {}}, "is no config of a run"),
    ],
)
def test_a_config_that_cannot_be_extended_is_refused(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extended_config(content, NEW, FILE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["."], "is no run folder: it has no config.yaml"),
        ([".", "--trainer.version", "3"], "dmole add makes the new run beside the old one"),
        ([".", "--ckpt_path=last"], "dmole add makes the new run beside the old one"),
    ],
)
def test_other_places_are_refused(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    task = [word for key, value in NEW.items() for word in (f"--{key}", value)]
    assert main(["add", *words, *task]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def run_of(folder: Path, tasks: list[dict[str, str]], **data: Any) -> Path:
    """Make the folder of a run as far as its config is read."""
    run = folder / "runs" / "a" / "version_0"
    run.mkdir(parents=True)
    content = {"trainer": {"name": "a"}, "data": {"tasks": tasks, **data}}
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    return run


def test_the_config_is_that_of_the_version_after_the_newest_one(tmp_path: Path) -> None:
    run = run_of(tmp_path, [{"name": "paint", "test": "synthetic://paint/test?size=4"}])
    run.with_name("version_2").mkdir()
    run.with_name("version_3.yaml").touch()  # of another `dmole add`
    with _config_of(run, NEW) as file:
        assert file.name == "version_4.yaml"
        assert yaml.safe_load(file.read_text())["trainer"]["version"] == 4
    assert not file.exists()  # no run was made


def test_a_working_directory_that_loses_all_old_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [{"name": "paint", "test": "data/p.json"}, {"name": "count", "test": "{c,d}.json#5"}]
    run, data, elsewhere = run_of(tmp_path, tasks), tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    message = f"no test file .* working directory {elsewhere}, data_root null: go to the directory"
    with pytest.raises(ValueError, match=message), _config_of(run, NEW):
        pass
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    (data / "d.json").write_text("[]")  # one file is enough; the others may be gone
    with _config_of(run, NEW, str(data)) as file:
        assert file.name == "version_1.yaml"


def test_the_folder_of_the_data_may_be_given_in_either_form() -> None:
    assert _data_root(["--trainer.fill_rows", "true", "--data.data_root", "a"]) == "a"
    assert _data_root(["--data.data_root=b"]) == "b"
    assert _data_root([]) is None
