"""Which samples each stage of a sequence trains on."""

from dmole.streams.stream import (
    BlurredStream,
    JointStream,
    ReplayStream,
    SequentialStream,
    Stage,
    Stream,
    ZeroShotStream,
)

__all__ = [
    "BlurredStream",
    "JointStream",
    "ReplayStream",
    "SequentialStream",
    "Stage",
    "Stream",
    "ZeroShotStream",
]
