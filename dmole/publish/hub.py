"""Publishes a run or a bundle on the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dmole.inference.hub import hub_reason
from dmole.publish.bundle import copy_bundle, make_bundle
from dmole.run.bundle import is_bundle, is_hub_name


def push(
    folder: Path,
    name: str,
    *,
    private: bool = False,
    base: str | None = None,
    licence: str | None = None,
    sources: Mapping[str, str] | None = None,
    trusted: Sequence[str] = (),
) -> str:
    """Publish a bundle, or the bundle of a run, as a repository of the hub.

    The token is the one of ``hf auth login`` or ``HF_TOKEN``. The repository is made if it is not
    there; all files of the bundle are one commit.

    Args:
        folder: A run folder or a bundle.
        name: Name of the repository, ``org/name``.
        private: Whether a new repository is private. One that is there stays as it is, and is
            refused if it is public.
        base: See :func:`~dmole.publish.bundle.make_bundle`, as for the next three.
        licence: Licence of the experts.
        sources: Where the data of a task come from, by task.
        trusted: Modules outside dmole whose classes the run may name.

    Returns:
        The commit, ``hf://org/name@revision``.

    Raises:
        ValueError: If the name has another form, the folder is neither a finished run nor a whole
            bundle, a model card is set for a bundle, the repository is public and ``private`` is
            set, or the hub refuses or cannot be reached.
    """
    if not is_hub_name(name):
        raise ValueError(f"the repository must be named org/name, got {name!r}")
    with tempfile.TemporaryDirectory() as parent:
        copy = Path(parent) / name.rpartition("/")[2]
        if is_bundle(folder):
            if base or licence or sources:
                raise ValueError(
                    f"{folder} is a bundle, whose README.md has base, licence and data"
                )
            copy.mkdir()
            copy_bundle(folder, copy)
        else:
            make_bundle(folder, copy, base=base, licence=licence, sources=sources, trusted=trusted)
        return f"hf://{name}@{_upload(copy, name, private)}"


def _upload(folder: Path, name: str, private: bool) -> str:
    """Upload a folder in one commit and return its revision."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ValueError(
            "there is no token of the hub: log in with `hf auth login`, or set HF_TOKEN"
        )
    hub = HfApi()
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        if private and not hub.repo_info(name).private:  # it was there before
            raise ValueError("the repository is there and public; push without --private")
        commit = hub.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Upload experts and router"
        )
    except Exception as error:
        raise ValueError(f"cannot publish {name}: {hub_reason(error)}") from error
    return str(commit.oid)
