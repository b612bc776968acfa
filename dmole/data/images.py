"""Finds the images a data file names, without opening them."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from dmole.data.sample import FileImage


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
            ValueError: If the path is absolute, or leaves the root by ``..`` or by a link.
            FileNotFoundError: If there is no such file.
        """
        parts = PurePosixPath(name).parts
        if not parts or os.path.isabs(name) or ".." in parts:
            raise ValueError(f"image path {name!r} must be relative to {self._root} without '..'")
        path = self._root.joinpath(*parts)
        if not path.is_file():
            raise FileNotFoundError(f"image {path} does not exist")
        if not self._is_inside(path):
            raise ValueError(f"image path {name!r} leaves {self._root} by a symbolic link")
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
