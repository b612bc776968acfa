"""Files are whole or absent; configs are found by name; the clock adds up."""

from __future__ import annotations

import csv
import doctest
import json
import os
import re
import stat
from pathlib import Path

import pytest

from dmole.cli import config_files
from dmole.cli.config_files import find_config, resolve_configs, shipped_configs
from dmole.run.clock import Clock, peak_memory
from dmole.storage import files
from dmole.storage.files import atomic_path, read_json, write_csv, write_json, write_lines


def test_docstring_examples_hold() -> None:
    for module in (files, config_files):
        assert doctest.testmod(module).failed == 0


def fail_while_writing(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.txt"
    with pytest.raises(RuntimeError, match="killed"):
        fail_while_writing(path)
    assert list(path.parent.iterdir()) == []
    path.write_text("old")
    with pytest.raises(RuntimeError, match="killed"):
        fail_while_writing(path)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_the_target_is_untouched_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_json_keeps_order_and_letters_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"z": 1, "a": [None, "größe"]}
    write_json(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == content
    assert "größe" in path.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").index('"z"') < path.read_text("utf-8").index('"a"')
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == content


def test_lines_are_one_object_each(tmp_path: Path) -> None:
    rows = [{"id": "1", "text": "two\nlines"}, {"id": "2"}]
    write_lines(tmp_path / "a.jsonl", rows)
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_a_missing_column_is_empty_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, ("a", "b"), [{"a": 1}, {"a": 2, "b": 'x,"y"'}])
    assert path.read_bytes() == b'a,b\n1,\n2,"x,""y"""\n'
    with pytest.raises(ValueError, match="c"):
        write_csv(path, ("a", "b"), [{"c": 1}])


def test_the_working_directory_comes_before_the_shipped_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_config("configs/quickstart.yaml")
    assert shipped == find_config("quickstart.yaml")
    assert shipped.is_file()
    (tmp_path / "quickstart.yaml").write_text("mine")
    assert find_config("quickstart.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["no_such.yaml", "../pyproject.toml", "/no/such/file.yaml"])
def test_a_config_that_is_not_there_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "quickstart.yaml" in shipped_configs()
    with pytest.raises(ValueError, match=rf"^no config {re.escape(name)}: no such file"):
        find_config(name)


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "--config", "quickstart.yaml", "--trainer.name", "x"],
        ["fit", "--config=quickstart.yaml", "--trainer.name", "x"],
        ["fit", "-c", "quickstart.yaml", "--trainer.name", "x"],
    ],
)
def test_config_names_become_paths_and_the_rest_stays(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, paths = resolve_configs(arguments)
    path = str(find_config("quickstart.yaml"))
    assert [str(p) for p in paths] == [path]
    assert any(argument.endswith(path) for argument in found)
    assert found[-2:] == ["--trainer.name", "x"]
    assert len(found) == len(arguments)


def test_the_clock_counts_outer_phases_once_and_samples_of_training() -> None:
    clock = Clock()
    with clock.lap(1, "colors", "train") as train:
        train.samples = 10
        with clock.lap(1, "colors", "allocate"):
            pass
    with clock.lap(1, "colors", "router"), clock.lap(1, "colors", "embed") as later:
        pass
    later.seconds = 5.0  # after training, so it is no part of its seconds
    with pytest.raises(RuntimeError), clock.lap(1, "colors", "evaluate"):
        raise RuntimeError
    inner, outer, _, router, broken = clock.laps
    assert (inner.phase, outer.phase, broken.phase) == ("allocate", "train", "evaluate")
    report = clock.report()
    assert report["seconds"] == pytest.approx(outer.seconds + router.seconds + broken.seconds)
    assert report["train_samples_per_second"] == pytest.approx(10 / (outer.seconds - inner.seconds))
    assert len(report["phases"]) == 5


def test_a_clock_without_training_has_no_speed() -> None:
    assert Clock().report()["train_samples_per_second"] is None
    assert peak_memory() > 10**6


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_is_read_with_and_without_a_byte_order_mark(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(mark + '{"a": "é"}'.encode())
    assert read_json(path) == {"a": "é"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"\xff", "line 1 is not UTF-8 text"),
        (b'{"a":\n 1, b}', "broken JSON at line 2 column 5"),
        (b"", "broken JSON at line 1 column 1"),
        (b"[" * 100_000, "nested too deep"),
        (b"1" * 5_000, "Exceeds the limit"),
    ],
)
def test_json_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json: .*{reason}"):
        read_json(path)
    with pytest.raises(ValueError, match=rf"^cannot read router .*a\.json: .*{reason}"):
        read_json(path, "router")


def test_a_cell_that_a_spreadsheet_would_compute_becomes_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    cells = ["=1+1", "+x", "-x", "@x", "\tx", "-1.5", "+2", "nan", "-inf", "a=b", "\x1b", -3]
    write_csv(path, ("=a",), [{"=a": cell} for cell in cells])
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row[0] for row in csv.reader(file)]
    shown = [
        "'=1+1",
        "'+x",
        "'-x",
        "'@x",
        r"'\tx",
        "-1.5",
        "+2",
        "nan",
        "-inf",
        "a=b",
        r"\x1b",
        "-3",
    ]
    assert rows == ["'=a", *shown]
