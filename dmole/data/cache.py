"""Caches the Arrow files of large data files, so that they are written once."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from dmole._version import __version__
from dmole.data.arrow import ArrowSamples, repeated_id
from dmole.data.arrow_writer import Seal, checksum, write_samples
from dmole.data.cache_folder import VARIABLE, cache_folder
from dmole.data.images import ImageFinder
from dmole.data.sequences import Row, same_id
from dmole.storage.files import UNSUPPORTED, atomic_path, check_file, read_json, write_json

log = logging.getLogger("dmole")

_FORMAT = 4  # version of the Arrow file; older files are not used


@dataclass(frozen=True)
class CacheEntry:
    """The samples of one source in the cache.

    Of the processes of a machine that need an entry, one writes it and the others wait. If locks
    do not work, each process writes it, and the last to finish replaces the file with an equal
    one.

    Args:
        source: Name of the source in messages.
        images: Finds its images.
        key: Returns the current values of everything that the samples depend on.
    """

    source: str
    images: ImageFinder
    key: Callable[[], tuple[object, ...]]
    name: str = field(init=False)

    def __post_init__(self) -> None:
        """Derive the name of the entry from everything its content depends on."""
        object.__setattr__(self, "name", self._name_now())

    @property
    def file(self) -> Path:
        """The Arrow file."""
        return cache_folder() / f"{self.name}.arrow"

    def load(self) -> ArrowSamples | None:
        """Return the samples if an undamaged file exists; check that all images exist.

        Raises:
            ValueError: If an image leaves its root.
            FileNotFoundError: If an image is missing.
        """
        try:
            cache_folder()
        except ValueError:  # small files need no cache; `make` raises for large ones
            return None
        try:
            if not os.path.lexists(self._seal_file):
                return None
            seal = Seal(**read_json(self._seal_file))
            check_file(self.file)
            if checksum(self.file) != seal.crc32:
                raise ValueError("its checksum differs")
            samples = ArrowSamples(self.file, self.source, self.images, seal.content)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s is damaged and is written again: %s", self.file, error)
            return None
        samples.check_images()
        return samples

    def make(self, rows: Iterable[Row]) -> ArrowSamples:
        """Write the samples to the cache and return the mapped samples.

        Args:
            rows: The samples.

        Raises:
            ValueError: If two ids are equal, the source changes during reading, or the cache cannot
                be written.
            FileNotFoundError: If an image is missing.
        """
        with self._locked():
            cached = self.load()  # written by a faster process
            if cached is not None:
                return cached
            log.info("%s is large: its samples are cached in %s", self.source, self.file)
            seal = self._write(rows)
        samples = ArrowSamples(self.file, self.source, self.images, seal.content)
        samples.check_images()
        return samples

    def _write(self, rows: Iterable[Row]) -> Seal:
        with ExitStack() as stack:
            with self._blame():
                temporary = stack.enter_context(atomic_path(self.file))
            seal, hashes = write_samples(temporary, rows, self._blame)
            samples = ArrowSamples(temporary, self.source, self.images, seal.content)
            pair = repeated_id(samples, hashes)
            if pair is not None:
                first, second = map(samples.index_of, pair)
                raise same_id(self.source, first, second, samples.at(pair[0]).id)
            if self._name_now() != self.name:
                raise ValueError(f"{self.source}: was changed while it was read")
        with self._blame():
            write_json(self._seal_file, seal.to_dict())
        return seal

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Run the body in one process of the machine at a time."""
        path = self.file.with_suffix(".lock")
        lock = FileLock(
            path, fallback_to_soft=False
        )  # a marker file would outlive a killed process
        with self._blame():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                log.warning("%s: this file system has no locks (%s)", path.parent, error.strerror)
        try:
            yield
        finally:
            lock.release()
            path.unlink(
                missing_ok=True
            )  # a process that holds it by now may work in parallel without harm

    def _name_now(self) -> str:
        parts = (_FORMAT, __version__, *self.key())
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]

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
