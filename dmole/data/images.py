"""Locates the images that a data file names or embeds, without decoding them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from dmole.data.decoding import ImageOptions
from dmole.data.sample import EmbeddedImage, FileImage, StoredImage

_CACHED = 4096  # neighboring items often share an image, and building a path is slow
_FOREIGN = re.compile(r"[a-z][a-z0-9+.-]*://|[a-z]:[\\/]|.*[\\\0-\x1f\ud800-\udfff]", re.I | re.S)
"""A URL, a drive letter, a backslash, a control character or half a surrogate pair."""

_SHOWN = 80
"""Maximum number of characters of a name in a message."""

_BEGIN = 30
"""Number of characters of encoded content in a message."""

_DATA = "data:"

_BASE64 = re.compile(r"(?=.*[A-Z])(?=.*[a-z])(?=.*\d)[A-Za-z0-9+/\s]{100,}={0,2}\s*", re.S)
"""Encoded content; a path of this length has a dot before its ending."""


class ImageFinder(Protocol):
    """Finds the images of a data file by their names."""

    def find(self, name: str) -> StoredImage:
        """Return the image with this name; it exists.

        Raises:
            ValueError: If the name is malformed or leaves the root.
            FileNotFoundError: If the image does not exist.
        """
        ...

    def locate(self, name: str) -> StoredImage:
        """Return the image with this name without checking that it exists."""
        ...

    def size(self, name: str) -> int:
        """Return the bytes of the image with this name, after the checks of `find`."""
        ...


def name_of(reference: str | bytes | Mapping[str, Any]) -> str:
    """Return the name of an image: a path, or its content as a data URI.

    Args:
        reference: The image as it occurs in an item; a mapping has the keys ``bytes`` and ``path``.
    """
    if isinstance(reference, str):
        return reference
    if isinstance(reference, bytes):
        return f"{_DATA};base64,{base64.b64encode(reference).decode('ascii')}"
    content = reference.get("bytes")
    return name_of(content if content is not None else str(reference.get("path")))


class ImageRoot:
    """A folder that contains all image files; data URIs need no folder.

    Args:
        root: The folder; it may itself be a symbolic link.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real_root = os.path.realpath(root)
        # resolving a link costs a system call per folder: images share few folders
        self._folders_inside: dict[Path, bool] = {}
        self._located: dict[str, FileImage] = {}

    def find(self, name: str) -> StoredImage:
        """Return the image with this name.

        Args:
            name: Path relative to the root, as written in the data file.

        Raises:
            ValueError: If the path is absolute, leaves the root by ``..`` or by a link, is a URL
                or written for another operating system, or cannot be accessed.
            FileNotFoundError: If the file does not exist.
        """
        image = self.locate(name)
        if isinstance(image, FileImage):
            self._check(name, image.path)
        return image

    def size(self, name: str) -> int:
        """Return the bytes of the image with this name, after the checks of `find`.

        Raises:
            ValueError: As in `find`.
            FileNotFoundError: If the file does not exist.
        """
        image = self.locate(name)
        if isinstance(image, EmbeddedImage):
            return image.stored_size
        return self._check(name, image.path)

    def locate(self, name: str) -> StoredImage:
        """Return the image with this name without checking that the file exists.

        Raises:
            ValueError: If the path is absolute, contains ``..``, is a URL or written for another
                operating system.
        """
        if name in self._located:
            return self._located[name]
        if name.startswith(_DATA):
            return _data_image(name)
        if _BASE64.fullmatch(name):
            raise ValueError(
                f"image {_shown(name)} is base64 text without its kind: write "
                "'data:image/png;base64,' in front of it"
            )
        parts = PurePosixPath(name).parts
        if not parts or os.path.isabs(name) or ".." in parts:
            raise ValueError(
                f"image path {_shown(name)} must be relative to {self._root} without '..'"
            )
        if _FOREIGN.match(name):
            raise ValueError(
                f"image path {_shown(name)} must be a path below {self._root} with forward slashes"
            )
        if len(self._located) == _CACHED:
            self._located.clear()
        self._located[name] = FileImage(self._root.joinpath(*parts))
        return self._located[name]

    def _check(self, name: str, path: Path) -> int:
        """Return the size of a file, with one system call unless it is a link."""
        try:
            status = os.lstat(path)
            is_link = stat.S_ISLNK(status.st_mode)
            status = os.stat(path) if is_link else status
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"image {path} does not exist") from None
        except OSError as error:  # the name is too long, or a folder is not accessible
            reason = error.strerror
            raise ValueError(f"image path {_shown(name)} cannot be used: {reason}") from error
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(f"image {path} is not a file")
        if not (self._is_inside(path) if is_link else self._folder_is_inside(path.parent)):
            raise ValueError(f"image path {_shown(name)} leaves {self._root} by a symbolic link")
        return status.st_size

    def _folder_is_inside(self, folder: Path) -> bool:
        if folder not in self._folders_inside:
            self._folders_inside[folder] = self._is_inside(folder)
        return self._folders_inside[folder]

    def _is_inside(self, path: Path) -> bool:
        return os.path.commonpath([os.path.realpath(path), self._real_root]) == self._real_root


@dataclass(frozen=True)
class TreatedImages:
    """Finds the images of another finder and sets how they are decoded.

    Args:
        finder: Finds the images.
        options: Treatment of transparency and orientation.
    """

    finder: ImageFinder
    options: ImageOptions

    def find(self, name: str) -> StoredImage:
        """Return the image with this name; see `ImageFinder.find`."""
        return replace(self.finder.find(name), options=self.options)

    def locate(self, name: str) -> StoredImage:
        """Return the image with this name without checking that it exists."""
        return replace(self.finder.locate(name), options=self.options)

    def size(self, name: str) -> int:
        """Return the bytes of the image with this name; see `ImageFinder.size`."""
        return self.finder.size(name)


def _data_image(uri: str) -> EmbeddedImage:
    """Return the image in a data URI.

    Raises:
        ValueError: If the URI is malformed.
    """
    content = data_uri_bytes(uri)
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    name = f"{uri[: uri.index(',')]} of {len(content)} bytes, digest {digest}"
    return EmbeddedImage(name, len(content), partial(data_uri_bytes, uri))


def data_uri_bytes(uri: str) -> bytes:
    """Return the bytes in a data URI.

    Args:
        uri: ``data:<kind>;base64,<content>``; line breaks in the content are left out.

    Raises:
        ValueError: If the URI is malformed, is not base64 or holds no bytes.
    """
    head, comma, text = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError(f"image {_shown(uri)} must begin with 'data:image/<kind>;base64,'")
    try:
        # some writers insert line breaks; anything else that is not base64 is rejected
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"image {_shown(uri)} is not base64: {error}") from error
    if not content:
        raise ValueError(f"image {_shown(uri)} holds no bytes")
    return content


def _shown(name: str) -> str:
    if len(name) <= _SHOWN:
        return repr(name)
    kept = _SHOWN
    if name.startswith(_DATA):
        kept = min(_BEGIN, name.find(",") + 1 or _BEGIN)
    elif _BASE64.fullmatch(name):
        kept = _BEGIN
    return f"{name[:kept] + '...'!r} of {len(name)} characters"
