from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bad_sources import CASES, bad_sources
from PIL import Image
from safetensors.torch import load_file, save_file
from small_runs import FitWords

from dmole.cli.main import main
from dmole.data import Task, open_source
from dmole.run.checkpoint_file import read_checkpoint, save_checkpoint

ALLOCATOR = "dmole.allocation.SensitivityAllocator"


ErrorOf = Callable[..., str]
Change = Callable[[Path], object]


@pytest.fixture
def error_of(
    fit_words: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> ErrorOf:
    """Run ``fit`` with a config on top of the small one and return its one-line error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read once, at import

    def run(
        config: Any = None, *flags: str, text: str | None = None, run_folder: bool = False
    ) -> str:
        more = []
        if config is not None or text is not None:
            Path("own.yaml").write_text(yaml.safe_dump(config) if text is None else text)
            more = ["--config", "own.yaml"]
        root = tmp_path / "runs"
        assert main(fit_words(root, *more, *flags)) == 1
        assert root.exists() == run_folder
        return one_line(capsys)

    return run


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    *log, error = capsys.readouterr().err.splitlines(keepends=True)
    assert error.startswith("dmole: ")
    assert error.endswith("\n")
    assert not [line for line in log if line.startswith(("dmole: ", "Traceback"))]
    return error


def tasks(**changes: Any) -> dict[str, Any]:
    task = {
        "name": "paint",
        "train": "synthetic://paint/train?size=4",
        "test": "synthetic://paint/test?size=2",
        "max_new_tokens": 2,
    }
    return {"data": {"tasks": [task | changes]}}


def allocator(**init_args: Any) -> dict[str, Any]:
    return {"model": {"allocator": {"class_path": ALLOCATOR, "init_args": init_args}}}


def quickly(rows: Iterable[Any], every: int) -> list[Any]:
    """Return the cases of a test; all but every n-th are slow ones."""
    return [
        pytest.param(*row, marks=pytest.mark.slow if index % every else ())
        for index, row in enumerate(rows)
    ]


def name_of(value: Any) -> str:
    return value[:60] if isinstance(value, str) else ""


# -- configs and flags -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "culprits"),
    [
        ({"model": {"rouker": 3}}, ["own.yaml", "model.rouker"]),
        ({"modle": {"alpha": 3}}, ["own.yaml", "modle.alpha"]),
        (allocator(rnk=3), ["own.yaml", ALLOCATOR, "'rnk'"]),
        (allocator(rank="abc"), ["own.yaml", "rank: expected", "abc"]),
        ({"model": {"warmup": "abc"}}, ["own.yaml", "model.warmup", "abc"]),
        ({"model": {"allocator": {"class_path": "dmole.nothing.A"}}}, ["own.yaml", "nothing"]),
        (
            {"model": {"allocator": {"class_path": "dmole.routing.SharedRouter"}}},
            ["own.yaml", "model.allocator", "SharedRouter", "Allocator"],
        ),
        (tasks(trian="x"), ["own.yaml", "data.tasks", "'trian'"]),
        (tasks(epochs="many"), ["own.yaml", "data.tasks", "epochs", "many"]),
        ([1, 2], ["own.yaml must hold keys and values"]),
        ({"data": {"num_workers": -1}}, ["num_workers must be at least 0, got -1"]),
        (
            {"trainer": {"stream": {"class_path": "JointStream", "init_args": {"expert": "../x"}}}},
            ["expert '../x' must be letters"],
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, list) and len(value) > 1 else "",
)
def test_an_error_of_a_config_names_file_and_key(
    error_of: ErrorOf, config: Any, culprits: list[Any]
) -> None:
    line = error_of(config)
    assert all(culprit in line for culprit in culprits), line


def test_broken_yaml_names_file_and_place(error_of: ErrorOf) -> None:
    assert "own.yaml: broken YAML at line 2" in error_of(text="data: {tasks: [")


@pytest.mark.parametrize(
    ("flags", "culprits"),
    [
        (["--model.rr", "3"], ["--model.rr"]),
        (["--model.warmup", "abc"], ["model.warmup", "abc"]),
        (["--trainer.max_epochs", "3"], ["--trainer.max_epochs"]),
        (["--trainer.devices", "0"], ["devices", "0"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "dmole configs"]),
        (["--config"], ["--config"]),
    ],
    ids=lambda value: value[0],
)
def test_an_error_of_a_flag_names_the_flag_and_no_file(
    error_of: ErrorOf, flags: list[str], culprits: list[str]
) -> None:
    line = error_of(None, *flags)
    assert all(culprit in line for culprit in culprits), line
    assert "small.yaml" not in line


VALUES: list[tuple[dict[str, Any], str]] = [
    (allocator(budget_fraction=1.5), "budget_fraction must be in (0, 1], got 1.5"),
    ({"model": {"warmup": 2.0}}, "warmup must be in [0, 1), got 2.0"),
    ({"data": {"batch_size": 0}}, "batch_size must be at least 1, got 0"),
    (allocator(rank=0), "rank must be at least 1, got 0"),
    ({"data": {"tasks": []}}, "no task is given"),
    (tasks(name="a/b"), "task name 'a/b'"),
    (tasks(name="../a"), "task name '../a'"),
    (tasks(epochs=0), "task 'paint': epochs must be at least 1, got 0"),
    (tasks(train=None), "task 'paint' has no train data"),
    (tasks(metric="acuracy"), "task 'paint': unknown metric 'acuracy'"),
    (tasks(train="synthetic://pain/train?size=4"), "unknown generator 'pain'"),
    (tasks(train="synthetic://paint/train?size=0"), "synthetic://paint/train?size=0"),
    (tasks(train="synthetic://paint/test?size=4"), "synthetic://paint/test?size=4"),
    (tasks(train="nowhere.json"), "data file nowhere.json does not exist"),
]
"""Configs and what the message about each names; most are also in the tests of task and world."""


@pytest.mark.parametrize(("config", "culprit"), quickly(VALUES, every=3), ids=name_of)
def test_a_value_that_cannot_be_is_named(
    error_of: ErrorOf, config: dict[str, Any], culprit: str
) -> None:
    assert culprit in error_of(config)


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        (b"\xff\xfe\x00data: {}", ["own.yaml: line 1 is not UTF-8 text"]),
        (b"a: !!python/object/apply:os.mkdir [mark]", ["own.yaml: broken YAML at line 1", "tags"]),
        (b"a: " + b"[" * 1000, ["own.yaml: broken YAML at line 1", "nested deeper"]),
        (b"", ["own.yaml must hold keys and values"]),
    ],
    ids=["not text", "code", "nested", "empty"],
)
def test_a_config_that_cannot_be_read_is_named(
    error_of: ErrorOf, content: bytes, culprits: list[str]
) -> None:
    Path("own.yaml").write_bytes(content)
    line = error_of(None, "--config", "own.yaml")
    assert all(culprit in line for culprit in culprits), line
    assert not Path("mark").exists()


def test_two_tasks_of_one_name_are_refused(error_of: ErrorOf) -> None:
    twice = [*tasks()["data"]["tasks"], *tasks()["data"]["tasks"]]
    assert "two tasks have the name 'paint'" in error_of({"data": {"tasks": twice}})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./no", "there is no such folder"),
        (
            "some/model",
            "some/model is neither a folder nor in the local cache, and the hub is unreachable",
        ),
        ("empty", "empty"),
    ],
)
def test_a_base_model_that_cannot_be_loaded_is_named(
    error_of: ErrorOf, name: str, reason: str
) -> None:
    Path("empty").mkdir()
    path = {"class_path": "dmole.models.PretrainedBackbone", "init_args": {"name_or_path": name}}
    line = error_of({"model": {"backbone": path}})
    assert f"cannot load the base model {name!r}: " in line
    assert reason in line


def test_a_folder_that_cannot_be_written_is_named(
    fit_words: FitWords, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(fit_words(tmp_path / "file" / "runs")) == 1
    assert "file" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_folder_that_exists_is_not_written_to(
    fit_words: FitWords, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "small" / "version_3"
    folder.mkdir(parents=True)
    assert main(fit_words(tmp_path, "--trainer.version", "3")) == 1
    line = one_line(capsys)
    assert f"the run folder {folder} exists" in line
    assert "trainer.version" in line
    assert list(folder.iterdir()) == []


# -- data files --------------------------------------------------------------------------------


def item(name: str = "a", **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "red"}]
    return {"id": name, "conversations": turns} | changes


def broken_file(content: Any) -> dict[str, Any]:
    Path("train.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tasks(train="train.json")


FILES: list[tuple[Any, str]] = [
    ({"data": []}, "train.json: must hold a list"),
    ([], "train.json: holds no items"),
    ("[{]", "train.json: broken JSON at line 1"),
    ([item(), {"id": "b"}], "train.json: item 1 (id 'b'): has neither 'conversations'"),
    ([item(), item()], "train.json: items 0 and 1 have the same id 'a'"),
    ([item(image="no.png")], "train.json: item 0 (id 'a'): image no.png does not exist"),
    ([item(image="../x.png")], "train.json: item 0 (id 'a'): image path '../x.png'"),
    ([item(image="/x.png")], "train.json: item 0 (id 'a'): image path '/x.png'"),
    (
        [item(conversations=[{"from": "human", "value": "x"}, {"from": "gpt", "value": " "}])],
        "train.json: item 0 (id 'a'): turn 1: the answer is empty",
    ),
    ([item(conversations=[])], "train.json: item 0 (id 'a'): 'conversations'"),
    ("", "train.json: broken JSON at line 1"),
    (json.dumps([item()])[:-9], "train.json: broken JSON at line 1"),
    ("[" * 100_000, "train.json: item 0: is nested too deeply"),
    (f"[{'1' * 5000}]", "train.json: item 0: holds a number of more than 4300 digits"),
    (["a"], "train.json: item 0 is a string, not an object"),
    ([{"id": "q", "text": "what ?"}], "train.json: item 0 (id 'q'): has no 'answer'"),
    (
        [item(conversations=[{"from": "system", "value": "x"}])],
        "train.json: item 0 (id 'a'): the last turn has the role 'system': there is no answer",
    ),
    (
        [item(conversations=[{"from": "robot", "value": "x"}])],
        "train.json: item 0 (id 'a'): turn 0 has the unknown role 'robot'",
    ),
    (
        [
            item(
                conversations=[
                    {"from": "human", "value": "\ud800"},
                    {"from": "gpt", "value": "x"},
                ]
            )
        ],
        "train.json: item 0: holds '\\ud800', half of a surrogate pair",
    ),
    (
        [item(image="http://x.org/a.png")],
        "image path 'http://x.org/a.png' must be a path below",
    ),
    ([item(image="a\\b.png")], "must be a path below"),
    ([item(image="a" * 999)], "cannot be used: File name too long"),
]
"""Contents of a file and what the message about each names."""


@pytest.mark.parametrize(("content", "culprit"), quickly(FILES, every=6), ids=name_of)
def test_an_error_of_a_data_file_names_file_and_item(
    error_of: ErrorOf, content: Any, culprit: str
) -> None:
    assert culprit in error_of(broken_file(content))


@pytest.mark.parametrize(("content", "culprit"), FILES, ids=name_of)
def test_an_error_of_a_data_file_is_found_when_the_file_is_opened(
    content: Any, culprit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken_file(content)
    task = Task("paint", train="train.json", test="synthetic://paint/test?size=2")
    with pytest.raises((ValueError, OSError), match=re.escape(culprit)):
        open_source(task, "train", Path())


# all of them are opened, without the command line, in `test_data_source.py`
@pytest.mark.parametrize("case", quickly(zip(CASES, strict=True), every=8))
def test_a_source_with_an_error_is_named(error_of: ErrorOf, case: str) -> None:
    task, message = bad_sources(Path())[case]
    keys = {"train": task.train, "columns": task.columns, "format": task.format}
    if task.test is not None:
        keys["test"] = task.test
    assert message in error_of(tasks(**keys))


def test_a_hub_out_of_reach_is_named(error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    line = error_of(tasks(train="hf://nobody/nothing?config=x"))
    assert "hf://nobody/nothing: cannot be loaded: " in line


def test_a_system_turn_is_refused_where_the_model_takes_none(error_of: ErrorOf) -> None:
    line = error_of(broken_file([item(system="Be brief."), item("b")]))
    assert "sample 'a': the chat template takes no system turn: the roles are 'user' and" in line


def test_a_data_file_that_is_not_text_is_named(error_of: ErrorOf) -> None:
    config = broken_file([])
    Path("train.json").write_bytes(b"[\xff]")
    assert "train.json: is not UTF-8 text" in error_of(config)


def bomb(path: Path) -> None:
    """Write an image that claims 100 million pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


IMAGES: list[tuple[Change, str]] = [
    (bomb, "cannot read image a.png: Image size (100000000 pixels) exceeds limit"),
    (os.mkfifo, "image a.png is not a file"),
    (lambda path: path.symlink_to("/etc/hostname"), "image path 'a.png' leaves"),
    (lambda path: path.write_text("text"), "cannot read image a.png: it is not one of"),
    (Path.mkdir, "image a.png is not a file"),
    (lambda path: path.write_bytes(b""), "cannot read image a.png: it is not one of"),
]
"""What takes the place of an image, and what the message about it names."""


@pytest.mark.parametrize(("make", "culprit"), quickly(IMAGES, every=3), ids=name_of)
def test_an_image_that_cannot_be_used_is_named(
    error_of: ErrorOf, make: Change, culprit: str
) -> None:
    make(Path("a.png"))
    line = error_of(broken_file([item(image="a.png")]), "--data.verify_images", "true")
    assert culprit in line


def test_an_empty_test_file_is_refused(error_of: ErrorOf) -> None:
    Path("test.json").write_text("[]")
    assert "test.json: holds no items" in error_of(tasks(test="test.json"))


def truncated_image() -> dict[str, Any]:
    Image.new("RGB", (64, 64), "red").save("a.png")
    Path("a.png").write_bytes(Path("a.png").read_bytes()[:60])
    return broken_file([item(f"s{i}", image="a.png") for i in range(2)])


def test_a_truncated_image_is_found_before_the_run_where_images_are_verified(
    error_of: ErrorOf,
) -> None:
    line = error_of(truncated_image(), "--data.verify_images", "true")
    assert "a.png" in line


def test_a_truncated_image_of_the_longest_sample_is_named(error_of: ErrorOf) -> None:
    assert "a.png" in error_of(truncated_image())


def test_a_sample_that_is_too_long_is_named_with_its_length(error_of: ErrorOf) -> None:
    line = error_of({"data": {"max_length": 5}})
    assert "sample 'paint-train-0-0' has" in line
    assert "more than max_length 5" in line


def test_a_training_sample_that_is_too_long_is_named_with_its_length(
    error_of: ErrorOf,
) -> None:
    long = [{"from": "human", "value": "what ? " * 300}, {"from": "gpt", "value": "red"}]
    config = broken_file([item("ok"), item("long", conversations=long)])
    config["data"]["max_length"] = 300
    line = error_of(config)
    assert "sample 'long' has" in line
    assert "max_length 300" in line


# -- checkpoints -------------------------------------------------------------------------------


class Code:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(Path("mark").resolve()),)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """Change one bit in the middle of the largest part."""
    damaged = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        part = max(archive.infolist(), key=lambda part: part.file_size)
    damaged[part.header_offset + 200 + part.file_size // 2] ^= 16
    file.write_bytes(damaged)


def fingerprint(**changes: Any) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        content = read_checkpoint(file)
        content["fingerprints"] |= changes
        save_checkpoint(content, file)

    return change


def poison(file: Path) -> None:
    content = torch.load(file, weights_only=True)
    next(iter(content["state_dict"].values()))[0, 0] = float("nan")
    torch.save(content, file)


def swap(file: Path) -> None:
    """Swap the autoencoders of two experts."""
    content = torch.load(file, weights_only=True)
    experts = content["router"]["experts"]
    experts["paint"], experts["count"] = experts["count"], experts["paint"]
    torch.save(content, file)


def holds(content: Any) -> Callable[[Path], None]:
    return lambda file: torch.save(content, file)


CUT_SHORT = "cannot read checkpoint own/checkpoints/last.ckpt: it is cut short"


CHECKPOINTS = [
    ("missing", Path.unlink, "there is no checkpoint own/checkpoints/last.ckpt"),
    ("empty", lambda file: file.write_bytes(b""), CUT_SHORT),
    ("text", lambda file: file.write_text("text"), CUT_SHORT),
    ("truncated", cut, CUT_SHORT),
    ("bit-flipped", flip, "cannot read checkpoint own/checkpoints/last.ckpt: it is damaged in "),
    ("code", holds(Code()), "last.ckpt: it holds more than tensors and plain values (posix.mkdir)"),
    (
        "bare pickle",
        lambda file: file.write_bytes(pickle.dumps(Code())),
        "cannot read checkpoint own/checkpoints/last.ckpt: it is cut short, or no checkpoint",
    ),
    (
        "of another project",
        holds({"state_dict": {"w": torch.zeros(1)}, "pytorch-lightning_version": "2.6.0"}),
        "last.ckpt is not a checkpoint of a sequence",
    ),
    ("a list", holds([1, 2]), "last.ckpt is not a checkpoint of a sequence"),
    ("NaN", poison, "last.ckpt: tensor state_dict/count/"),
    ("swapped", swap, "last.ckpt: its content was changed after it was written"),
    (
        "other base",
        fingerprint(**{"base model": "x"}),
        "last.ckpt was made with another base model",
    ),
    (
        "other data",
        fingerprint(**{"data of paint": {}}),
        "last.ckpt was made with another data of paint",
    ),
    ("other order", fingerprint(**{"order of stages": []}), "made with another order of stages"),
]
CHECKPOINTS_OFTEN = {"missing", "bit-flipped", "code", "other base"}
"""Checked with every change; the others are, without the command line, in `test_e2e_resume.py`
and `test_run_checkpoint_file.py`."""


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        pytest.param(*row, id=name, marks=[] if name in CHECKPOINTS_OFTEN else pytest.mark.slow)
        for name, *row in CHECKPOINTS
    ],
)
def test_a_checkpoint_that_cannot_be_resumed_says_why(
    error_of: ErrorOf, quick_run: Path, change: Change, culprit: str
) -> None:
    file = Path("own") / "checkpoints" / "last.ckpt"
    shutil.copytree(quick_run / "checkpoints", file.parent)
    change(file)
    assert culprit in error_of(None, "--ckpt_path", str(file))
    assert not Path("mark").exists()


