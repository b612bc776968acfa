"""Streams: the training samples of each stage of a sequence."""

from dmole.streams.auto import AutoStream
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
    "AutoStream",
    "BlurredStream",
    "JointStream",
    "ReplayStream",
    "SequentialStream",
    "Stage",
    "Stream",
    "ZeroShotStream",
]
