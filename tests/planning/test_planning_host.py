"""Host memory of a node and disk of a run folder."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dmole.cli.plan import read_config
from dmole.planning.config import read_setup
from dmole.planning.host import disk, host_memory
from dmole.planning.reckoning import Reckoning
from dmole.planning.setup import Lengths, Setup
from dmole.planning.shape import model_shape


@pytest.fixture(scope="module")
def setup() -> Setup:
    return read_setup(read_config(["--config", "quickstart.yaml", "--data.num_workers", "2"]))


def reckon(setup: Setup) -> Reckoning:
    return Reckoning(model_shape("tiny"), setup, Lengths())


def test_every_process_of_a_node_has_workers_and_loads_a_base_to_split(setup: Setup) -> None:
    one, four = host_memory(reckon(setup)), host_memory(reckon(replace(setup, devices=4)))
    split = host_memory(reckon(replace(setup, devices=4, sharded=True)))
    assert (one["weights while loading"], four["weights while loading"]) == (0, 0)
    assert split["weights while loading"] == 4 * 4 * 2_269_184
    assert four["loader workers"] == 4 * one["loader workers"] > 0
    assert host_memory(reckon(replace(setup, num_nodes=2))) == one
    assert one["past experts"] == 0
    moved = host_memory(reckon(replace(setup, past_experts_on_device=0)))
    assert moved["past experts"] == 4 * reckon(setup).experts.past > 0


def test_the_run_folder_has_experts_checkpoint_and_embeddings(setup: Setup) -> None:
    run = reckon(setup)
    found, size = disk(run), run.experts.size.parameters
    assert found["experts"] == 4 * 5 * size
    assert found["checkpoint"] == 4 * (4 * size + 3 * size)  # past ones; values and two moments
    samples = 1600 + 1000 + 1000 + 1200 + 1200 + 5 * 200  # at most 2000 of a task, and all tests
    assert found["embeddings"] == 4 * 288 * samples
    for evaluate, rows in (("all", 6), ("seen", 3), ("last", 1)):
        assert disk(reckon(replace(setup, evaluate=evaluate)))["predictions"] == 250 * 1000 * rows
