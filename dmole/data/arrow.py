"""Samples in an Arrow file that all workers and ranks of a machine map into memory."""

from __future__ import annotations

import hashlib
import json
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmole.data.images import ImageRoot
from dmole.data.sample import Sample, Turn
from dmole.data.sampler import approximate_length
from dmole.data.sequences import (
    Lengths,
    Samples,
    content_bytes,
    digest_sizes,
    join_digests,
    metadata_text,
)

_TEXTS = pa.list_(pa.large_string())
_SCHEMA = pa.schema(
    {
        "id": pa.large_string(),
        "turns": _TEXTS,  # user first, then alternating
        "images": _TEXTS,  # names as the data file has them
        "references": _TEXTS,
        "metadata": pa.large_string(),  # a JSON object
        "length": pa.int32(),
    }
)
_BATCH_ROWS, _BATCH_CHARACTERS = 8192, 1 << 24  # what is in memory while the file is made
_READ_ROWS = 256  # decoded at a time where all are gone through
_ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Seal:
    """What tells a whole file from a damaged one.

    Args:
        crc32: Check sum of the file.
        content: SHA-256 of ids, texts, references and metadata.
    """

    crc32: int
    content: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


class ArrowSamples(Samples):
    """Samples of a file, decoded one row at a time.

    A copy in another process maps the same file: its memory is shared.

    Args:
        file: The Arrow file.
        source: Data file it was made from, for error messages.
        images: Where the images are.
        content: SHA-256 of ids, texts, references and metadata.

    Raises:
        ValueError: If the file cannot be mapped or holds something else.
    """

    def __init__(self, file: Path, source: Path, images: ImageRoot, content: str) -> None:
        self._file = file
        self._source = source
        self._images = images
        self._content = content
        self._sizes: str | None = None
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the mapping: the process that gets the copy makes its own."""
        return {key: value for key, value in vars(self).items() if key != "_batches"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Map the file."""
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return self._ends[-1]  # no file without rows is made

    def __iter__(self) -> Iterator[Sample]:
        for batch in self._batches:
            for start in range(0, batch.num_rows, _READ_ROWS):
                columns = [column.to_pylist() for column in batch.slice(start, _READ_ROWS).columns]
                for *fields, _ in zip(*columns, strict=True):
                    yield self._sample(*fields)

    def at(self, index: int) -> Sample:
        """Return the sample at an index that is within range."""
        part = bisect_right(self._ends, index)
        batch = self._batches[part]
        row = index - self._ends[part] + batch.num_rows
        return self._sample(*(batch.column(i)[row].as_py() for i in range(5)))

    def lengths(self) -> Lengths:
        """Return the approximate length of each sample, ``(N,)``."""
        return np.concatenate([batch.column("length").to_numpy() for batch in self._batches])

    def fingerprint(self) -> str:
        """Return a SHA-256 of what the samples hold; see `Samples.fingerprint`."""
        if self._sizes is None:
            self.check_images()
        return join_digests(self._content, str(self._sizes))

    def check_images(self) -> None:
        """Look for all image files and note their sizes.

        Raises:
            ValueError: If an image leaves its root; the message names file and item.
            FileNotFoundError: If an image is missing.
        """
        self._sizes = digest_sizes(map(self._image_sizes, range(len(self._batches))))

    def _open(self) -> None:
        try:
            with pa.ipc.open_file(pa.memory_map(str(self._file))) as reader:
                if reader.schema != _SCHEMA:
                    raise ValueError(f"{self._file}: is not a file of samples")
                self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"cannot map {self._file}: {error}") from error
        self._ends: list[int] = list(accumulate(batch.num_rows for batch in self._batches))

    def _sample(
        self, id_: str, turns: list[str], images: list[str], references: list[str], metadata: str
    ) -> Sample:
        return Sample(
            id=id_,
            turns=tuple(Turn(_ROLES[i % 2], text) for i, text in enumerate(turns)),  # type: ignore[arg-type]
            images=tuple(map(self._images.locate, images)),
            references=tuple(references),
            metadata=json.loads(metadata),
        )

    def _image_sizes(self, part: int) -> npt.NDArray[np.int64]:
        """Return the bytes of a batch's image files; each is looked at once."""
        batch = self._batches[part]
        names = batch.column("images").flatten().dictionary_encode()
        sizes = []
        for name in names.dictionary.to_pylist():
            try:
                sizes.append(self._images.size(name))
            except (ValueError, FileNotFoundError) as error:
                rows = batch.column("images").to_pylist()
                row = next(row for row, images in enumerate(rows) if name in images)
                index = self._ends[part] - batch.num_rows + row
                item = f"item {index} (id {batch.column('id')[row].as_py()!r})"
                raise type(error)(f"{self._source}: {item}: {error}") from error
        places: npt.NDArray[np.int32] = names.indices.to_numpy()
        return np.array(sizes, np.int64)[places]


def write_samples(
    file: Path,
    rows: Iterable[tuple[Sample, Sequence[str]]],
    guard: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[Seal, array[int]]:
    """Write samples into an Arrow file, a batch at a time.

    Args:
        file: Where to.
        rows: Samples with the names of their images.
        guard: Makes the context of each access to the file; it may translate errors.

    Returns:
        What the file holds, and an 8-byte hash of each id.
    """
    content = hashlib.sha256()
    hashes = array("Q")
    with guard():
        writer = pa.ipc.new_file(str(file), _SCHEMA)
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


def repeated_id(samples: Samples, hashes: array[int]) -> tuple[int, int] | None:
    """Return the positions of the first two samples with one id, or ``None``.

    Args:
        samples: The samples.
        hashes: An 8-byte hash of each id. Only where two are equal the ids are compared.
    """
    values = np.frombuffer(hashes, np.uint64)
    _, counts_of, counts = np.unique(values, return_inverse=True, return_counts=True)
    seen: dict[str, int] = {}
    for index in np.flatnonzero(counts[counts_of] > 1).tolist():
        first = seen.setdefault(samples.at(index).id, index)
        if first != index:
            return first, index
    return None


def _batches(
    rows: Iterable[tuple[Sample, Sequence[str]]], content: Any, hashes: array[int]
) -> Iterator[pa.RecordBatch]:
    """Yield batches of the rows, adding each to the digest and its id to the hashes."""
    columns: tuple[list[Any], ...] = tuple([] for _ in _SCHEMA)
    characters = 0
    for sample, names in rows:
        content.update(content_bytes(sample))
        hashes.append(int.from_bytes(hashlib.blake2b(sample.id.encode(), digest_size=8).digest()))
        turns = [turn.text for turn in sample.turns]
        texts = (sample.id, turns, list(names), sample.references, metadata_text(sample))
        row = (*texts, approximate_length(sample))
        for column, value in zip(columns, row, strict=True):
            column.append(value)
        characters += sum(map(len, turns)) + sum(map(len, sample.references)) + len(texts[-1])
        if len(columns[0]) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield pa.record_batch(list(columns), schema=_SCHEMA)
            columns, characters = tuple([] for _ in _SCHEMA), 0
    if columns[0]:
        yield pa.record_batch(list(columns), schema=_SCHEMA)
