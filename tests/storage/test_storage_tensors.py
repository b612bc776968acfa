"""Tensor files: whole ones come back to the bit, changed ones are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dmole.storage.files import check_name
from dmole.storage.tensors import read_tensor_file, tensor_digest, write_tensor_file


def tensors() -> dict[str, torch.Tensor]:
    return {
        "a": torch.arange(12.0).reshape(3, 4).T,  # not contiguous
        "b": torch.tensor(1.5, dtype=torch.bfloat16),
        "c": torch.zeros(0, 3),
        "d": torch.arange(3),
    }


def test_any_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    write_tensor_file(tmp_path / "x.safetensors", tensors())
    found = read_tensor_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors().items())


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.arange(12.0).reshape(3, 4)},
        {"b": torch.tensor(1.5)},
        {"e": torch.zeros(1)},
        {"d": torch.arange(3).int()},
    ],
    ids=["shape", "type", "one more", "integer type"],
)
def test_the_digest_tells_names_types_and_shapes_apart(change: dict[str, Any]) -> None:
    assert tensor_digest(tensors() | change) != tensor_digest(tensors())


def test_a_digest_of_other_tensors_is_refused_and_none_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    content = {"a": torch.ones(3)}
    save_file(content, path, metadata={"sha256": tensor_digest({"a": torch.zeros(3)})})
    with pytest.raises(ValueError, match=r"x\.safetensors: it is damaged"):
        read_tensor_file(path)
    save_file(content, path)
    assert torch.equal(read_tensor_file(path)["a"], load_file(path)["a"])


@pytest.mark.slow
def test_equal_tensors_are_equal_bytes_in_every_process(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; "
        "from dmole.storage.tensors import write_tensor_file as write; "
        "write(Path(sys.argv[1]), {k: torch.arange(3.0) for k in 'bca'}, 'paint')"
    )
    found = set()
    for seed in range(3):  # three keys have six orders: one order by chance is improbable
        path = tmp_path / f"{seed}.safetensors"
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=True)
        found.add(path.read_bytes())
    assert len(found) == 1
    for turn in range(20):  # the order of the metadata is random within a process as well
        write_tensor_file(path, {k: torch.arange(3.0) for k in "abc"}, "paint")
        assert {path.read_bytes()} == found, turn
    with safe_open(path, framework="pt") as file:
        assert file.metadata().keys() == {"expert", "format", "sha256"}
    assert torch.equal(load_file(path)["b"], torch.arange(3.0))


def test_the_tensors_of_another_expert_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "paint.safetensors"
    write_tensor_file(path, tensors(), "count")
    with pytest.raises(ValueError, match=r"paint\.safetensors holds .* 'count', not of 'paint'"):
        read_tensor_file(path, "paint")
    for accepted in ("count", None):
        assert read_tensor_file(path, accepted).keys() == tensors().keys()
    write_tensor_file(path, tensors())
    assert read_tensor_file(path, "paint").keys() == tensors().keys()


@pytest.mark.parametrize("name", ["a", "A-1_b", "7"])
def test_a_plain_name_is_given_back(name: str) -> None:
    assert check_name(name, "task") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "a\\b", "a\n", "-a", "_a", "a b", "é", "a" * 201, None, 3],
)
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^task '.*' must be letters"):
        check_name(name, "task")
