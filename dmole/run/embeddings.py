"""The router embeddings of a run on disk, beside its other files.

The base model is frozen, so the embedding of a sample never changes. A sample is embedded once in
the life of a run: a resumed run, an evaluation and a run that extends it read the row. Each task
and split has a file that names base model, samples and the times at which image files were
written; one that was made with others is not used.
The files are no results: they have no digests in ``digests.json``, and without them the samples
are embedded again.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from dmole.distributed import broadcast, gather_objects
from dmole.messages import one_line
from dmole.models.identity import NUMERICS
from dmole.storage.files import atomic_path, check_name, open_file
from dmole.storage.rows import RowFile

if TYPE_CHECKING:
    from dmole.data.formats import Split
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

FOLDER = "embeddings"
"""Folder of the files in a run folder."""

_SUFFIX = ".rows"
_PARTS = ("model config", "tokenizer", "image processor", "image backend", NUMERICS)
"""Parts of the base model that an embedding depends on, besides its weights."""


class EmbeddingStore:
    """Embeddings of the samples of some tasks, in one file for each task and split.

    Args:
        folder: Has the files; made when the first one is written.
        base: What embeddings depend on besides the samples, for the headers of the files.
        samples: SHA-256 of the samples by task and split; others are not kept.
        images: Returns a SHA-256 of the state of the image files of a task and split.
        width: Length of a row.
        grows: Whether rows may be added; a finished run is only read.
    """

    def __init__(
        self,
        folder: Path,
        base: Mapping[str, str],
        samples: Mapping[str, Mapping[str, str]],
        images: Callable[[str, Split], str],
        width: int,
        *,
        grows: bool,
    ) -> None:
        self._folder = folder
        self._base = dict(base)
        self._samples = samples
        self._images = images
        self._width = width
        self.grows = grows
        self._files: dict[tuple[str, str], RowFile] = {}

    def found(self, ids: Iterable[str]) -> dict[str, Tensor]:
        """Return the rows of the samples ``task/split/id`` that are there, ``(D,)`` each."""
        rows: dict[str, Tensor] = {}
        for place, names in self._grouped(ids).items():
            found = self._file(*place).found(names)
            rows |= {"/".join((*place, name)): row for name, row in found.items()}
        return rows

    def listed(self, ids: Iterable[str]) -> set[str]:
        """Return the samples that a file names; their rows are not read."""
        return {
            "/".join((*place, name))
            for place, names in self._grouped(ids).items()
            for name in names
            if name in self._file(*place)
        }

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Append rows by ``task/split/id``. After an error of the disk no more rows are added."""
        try:
            for (task, split), names in self._grouped(rows).items():
                values = torch.stack([rows[f"{task}/{split}/{name}"] for name in names])  # (N, D)
                self._file(task, split).add(names, values)
        except (OSError, ValueError) as error:
            self.grows = False
            log.warning("embeddings are no longer kept on disk: %s", one_line(error))

    def refresh(self) -> None:
        """Read what another process has added."""
        for file in self._files.values():
            file.refresh()

    def _grouped(self, ids: Iterable[str]) -> dict[tuple[str, str], list[str]]:
        """Return the ids of samples of the known tasks, by task and split."""
        groups = defaultdict(list)
        for key in ids:
            task, split, name = key.split("/", 2)
            if self._samples.get(task, {}).get(split):
                groups[task, split].append(name)
        return groups

    def _file(self, task: str, split: str) -> RowFile:
        if (task, split) not in self._files:
            origin = {**self._base, "list of samples": self._samples[task][split]}
            path = self._folder / f"{task}.{split}{_SUFFIX}"
            origin |= {"task": task, "split": split}
            origin["time of an image file"] = self._images(task, cast("Split", split))
            self._files[task, split] = RowFile(path, origin, self._width)
        return self._files[task, split]


def open_embeddings(
    state: SequenceState, module: ContinualModule, run: Path, *, grows: bool
) -> None:
    """Let a module read the embeddings of a run, and keep new ones there.

    Args:
        state: Has the samples.
        module: Has the base model.
        run: The run folder.
        grows: Whether new embeddings are kept.
    """
    if not state.keeps_embeddings:
        return
    prints = state.fingerprints(module)
    parts = {name: prints["base_parts"][name]["sha256"] for name in _PARTS}
    rest = sha256(str([*parts.items(), state.trainer.precision]).encode()).hexdigest()
    base = {"base model": prints["base"], "processor or precision": rest}
    width = module.backbone.embedding_width
    images = state.data.image_state
    store = EmbeddingStore(run / FOLDER, base, prints["data"], images, width, grows=grows)
    module.embedder.cache.store = store


def read_embeddings(
    run: Path, task: str, ids: Sequence[str], origin: Mapping[str, str], width: int
) -> Tensor:
    """Return the kept embeddings of test samples, without the base model.

    Args:
        run: The run folder.
        task: The task.
        ids: Ids of its samples.
        origin: What the header of the file must hold, besides the task.
        width: Length ``D`` of an embedding.

    Returns:
        Shape ``(N, D)``, in the order of the ids.

    Raises:
        ValueError: If the file is missing, of another origin or damaged; says which.
    """
    path = run / FOLDER / f"{check_name(task, 'task')}.test{_SUFFIX}"
    problems: list[str] = []
    file = RowFile(path, {"task": task, "split": "test", **origin}, width, tell=problems.append)
    rows = file.found(ids)
    if missing := [name for name in ids if name not in rows]:
        lacks = f"{path} has no embedding of {len(missing)} of {len(ids)} samples"
        raise ValueError(next(iter(problems), lacks))
    return torch.stack([rows[name] for name in ids])


def save_embeddings(state: SequenceState, module: ContinualModule) -> None:
    """Move the embeddings in memory to disk. All ranks must call it; rank 0 writes those of all."""
    cache = module.embedder.cache
    store = cache.store
    if not isinstance(store, EmbeddingStore) or not store.grows:
        return
    gathered = gather_objects(cache.rows())
    if state.is_global_zero:
        rows = {key: row for of_rank in reversed(gathered) for key, row in of_rank.items()}
        known = store.listed(rows)
        store.add({key: row for key, row in rows.items() if key not in known})
    store.grows = broadcast(store.grows)
    store.refresh()
    cache.drop(store.listed(cache.rows()))


def carry_embeddings(source: Path, target: Path, tasks: Collection[str] | None = None) -> None:
    """Give a run the embeddings of another one, as links where the file system has them.

    Args:
        source: Folder of the other run.
        target: Folder of the run.
        tasks: Tasks of the run; files of others are left out. None for all.
    """
    for path in sorted((source / FOLDER).glob(f"*{_SUFFIX}")):
        if tasks is not None and path.name.partition(".")[0] not in tasks:
            continue
        copy = target / FOLDER / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open_file(path) as content:
                with suppress(OSError):  # another file system, or one without links
                    os.link(path.resolve(), copy)
                    continue
                with atomic_path(copy) as temporary, temporary.open("wb") as file:
                    shutil.copyfileobj(content, file)
        except (ValueError, OSError) as error:
            log.warning("%s; its samples are embedded again", one_line(error))
