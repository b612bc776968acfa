"""The report: one Markdown table, and the same as JSON; both are written after every row."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from dmole.storage.files import atomic_path

HEADER = "| section | what | value | note |\n| --- | --- | ---: | --- |"


class Report:
    """Collects rows and keeps both files complete.

    Args:
        path: The Markdown file; the JSON file lies beside it, with the suffix ``.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, section: str, what: str, value: Any, note: str = "") -> None:
        """Add a row, print it and write the files."""
        row = {"section": section, "what": what, "value": value, "note": note}
        self.rows.append(row)
        print(time.strftime("%H:%M:%S"), *map(_cell, row.values()), sep=" | ", flush=True)
        self._write(self.path, self.markdown())
        self._write(
            self.path.with_suffix(".json"), json.dumps(self.rows, indent=1, default=str) + "\n"
        )

    def markdown(self) -> str:
        """Return the table."""
        lines = [f"| {' | '.join(map(_cell, row.values()))} |" for row in self.rows]
        return "\n".join([HEADER, *lines]) + "\n"

    @staticmethod
    def _write(path: Path, text: str) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
