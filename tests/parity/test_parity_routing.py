"""The routing room against figures recorded from the official code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recorded import load_cases, naming, read_cases
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


def test_batch_votes_equal_the_official_ones(fixtures_dir: Path) -> None:
    for case in read_cases(fixtures_dir / "algo" / "task_routing.json"):
        losses = torch.tensor(case["losses"], dtype=torch.float64)
        thresholds = torch.tensor(case["thresholds"], dtype=torch.float64)
        found = vote(losses, thresholds, case["current_task_id"], case["second_task_threshold"])
        assert found == case["official"], case["id"]


def weights_from(tensors: dict[str, Tensor], prefix: str = "") -> Weights:
    names = ("w_enc", "b_enc", "w_dec", "b_dec")
    return Weights(**{name: tensors[prefix + name] for name in names}, relu=True, sigmoid=True)


def test_routing_through_autoencoders_equals_the_official_one(fixtures_dir: Path) -> None:
    compared = 0
    for case, own in load_cases(fixtures_dir / "algo" / "task_routing_end_to_end.json"):
        count = case["num_tasks"]
        stack = ReconstructorStack([weights_from(own, f"ae{i}.") for i in range(count)])
        losses = stack.losses(normalize_rows(own["seq_reps"]))
        with naming(case):
            assert_close(losses.double(), own["mse"], rtol=1e-5, atol=0)
            if case["min_gap"] > 1e-6:  # otherwise rounding decides
                thresholds = torch.tensor(case["thresholds"])
                assert vote(losses, thresholds, None, 0.3) == case["evaluation"]
                assert vote(losses, thresholds, case["training_current"], 0.3) == case["training"]
                compared += 1
    assert compared


def test_autoencoder_losses_and_quantiles_equal_the_official_ones(fixtures_dir: Path) -> None:
    for case, own in load_cases(fixtures_dir / "algo" / "autoencoder.json"):
        with naming(case):
            if case["normalised"]:
                assert_close(normalize_rows(own["embeddings_raw"]), own["x"], rtol=1e-5, atol=1e-7)
            losses = weights_from(own).losses(own["x"])
            assert_close(losses, own["loss"], rtol=1e-5, atol=1e-7)
            official = {
                name: value for name, value in case["quantiles"].items() if value is not None
            }
            assert quantile_table(losses) == pytest.approx(official, rel=1e-5)


def test_pooling_equals_the_recorded_one(fixtures_dir: Path) -> None:
    for case, own in load_cases(fixtures_dir / "algo" / "sequence_feature_pooling.json"):
        vision, text, mask = own["vision_hidden"], own["text_hidden"], own["text_mask"]
        with naming(case):
            image = masked_max_pool(vision, torch.ones(vision.shape[:2]))
            assert torch.equal(combine(image, masked_max_pool(text, mask)), own["ours_masked"])
            unmasked = masked_max_pool(text, torch.ones_like(mask))
            assert torch.equal(combine(image, unmasked), own["official_unmasked"])
