"""Writes a small real data set from the images and questions of installed packages.

easy-vqa contains images of colored shapes with questions, scikit-learn handwritten digits. Both are
installed by ``pip install dmole[examples]``. Two kinds of tasks show photographs of a Debian
package, which is downloaded.
"""

from __future__ import annotations

import json
import random
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

from dmole.data.formats import Split
from dmole.data.sample import IMAGE_PLACEHOLDER
from dmole.data.task import Task
from dmole.demo.photographs import photo_tasks, temporary_folder, unpack
from dmole.demo.real_tasks import Entry, Reader, alike_tasks, mixed_tasks
from dmole.demo.stamps import stamp_tasks

Kind = Literal["mixed", "alike", "one_wording", "photographs"]

_OF_PHOTOGRAPHS: dict[str, Callable[[Path, Mapping[Split, int]], dict[str, Reader]]] = {
    "one_wording": photo_tasks,
    "photographs": stamp_tasks,
}


def make_example(
    output: Path,
    *,
    kind: Kind = "mixed",
    package: Path | None = None,
    train_size: int = 1500,
    test_size: int = 250,
    seed: int = 0,
) -> list[Task]:
    """Write five to eight tasks as LLaVA conversations with PNG images.

    ============  =============================================================================
    mixed         five tasks: ``yes_no``, ``color`` and ``shape`` ask about easy-vqa images,
                  ``digit`` asks for the name of a handwritten digit, ``larger`` for the larger
                  of two
    alike         six tasks, of which five share the question "what is shown?": the name of a
                  digit in white on black (``digit_white``) or in ink on paper (``digit_ink``),
                  its numeral in color on color (``digit_color``), the names of two digits
                  (``digit_pair``), the shape of an easy-vqa image (``shape``)
    one_wording   eight tasks with one question about pictures of two photographs and a letter,
                  which tells what is asked; see `dmole.demo.photographs`
    photographs   six tasks about pictures of photographs; see `dmole.demo.stamps`
    ============  =============================================================================

    The photographs are those of a Debian package, which is downloaded by ``apt-get``.

    Train and test follow the splits of the packages; photographs of test pictures are in no
    training picture. The answers of a task, by their first word,
    are equally frequent as far as the source allows.

    Args:
        output: New or empty folder; it appears only when all files are written.
        kind: Which tasks.
        package: The Debian package, if it was downloaded before.
        train_size: Maximum number of training samples of a task. A task of single digits has at
            most 1297.
        test_size: Maximum number of test samples of a task.
        seed: Seed of the choice of samples.

    Returns:
        The tasks, with paths relative to ``output``.

    Raises:
        FileExistsError: If ``output`` is a file or a folder that is not empty.
        ModuleNotFoundError: If the packages are not installed.
        OSError: If the Debian package cannot be downloaded or unpacked.
        ValueError: If a size is below one, the kind is unknown, or there are too few photographs.
    """
    if train_size < 1 or test_size < 1:
        raise ValueError(f"train_size {train_size} and test_size {test_size} must be at least 1")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists already and is not an empty folder")
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    if kind in _OF_PHOTOGRAPHS:
        sizes: dict[Split, int] = {"train": train_size, "test": test_size}
        with temporary_folder() as folder:
            sources = _OF_PHOTOGRAPHS[kind](unpack(Path(folder), package), sizes)
            return _write(output, sources, train_size, test_size, seed)
    sources = alike_tasks() if kind == "alike" else mixed_tasks()
    return _write(output, sources, train_size, test_size, seed)


def _write(
    output: Path, sources: Mapping[str, Reader], train_size: int, test_size: int, seed: int
) -> list[Task]:
    """Write all tasks to a folder that appears when it is complete."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.parent / f".{output.name}.{uuid.uuid4().hex}"
    try:
        for name, read in sources.items():
            _write_split(draft, name, "train", _balanced(read("train"), train_size, seed))
            _write_split(draft, name, "test", _balanced(read("test"), test_size, seed))
        draft.rename(output)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return [
        Task(name, train=f"{name}_train.json", test=f"{name}_test.json", max_new_tokens=8)
        for name in sources
    ]


def _balanced(entries: list[Entry], size: int, seed: int) -> list[Entry]:
    """Choose randomly, alternating between the first words of the answers.

    Exhausted words are skipped.
    """
    rng = random.Random(seed)
    by_word: dict[str, list[Entry]] = defaultdict(list)
    for entry in rng.sample(entries, len(entries)):
        by_word[entry.answer.split()[0]].append(entry)
    chosen = list(_in_turn([by_word[word] for word in sorted(by_word)]))[:size]
    return rng.sample(chosen, len(chosen))


def _in_turn(groups: list[list[Entry]]) -> Iterator[Entry]:
    for position in range(max(map(len, groups))):
        for group in groups:
            if position < len(group):
                yield group[position]


def _write_split(folder: Path, name: str, split: Split, entries: list[Entry]) -> None:
    items = []
    for index, entry in enumerate(entries):
        path = folder / "images" / entry.image
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # several questions may share an image
            entry.draw().save(path)
        turns = [
            {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{entry.question}"},
            {"from": "gpt", "value": entry.answer.lower()},
        ]
        item = {"id": f"{name}_{split}_{index}", "image": f"images/{entry.image}"}
        items.append(item | {"conversations": turns})
    text = json.dumps(items, indent=1)
    (folder / f"{name}_{split}.json").write_text(text + "\n", encoding="utf-8")
