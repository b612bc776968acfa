"""Streams: the training samples of each stage of a sequence."""

from dmole.streams.auto import AutoStream
from dmole.streams.generic import GenericStream
from dmole.streams.stream import (
    BlurredStream,
    JointStream,
    ReplayStream,
    SequentialStream,
    Stage,
    Stream,
    ZeroShotStream,
)
from dmole.streams.styles import AnswerStyleStream

__all__ = [
    "AnswerStyleStream",
    "AutoStream",
    "BlurredStream",
    "GenericStream",
    "JointStream",
    "ReplayStream",
    "SequentialStream",
    "Stage",
    "Stream",
    "ZeroShotStream",
]
