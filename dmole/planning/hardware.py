"""Memory and rates of GPUs, from the makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

UTILIZATION = 0.35
"""Fraction of the peak rate that training and prompts are assumed to reach."""

HOST_SECONDS_PER_BLOCK = 0.8e-3
"""Seconds that the host takes to launch one block of the language model for one token.

Decoding one token runs a few dozen kernels a block, and each waits for Python, not for the GPU:
about 26 ms a token for the 32 blocks of a 7B model. An assumption, not a measurement.
"""

GATHER_BYTES_PER_SECOND = 25e9
"""Rate at which a GPU receives the shards of others: PCIe 4.0 x16, or a network of 200 Gbit/s.

An assumption. NVLink is ten times as fast. Gathers overlap with computation, which is not counted.
"""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Args:
        name: Name for the command line.
        gib: Memory in GiB.
        teraflops: Dense rate of products in bfloat16, in 10^12 operations per second.
        bandwidth: Bandwidth of the memory in 10^12 bytes per second.
        source: Data sheet.
    """

    name: str
    gib: float
    teraflops: float
    bandwidth: float
    source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", 40, 312, 1.555, "NVIDIA A100 data sheet, SXM4 40 GB"),
        Gpu("a100-80gb", 80, 312, 2.039, "NVIDIA A100 data sheet, SXM4 80 GB"),
        Gpu("h100-80gb", 80, 989, 3.35, "NVIDIA H100 data sheet, SXM5; half of the sparse rate"),
        Gpu("h200", 141, 989, 4.8, "NVIDIA H200 data sheet, SXM; half of the sparse rate"),
        Gpu("a10-24gb", 24, 125, 0.6, "NVIDIA A10 data sheet"),
        Gpu("l4-24gb", 24, 121, 0.3, "NVIDIA L4 data sheet; half of the sparse rate"),
        Gpu("l40s-48gb", 48, 362, 0.864, "NVIDIA L40S data sheet; half of the sparse rate"),
        Gpu("rtx3090-24gb", 24, 71, 0.936, "NVIDIA Ampere GA102 whitepaper, float32 sums"),
        Gpu("rtx4090-24gb", 24, 165, 1.008, "NVIDIA Ada whitepaper, float32 sums, dense"),
        Gpu("a6000-48gb", 48, 155, 0.768, "NVIDIA RTX A6000 data sheet; half of the sparse rate"),
    )
}
"""GPUs by name. The memory is that of the name; drivers leave a little less."""


def find_gpu(name: str) -> Gpu:
    """Return the GPU with a name.

    Raises:
        ValueError: If there is none in the table.
    """
    if name not in GPUS:
        raise ValueError(f"--gpu {name} is not known; there are {', '.join(GPUS)}")
    return GPUS[name]
