"""The fake accelerator as Lightning sees it, alone or as one of several ranks.

Import it in a process of its own, see `fake_accelerator`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from fake_accelerator import DEVICE
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy


class FakeAccelerator(Accelerator):
    """The device for Lightning's strategies."""

    def setup_device(self, device: torch.device) -> None:
        assert device == DEVICE

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return int(devices)

    @staticmethod
    def get_parallel_devices(devices: int) -> list[torch.device]:
        return [DEVICE] * devices

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "fake"


class Ranks(DDPStrategy):
    """Distributed training with one device for each rank."""

    def setup_distributed(self) -> None:
        """Connect first: Lightning would name the device, for which torch has no backend."""
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        super().setup_distributed()

    def determine_ddp_device_ids(self) -> None:
        """Return no ids, for which Lightning would make a stream of CUDA."""


def strategy(ranks: int) -> Strategy:
    """Return the strategy for a number of processes."""
    accelerator = FakeAccelerator()
    if ranks == 1:
        return SingleDeviceStrategy(DEVICE, accelerator=accelerator)
    devices = [DEVICE] * ranks
    return Ranks(accelerator, devices, process_group_backend="gloo")
