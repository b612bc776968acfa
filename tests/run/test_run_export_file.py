"""``routers.json`` of an export, which anyone may have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dmole.run.export_file import ROUTERS, read_export
from dmole.storage.digests import Digests, file_digest, write_digests
from dmole.storage.files import write_json

GOOD: dict[str, Any] = {
    "format": 1,
    "experts": ["1", "2"],
    "adapters": {"1": ["1"], "1+2": ["1", "2"]},
    "served_as": "org/model",
    "base": {"weights": "0" * 64},
}


def export(folder: Path, **change: Any) -> Path:
    write_json(folder / ROUTERS, GOOD | change)
    write_digests(folder, Digests({ROUTERS: file_digest(folder / ROUTERS)}))
    return folder


def test_an_export_names_the_experts_of_each_adapter(tmp_path: Path) -> None:
    assert read_export(export(tmp_path)).adapters == {"1": ("1",), "1+2": ("1", "2")}


@pytest.mark.parametrize("members", [[1], [["1"]], [None], [], "1", ["2"], ["1", "3"]])
def test_an_adapter_of_anything_but_its_experts_is_refused(members: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{ROUTERS}: adapters must map names such as"):
        read_export(export(tmp_path, adapters={"1": members}))
