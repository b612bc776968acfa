"""Weights are loaded straight on the device of the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning.fabric.accelerators import cuda
from lightning.fabric.utilities.rank_zero import rank_zero_only

from dmole.cli.lightning import build
from dmole.inference import loading
from dmole.models import PretrainedBackbone, pretrained
from dmole.models.placement import loading_device, loading_on
from dmole.run.device import device_of_process

CUDA = [torch.device("cuda", index) for index in range(4)]


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Pretend that this machine has four GPUs, and that this is the third process on it."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(cuda, "_get_all_visible_cuda_devices", lambda: [0, 1, 2, 3])
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("NODE_RANK", "0")
    monkeypatch.setattr(rank_zero_only, "rank", 2)  # a trainer sets it, for good
    return monkeypatch


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note the device map of every load, which then goes on on the CPU and without quantization."""
    maps: list[Any] = []
    auto = transformers.AutoModelForImageTextToText
    load = auto.from_pretrained

    def noted(source: str, **options: Any) -> Any:
        maps.append(options.pop("device_map", None))
        options.pop("quantization_config", None)
        return load(source, **options)

    monkeypatch.setattr(auto, "from_pretrained", noted)
    monkeypatch.setattr(pretrained, "quantization_config", lambda *_: None)
    return maps


def test_weights_are_loaded_where_asked_and_quantized_ones_on_the_accelerator_of_the_process(
    asked: list[Any], four_gpus: pytest.MonkeyPatch
) -> None:
    for device in (None, "cpu", "cuda:1"):
        for quantization in (None, "4bit"):
            with loading_on(device):
                PretrainedBackbone("tiny", quantization=quantization)  # type: ignore[arg-type]
    assert asked == [
        *(None, {"": CUDA[2]}),
        *(None, {"": torch.device("cpu")}),
        *({"": CUDA[1]}, {"": CUDA[1]}),
    ]
    four_gpus.setenv("LOCAL_RANK", "6")  # each process sees its own GPUs alone
    assert loading_device(quantized=True) == CUDA[2]
    four_gpus.setattr(torch.accelerator, "is_available", lambda: False)
    assert loading_device(quantized=True) is None


@pytest.mark.parametrize(
    ("settings", "device"),
    [
        ({"accelerator": "gpu", "devices": 4, "strategy": "ddp"}, CUDA[2]),
        ({"accelerator": "auto", "devices": [3, 2, 1], "strategy": "ddp"}, CUDA[1]),
        ({"accelerator": "gpu", "devices": [3]}, CUDA[3]),
        ({"accelerator": "cpu", "devices": 1}, torch.device("cpu")),
        ({"accelerator": "gpu", "devices": 4, "strategy": object()}, None),
        ({"accelerator": "gpu", "devices": 4, "strategy": "sharded_base"}, None),
        ({"accelerator": "gpu", "devices": 4, "plugins": [object()]}, None),
        ({"accelerator": "gpu", "devices": 9}, None),  # which the trainer refuses
    ],
)
def test_the_device_of_a_process_is_that_of_its_trainer(
    settings: dict[str, Any], device: torch.device | None, four_gpus: pytest.MonkeyPatch
) -> None:
    assert device_of_process(settings) == device


def test_a_machine_without_an_accelerator_loads_into_host_memory() -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    assert device_of_process({"accelerator": "auto"}) is None


class StopError(Exception):
    """The base model would be loaded now."""


def test_the_command_line_and_load_name_their_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, four_gpus: pytest.MonkeyPatch
) -> None:
    devices: list[Any] = []

    def stop(*args: Any, **options: Any) -> None:
        devices.append(loading_device(quantized=False))
        raise StopError

    monkeypatch.setattr("dmole.cli.lightning.LightningCLI.instantiate_classes", stop)
    config = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    flags = ["--trainer.accelerator=gpu", "--trainer.devices=4", "--trainer.strategy=ddp"]
    with pytest.raises(StopError):
        build(["fit", f"--config={config}", *flags], ())
    monkeypatch.setattr(loading, "build_model_parts", stop)
    monkeypatch.setattr(loading, "_settings", lambda *_: None)
    with pytest.raises(StopError):
        loading.load(tmp_path, device="cuda:3", verify_base=False)
    assert devices == [CUDA[2], CUDA[3]]
    assert loading_device(quantized=False) is None
