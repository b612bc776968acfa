"""Files from outside are read as regular files of bounded size that hold plain values."""

from __future__ import annotations

import doctest
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmole.storage import reading, values
from dmole.storage.files import (
    check_file,
    check_folder,
    open_file,
    read_json,
    read_text,
    read_yaml,
    refusing,
)

READERS: list[Callable[[Path], Any]] = [check_file, open_file, read_text, read_json, read_yaml]


def test_docstring_examples_hold() -> None:
    result = doctest.testmod(values)
    assert result.attempted
    assert result.failed == 0


def named_pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (named_pipe, "it is a named pipe, not a file"),
        (link_to_device, "it is a device, not a file"),
        (bound_socket, "it is a socket, not a file"),
        (Path.mkdir, "it is a folder, not a file"),
        (loop, "Too many levels of symbolic links"),
        (lambda path: None, "No such file or directory"),
    ],
)
def test_what_is_no_file_is_refused_without_waiting(
    read: Callable[[Path], Any],
    make: Callable[[Path], None],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    make(Path("a.json"))
    with pytest.raises(ValueError, match=f"^a.json: {reason}$"):
        read(Path("a.json"))


def test_a_pipe_put_in_place_after_the_check_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "a")
    monkeypatch.setattr(reading, "check_file", lambda *_: None)
    with pytest.raises(ValueError, match="a named pipe"):
        open_file(tmp_path / "a")


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("[1]")
    (tmp_path / "a").symlink_to("b")
    assert read_json(tmp_path / "a") == [1]


def test_a_path_with_a_null_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot read list a"):
        check_file(Path("a\0b"), "list")


def test_a_size_is_bounded_by_kind(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole that takes no space
    check_file(path)
    for read in (read_text, read_json, read_yaml):
        with pytest.raises(ValueError, match=r"a: it is larger than [\d,]+ bytes"):
            read(path)
    path.write_text("abcd")
    assert read_text(path, limit=4) == "abcd"
    with pytest.raises(ValueError, match="larger than 3 bytes"):
        read_text(path, limit=3)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc")
def test_a_file_that_states_no_size_is_bounded_too() -> None:
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        read_text(Path("/proc/self/status"), limit=10)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"seconds": 1e999}', "seconds: the number inf is not finite"),
        ('{"a": [0, {"b": NaN}]}', r"a\[1\].b: the number nan is not finite"),
        ('{"seconds": ' + "9" * 4000 + "}", "seconds: the number needs more than 64 bits"),
        ('{"seconds": ' + "9" * 5000 + "}", "broken JSON: Exceeds the limit"),
        ("[" * 200_000, "broken JSON: lists or mappings are nested too deep"),
        ("[" * 150 + "]" * 150, "nested deeper than 100 levels"),
        ('{"a":' * 150 + "1" + "}" * 150, "nested deeper than 100 levels"),
        (r'{"name": "\ud800"}', "name: the text holds half of a surrogate pair"),
        (r'{"\udfff": 1}', r"\\udfff: the text holds half of a surrogate pair"),
        ('{"a": 1, "a": 2}', "broken JSON: key 'a' is set twice"),
        ('{"a": "\0"}', "broken JSON at line 1 column 8"),
    ],
)
def test_json_that_no_program_could_handle_is_refused(
    content: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"^\S*a\.json: .*{reason}") as error:
        read_json(path)
    assert len(str(error.value)) < len(str(path)) + 200


def test_text_that_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"good\nbad \xff\n")
    with pytest.raises(ValueError, match="a: line 2 is not UTF-8 text"):
        read_text(tmp_path / "a")


def test_values_of_data_are_not_restricted(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"id": 99999999999999999999, "score": NaN}')
    assert read_json(path, limit=None)["id"] == 99999999999999999999
    with pytest.raises(ValueError, match="id: the number needs more than 64 bits"):
        read_json(path)


def aliases_that_double() -> str:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 9)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (aliases_that_double(), r"broken YAML at line 2 column 10: aliases \(\*name\)"),
        ("a: &a [*a]", "line 1 column 8: aliases"),
        ("a: !!python/object/apply:os.system [ls]", "line 1 column 4: tags"),
        ("a: !name x", "line 1 column 4: tags"),
        ("a: " + "[" * 5000, "line 1 column 103: it is nested deeper than 100 levels"),
        ("".join("  " * i + "a:\n" for i in range(150)), "line 101 .* nested deeper"),
        ("a: 1\nb: 2\na: 3", "line 3 column 1: key 'a' is set twice"),
        ("a: {b: 1, b: 2}", "line 1 column 11: key 'b' is set twice"),
        ("a: " + "9" * 4000, "a: the number needs more than 64 bits"),
        ("a: " + "9" * 5000, "broken YAML: Exceeds the limit"),
        ("a: 2020-13-45", "broken YAML: month must be in"),
        ("a: \x1b", "broken YAML: unacceptable character"),
        ("? [a]\n: 1", "found unhashable key"),
        ("a: 1\n---\nb: 2", "line 2 column 1: but found another document"),
        ("a: [", "broken YAML at line"),
    ],
)
def test_yaml_that_is_more_than_plain_values_is_refused(
    content: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ValueError, match=rf"^\S*a\.yaml: .*{reason}"):
        read_yaml(tmp_path / "a.yaml")


def test_plain_yaml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("\ufeffa: [1, {b: größe, c: .inf}]\nd: {a: 1}\ne: ~\n", encoding="utf-8")
    assert read_yaml(path) == {
        "a": [1, {"b": "größe", "c": float("inf")}],
        "d": {"a": 1},
        "e": None,
    }


def test_a_folder_for_a_library_holds_files_only(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_text("x")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(".")
    check_folder(tmp_path)
    os.mkfifo(tmp_path / "sub" / "b")
    with pytest.raises(ValueError, match=r"^cannot read the data \S*sub/b: it is a named pipe"):
        check_folder(tmp_path, "the data")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("a"), "cannot use router r.json: KeyError: 'a'"),
        (TypeError("no len\n()"), "cannot use router r.json: TypeError: no len ()"),
        (ValueError("bad"), "cannot use router r.json: bad"),
        (ValueError("r.json: bad"), "r.json: bad"),
        (RecursionError("deep"), "cannot use router r.json: RecursionError: deep"),
    ],
)
def test_an_error_in_the_use_of_a_file_names_it(error: Exception, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"), refusing("r.json", "router"):
        raise error


def test_a_signal_is_no_error_of_the_file() -> None:
    class EndedError(Exception):
        exit_status = 143

    with pytest.raises(EndedError), refusing("a"):
        raise EndedError
