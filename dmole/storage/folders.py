"""Makes folders that are whole or absent."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside a path. It becomes ``path``, or is removed on an error.

    Args:
        path: The folder to make.

    Raises:
        ValueError: If the path exists.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "made"
        >>> with new_folder(target) as temporary:
        ...     _ = (temporary / "a.txt").write_text("whole")
        >>> [file.name for file in target.iterdir()]
        ['a.txt']
    """
    _check_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    temporary.mkdir()
    try:
        yield temporary
        _check_absent(path)  # another process may have made it meanwhile
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _check_absent(path: Path) -> None:
    if os.path.lexists(path):
        raise ValueError(f"{path} exists; name another output")
