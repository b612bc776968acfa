"""A bundle: a folder with all that answers need of a finished run, safe to publish."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from dmole.publish.card import write_card
from dmole.publish.parts import open_source, seal, write_parts
from dmole.publish.privacy import check_private
from dmole.run.bundle import read_bundle
from dmole.storage.folders import new_folder

CARD = "README.md"
"""The model card. It has no digest, since it is text for people, who may edit it."""


def make_bundle(
    run: Path,
    output: Path,
    *,
    base: str | None = None,
    licence: str | None = None,
    sources: Mapping[str, str] | None = None,
    trusted: Sequence[str] = (),
) -> None:
    """Write the bundle of a finished run.

    It holds experts, router, figures, settings of processor and decoding, the SHA-256 of the base
    model and a model card. It names no path and nothing else of this machine.

    Args:
        run: The run folder.
        output: The folder to make.
        base: Name of the base model on the hub, if the run names a folder.
        licence: Identifier of the licence on the hub, such as ``apache-2.0``.
        sources: Where the data of a task come from, by task. By default the card names the task's
            training file without its folder.
        trusted: Modules outside dmole whose classes the run may name.

    Raises:
        ValueError: If the run is unfinished or damaged, the output exists, a task is unknown, or
            a file would name a path of this machine. Nothing is left behind then.
    """
    source = open_source(run, base, trusted)
    tasks = {str(task["name"]): task for task in source.settings.data["tasks"]}
    for name in sources or {}:
        if name not in tasks:
            raise ValueError(
                f"--data_source: there is no task {name!r}; there are {', '.join(tasks)}"
            )
    if output.resolve().is_relative_to(run.resolve()):
        raise ValueError(f"{output} is inside the run folder; name another output")
    with new_folder(output) as folder:
        write_parts(source, folder, experts=True)
        write_card(source, folder / CARD, output.name, licence, sources or {})
        seal(source, folder, without=(CARD,))
        check_private(folder, source.places())


def copy_bundle(bundle: Path, folder: Path) -> None:
    """Copy the files of a bundle, and no others, into a folder after verifying them.

    Args:
        bundle: The bundle.
        folder: An empty folder.

    Raises:
        ValueError: If a file is missing or was changed, or names a path of this machine.
    """
    _, digests = read_bundle(bundle)
    for name in [*digests.files, "digests.json", CARD]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, folder / name)
    check_private(folder, [bundle])