def test_a_checkpoint_outside_a_run_folder_is_refused(error_of: ErrorOf, quick_run: Path) -> None:
    shutil.copyfile(quick_run / "checkpoints" / "last.ckpt", "last.ckpt")
    assert "last.ckpt is not in a run folder" in error_of(None, "--ckpt_path", "last.ckpt")


def test_a_run_folder_without_a_checkpoint_is_named(error_of: ErrorOf) -> None:
    Path("empty").mkdir()
    line = error_of(None, "--ckpt_path", "empty")
    assert "there is no checkpoint empty/checkpoints/last.ckpt" in line


# -- run folders of someone else ---------------------------------------------------------------

WEIGHTS = "experts/paint/adapter_model.safetensors"
SETTINGS = "experts/paint/adapter_config.json"
ROUTER = "router/router.json"
ENCODER = "router/paint.safetensors"


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return what changes the content of a JSON file of a run."""

    def edited(run: Path) -> None:
        content = json.loads((run / name).read_text())
        content = change(content) or content
        (run / name).write_text(json.dumps(content))

    return edited


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Return what changes the tensors of a file of a run, which then has no digest."""

    def edited(run: Path) -> None:
        content = load_file(run / name)
        change(content)
        save_file(content, run / name)

    return edited


def first(content: dict[str, torch.Tensor], part: str) -> str:
    return next(key for key in sorted(content) if part in key)


