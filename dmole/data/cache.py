"""Keeps the Arrow files of large data files, so that they are made once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dmole._version import __version__
from dmole.data.arrow import ArrowSamples, Seal, checksum, repeated_id, write_samples
from dmole.data.formats import ItemReader
from dmole.data.sample import Sample
from dmole.storage.files import atomic_path, write_json

log = logging.getLogger("dmole")

VARIABLE = "DMOLE_CACHE"
_FORMAT = 2  # of the Arrow file; a new one leaves the old files unused


def cache_folder() -> Path:
    """Return the folder of ``DMOLE_CACHE``, or ``dmole`` in the user's cache folder.

    Files in it may be deleted whenever no run uses them.

    Raises:
        ValueError: If the user has no home folder.
    """
    chosen = os.environ.get(VARIABLE)
    folder = Path(chosen or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dmole"))
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"there is no home folder for the cache {folder}: set {VARIABLE} to a full path"
        ) from error


@dataclass(frozen=True)
class CacheEntry:
    """The place of one data file's samples in the cache.

    Processes that make an entry at once write the same content to files of their own, and the
    last to finish replaces the others': all of them go on with a whole file.

    Args:
        source: The data file.
        reader: How it is read.
        root: Folder of its images.
        name: Name of the entry, made of all its content depends on.
    """

    source: Path
    reader: ItemReader
    root: Path
    name: str

    @classmethod
    def of(cls, source: Path, reader: ItemReader, root: Path) -> CacheEntry:
        """Return the entry of a data file as it is now."""
        stat = source.stat()
        parts = (
            *(_FORMAT, __version__, os.path.abspath(source), stat.st_size, stat.st_mtime_ns),
            *(reader.split, os.path.abspath(root), reader.prompt_suffix),
        )
        return cls(source, reader, root, hashlib.sha256(repr(parts).encode()).hexdigest()[:32])

    @property
    def file(self) -> Path:
        """The Arrow file."""
        return cache_folder() / f"{self.name}.arrow"

    def load(self) -> ArrowSamples | None:
        """Return the samples if a whole file of them is there; all images are looked for.

        Raises:
            ValueError: If an image leaves its root.
            FileNotFoundError: If an image is missing.
        """
        try:
            cache_folder()
        except ValueError:  # small files need none; `make` refuses the others
            return None
        try:
            seal = Seal(**json.loads(self._seal_file.read_text(encoding="utf-8")))
            if checksum(self.file) != seal.crc32:
                raise ValueError("its check sum is another")
            samples = ArrowSamples(self.file, self.source, self.reader.images, seal.content)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s is damaged and made again: %s", self.file, error)
            return None
        samples.check_images()
        return samples

    def make(self, rows: Iterable[tuple[Sample, Sequence[str]]]) -> ArrowSamples:
        """Write the samples into the cache and return them from there.

        Args:
            rows: Samples with the names of their images.

        Raises:
            ValueError: If two ids are equal, the data file changes meanwhile, or the cache cannot
                be written.
            FileNotFoundError: If an image is missing.
        """
        log.info("%s is large: its samples are kept in %s", self.source, self.file)
        with ExitStack() as stack:
            with self._blame():
                temporary = stack.enter_context(atomic_path(self.file))
            seal, hashes = write_samples(temporary, rows, self._blame)
            samples = ArrowSamples(temporary, self.source, self.reader.images, seal.content)
            pair = repeated_id(samples, hashes)
            if pair is not None:
                first, second = pair
                raise same_id(self.source, first, second, samples.at(first).id)
            if CacheEntry.of(self.source, self.reader, self.root).name != self.name:
                raise ValueError(f"{self.source}: was changed while it was read")
        with self._blame():
            write_json(self._seal_file, seal.to_dict())
        samples = ArrowSamples(self.file, self.source, self.reader.images, seal.content)
        samples.check_images()
        return samples

    @property
    def _seal_file(self) -> Path:
        return self.file.with_suffix(".json")

    @contextmanager
    def _blame(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"cannot keep the samples of {self.source} in {self.file.parent}: "
                f"{error.strerror or error}; set {VARIABLE} to a folder with space to write to"
            ) from error


def same_id(path: Path, first: int, second: int, id_: str) -> ValueError:
    """Return the error of two items with one id."""
    return ValueError(f"{path}: items {first} and {second} have the same id {id_!r}")
