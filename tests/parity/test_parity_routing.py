"""The routing room against figures recorded from the official code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from dmole.routing import (
    ReconstructorStack,
    Weights,
    batch_vote,
    combine,
    masked_max_pool,
    normalize_rows,
    quantile_table,
)


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / "algo" / f"{name}.json").read_text(encoding="utf-8"))["cases"]


def tensors_of(folder: Path, name: str, case: str) -> dict[str, Tensor]:
    tensors = load_file(folder / "algo" / f"{name}.safetensors")
    return {k.removeprefix(f"{case}."): v for k, v in tensors.items() if k.startswith(f"{case}.")}


def vote(losses: Tensor, thresholds: Tensor, current: int | None, support: float) -> list[int]:
    """Task ids as the official code reports them: counted from 1, the current one first."""
    if current is None:
        winners = batch_vote(losses, thresholds, support=support)
        return [column + 1 for column in winners]
    past = current - 1
    winners = batch_vote(
        losses[:, :past], thresholds[:past], support=support, max_experts=1, support_first=True
    )
    return [current, *(column + 1 for column in winners)]


def test_batch_votes_equal_the_official_ones(fixtures_dir: Path):
    cases = read(fixtures_dir, "task_routing")
    for case in cases:
        losses = torch.tensor(case["losses"], dtype=torch.float64)
        thresholds = torch.tensor(case["thresholds"], dtype=torch.float64)
        found = vote(losses, thresholds, case["current_task_id"], case["second_task_threshold"])
        assert found == case["official"], case["id"]
    assert len(cases) == 300


def weights_from(tensors: dict[str, Tensor], prefix: str = "") -> Weights:
    names = ("w_enc", "b_enc", "w_dec", "b_dec")
    return Weights(**{name: tensors[prefix + name] for name in names}, relu=True, sigmoid=True)


def test_routing_through_autoencoders_equals_the_official_one(fixtures_dir: Path):
    cases = read(fixtures_dir, "task_routing_end_to_end")
    for case in cases:
        own = tensors_of(fixtures_dir, "task_routing_end_to_end", case["case"])
        stack = ReconstructorStack([weights_from(own, f"ae{i}.") for i in range(case["num_tasks"])])
        losses = stack.losses(normalize_rows(own["seq_reps"]))
        assert_close(losses.double(), own["mse"], rtol=1e-5, atol=0)
        assert case["min_gap"] > 1e-6
        thresholds = torch.tensor(case["thresholds"])
        assert vote(losses, thresholds, None, 0.3) == case["evaluation"]
        assert vote(losses, thresholds, case["training_current"], 0.3) == case["training"]
    assert len(cases) == 8


@pytest.mark.parametrize("index", range(5))
def test_autoencoder_losses_and_quantiles_equal_the_official_ones(fixtures_dir: Path, index: int):
    case = read(fixtures_dir, "autoencoder")[index]
    own = tensors_of(fixtures_dir, "autoencoder", case["case"])
    if case["normalised"]:
        assert_close(normalize_rows(own["embeddings_raw"]), own["x"], rtol=1e-5, atol=1e-7)
    losses = weights_from(own).losses(own["x"])
    assert_close(losses, own["loss"], rtol=1e-5, atol=1e-7)
    official = {name: value for name, value in case["quantiles"].items() if value is not None}
    assert quantile_table(losses) == pytest.approx(official, rel=1e-5)


@pytest.mark.parametrize("index", range(6))
def test_pooling_equals_the_recorded_one(fixtures_dir: Path, index: int):
    case = read(fixtures_dir, "sequence_feature_pooling")[index]
    own = tensors_of(fixtures_dir, "sequence_feature_pooling", case["case"])
    vision, text, mask = own["vision_hidden"], own["text_hidden"], own["text_mask"]
    everything = torch.ones(vision.shape[:2])
    pooled = combine(masked_max_pool(vision, everything), masked_max_pool(text, mask))
    assert torch.equal(pooled, own["ours_masked"])
    unmasked = masked_max_pool(text, torch.ones_like(mask))
    official = combine(masked_max_pool(vision, everything), unmasked)
    assert torch.equal(official, own["official_unmasked"])
