"""Tensor files: whole ones come back to the bit, changed ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
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
