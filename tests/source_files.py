"""Writes the same few questions about images as every kind of source that dmole reads."""

from __future__ import annotations

import base64
import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLORS = ("red", "green", "blue", "white", "black", "gray")
Write = Callable[[Path, str, list[str]], str]
"""Writes the questions about some colors as a split into a folder and returns the address."""

CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(color: str) -> bytes:
    """Return a picture of one color."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, format="PNG")
    return file.getvalue()


def data_uri(color: str) -> str:
    """Return a picture as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png(color)).decode()}"


def picture(folder: Path, color: str) -> str:
    """Write a picture and return its name."""
    (folder / f"{color}.png").write_bytes(png(color))
    return f"{color}.png"


def talk(color: str, **keys: Any) -> dict[str, Any]:
    """Return a question about a picture as turns with roles."""
    turns = [
        {"role": "user", "content": "<image>what color ?"},
        {"role": "assistant", "content": color},
    ]
    return {"messages": turns, **keys}


def write_json(path: Path, items: list[Any]) -> None:
    """Write a list of items, an item a line where the file ends in ``.jsonl``."""
    lines = [json.dumps(item) for item in items]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else json.dumps(items))


def conversations(folder: Path, split: str, colors: list[str]) -> str:
    turns = [{"from": "human", "value": "<image>\nwhat color ?"}]
    items = [
        {"image": picture(folder, c), "conversations": [*turns, {"from": "gpt", "value": c}]}
        for c in colors
    ]
    write_json(folder / f"{split}.json", items)
    return f"{split}.json"


def messages_with_uris(folder: Path, split: str, colors: list[str]) -> str:
    write_json(folder / f"{split}.jsonl", [talk(c, images=[data_uri(c)]) for c in colors])
    return f"{split}.jsonl"


def openai_parts(folder: Path, split: str, colors: list[str]) -> str:
    items = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": data_uri(color)}},
                        {"type": "text", "text": "what color ?"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": color}]},
            ]
        }
        for color in colors
    ]
    write_json(folder / f"{split}.jsonl", items)
    return f"{split}.jsonl"


def queries(folder: Path, split: str, colors: list[str]) -> str:
    items = [
        {
            "query": "<image>what color ?",
            "response": color,
            "history": [],
            "images": [picture(folder, color)],
        }
        for color in colors
    ]
    write_json(folder / f"{split}.json", items)
    return f"{split}.json"


def table(colors: list[str]) -> pa.Table:
    """Return questions with the bytes of their images."""
    cells = [{"bytes": png(color), "path": None} for color in colors]
    return pa.table(
        {
            "image": pa.array(cells, CELL),
            "question": ["what color ?"] * len(colors),
            "answers": [[color, color.upper()] for color in colors],
        }
    )


def parquet(folder: Path, split: str, colors: list[str]) -> str:
    (folder / "pq" / "data").mkdir(parents=True, exist_ok=True)
    half = len(colors) // 2
    for number, part in enumerate((colors[:half], colors[half:])):
        name = f"{split}-0000{number}-of-00002.parquet"
        pq.write_table(table(part), folder / "pq" / "data" / name)
    return "pq"


def saved(folder: Path, split: str, colors: list[str]) -> str:
    import datasets

    rows = [{"images": [Image.open(io.BytesIO(png(color)))], **talk(color)} for color in colors]
    features = datasets.Features(
        {
            "images": [datasets.Image()],
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
        }
    )
    datasets.Dataset.from_list(rows, features=features).save_to_disk(folder / f"saved-{split}")
    return f"saved-{split}"


def webdataset(folder: Path, split: str, colors: list[str]) -> str:
    half = len(colors) // 2
    for number, part in enumerate((colors[:half], colors[half:])):
        with tarfile.open(folder / f"{split}-00{number}.tar", "w") as archive:
            for place, color in enumerate(part):
                key = f"{number}{place:05d}"
                for ending, content in (
                    ("json", json.dumps({"question": "what color ?", "answer": color}).encode()),
                    ("png", png(color)),
                ):
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return split + "-{000..001}.tar"


def vlmevalkit(folder: Path, split: str, colors: list[str]) -> str:
    with (folder / f"{split}.tsv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["index", "image", "question", "A", "B", "answer"])
        for index, color in enumerate(colors):
            content = base64.b64encode(png(color)).decode()
            writer.writerow([index, content, "what color ?", color, "pink", "A"])
    return f"{split}.tsv"


def internvl(folder: Path, split: str, colors: list[str]) -> str:
    (folder / "pics").mkdir(exist_ok=True)
    name = conversations(folder / "pics", split, colors)
    if split == "test":
        return f"pics/{name}"
    root = f"{folder.name}/pics"
    part = {"annotation": f"{root}/{name}", "root": f"{root}/", "length": len(colors)}
    (folder / "meta.json").write_text(json.dumps({"colors": part}))
    return "meta.json"


KINDS: dict[str, Write] = {
    "conversations": conversations,
    "messages": messages_with_uris,
    "openai": openai_parts,
    "query": queries,
    "parquet": parquet,
    "saved": saved,
    "webdataset": webdataset,
    "vlmevalkit": vlmevalkit,
    "internvl": internvl,
}


def write_kind(kind: str, folder: Path, train: int = 4, test: int = 2) -> dict[str, str]:
    """Write train and test samples of a kind and return the keys of the task."""
    folder.mkdir()
    colors = list(COLORS)
    keys = {
        "train": KINDS[kind](folder, "train", colors[:train]),
        "test": KINDS[kind](folder, "test", colors[train : train + test]),
    }
    return {split: f"{folder.name}/{address}" for split, address in keys.items()}
