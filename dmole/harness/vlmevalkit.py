"""Predictions as VLMEvalKit's evaluation reads them: its table with a column ``prediction``."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from dmole.data.decoding import AS_STORED, ImageOptions
from dmole.data.sample import Sample
from dmole.data.source import open_source
from dmole.data.sources.text import TsvFile
from dmole.data.task import Task
from dmole.storage.files import atomic_path, check_name

TableFormat = Literal["tsv", "xlsx"]
PREDICTION = "prediction"

_LEFT_OUT = ("image", PREDICTION)  # VLMEvalKit's own files have no images either
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # a workbook cannot hold them


@dataclass(frozen=True)
class BenchmarkTable:
    """A table of VLMEvalKit.

    Args:
        path: The ``.tsv`` file. Its name is that of the data set.
        images: How its images become RGB pictures.
    """

    path: Path
    images: ImageOptions = AS_STORED

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.path.stem

    def samples(self) -> Sequence[Sample]:
        """Return the questions, in the order of the rows, with hint and options in the text.

        Raises:
            ValueError: If the table cannot be read or a row has no answer; names file and row.
        """
        task = Task("vlmevalkit", test=str(self.path.absolute()), images=self.images)
        return open_source(task, "test", Path())

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield the rows of the table."""
        return TsvFile(self.path).rows()


def write_predictions(
    benchmark: BenchmarkTable,
    predictions: Sequence[str],
    folder: Path,
    *,
    model: str = "dmole",
    kind: TableFormat = "tsv",
) -> Path:
    """Write the rows of a table with a column ``prediction`` and without images.

    Args:
        benchmark: The table.
        predictions: One answer for each row.
        folder: Receives ``<model>_<data set>.tsv`` or ``.xlsx``.
        model: Name of the model, as in VLMEvalKit.
        kind: ``tsv`` is what VLMEvalKit reads if ``PRED_FORMAT=tsv`` is set, ``xlsx`` its default.

    Returns:
        The file.

    Raises:
        ValueError: If there are not as many predictions as rows, the name of the model is not
            valid, or ``xlsx`` is asked for and openpyxl is not installed.
    """
    check_name(model, "model_name")
    write = _WRITERS[kind]
    if kind == "xlsx" and find_spec("openpyxl") is None:
        raise ValueError("xlsx needs openpyxl: pip install openpyxl, or write tsv")
    path = folder / f"{model}_{benchmark.name}.{kind}"
    with atomic_path(path) as temporary:
        write(temporary, _with_predictions(benchmark.rows(), predictions))
    return path


def _with_predictions(
    rows: Iterable[Mapping[str, str]], predictions: Sequence[str]
) -> Iterator[list[str]]:
    """Yield the names of the columns, then the cells of each row."""
    for number, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
        cells = {name: cell for name, cell in row.items() if name not in _LEFT_OUT}
        cells[PREDICTION] = prediction
        if not number:
            yield list(cells)
        yield list(cells.values())


def _write_tsv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)


def _write_xlsx(path: Path, rows: Iterable[Sequence[str]]) -> None:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    for row in rows:
        cells = [WriteOnlyCell(sheet, _number_or_text(text)) for text in row]
        for cell in cells:
            if isinstance(cell.value, str):
                cell.data_type = "s"  # a text that begins with = is no formula
        sheet.append(cells)
    with path.open("wb") as file:
        book.save(file)


def _number_or_text(text: str) -> int | str:
    """Return a cell as VLMEvalKit's own file has it: the index of a row is a number there."""
    if re.fullmatch(r"0|[1-9][0-9]{0,14}", text):
        return int(text)
    return _UNPRINTABLE.sub("", text)


_WRITERS: Mapping[TableFormat, Callable[[Path, Iterable[Sequence[str]]], None]] = {
    "tsv": _write_tsv,
    "xlsx": _write_xlsx,
}
