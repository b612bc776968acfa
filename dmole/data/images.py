"""Finds the images a data file names, without opening them."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from dmole.data.sample import FileImage

_FOREIGN = re.compile(r"[a-z][a-z0-9+.-]*://|[a-z]:[\\/]|.*[\\\0-\x1f\ud800-\udfff]", re.I | re.S)
"""A URL, a drive letter, a backslash, a control character or half a character."""

_SHOWN = 80
"""Characters of a name that a message repeats."""


class ImageRoot:
    """A folder that images must not leave.

    Args:
        root: The folder; it may itself be a symbolic link.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real_root = os.path.realpath(root)
        # resolving a link costs a system call per folder: images share few folders
        self._real_folders: dict[Path, str] = {}

    def find(self, name: str) -> FileImage:
        """Return the image with this name.

        Args:
            name: Path relative to the root, as written in the data file.

        Raises:
            ValueError: If the path is absolute, leaves the root by ``..`` or by a link, is a URL
                or written for another system, or cannot be asked for.
            FileNotFoundError: If there is no such file.
        """
        shown = repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
        parts = PurePosixPath(name).parts
        if not parts or os.path.isabs(name) or ".." in parts:
            raise ValueError(f"image path {shown} must be relative to {self._root} without '..'")
        if _FOREIGN.match(name):
            raise ValueError(
                f"image path {shown} must be a path below {self._root} with forward slashes"
            )
        path = self._root.joinpath(*parts)
        try:
            if not path.is_file():
                state = "is not a file" if path.exists() else "does not exist"
                raise FileNotFoundError(f"image {path} {state}")
        except FileNotFoundError:
            raise
        except OSError as error:  # too long, or a folder that may not be entered
            raise ValueError(f"image path {shown} cannot be used: {error.strerror}") from error
        if not self._is_inside(path):
            raise ValueError(f"image path {shown} leaves {self._root} by a symbolic link")
        return FileImage(path)

    def _is_inside(self, path: Path) -> bool:
        if path.is_symlink():
            real = os.path.realpath(path)
        else:
            folder = path.parent
            if folder not in self._real_folders:
                self._real_folders[folder] = os.path.realpath(folder)
            real = os.path.join(self._real_folders[folder], path.name)
        return os.path.commonpath([real, self._real_root]) == self._real_root
