"""The router of keys: what it learns is stored alike in a checkpoint and in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmole.routing import KeyRouter, RouteQuery
from dmole.storage.tensors import write_tensor_file

EXPERTS = ("red", "blue")


@pytest.fixture
def rows() -> dict[str, Tensor]:
    """Embeddings ``(5, 8)`` of two tasks around centres of their own."""
    centres = 3 * torch.eye(8)
    noise = torch.Generator().manual_seed(0)
    spread = [0.3 * torch.randn(5, 8, generator=noise) for _ in EXPERTS]
    return {name: centres[i] + centres[4 + i] + spread[i] for i, name in enumerate(EXPERTS)}


@pytest.fixture
def router(rows: dict[str, Tensor]) -> KeyRouter:
    fitted = empty()
    for name, embeddings in rows.items():
        fitted.fit(name, embeddings)
    return fitted


def empty() -> KeyRouter:
    router = KeyRouter()
    router.set_vision_width(4)
    return router


def test_the_nearest_keys_choose_the_expert(router: KeyRouter, rows: dict[str, Tensor]) -> None:
    query = RouteQuery(torch.cat([*rows.values()]), ["?"] * 10, "test", None, EXPERTS)
    assert router.needs(query)
    assert router.route(query).order == [("red",)] * 5 + [("blue",)] * 5


def test_checkpoint_and_folder_give_the_same_keys_back(router: KeyRouter, tmp_path: Path) -> None:
    router.save(tmp_path)
    loaded, resumed = empty(), empty()
    loaded.load(tmp_path)
    resumed.load_state_dict(router.state_dict())
    for copy in (loaded, resumed):
        assert list(copy.tensors()) == list(EXPERTS)
        for name, tensors in router.tensors().items():
            assert torch.equal(copy.tensors()[name]["key"], tensors["key"])


def test_an_index_without_kind_is_read(router: KeyRouter, tmp_path: Path) -> None:
    router.save(tmp_path)
    index = json.loads((tmp_path / "router.json").read_text())
    del index["kind"]
    (tmp_path / "router.json").write_text(json.dumps(index))
    copy = empty()
    copy.load(tmp_path)
    assert copy.tensors().keys() == router.tensors().keys()


def test_a_file_without_key_is_refused(router: KeyRouter, tmp_path: Path) -> None:
    router.save(tmp_path)
    write_tensor_file(tmp_path / "blue.safetensors", {"lock": torch.zeros(8)})
    with pytest.raises(ValueError, match=r"router of blue: expected a tensor 'key', got \['lock"):
        empty().load(tmp_path)
