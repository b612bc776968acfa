"""Streams: the training samples of each stage of a sequence."""

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
