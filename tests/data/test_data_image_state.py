"""Embeddings on disk are not used for image files that were written since."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
import torch

import dmole.data.source as source_module
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.run.embeddings import EmbeddingStore

KEY = "task/train/1"


def kept(folder: Path) -> tuple[EmbeddingStore, str]:
    """Return the embeddings of a run in a folder, and the digest of its samples."""
    task = Task("task", train="task.json", test="task.json")
    data = ContinualDataModule([task], data_root=str(folder))
    digests = data.fingerprint(("train",))
    store = EmbeddingStore(folder / "rows", {}, digests, data.image_state, 2, grows=True)
    return store, digests["task"]["train"]


@pytest.mark.parametrize("in_memory", [1, 100], ids=["mapped", "in memory"])
@pytest.mark.parametrize("kind", ["file", "data URI"])
def test_pixels_that_change_within_the_same_bytes_make_rows_unusable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, in_memory: int
) -> None:
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source_module, "IN_MEMORY", in_memory)

    def write(pixels: bytes) -> None:
        (tmp_path / "a.bmp").write_bytes(pixels)
        uri = f"data:image/bmp;base64,{base64.b64encode(pixels).decode()}"
        image = "a.bmp" if kind == "file" else uri
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "it"}]
        items = [{"id": str(i), "image": image, "conversations": turns} for i in range(2)]
        (tmp_path / "task.json").write_text(json.dumps(items))

    write(b"dark")
    os.utime(tmp_path / "a.bmp", ns=(0, 1))
    store, before = kept(tmp_path)
    store.add({KEY: torch.ones(2)})
    assert set(kept(tmp_path)[0].found([KEY])) == {KEY}
    write(b"glow")
    later, after = kept(tmp_path)
    assert after == before
    assert later.found([KEY]) == {}
    later.add({KEY: torch.zeros(2)})
    assert kept(tmp_path)[0].found([KEY])[KEY].tolist() == [0.0, 0.0]
