"""Samples in an Arrow file that all workers and ranks of a machine map into memory.

The library for this is ``datasets``, which reads and maps the tables of users. For samples,
`Dataset.from_generator` falls short: it serves a damaged file without a warning, its lock ends
before the ids are compared and the images checked, a row takes nearly three times as long (32 us
instead of 12 us), and its import adds a second to every run with a large file.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmole.data.arrow_writer import SCHEMA
from dmole.data.images import ImageFinder
from dmole.data.sample import Sample, StoredImage, Turn
from dmole.data.sequences import (
    Lengths,
    Samples,
    digest_sizes,
    join_digests,
)

_READ_ROWS = 256  # rows decoded at a time during iteration
_ROLES: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")
_FIELDS = 6  # columns of a sample


class ArrowSamples(Samples):
    """Samples of a file, decoded one row at a time.

    A copy in another process maps the same file, so the memory is shared.

    Args:
        file: The Arrow file.
        source: Address of the data, for error messages.
        images: Finds the images.
        content: SHA-256 of ids, texts, references and metadata.

    Raises:
        ValueError: If the file cannot be mapped or does not hold samples.
    """

    def __init__(self, file: Path, source: str, images: ImageFinder, content: str) -> None:
        self._file = file
        self._source = source
        self._images = images
        self._content = content
        self._sizes: str | None = None
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the mapping; the receiving process maps the file again."""
        return {key: value for key, value in vars(self).items() if key != "_batches"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Map the file."""
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return self._ends[-1]  # a file always has rows

    def __iter__(self) -> Iterator[Sample]:
        for batch in self._batches:
            for start in range(0, batch.num_rows, _READ_ROWS):
                columns = batch.slice(start, _READ_ROWS).columns[:_FIELDS]
                for fields in zip(*(column.to_pylist() for column in columns), strict=True):
                    yield self._sample(*fields)

    def at(self, index: int) -> Sample:
        """Return the sample at an index that is within range."""
        part = bisect_right(self._ends, index)
        batch = self._batches[part]
        row = index - self._ends[part] + batch.num_rows
        return self._sample(*(batch.column(i)[row].as_py() for i in range(_FIELDS)))

    def lengths(self) -> Lengths:
        """Return the approximate length of each sample, ``(N,)``."""
        return np.concatenate([batch.column("length").to_numpy() for batch in self._batches])

    def fingerprint(self) -> str:
        """Return a SHA-256 of the samples; see `Samples.fingerprint`."""
        if self._sizes is None:
            self.check_images()
        return join_digests(self._content, str(self._sizes))

    def check_images(self) -> None:
        """Check that all image files exist and record their sizes.

        Raises:
            ValueError: If an image leaves its root; the message names file and item.
            FileNotFoundError: If an image is missing.
        """
        self._sizes = digest_sizes(map(self._image_sizes, range(len(self._batches))))

    def stored_images(self) -> Iterator[StoredImage]:
        """Yield the images of each part of the file, each of them once for a part."""
        for batch in self._batches:
            names = batch.column("images").flatten().unique().to_pylist()
            yield from map(self._images.locate, names)

    def _open(self) -> None:
        try:
            with pa.ipc.open_file(pa.memory_map(str(self._file))) as reader:
                if reader.schema != SCHEMA:
                    raise ValueError(f"{self._file}: is not a file of samples")
                self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"cannot map {self._file}: {error}") from error
        self._ends: list[int] = list(accumulate(batch.num_rows for batch in self._batches))

    def index_of(self, row: int) -> int:
        """Return the position in the source of the item from which a row was made."""
        part = bisect_right(self._ends, row)
        batch = self._batches[part]
        index: int = batch.column("index")[row - self._ends[part] + batch.num_rows].as_py()
        return index

    def _sample(
        self,
        id_: str,
        system: str | None,
        turns: list[str],
        images: list[str],
        references: list[str],
        metadata: str,
    ) -> Sample:
        first = () if system is None else (Turn("system", system),)
        return Sample(
            id=id_,
            turns=(*first, *(Turn(_ROLES[i % 2], text) for i, text in enumerate(turns))),
            images=tuple(map(self._images.locate, images)),
            references=tuple(references),
            metadata=json.loads(metadata),
        )

    def _image_sizes(self, part: int) -> npt.NDArray[np.int64]:
        """Return the sizes of a batch's image files in bytes; each file is checked once."""
        batch = self._batches[part]
        names = batch.column("images").flatten().dictionary_encode()
        sizes = []
        for name in names.dictionary.to_pylist():
            try:
                sizes.append(self._images.size(name))
            except (ValueError, FileNotFoundError) as error:
                rows = batch.column("images").to_pylist()
                row = next(row for row, images in enumerate(rows) if name in images)
                index = batch.column("index")[row].as_py()
                item = f"item {index} (id {batch.column('id')[row].as_py()!r})"
                raise type(error)(f"{self._source}: {item}: {error}") from error
        indices: npt.NDArray[np.int32] = names.indices.to_numpy()
        return np.array(sizes, np.int64)[indices]


def repeated_id(samples: Samples, hashes: array[int]) -> tuple[int, int] | None:
    """Return the positions of the first two samples with the same id, or ``None``.

    Args:
        samples: The samples.
        hashes: An 8-byte hash of each id. Ids are compared only if their hashes are equal.
    """
    values = np.frombuffer(hashes, np.uint64)
    _, counts_of, counts = np.unique(values, return_inverse=True, return_counts=True)
    seen: dict[str, int] = {}
    for index in np.flatnonzero(counts[counts_of] > 1).tolist():
        first = seen.setdefault(samples.at(index).id, index)
        if first != index:
            return first, index
    return None
