"""``bundle.json``: marks a folder as a bundle and names its base model by the hash of its weights.

A bundle holds what answers need of a finished run: ``model.json`` without data, ``metrics.json``
with the continual figures and the identity of the base model, ``experts/``, ``router/``,
``digests.json`` over all of these, and a model card.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dmole.models.pretrained import BY_HASH
from dmole.storage.digests import FILE, Digests, file_digest, read_digests
from dmole.storage.reading import read_json

BUNDLE_FILE = "bundle.json"
FORMAT = 1
"""Version of the file."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class BaseReference:
    """The base model of a bundle.

    Args:
        weights: SHA-256 of names and values of its weights, see `Backbone.fingerprint`.
        name: Name on the hub, or ``tiny``; None for a model that has no public name.
        revision: Commit, branch or tag on the hub.
    """

    weights: str
    name: str | None = None
    revision: str | None = None

    @property
    def place(self) -> str:
        """The ``name_or_path`` in ``model.json``: the name, else the hash, which nothing loads."""
        return self.name or f"{BY_HASH}{self.weights}"


def is_hub_name(text: str) -> bool:
    """Return whether a text has the form ``org/name``.

    Example:
        >>> is_hub_name("org/name"), is_hub_name("/home/name"), is_hub_name("tiny")
        (True, False, False)
    """
    return _HUB_NAME.fullmatch(text) is not None


def is_bundle(folder: Path) -> bool:
    """Return whether a folder is a bundle, even if ``bundle.json`` was removed from it.

    Raises:
        ValueError: If the digests of the folder cannot be read; names the file.
    """
    path = folder / BUNDLE_FILE
    if path.is_symlink() or path.exists():
        return True
    digests = read_digests(folder)
    return digests is not None and BUNDLE_FILE in digests.files


def read_bundle(folder: Path) -> tuple[BaseReference, Digests]:
    """Return base model and digests of a bundle after a check that its files are as it was made.

    Args:
        folder: The bundle.

    Raises:
        ValueError: If a file is missing or was changed, or ``bundle.json`` is not valid; names the
            file.
    """
    path = folder / BUNDLE_FILE
    content = read_json(path, "bundle")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a bundle in format {FORMAT}")
    digests = read_digests(folder)
    if digests is None:
        raise ValueError(f"{folder / FILE} is missing: the bundle cannot be verified")
    if BUNDLE_FILE not in digests.files:
        raise ValueError(f"{folder / FILE} does not list {BUNDLE_FILE}: it is of another folder")
    for name, expected in digests.files.items():
        if file_digest(folder / name) != expected:
            raise ValueError(
                f"{folder / name} is not the file that the bundle was made with (its SHA-256 is "
                f"not that in {FILE}): get the bundle again"
            )
    return _base(path, content.get("base")), digests


def _base(path: Path, content: object) -> BaseReference:
    base = content if isinstance(content, dict) else {}
    weights, name, revision = (base.get(key) for key in ("weights", "name", "revision"))
    if not isinstance(weights, str) or not _SHA256.fullmatch(weights):
        raise ValueError(f"{path}: base.weights must be a SHA-256")
    if name is not None and not (isinstance(name, str) and (name == "tiny" or is_hub_name(name))):
        raise ValueError(f"{path}: base.name must be a name on the hub, 'tiny' or null")
    if revision is not None and not isinstance(revision, str):
        raise ValueError(f"{path}: base.revision must be a text or null")
    return BaseReference(weights, name, revision)