def drop(content: dict[str, torch.Tensor]) -> None:
    del content[first(content, "lora_B")]


def widen(content: dict[str, torch.Tensor]) -> None:
    key = first(content, "lora_A")
    content[key] = torch.zeros(content[key].shape[0], content[key].shape[1] + 1)


def claim(content: dict[str, torch.Tensor]) -> None:
    content[first(content, "lora_A")] = torch.empty(10**9, 0)


def flip_last(file: Path) -> None:
    damaged = bytearray(file.read_bytes())
    damaged[-9] ^= 16
    file.write_bytes(damaged)


FOREIGN = [
    (
        "no weights",
        lambda run: (run / WEIGHTS).unlink(),
        ["paint/adapter_model.safetensors", "No such file"],
    ),
    ("no settings", lambda run: (run / SETTINGS).unlink(), ["cannot read expert", SETTINGS]),
    ("truncated weights", lambda run: cut(run / WEIGHTS), ["cannot read", WEIGHTS]),
    ("flipped weights", lambda run: flip_last(run / WEIGHTS), [WEIGHTS, "is damaged"]),
    (
        "pickled weights",
        lambda run: (run / WEIGHTS).write_bytes(pickle.dumps(Code())),
        ["cannot read", WEIGHTS],
    ),
    ("missing tensor", tensors(WEIGHTS, drop), ["expert 'paint'", "lora_b is missing"]),
    ("wrong width", tensors(WEIGHTS, widen), ["expert 'paint'", "has shape"]),
    ("a billion ranks", tensors(WEIGHTS, claim), ["has rank 1000000000"]),
    (
        "unknown tensor",
        tensors(WEIGHTS, lambda t: t.update(other=torch.zeros(2, 2))),
        ["tensor other is unknown"],
    ),
    (
        "of another base",
        tensors(
            WEIGHTS,
            lambda t: [t.update({k.replace("layers", "blocks"): t.pop(k)}) for k in list(t)],
        ),
        ["the model has no linear"],
    ),
    (
        "not finite",
        tensors(WEIGHTS, lambda t: t[first(t, "lora_B")].fill_(float("nan"))),
        [WEIGHTS, "is not finite"],
    ),
    ("claimed rank", edit(SETTINGS, lambda c: c | {"r": 10**9}), ["1000000000 in adapter_config"]),
    (
        "alpha NaN",
        edit(SETTINGS, lambda c: c | {"lora_alpha": float("nan")}),
        ["lora_alpha: the number nan is not finite"],
    ),
    ("settings no object", edit(SETTINGS, lambda c: [c]), [SETTINGS, "keys and values"]),
    (
        "expert outside",
        lambda run: (run / "experts/experts.json").write_text('["../../paint"]'),
        ["experts.json: expert name '../../paint'"],
    ),
    (
        "experts broken",
        lambda run: (run / "experts/experts.json").write_text('["paint'),
        ["cannot read", "experts.json"],
    ),
    (
        "experts no list",
        lambda run: (run / "experts/experts.json").write_text("3"),
        ["experts.json: expected a list of names, got int"],
    ),
    ("no router", lambda run: (run / ROUTER).unlink(), ["cannot read router", ROUTER]),
    ("router broken", lambda run: (run / ROUTER).write_text("{"), ["cannot read router", ROUTER]),
    ("router no object", edit(ROUTER, lambda c: [c]), [ROUTER, "it is not the index of a router"]),
    ("router of another format", edit(ROUTER, lambda c: c | {"format": 99}), ["format 99"]),
    ("router of another kind", edit(ROUTER, lambda c: c | {"router": "X"}), ["saved by X"]),
    ("router without experts", edit(ROUTER, lambda c: c | {"experts": {}}), [ROUTER, "'experts'"]),
    (
        "router outside",
        edit(ROUTER, lambda c: c["experts"][0].update(name="../../x")),
        ["router.json: expert name '../../x'"],
    ),
    ("flipped router", lambda run: flip_last(run / ENCODER), [ENCODER, "is damaged"]),
    (
        "pickled router",
        lambda run: (run / ENCODER).write_bytes(pickle.dumps(Code())),
        ["cannot read", ENCODER],
    ),
    (
        "router threshold NaN",
        tensors(ENCODER, lambda t: t["losses_heldout"].fill_(float("nan"))),
        [ENCODER, "losses_heldout holds a number that is not finite"],
    ),
    (
        "router of another width",
        tensors(ENCODER, lambda t: t.update(b_dec=torch.zeros(3))),
        ["router of expert paint: tensor b_dec has shape (3,)"],
    ),
]


