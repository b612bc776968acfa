"""Reading a checkpoint: every damage is noticed, and nothing in it is run."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dmole.routing import KeyRouter
from dmole.run.checkpoint_file import FORMAT, read_checkpoint, save_checkpoint


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.mark,)


def content() -> dict[str, Any]:
    return {
        "format": FORMAT,
        "floats": torch.arange(300.0),
        "whole": torch.arange(50),
        "names": ["a", 1.5, None],
        "state_dict": {"paint/x": torch.linspace(1, 2, 50), "count/x": torch.linspace(3, 4, 50)},
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_checkpoint(content(), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def outcome(file: Path) -> str:
    """Return "same", "refused", or what is wrong."""
    try:
        found = read_checkpoint(file)
    except ValueError as error:
        good = str(error).startswith(("cannot read checkpoint", str(file)))
        return "refused" if good and "\n" not in str(error) else str(error)
    expected = content()
    if found.keys() != expected.keys():
        return f"keys {sorted(found)}"
    for key in ("floats", "whole"):
        if found[key].dtype != expected[key].dtype or not torch.equal(found[key], expected[key]):
            return f"other {key}"
    return "same" if found["names"] == expected["names"] else f"names {found['names']}"


def test_a_whole_checkpoint_is_read(file: Path) -> None:
    assert outcome(file) == "same"


def test_a_bit_flipped_anywhere_is_refused_or_changes_nothing(file: Path) -> None:
    whole = file.read_bytes()
    draw = random.Random(0)
    outcomes = set()
    for place in draw.sample(range(8 * len(whole)), 300):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        outcomes.add(outcome(file))
    assert outcomes == {"refused", "same"}  # padding and unused fields may change


def test_a_bit_flipped_in_any_part_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        parts = [archive.read(name) for name in archive.namelist()]
    for part in parts:
        start = whole.index(part)
        for place in random.Random(1).sample(range(8 * len(part)), min(30, 8 * len(part))):
            damaged = bytearray(whole)
            damaged[start + place // 8] ^= 1 << place % 8
            file.write_bytes(damaged)
            assert outcome(file) == "refused"


def swap_experts(content: dict[str, Any]) -> None:
    names = list(content["state_dict"])
    tensors = [content["state_dict"][name] for name in reversed(names)]
    content["state_dict"] = dict(zip(names, tensors, strict=True))


def reorder_experts(content: dict[str, Any]) -> None:
    content["state_dict"] = dict(reversed(content["state_dict"].items()))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["floats"].add_(1),
        lambda c: c["names"].__setitem__(1, 2.5),
        lambda c: c.update(names=["a", "1.5", None]),
        lambda c: c.update(whole=c["whole"].int()),
        lambda c: c.update(whole=c["whole"].reshape(5, 10)),
        lambda c: c.update(more=1),
        lambda c: c.pop("names"),
        lambda c: c.pop("sha256"),
        swap_experts,
        reorder_experts,
    ],
)
def test_a_checkpoint_that_another_program_has_changed_is_refused(
    file: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    changed = torch.load(file, weights_only=True)
    change(changed)
    torch.save(changed, file)
    with pytest.raises(ValueError, match=r"last\.ckpt: its content was changed after it was"):
        read_checkpoint(file)


@pytest.mark.parametrize("part", ["state_dict", "router", "optimizer_states"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("version", [3, FORMAT])
def test_a_number_that_is_not_finite_is_named_and_never_written(
    file: Path, part: str, value: float, version: int
) -> None:
    bad = content() | {"format": version, part: {"a": [torch.zeros(2), torch.tensor([1, value])]}}
    whole = file.read_bytes()
    with pytest.raises(ValueError, match=rf"last\.ckpt is not written: tensor {part}/a/1 holds a"):
        save_checkpoint(bad, file)
    assert file.read_bytes() == whole
    torch.save(bad, file)
    with pytest.raises(ValueError, match=rf"checkpoint .*last\.ckpt: tensor {part}/a/1 holds a"):
        read_checkpoint(file)


def test_a_number_that_is_not_finite_may_stand_outside_of_what_was_learned(file: Path) -> None:
    matrix = [[float("nan"), 1.0]]
    save_checkpoint(content() | {"matrix": matrix, "best": torch.tensor(float("inf"))}, file)
    assert repr(read_checkpoint(file)["matrix"]) == repr(matrix)


def test_a_checkpoint_of_format_3_without_a_digest_is_read(tmp_path: Path) -> None:
    torch.save(content() | {"format": 3}, tmp_path / "last.ckpt")
    assert outcome(tmp_path / "last.ckpt") == "same"


def test_an_entry_marked_as_a_folder_is_refused(file: Path) -> None:
    # torch would leave its tensor as it finds the memory
    whole = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        directory = archive.start_dir
    entry = whole.index(b"PK\x01\x02", directory)
    whole[entry + 38] ^= 0x10
    file.write_bytes(whole)
    with pytest.raises(ValueError, match="it holds folders"):
        read_checkpoint(file)


def test_a_checkpoint_cut_anywhere_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for length in range(0, len(whole), len(whole) // 12):
        file.write_bytes(whole[:length])
        assert outcome(file) == "refused"


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_named_and_never_run(tmp_path: Path, zipped: bool) -> None:
    file, mark = tmp_path / "last.ckpt", tmp_path / "mark"
    torch.save({"format": FORMAT, "x": Code(mark)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"posix.mkdir|no checkpoint") as caught:
        read_checkpoint(file)
    assert "weights_only" not in str(caught.value)
    file.write_bytes(pickle.dumps(Code(mark)))
    with pytest.raises(ValueError, match="cannot read checkpoint"):
        read_checkpoint(file)
    assert not mark.exists()


def test_an_archive_that_would_grow_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("last/data.pkl", bytes(5_000_000))
    with pytest.raises(ValueError, match="compressed"):
        read_checkpoint(file)


def test_a_checkpoint_of_format_2_is_read_with_the_names_of_today(tmp_path: Path) -> None:
    old = {
        "format": 2,
        "state_dict": {"blocks.0.up.experts.task_task_a.lora_a": torch.ones(2)},
        "router": {"kind": {"inner": {}}, "router": {"kind": {}, "tasks": {"task_a": {}}}},
        "tasks": ["task_a"],
        "laps": [{"name": "task_a"}],
    }
    torch.save(old, tmp_path / "last.ckpt")
    new = read_checkpoint(tmp_path / "last.ckpt")
    assert list(new["state_dict"]) == ["blocks.0.up.experts.expert_task_a.lora_a"]
    assert new["router"] == {
        "kind": {"inner": {}},
        "router": {"kind": {}, "experts": {"task_a": {}}},
    }
    assert {key: new[key] for key in ("format", "tasks", "laps")} == {
        "format": FORMAT,
        "tasks": ["task_a"],
        "laps": [{"name": "task_a"}],
    }


def test_a_key_router_of_format_2_is_read_as_one_of_today(tmp_path: Path) -> None:
    architecture = {"keys": {"linear": [2, 4.0]}}  # an expert may have this name
    old = {"format": 2, "router": {"keys": {"red": torch.ones(8)}}, "architecture": architecture}
    torch.save(old, tmp_path / "last.ckpt")
    new = read_checkpoint(tmp_path / "last.ckpt")
    assert new["architecture"] == architecture
    router = KeyRouter()
    router.load_state_dict(new["router"])
    assert torch.equal(router.tensors()["red"]["key"], torch.ones(8))
