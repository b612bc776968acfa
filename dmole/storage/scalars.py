"""Reads the scalars in a run's file of TensorBoard events."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from dmole.storage.reading import open_file, unreadable

LARGEST_FILE = 1 << 30
"""Bytes of a file of events that is read."""

_LARGEST_RECORD = 1 << 20  # bytes; records of pictures are larger and are skipped
_HEAD, _CHECKSUM = 12, 4  # length and its checksum, checksum of the content


def read_scalars(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, int, float]]:
    """Yield the finite scalars of a file of events in the order in which they were logged.

    Args:
        path: The file. A record that is cut off at its end, as in a running run, is left out.
        wanted: Returns whether the scalars of a name are yielded.

    Yields:
        Name, step and value.

    Raises:
        ValueError: If the file cannot be read or holds something else; names it.
    """
    with open_file(path, "events", LARGEST_FILE) as file:
        yield from _scalars(path, file, wanted)


def _scalars(
    path: Path, file: BinaryIO, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, int, float]]:
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    while len(head := file.read(_HEAD)) == _HEAD:
        (length,) = struct.unpack_from("<Q", head)
        if length > _LARGEST_RECORD:
            if length > LARGEST_FILE:
                raise unreadable(path, "events", "a record has no valid length")
            file.seek(length + _CHECKSUM, 1)
            continue
        content = file.read(length)
        if len(content) < length:
            return
        file.seek(_CHECKSUM, 1)
        try:
            event = Event.FromString(content)
        except DecodeError as error:
            raise unreadable(path, "events", "a record is damaged") from error
        for value in event.summary.value:
            known = value.HasField("simple_value") and math.isfinite(value.simple_value)
            if known and wanted(value.tag):
                yield value.tag, int(event.step), float(value.simple_value)