OFTEN = {
    "no weights",
    "flipped weights",
    "pickled weights",
    "wrong width",
    "of another base",
    "claimed rank",
    "expert outside",
    "router broken",
    "router outside",
    "pickled router",
    "router threshold NaN",
}
"""Checked with every change; the others, of the same kinds, with the slow tests."""


@pytest.mark.parametrize(
    ("name", "change", "culprits"),
    [
        pytest.param(*row, id=row[0], marks=[] if row[0] in OFTEN else pytest.mark.slow)
        for row in FOREIGN
    ],
)
def test_a_damaged_or_hostile_run_is_refused_and_runs_nothing(
    quick_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Change,
    culprits: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    unused = shutil.ignore_patterns("events*", "figures", "checkpoints", "predictions")
    run = shutil.copytree(quick_run, tmp_path / "run", ignore=unused)
    before = {path for path in tmp_path.rglob("*") if path.is_dir()}
    change(run)
    words = ["predict", "run", "--prompt", "what ?"]
    if name in ("pickled weights", "expert outside"):
        words = ["evaluate", "run"]
    assert main(words) == 1
    line = one_line(capsys)
    assert all(culprit in line for culprit in culprits), line
    assert {path for path in tmp_path.rglob("*") if path.is_dir()} == before


# -- other verbs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["evaluate", "nowhere"], "nowhere is no run folder"),
        (["evaluate"], "run"),
        (["evaluate", "nowhere", "--split", "all"], "--split"),
        (["predict", "nowhere", "--prompt", "x"], "nowhere is no run folder"),
        (["predict", "nowhere"], "--prompt"),
        (["predict", "nowhere", "--input", "no.json"], "no.json"),
        (["compare", "nowhere"], "no run folder nowhere"),
        (["compare"], "runs"),
        (["data"], "verb"),
        (["data", "make-example"], "output"),
        (["data", "make-example", "x", "--train_size", "0"], "train_size 0"),
    ],
    ids=" ".join,
)
def test_an_error_of_another_verb_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    culprit: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert culprit in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_file_that_is_no_list_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_run: Path
) -> None:
    path = tmp_path / "prompts.json"
    path.write_text('"what ?"')
    assert main(["predict", str(quick_run), "--input", str(path)]) == 1
    assert "prompts.json" in (error := one_line(capsys))
    assert "prompts" in error


def test_an_evaluation_does_not_write_over_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_run: Path
) -> None:
    words = ["evaluate", str(quick_run), "--output", str(tmp_path)]
    assert main(words) == 1
    assert f"{tmp_path} exists; name another output" in one_line(capsys)


def test_a_run_without_an_expert_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_run: Path
) -> None:
    (tmp_path / "model.json").write_bytes((quick_run / "model.json").read_bytes())
    assert main(["predict", str(tmp_path), "--prompt", "what ?"]) == 1
    assert "experts.json is missing" in one_line(capsys)


def test_missing_packages_of_the_example_are_named_with_their_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    assert main(["data", "make-example", str(tmp_path / "x")]) == 1
    line = one_line(capsys)
    assert "easy_vqa" in line
    assert "pip install dmole[examples]" in line
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_verb_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    line = one_line(capsys)
    assert "no verb 'train'" in line
    listed = line.partition("there are ")[2].split(", ")
    assert {"fit", "add", "evaluate", "predict", "experts", "serve", "compare"} <= set(listed)


def test_an_error_is_raised_with_its_traceback_where_one_is_requested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DMOLE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="nowhere is no run folder"):
        main(["evaluate", "nowhere"])
