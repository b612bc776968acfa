"""The card, the versions, and two ceilings: matrix products in bfloat16, and copies."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from experiments.gpu.common import Row, Setting, medians

PACKAGES = ("transformers", "lightning", "peft", "bitsandbytes", "flash_attn", "torchvision")


WIDTH, COPIED = {"cuda": 8192, "cpu": 512}, {"cuda": 2**32, "cpu": 2**24}
"""Rows and columns of the multiplied matrices, and bytes of the copied tensor."""


def environment(setting: Setting) -> Iterator[Row]:
    """Yield names and versions, then the measured rates."""
    if setting.accelerator == "cuda":
        properties = torch.cuda.get_device_properties(0)
        yield "card", properties.name, f"{properties.total_memory / 2**30:.1f} GiB"
        yield "cards", torch.cuda.device_count(), ""
        yield "driver", _driver(), ""
        yield "CUDA of torch", torch.version.cuda, ""
        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        yield "TF32 in fp32 matrix products", products.allow_tf32, "torch's default"
        yield "TF32 in fp32 convolutions", convolutions.allow_tf32, "torch's default"
    yield "cpu cores", os.cpu_count(), platform.machine()
    yield "python", platform.python_version(), ""
    yield "torch", torch.__version__, ""
    for package in PACKAGES:
        yield package, _version(package), ""
    yield from _rates(setting.device, setting.repeats)


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown: no nvidia-smi"
    words = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    return answer.stdout.partition("\n")[0] or f"unknown: nvidia-smi returned {answer.returncode}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _rates(device: torch.device, repeats: int) -> Iterator[Row]:
    width, copied = WIDTH[device.type], COPIED[device.type]
    left, right = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 256, (copied,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    times = medians(
        {"product": lambda: left @ right, "copy": lambda: target.copy_(source)},
        device,
        max(repeats, 5),
    )
    rate = 2 * width**3 / times["product"] / 1e12
    yield "bfloat16 product, TFLOP/s", round(rate, 1), f"{width} x {width}, random values"
    note = f"{copied / 2**30:g} GiB, bytes read and written"
    yield "copy on the device, GB/s", round(2 * copied / times["copy"] / 1e9, 1), note
