"""Experts that no longer train are in files of their own, written once and verified on reading."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from dmole.run.checkpoint_file import FORMAT, read_checkpoint, save_checkpoint
from dmole.run.frozen import FOLDER, FrozenExperts
from dmole.storage.tensors import DigestCache, tensor_digest

LAST = "last.ckpt"


def content() -> dict[str, Any]:
    """Return a checkpoint with two experts, of which the router knows one."""
    entry = {"w": torch.arange(6.0).reshape(2, 3), "mean": torch.zeros(3, dtype=torch.float64)}
    return {
        "format": FORMAT,
        "state_dict": {
            **{f"{name}/a.lora_a": torch.rand(2, 4).bfloat16() for name in ("one", "two")},
            "@regularizer/0.x": torch.ones(2),
        },
        "router": {"kind": {"p": 1}, "experts": {"one": entry, "two": {"w": torch.ones(1)}}},
        "architecture": {"one": {"a": [2, 0.1]}, "two": {"a": [2, 1e-05]}},
        "done": [[1, "train"]],
    }


def save(folder: Path, whole: dict[str, Any], frozen: FrozenExperts, *names: str) -> dict[str, Any]:
    file = folder / LAST
    left = frozen.split(whole, names, file)
    save_checkpoint(left, file)
    frozen.keep_only(left, file)
    return left


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / FOLDER).iterdir()}


def test_a_checkpoint_with_frozen_experts_is_read_as_a_whole(tmp_path: Path) -> None:
    whole, frozen = content(), FrozenExperts()
    left = save(tmp_path, whole, frozen, "one")
    assert list(left["state_dict"]) == ["two/a.lora_a", "@regularizer/0.x"]
    found = read_checkpoint(tmp_path / LAST)
    assert found.keys() == whole.keys()
    assert list(found["router"]["experts"]) == ["one", "two"]  # the first has what all share
    assert found["architecture"] == whole["architecture"]
    for part in ("state_dict", "router"):
        assert_close(found[part], whole[part], rtol=0, atol=0)


def test_a_file_is_written_once_by_any_process(tmp_path: Path) -> None:
    whole, frozen = content(), FrozenExperts()
    save(tmp_path, whole, frozen, "one")
    before = files(tmp_path)
    save(tmp_path, whole, frozen, "one")
    save(tmp_path, whole, FrozenExperts(), "one")  # a resumed run
    assert files(tmp_path) == before
    save(tmp_path, whole, frozen, "one", "two")
    assert before.items() < files(tmp_path).items()


def test_an_expert_that_trains_on_leaves_no_file_and_has_another_one_later(tmp_path: Path) -> None:
    whole, frozen = content(), FrozenExperts()
    save(tmp_path, whole, frozen, "one", "two")
    before = files(tmp_path)
    save(tmp_path, whole, frozen, "two")
    assert len(files(tmp_path)) == 1
    whole["state_dict"]["one/a.lora_a"].mul_(2)
    save(tmp_path, whole, frozen, "one", "two")
    assert len(files(tmp_path)) == 2
    assert not files(tmp_path).keys() >= before.keys()
    found = read_checkpoint(tmp_path / LAST)["state_dict"]
    assert_close(found, whole["state_dict"], rtol=0, atol=0)


def test_only_its_own_files_are_removed_and_none_behind_a_link(tmp_path: Path) -> None:
    others = {f"two_{'0' * 16}.safetensors", "mine.safetensors"}
    (tmp_path / "other").mkdir()
    for name in others:
        (tmp_path / "other" / name).touch()
    shutil.copytree(tmp_path / "other", tmp_path / FOLDER)
    left = save(tmp_path, content(), FrozenExperts())
    assert left["frozen"] == {}
    assert set(files(tmp_path)) == {"mine.safetensors"}
    shutil.rmtree(tmp_path / FOLDER)
    (tmp_path / FOLDER).symlink_to("other")
    save(tmp_path, content(), FrozenExperts())
    assert set(files(tmp_path)) == others


@pytest.mark.parametrize("damage", ["missing", "changed", "cut", "other", "name"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    whole, frozen = content(), FrozenExperts()
    left = save(tmp_path, whole, frozen, "one")
    (file,) = (tmp_path / FOLDER).iterdir()
    raw, message = file.read_bytes(), file.name
    if damage == "missing":
        file.unlink()
    elif damage == "changed":
        file.write_bytes(raw[:-2] + bytes([raw[-2] ^ 1]) + raw[-1:])
    elif damage == "cut":
        file.write_bytes(raw[:-4])
    elif damage == "other":  # of a run with another expert of this name
        save(tmp_path / "other", content(), FrozenExperts(), "one")
        (other,) = (tmp_path / "other" / FOLDER).iterdir()
        shutil.copy(other, file)
    else:
        save_checkpoint(left | {"frozen": {"../one": left["frozen"]["one"]}}, tmp_path / LAST)
        message = "expert name"
    assert frozen.lacks_files() == (damage != "name")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / LAST)
    save(tmp_path, whole, frozen, "one")  # the run still has the expert
    assert_close(read_checkpoint(tmp_path / LAST)["state_dict"], whole["state_dict"])


def test_a_digest_is_computed_again_for_every_change() -> None:
    computed: list[str] = []

    def compute(tensors: Any) -> str:
        computed.append(tensor_digest(tensors))
        return computed[-1]

    cache, tensors = DigestCache(compute), {"a": torch.zeros(3), "b": torch.ones(2)}
    parameter = torch.nn.Parameter(torch.zeros(2))
    for _ in range(2):
        assert cache.of("x", tensors) == tensor_digest(tensors)
    assert len(computed) == 1
    tensors["a"][1] = 2.0
    assert cache.of("x", tensors) == tensor_digest(tensors)
    tensors["b"] = torch.full((2,), 3.0)
    assert cache.of("x", tensors) == tensor_digest(tensors)
    assert cache.of("y", tensors) == tensor_digest(tensors)
    for _ in range(2):
        parameter.grad = torch.ones(2)
        torch.optim.AdamW([parameter]).step()
        assert cache.of("z", {"p": parameter.detach()}) == tensor_digest({"p": parameter})
    with torch.inference_mode():
        counted = torch.zeros(2)
        cache.of("i", {"i": counted})
        counted += 1
        assert cache.of("i", {"i": counted}) == tensor_digest({"i": counted})
