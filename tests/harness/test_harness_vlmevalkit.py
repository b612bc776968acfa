"""Predictions for VLMEvalKit: its table with answers of a run, read back."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from dmole.data.sources.text import TsvFile
from dmole.harness.vlmevalkit import BenchmarkTable, write_predictions

HEADER = ["index", "image", "question", "hint", "A", "B", "answer", "category"]


def picture(color: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def table(tmp_path: Path) -> BenchmarkTable:
    rows = [
        ["0", picture("red"), "Which color?", "look", "red", "blue", "A", "=1+1"],
        ["17", "0", 'Say "tab"\tor\nline', "", "x", "y", "B", "größe"],
    ]
    path = tmp_path / "MMBench_DEV.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([HEADER, *rows])
    return BenchmarkTable(path)


def test_the_written_table_is_read_again_with_its_predictions(
    table: BenchmarkTable, tmp_path: Path
) -> None:
    path = write_predictions(table, ["A", "=SUM(1)\tB\n"], tmp_path / "out", model="my-run")
    assert path == tmp_path / "out" / "my-run_MMBench_DEV.tsv"
    before, after = (list(TsvFile(each).rows()) for each in (table.path, path))
    assert [row.pop("prediction") for row in after] == ["A", "=SUM(1)\tB\n"]
    assert after == [{k: v for k, v in row.items() if k != "image"} for row in before]
    items = [item for _, item in TsvFile(path).items()]
    assert [(item["id"], item["answer"]) for item in items] == [("0", "A"), ("17", "B")]


def test_pandas_reads_it_as_vlmevalkit_does(table: BenchmarkTable, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = write_predictions(table, ["A", "B\n"], tmp_path)
    frame = pandas.read_csv(path, sep="\t")
    assert list(frame["index"]) == [0, 17]
    assert list(frame["prediction"]) == ["A", "B\n"]


def test_a_workbook_holds_numbers_and_texts_but_no_formulas(
    table: BenchmarkTable, tmp_path: Path
) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    path = write_predictions(table, ["=1+1", "a\x07b"], tmp_path, kind="xlsx")
    head, *rows = openpyxl.load_workbook(path).active.iter_rows(values_only=True)
    assert [row[head.index("index")] for row in rows] == [0, 17]
    assert [row[head.index("prediction")] for row in rows] == ["=1+1", "ab"]
    assert {cell.data_type for row in openpyxl.load_workbook(path).active for cell in row} <= set(
        "ns"
    )


def test_the_samples_have_the_images_and_options_of_the_table(table: BenchmarkTable) -> None:
    first, second = table.samples()
    assert (first.id, second.id) == ("0", "17")
    assert first.turns[0].text == "<image>\nlook\nWhich color?\nA. red\nB. blue"
    assert second.images[0].load().getpixel((0, 0)) == (255, 0, 0)


def test_a_missing_library_and_a_wrong_name_are_one_line(
    table: BenchmarkTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmole.harness.vlmevalkit.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="xlsx needs openpyxl"):
        write_predictions(table, ["A", "B"], tmp_path / "out", kind="xlsx")
    with pytest.raises(ValueError, match="model_name 'a/b' must be letters"):
        write_predictions(table, ["A", "B"], tmp_path / "out", model="a/b")
    assert not (tmp_path / "out").exists()
