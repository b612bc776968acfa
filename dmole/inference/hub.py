"""Fetches bundles from the hub: ``hf://org/name`` or ``hf://org/name@revision``."""

from __future__ import annotations

import re
from pathlib import Path

from dmole.messages import first_line
from dmole.run.bundle import is_bundle, is_hub_name

ADDRESS = "hf://"
_FILES = ("*.json", "README.md", "experts/*", "router/*")
"""Files of a bundle; whatever else a repository holds is not fetched."""
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def fetch_bundle(address: str) -> Path:
    """Return the folder of a bundle of the hub, fetched unless it is in the local cache.

    Args:
        address: ``hf://org/name``, optionally with ``@`` and a commit, branch or tag.

    Raises:
        ValueError: If the address has another form, the repository cannot be fetched or is no
            bundle; names the address.
    """
    name, _, revision = address.removeprefix(ADDRESS).partition("@")
    if not is_hub_name(name) or ("@" in address and not _REVISION.fullmatch(revision)):
        raise ValueError(f"expected hf://org/name or hf://org/name@revision, got {address!r}")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=list(_FILES), tqdm_class=None
        )
    except Exception as error:
        raise ValueError(f"{address}: {hub_reason(error)}") from error
    if not is_bundle(Path(folder)):
        raise ValueError(f"{address} is no bundle of dmole: it has no bundle.json")
    return Path(folder)


def hub_reason(error: Exception) -> str:
    """Return one line on why a request to the hub failed.

    Raises:
        Exception: The error itself, if it is none of the hub, of the network or of a file.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OfflineModeIsEnabled):
        return "the hub is switched off (HF_HUB_OFFLINE)"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private and needs a token"
    if isinstance(error, LocalEntryNotFoundError):
        if isinstance(error.__cause__, HfHubHTTPError):  # reached, but it refused
            return first_line(error.__cause__)
        return "the hub is unreachable, and the local cache does not have it"
    # of httpx2, or of httpx with releases of huggingface_hub below 2
    if any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
        return "the hub is unreachable"
    if isinstance(error, (HfHubHTTPError, OSError, ValueError)):
        return first_line(error)
    raise error
