"""The shipped configs fit on the GPUs that they are for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from benchmark_table import LEARNED

from dmole.cli.plan import read_config
from dmole.planning.config import read_setup
from dmole.planning.reckoning import GIB, Reckoning
from dmole.planning.setup import Lengths, Setup
from dmole.planning.shape import model_shape

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = ("quickstart.yaml", "smollm2.yaml", "comparison.yaml", "real.yaml", "benchmarks/alike.yaml")
MODELS = sorted((CONFIGS / "models").glob("*.yaml"))


def setup_of(*names: str) -> Setup:
    return read_setup(read_config([word for name in names for word in ("--config", name)]))


@pytest.fixture(scope="module")
def coin() -> Setup:
    return setup_of("coin.yaml")


def largest(setup: Setup, name: str | None = None) -> float:
    """Return the GiB of the largest phase."""
    name = name or setup.name_or_path
    found = Reckoning(model_shape(name, setup.patterns), setup, Lengths()).phases()
    return max(phase.total for phase in found) / GIB


@pytest.mark.parametrize("devices", [1, 8])
def test_coin_on_llava_7b_needs_at_most_24_gib_in_every_phase(coin: Setup, devices: int) -> None:
    assert coin.name_or_path == "llava-hf/llava-1.5-7b-hf"
    assert largest(replace(coin, devices=devices)) <= 24
    assert coin.batch_size * coin.accumulate_grad_batches == 14 * 8  # as published


QUICK = ("ucit", "mllm_dcl", "cmit")
OTHERS = [row.name for row in LEARNED if row.name not in ("coin", *QUICK)]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_every_benchmark_fits_into_80_gib(name: str) -> None:
    assert largest(setup_of(f"{name}.yaml")) <= 80


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_coin_fits_into_80_gib_with_every_model(path: Path, coin: Setup) -> None:
    base = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["backbone"]["init_args"]
    setup = replace(coin, patterns=None, image_settings=base["image_settings"] or {})
    name = base["name_or_path"]
    if path.stem == "mllama":
        with pytest.raises(ValueError, match=f"shape of {name} is not known"):
            largest(setup, name)
        return
    assert largest(setup, name) <= 80


@pytest.mark.parametrize(
    "name", [*SMALL[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in SMALL[2:])]
)
def test_small_configs_fit_into_24_gib(name: str) -> None:
    setup = setup_of(name)
    assert largest(setup, "smollm2" if name == "smollm2.yaml" else None) <= 24
