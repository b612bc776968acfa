"""The keys of tasks have a closed form; learned keys have the same format everywhere."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

import dmole.routing.key_router
from dmole.routing import KeyRouter, RouteQuery, fit_key, key_scores
from dmole.storage.tensors import write_tensor_file

EXPERTS = ("red", "blue")


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(dmole.routing.key_router)
    assert result.attempted
    assert result.failed == 0


def test_gradient_descent_on_the_cosine_loss_ends_at_the_closed_form() -> None:
    rows = torch.randn(20, 6, dtype=torch.float64) * torch.rand(20, 1) * 10 + 0.3
    key = torch.randn(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([key], lr=0.05)
    for _ in range(2000):
        optimizer.zero_grad()
        (1 - cosine_similarity(rows, key.unsqueeze(0))).sum().backward()
        optimizer.step()
    assert_close(key / key.norm(), fit_key(rows).double(), rtol=0, atol=1e-5)


def test_no_other_direction_has_a_lower_loss() -> None:
    rows = torch.randn(9, 4)
    best = key_scores(rows, fit_key(rows)[None]).sum()
    assert (key_scores(rows, torch.randn(500, 4)).sum(dim=0) <= best + 1e-5).all()


def test_a_key_has_length_one_and_ignores_the_lengths_of_rows() -> None:
    rows = torch.randn(7, 5)
    key = fit_key(rows)
    assert_close(key.norm(), torch.tensor(1.0))
    assert_close(fit_key(rows * torch.rand(7, 1).add(0.1)), key)


def test_scores_are_cosines() -> None:
    rows, keys = torch.randn(3, 5), torch.randn(4, 5)
    expected = cosine_similarity(rows[:, None], keys[None], dim=-1)
    assert_close(key_scores(rows, keys), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(key_scores(rows, keys), expected)


def test_samples_of_a_task_score_highest_on_its_key() -> None:
    centres = 3 * torch.eye(3, 8)
    tasks = [centre + 0.3 * torch.randn(10, 8) for centre in centres]
    keys = torch.stack([fit_key(rows) for rows in tasks])
    for index, rows in enumerate(tasks):
        assert (key_scores(rows, keys).argmax(dim=1) == index).all()


def test_a_side_that_is_missing_everywhere_speaks_for_no_task() -> None:
    key = fit_key(torch.zeros(3, 4))
    assert not key.any()
    assert key_scores(torch.randn(2, 4), key[None]).tolist() == [[0], [0]]


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(0, 4\)"):
        fit_key(torch.empty(0, 4))
    with pytest.raises(ValueError, match=r"got \(1, 3\) and \(1, 4\)"):
        key_scores(torch.ones(1, 3), torch.ones(1, 4))


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
