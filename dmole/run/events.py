"""Files of TensorBoard events that are continued, where TensorBoard itself begins new files."""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, cast

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

if TYPE_CHECKING:
    from pathlib import Path

LAYOUT = {
    "scores": {
        "score of each task (%)": ["Multiline", ["score/.*"]],
        "final metrics (%)": ["Multiline", ["final/.*"]],
    },
    "training": {
        "loss": ["Multiline", ["train/loss"]],
        "learning rate": ["Multiline", ["learning_rate/.*"]],
        "curriculum: factor on the learning rate": ["Multiline", ["curriculum/.*"]],
    },
    "experts of the test samples of each task (%)": {
        "the task's own": ["Multiline", ["activation/own/.*"]],
        "only those of other tasks": ["Multiline", ["activation/other/.*"]],
        "none": ["Multiline", ["activation/base/.*"]],
        "more than one": ["Multiline", ["activation/second/.*"]],
    },
}
"""Charts of the tab Custom Scalars: by section and title, the tags of the lines."""

_OVERHEAD = 16
"""Bytes of a record besides its content: its length (8), checksums of length and content (4)."""

_LARGEST = 2**20
"""Bytes of a record with values of one step; what is larger is none."""


class EventFile:
    """Appends events to a file; takes the place of TensorBoard's writer, which begins new files.

    Args:
        path: The file; it begins with the version of the format if it is new.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._records = RecordWriter(self._file)
        self.is_new = not self._file.tell()
        if self.is_new:
            source = SourceMetadata(writer="dmole")
            now, version = time.time(), "brain.Event:2"
            self.add_event(Event(wall_time=now, file_version=version, source_metadata=source))

    def add_event(self, event: Event) -> None:
        """Append an event."""
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Hand all events to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Write all events and close the file."""
        self._file.close()

    def get_logdir(self) -> str:
        """Return the folder of the file."""
        return str(self._path.parent)


class _FileWriter(FileWriter):
    """Torch's writer of summaries, on a file that is continued."""

    def __init__(self, path: Path) -> None:
        self.event_writer = EventFile(path)


class ContinuedWriter(SummaryWriter):
    """Torch's interface to TensorBoard, on a file that is continued.

    Args:
        path: The file. It is opened again by the first event after it was closed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(log_dir=str(path.parent))

    def add_png(self, name: str, png: bytes, size: tuple[int, int], step: int) -> None:
        """Add a picture of a width and a height in pixels, as its file has it."""
        width, height = size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._get_file_writer().add_summary(summary, step)

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:  # at first, and after it was closed
            writer, folder = _FileWriter(self._path), str(self._path.parent)
            vars(self).update(file_writer=writer, all_writers={folder: writer})
            if writer.event_writer.is_new:
                self.add_custom_scalars(LAYOUT)
        return cast("FileWriter", self.file_writer)


def cut(path: Path, size: int, step: int | None = None) -> None:
    """Cut a file of events to a size, or to its whole records if it is shorter.

    Args:
        path: The file.
        size: Size of the file after one of its records.
        step: Records of this step that follow stay.
    """
    length, end = path.stat().st_size, 0
    with path.open("rb") as file:
        if length >= size:  # else a power failure has undone writes
            end = file.seek(size)
        while end + _OVERHEAD <= length:
            head = file.read(8)
            (content,), (checksum,) = struct.unpack("<Q", head), struct.unpack("<I", file.read(4))
            if content > length - end - _OVERHEAD or checksum != masked_crc32c(head):
                break
            if end >= size and (
                step is None or content > _LARGEST or _step_of(file.read(content)) != step
            ):
                break
            end += content + _OVERHEAD
            file.seek(end)
    if length != end:
        os.truncate(path, end)


def _step_of(content: bytes) -> int | None:
    """Return the step of an event, None for content that is damaged."""
    try:
        return int(Event.FromString(content).step)
    except DecodeError:
        return None
