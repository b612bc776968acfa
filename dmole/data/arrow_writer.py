"""Writes samples into an Arrow file."""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dmole.data.sampler import approximate_length
from dmole.data.sequences import Row, content_bytes, metadata_text

_TEXTS = pa.list_(pa.large_string())
SCHEMA = pa.schema(
    {
        "id": pa.large_string(),
        "system": pa.large_string(),  # the system turn, null where there is none
        "turns": _TEXTS,  # user first, then alternating
        "images": _TEXTS,  # names as in the data file
        "references": _TEXTS,
        "metadata": pa.large_string(),  # a JSON object
        "length": pa.int32(),
        "index": pa.int64(),  # position of the item in the source
    }
)
_BATCH_ROWS, _BATCH_CHARACTERS = 8192, 1 << 24  # limits of a batch, which is held in memory


@dataclass(frozen=True)
class Seal:
    """Checksums that detect a damaged file.

    Args:
        crc32: CRC-32 of the file.
        content: SHA-256 of ids, texts, references and metadata.
    """

    crc32: int
    content: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def write_samples(
    file: Path,
    rows: Iterable[Row],
    guard: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[Seal, array[int]]:
    """Write samples into an Arrow file, a batch at a time.

    Args:
        file: The file to write.
        rows: The samples.
        guard: Returns a context manager for each access to the file; it may translate errors.

    Returns:
        The seal of the file, and an 8-byte hash of each id.
    """
    content = hashlib.sha256()
    hashes = array("Q")
    with guard():
        writer = pa.ipc.new_file(str(file), SCHEMA)
    try:
        for batch in _batches(rows, content, hashes):
            with guard():
                writer.write_batch(batch)
    finally:
        with guard():
            writer.close()
    return Seal(checksum(file), content.hexdigest()), hashes


def checksum(file: Path) -> int:
    """Return the CRC-32 of a file."""
    value = 0
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            value = zlib.crc32(piece, value)
    return value


def _batches(rows: Iterable[Row], content: Any, hashes: array[int]) -> Iterator[pa.RecordBatch]:
    """Yield batches of the rows, adding each to the digest and its id to the hashes."""
    columns: tuple[list[Any], ...] = tuple([] for _ in SCHEMA)
    characters = 0
    for index, sample, names in rows:
        content.update(content_bytes(sample))
        digest = hashlib.blake2b(sample.id.encode(), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "big"))
        system = sample.turns[0].text if sample.turns[0].role == "system" else None
        turns = [turn.text for turn in sample.turns if turn.role != "system"]
        facts = metadata_text(sample)
        texts = (sample.id, system, turns, list(names), sample.references, facts)
        row = (*texts, approximate_length(sample), index)
        for column, value in zip(columns, row, strict=True):
            column.append(value)
        characters += sum(map(len, (*turns, *names, *sample.references, facts)))
        if len(columns[0]) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield pa.record_batch(list(columns), schema=SCHEMA)
            columns, characters = tuple([] for _ in SCHEMA), 0
    if columns[0]:
        yield pa.record_batch(list(columns), schema=SCHEMA)
