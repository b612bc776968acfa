"""Sequences of samples: in memory, and joined over tasks. `arrow` holds memory-mapped ones."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from dmole.data.collate import TaskSample
from dmole.data.sample import ArrayImage, ImageSource, Sample, StoredImage
from dmole.data.sampler import approximate_length

Lengths = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]

SCORING_KEYS = (
    *("question_id", "image", "size", "width", "height"),
    *("choices", "answer_index", "question"),
)
"""Metadata that the metrics of this package read; part of the fingerprint of the samples."""


class Row(NamedTuple):
    """A sample together with its origin in the source.

    Args:
        position: Position of the item in the source.
        sample: The sample.
        images: The names of its images in the source; see `dmole.data.images.ImageFinder`.
    """

    position: int
    sample: Sample
    images: Sequence[str]


class Samples(Sequence[Sample]):
    """The samples of one task and split, in memory or on disk."""

    @abstractmethod
    def at(self, index: int) -> Sample:
        """Return the sample at an index that is within range."""

    @abstractmethod
    def lengths(self) -> Lengths:
        """Return the approximate length of each sample, ``(N,)``."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a SHA-256 of ids, texts, references, scoring metadata and sizes of stored images.

        It depends on the samples alone, not on where they are stored.
        """

    @abstractmethod
    def stored_images(self) -> Iterator[StoredImage]:
        """Yield the images that are stored on disk in a fixed order, each at least once."""

    def stored_bytes(self) -> Numbers:
        """Return the size of each sample in bytes, ``(N,)``: its images and turns."""
        return np.fromiter(map(_stored_bytes, self), np.int64, len(self))

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        indices = range(len(self))[index]  # raises IndexError, as a list does
        return self.at(indices) if isinstance(indices, int) else [self.at(i) for i in indices]


class SampleList(Samples):
    """Samples in memory.

    Args:
        samples: The samples.
    """

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def at(self, index: int) -> Sample:
        """Return the sample at an index that is within range."""
        return self._samples[index]

    def lengths(self) -> Lengths:
        """Return the approximate length of each sample, ``(N,)``."""
        return np.fromiter(map(approximate_length, self._samples), np.int32, len(self._samples))

    def fingerprint(self) -> str:
        """Return a SHA-256 of the samples; see `Samples.fingerprint`."""
        content = hashlib.sha256()
        for sample in self._samples:
            content.update(content_bytes(sample))
        sizes = [image.stored_size for image in self.stored_images()]
        return join_digests(content.hexdigest(), digest_sizes([np.array(sizes, np.int64)]))

    def stored_images(self) -> Iterator[StoredImage]:
        """Yield the images that are stored on disk, in the order of the samples."""
        images = (image for sample in self._samples for image in sample.images)
        return (image for image in images if isinstance(image, StoredImage))


class Selection:
    """Selected samples of a task in a given order.

    Args:
        samples: The samples of the task.
        indices: Indices of the selected samples; they may repeat.
    """

    def __init__(self, samples: Samples, indices: Numbers) -> None:
        self._samples = samples
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.at, range(len(self)))

    def at(self, index: int) -> Sample:
        """Return the sample at an index that is within range."""
        return self._samples.at(int(self._indices[index]))

    def lengths(self) -> Lengths:
        """Return the approximate length of each sample, ``(N,)``."""
        return self._samples.lengths()[self._indices]


class SampleSubset(Samples):
    """A part of the samples of a task, in their order.

    Args:
        whole: All samples.
        indices: Indices of the part, increasing.
    """

    def __init__(self, whole: Samples, indices: Sequence[int]) -> None:
        self.whole = whole
        self._indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def at(self, index: int) -> Sample:
        """Return the sample at an index that is within range."""
        return self.whole.at(int(self._indices[index]))

    def lengths(self) -> Lengths:
        """Return the approximate length of each sample, ``(N,)``."""
        return self.whole.lengths()[self._indices]

    def fingerprint(self) -> str:
        """Return the SHA-256 of all samples, of which the part was drawn."""
        return self.whole.fingerprint()

    def stored_images(self) -> Iterator[StoredImage]:
        """Yield the stored images of all samples, of which the part was drawn."""
        return self.whole.stored_images()


class TaskItems(Sequence[TaskSample]):
    """The concatenated samples of several tasks, each with the name of its task.

    Args:
        parts: Name of each task and its samples or a selection of them.
    """

    def __init__(self, parts: Sequence[tuple[str, Samples | Selection]]) -> None:
        self._parts = list(parts)
        self._ends = list(accumulate(len(samples) for _, samples in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> TaskSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TaskSample]: ...
    def __getitem__(self, index: int | slice) -> TaskSample | list[TaskSample]:
        indices = range(len(self))[index]
        return self._at(indices) if isinstance(indices, int) else [self._at(i) for i in indices]

    def __iter__(self) -> Iterator[TaskSample]:
        return ((sample, name) for name, samples in self._parts for sample in samples)

    def lengths(self) -> Lengths:
        """Return the approximate length of each sample, ``(N,)``."""
        return np.concatenate([samples.lengths() for _, samples in self._parts])

    def _at(self, index: int) -> TaskSample:
        part = bisect_right(self._ends, index)
        name, samples = self._parts[part]
        return samples.at(index - self._ends[part] + len(samples)), name


def _stored_bytes(sample: Sample) -> int:
    text = sum(len(turn.text.encode()) for turn in sample.turns)
    return text + sum(map(_image_bytes, sample.images))


def _image_bytes(image: ImageSource) -> int:
    """Return the size of a stored image, or the size of the pixels of any other image."""
    if isinstance(image, StoredImage):
        return image.stored_size
    pixels = image.array if isinstance(image, ArrayImage) else np.asarray(image.load())
    return pixels.nbytes


def content_bytes(sample: Sample) -> bytes:
    """Return the content of a sample for a fingerprint, with the number of images only.

    Of the metadata only `SCORING_KEYS` count, so that a key without effect on any score neither
    prevents a resume nor makes two runs incomparable.
    """
    turns = [(turn.role, turn.text) for turn in sample.turns]
    scoring = {key: sample.metadata[key] for key in SCORING_KEYS if key in sample.metadata}
    facts = json.dumps(scoring, sort_keys=True)
    return repr((sample.id, turns, len(sample.images), sample.references, facts)).encode()


def metadata_text(sample: Sample) -> str:
    """Return the metadata of a sample as JSON with sorted keys."""
    return json.dumps(dict(sample.metadata), sort_keys=True)


def digest_sizes(sizes: Iterable[npt.NDArray[np.int64]]) -> str:
    """Return a SHA-256 of image file sizes, passed in parts in the order of the samples."""
    digest = hashlib.sha256()
    for part in sizes:
        digest.update(part.astype("<i8").tobytes())
    return digest.hexdigest()


def join_digests(content: str, sizes: str) -> str:
    """Return the fingerprint of samples from the digests of content and image sizes."""
    return hashlib.sha256(f"{content} {sizes}".encode()).hexdigest()


def same_id(source: str, first: int, second: int, id_: str) -> ValueError:
    """Return the error of two items with the same id."""
    return ValueError(f"{source}: items {first} and {second} have the same id {id_!r}")


def unique_samples(address: str, rows: Iterable[Row]) -> list[Sample]:
    """Return the samples; refuse an empty source and repeated ids."""
    seen: dict[str, int] = {}
    samples = []
    for index, sample, _ in rows:
        first = seen.setdefault(sample.id, index)
        if first != index:
            raise same_id(address, first, index, sample.id)
        samples.append(sample)
    if not samples:
        raise ValueError(f"{address}: holds no items")
    return samples
