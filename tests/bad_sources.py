"""Sources with one error each, and what the message about each begins with."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from source_files import CELL, data_uri, png, table, talk, write_json

from dmole.data.task import Task


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def question(index: int) -> dict[str, Any]:
    return {"id": index, "text": "what ?", "answer": "x"}


def bad_sources(root: Path) -> dict[str, tuple[Task, str]]:
    """Write sources with one error each; return tasks and the beginning of the error."""
    write_json(root / "mixed.json", [question(0), question(1), talk("red", images=[])])
    late = [question(i) for i in range(40)]
    write_json(root / "late.json", [*late, talk("red", images=[])])
    write_json(root / "none.json", [{"id": 0, "foo": 1}])
    write_json(root / "two.json", [question(0) | {"messages": talk("red")["messages"]}])
    write_json(root / "uri.json", [question(0) | {"image": "data:image/png;base64,%%"}])
    write_json(root / "tools.json", [talk("red", images=[data_uri("red")], tools=[{"name": "f"}])])
    (root / "empty").mkdir()
    pq.write_table(table(["red"]), root / "train-0.parquet")
    (root / "split").mkdir()
    (root / "train-0.parquet").rename(root / "split" / "train-0.parquet")
    write_text(root / "cut.parquet", "PAR1")
    pq.write_table(table(["red"]).slice(0, 0), root / "norows.parquet")
    pq.write_table(
        pa.table({"pic": [png("red")], "question": ["?"], "answer": ["x"]}), root / "pic.parquet"
    )
    rows = table(["red"]).set_column(
        0, "image", pa.array([{"bytes": None, "path": "no.png"}], CELL)
    )
    pq.write_table(rows, root / "missing.parquet")
    write_text(root / "twice.tsv", "index\tquestion\tanswer\n1\ta ?\tx\n1\tb ?\ty\n")
    write_text(root / "short.tsv", "index\tquestion\tanswer\n1\ta ?\n")
    write_text(root / "ref.tsv", "index\timage\tquestion\tanswer\n1\t7\ta ?\tx\n")
    with tarfile.open(root / "x.tar", "w") as archive:
        (root / "0.png").write_bytes(png("red") * 100)
        archive.add(root / "0.png", "0.png")
    whole = (root / "x.tar").read_bytes()
    (root / "cut.tar").write_bytes(whole[:2000])
    (root / "no.tar").write_bytes(b"no tar")
    (root / "meta.json").write_text(json.dumps({"a": {"annotation": "mixed.json", "length": 9}}))

    def train(address: str, **keys: Any) -> Task:
        return Task("t", train=address, **keys)

    return {
        "a mixed file": (
            train("mixed.json"),
            "item 2 (id '2') has the shape 'messages', but the items before it have 'question'",
        ),
        "a mixed file, late": (
            train("late.json"),
            "item 40 (id '40'): has the shape 'messages', but the first items have 'question'",
        ),
        "no shape": (train("none.json"), "item 0 (id '0'): has neither 'conversations' nor 'text'"),
        "two shapes": (train("two.json"), "item 0 (id '0') has more than one shape: 'messages'"),
        "a broken data URI": (
            train("uri.json"),
            "item 0 (id '0'): image 'data:image/png;base64,%%'",
        ),
        "tools": (train("tools.json"), "item 0 (id '0'): has 'tools', which is not supported"),
        "a missing column": (
            train("late.json", columns={"question": "q"}),
            "item 0 (id '0'): has no 'q', which 'columns' takes for 'question'; it has 'id', ",
        ),
        "an empty folder": (train("empty"), "the folder holds no .parquet or .tar files"),
        "a split that is not there": (
            Task("t", train="split", test="split?split=val"),
            "has no parquet file of the split 'val', only train",
        ),
        "a truncated parquet file": (
            train("cut.parquet"),
            "cannot be loaded: Parquet file size is 4",
        ),
        "no rows": (train("norows.parquet"), "holds no items"),
        "a column of images that is not read": (
            train("pic.parquet"),
            "column 'pic' holds images, but only 'image' or 'images' is read; "
            "the task can say columns: {image: pic}",
        ),
        "a missing image in a row": (train("missing.parquet"), "item 0 (id '0'): image "),
        "an index twice": (train("twice.tsv"), "items 0 and 1 have the same id '1'"),
        "a short row": (train("short.tsv"), "row 0 has 2 cells, but there are 3 columns"),
        "an image of no row": (
            train("ref.tsv"),
            "row 0 (index '1'): its 'image' '7' is the index of",
        ),
        "a truncated tar": (train("cut.tar"), "damaged or no tar file: unexpected end of data"),
        "no tar": (train("no.tar"), "damaged or no tar file: "),
        "no question in a tar": (train("x.tar"), "0: has no member 'json', 'txt' or 'cls'"),
        "a wrong length": (train("meta.json"), "a: 'length' is 9, but "),
        "an option of the hub": (
            train("hf://a/b?spilt=x"),
            "unknown option 'spilt'; there are split",
        ),
        "a split of a file": (
            train("late.json?split=val"),
            "is no table with splits, but has the option 'split'",
        ),
        "a hub address in the format of a benchmark": (
            train("hf://a/b", format="coin"),
            "the format 'coin' is one of files",
        ),
        "a limit of 0": (train("late.json#0"), "the number of items must be at least 1"),
    }


CASES = (
    "a mixed file",
    "a mixed file, late",
    "no shape",
    "two shapes",
    "a broken data URI",
    "tools",
    "a missing column",
    "an empty folder",
    "a split that is not there",
    "a truncated parquet file",
    "no rows",
    "a column of images that is not read",
    "a missing image in a row",
    "an index twice",
    "a short row",
    "an image of no row",
    "a truncated tar",
    "no tar",
    "no question in a tar",
    "a wrong length",
    "an option of the hub",
    "a split of a file",
    "a hub address in the format of a benchmark",
    "a limit of 0",
)
"""Names of the sources."""
