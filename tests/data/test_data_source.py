"""Every kind of source gives the same samples, in memory and mapped."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_sources import CASES, bad_sources
from PIL import Image
from source_files import CELL, COLORS, KINDS, data_uri, png, table, talk, write_json, write_kind

from dmole.data import source as source_module
from dmole.data.arrow import ArrowSamples
from dmole.data.formats import Split
from dmole.data.sample import EmbeddedImage, Sample
from dmole.data.sequences import SampleList
from dmole.data.source import open_source
from dmole.data.task import Task
from dmole.doctor import CheckOptions, as_json, as_text, check_tasks


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def color_of(sample: Sample) -> str:
    pixel = sample.images[0].load().getpixel((3, 3))
    assert isinstance(pixel, tuple)
    names = {tuple(np.asarray(Image.new("RGB", (1, 1), c))[0, 0].tolist()): c for c in COLORS}
    return names[pixel]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_questions_with_their_images(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mapped: bool
) -> None:
    if mapped:
        monkeypatch.setattr(source_module, "IN_MEMORY", 1)
    task = Task("t", **write_kind(kind, root / kind))
    train, test = open_source(task, "train", root), open_source(task, "test", root)
    assert isinstance(train, ArrowSamples if mapped else SampleList)
    for samples, colors in ((train, COLORS[:4]), (test, COLORS[4:])):
        assert [color_of(sample) for sample in samples] == list(colors)
        for sample, color in zip(samples, colors, strict=True):
            answer = sample.references[0] if sample.references else sample.turns[-1].text
            assert answer == ("A" if kind == "vlmevalkit" else color)
            assert sample.turns[0].text.count("<image>") == len(sample.images) == 1
    copy = pickle.loads(pickle.dumps(train))
    assert [color_of(sample) for sample in copy] == list(COLORS[:4])
    assert (
        copy.fingerprint() == train.fingerprint() == open_source(task, "train", root).fingerprint()
    )
    assert train.stored_bytes().min() > len(png("red")) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_names_the_shape_of_every_kind(root: Path, kind: str) -> None:
    task = Task("t", **write_kind(kind, root / kind))
    report = check_tasks([task], root, CheckOptions())
    assert [finding.message for finding in report.findings() if finding.level == "error"] == []
    split = as_json(report)["tasks"][0]["splits"]["train"]
    shapes = {
        "conversations": ("JSON", "conversations"),
        "messages": ("JSON", "messages"),
        "openai": ("JSON", "messages"),
        "query": ("JSON", "query"),
        "parquet": ("table", "question"),
        "saved": ("table", "messages"),
        "webdataset": ("webdataset", "question"),
        "vlmevalkit": ("VLMEvalKit table", "question"),
        "internvl": ("meta file", "conversations or question"),
    }
    assert (split["source"], split["shape"]) == shapes[kind]
    assert split["images"] == {"named": 4, "files": 4}
    source, shape = shapes[kind]
    assert f"{shape} in {source}" in as_text(report).splitlines()[1]


def test_a_data_set_of_the_hub_is_loaded_with_its_options(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Any] = []

    def load(
        name: str, config: str | None, *, split: str, revision: str | None
    ) -> datasets.Dataset:
        requests.append((name, config, split, revision))
        pq.write_table(table(["red", "blue"]), root / "rows.parquet")
        return datasets.Dataset.from_parquet(str(root / "rows.parquet"), cache_dir=str(root / "c"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = Task("t", train="hf://org/name?config=c&revision=r", test="hf://org/name?split=val")
    assert [color_of(sample) for sample in open_source(task, "train", root)] == ["red", "blue"]
    assert open_source(task, "test", root)[1].references == ("blue", "BLUE")
    assert requests == [("org/name", "c", "train", "r"), ("org/name", None, "val", None)]


def test_without_a_network_the_hub_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    task = Task("t", train="hf://nobody/nothing")
    with pytest.raises(ValueError, match=r"^hf://nobody/nothing: cannot be loaded: ") as caught:
        open_source(task, "train", root)
    assert "\n" not in str(caught.value)


def test_a_limit_takes_the_same_part_in_order(root: Path) -> None:
    items = [{"id": i, "text": f"{i} ?", "answer": "x"} for i in range(100)]
    write_json(root / "x.json", items)
    whole = list(open_source(Task("t", train="x.json"), "train", root))
    part = list(open_source(Task("t", train="x.json#10"), "train", root))
    assert part == list(open_source(Task("t", train="x.json", limit=10), "train", root))
    assert part == list(open_source(Task("t", train="x.json#50", limit=10), "train", root))
    assert part == [sample for sample in whole if sample in part]
    assert len(part) == 10 != int(part[-1].id) + 1
    assert list(open_source(Task("t", train="x.json", limit=100), "train", root)) == whole
    generated = Task("t", train="synthetic://count/train?size=9#3")
    assert len(open_source(generated, "train", root)) == 3
    report = as_json(
        check_tasks([Task("t", train="x.json#10", test="x.json#3")], root, CheckOptions())
    )
    assert [report["tasks"][0]["splits"][s]["items"] for s in ("train", "test")] == [10, 3]


def test_a_file_whose_name_ends_like_a_limit_is_that_file(root: Path) -> None:
    (root / "x#1").mkdir()
    pq.write_table(table(["red", "blue"]), root / "x#1" / "a.parquet")
    assert len(open_source(Task("t", train="x#1"), "train", root)) == 2
    assert len(open_source(Task("t", train="x#1#1"), "train", root)) == 1


def test_columns_give_keys_the_names_of_dmole(root: Path) -> None:
    write_json(root / "x.json", [{"q": "what ?", "a": "red", "answer": "no", "n": 1}])
    task = Task("t", test="x.json", columns={"question": "q", "answer": "a"})
    (sample,) = open_source(task, "test", root)
    assert (sample.prompt, sample.references, sample.metadata["n"]) == ("what ?", ("red",), 1)


def test_a_prompt_words_questions_of_every_shape_and_keeps_the_places_of_images(
    root: Path,
) -> None:
    keys = {"image": [data_uri("red"), data_uri("blue")]}
    for item in (
        {"question": "is <image> like <image> ?", "answer": "no", **keys},
        {"query": "is <image> like <image> ?", "response": "no", **keys},
    ):
        write_json(root / "x.json", [item])
        (sample,) = open_source(Task("t", test="x.json", prompt="{question} Say."), "test", root)
        assert sample.turns[0].text == "is <image> like <image> ? Say."
    write_json(
        root / "x.json", [{"text": "<image><image> ?", "answer": "no", "image": data_uri("red")}]
    )
    with pytest.raises(ValueError, match="has 1 images and 2 <image> placeholders"):
        open_source(Task("t", test="x.json", prompt="{question} Say."), "test", root)


def test_system_turns_dialogs_and_rows_of_text_are_mapped_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialog = [
        {"role": "system", "content": "Be brief."},
        *({"role": role, "content": f"{i}"} for i in range(2) for role in ("user", "assistant")),
    ]
    items = [
        {"messages": dialog},
        {"system": "Be brief.", **talk("red", images=[data_uri("red")])},
        talk("blue", images=[data_uri("blue")]),
    ]
    write_json(root / "x.json", items)
    listed = list(open_source(Task("t", train="x.json"), "train", root))
    assert [turn.role for turn in listed[0].turns] == ["system", *["user", "assistant"] * 2]
    assert listed[1].turns[0].text == "Be brief."
    assert listed[0].images == ()
    monkeypatch.setattr(source_module, "IN_MEMORY", 1)
    mapped = open_source(Task("t", train="x.json"), "train", root)
    assert isinstance(mapped, ArrowSamples)
    assert list(mapped) == listed


def test_many_characters_of_images_are_mapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "IN_MEMORY_CHARACTERS", 100)
    write_json(root / "x.jsonl", [talk(c, images=[data_uri(c)]) for c in COLORS])
    samples = open_source(Task("t", train="x.jsonl"), "train", root)
    assert isinstance(samples, ArrowSamples)
    assert [color_of(sample) for sample in samples] == list(COLORS)


def test_a_change_without_another_size_or_time_is_seen(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "IN_MEMORY", 1)
    path = root / "x.json"
    for answer in ("yes", "nay"):
        write_json(path, [{"text": f"{i} ?", "answer": answer} for i in range(3)])
        os.utime(path, ns=(1, 1))
        assert open_source(Task("t", test="x.json"), "test", root)[2].references == (answer,)


def test_a_change_of_a_table_without_another_size_or_time_is_seen(root: Path) -> None:
    path = root / "x.parquet"
    for answer in ("yes", "nay"):
        rows = pa.table({"question": ["a ?"], "answer": [answer]})
        pq.write_table(rows, path, use_dictionary=False, compression="none")
        os.utime(path, ns=(1, 1))
        assert open_source(Task("t", test="x.parquet"), "test", root)[0].references == (answer,)


def test_a_damaged_cache_of_a_table_is_made_again(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pq.write_table(table(["red", "blue"]), root / "x.parquet")
    task = Task("t", train="x.parquet")
    open_source(task, "train", root)
    (file,) = (root / "cache" / "parquet").rglob("*.arrow")
    data = file.read_bytes()
    file.unlink()  # what is mapped stays whole
    file.write_bytes(data[:300])
    assert [color_of(sample) for sample in open_source(task, "train", root)] == ["red", "blue"]
    assert "is damaged and is written again" in caplog.text


def test_rows_may_name_files_or_hold_lists_and_plain_bytes(root: Path) -> None:
    (root / "a.png").write_bytes(png("red"))
    cells = [[{"bytes": None, "path": "a.png"}, {"bytes": png("blue"), "path": "b"}], [], None]
    rows = {"images": pa.array(cells, pa.list_(CELL)), "query": ["1 ?", "2 ?", "3 ?"]}
    pq.write_table(pa.table(rows | {"response": list("abc")}), root / "x.parquet")
    samples = open_source(Task("t", train="x.parquet"), "train", root)
    assert [len(sample.images) for sample in samples] == [2, 0, 0]
    assert color_of(samples[0]) == "red"
    assert isinstance(samples[0].images[1], EmbeddedImage)
    assert samples[0].images[1].load().getpixel((0, 0)) == (0, 0, 255)
    pq.write_table(
        pa.table({"pic": [png("green")], "query": ["?"], "response": ["x"]}), root / "y.parquet"
    )
    (sample,) = open_source(Task("t", train="y.parquet", columns={"image": "pic"}), "train", root)
    assert color_of(sample) == "green"


@pytest.mark.parametrize("case", CASES)
def test_a_bad_source_is_one_line_that_names_it(root: Path, case: str) -> None:
    task, message = bad_sources(root)[case]
    split: Split = "train" if task.test is None else "test"
    address = str(task.test or task.train).split("?split")[0]
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_source(task, split, root)
    text = str(caught.value)
    assert text.startswith((f"{root / address}: {message}", f"{address}: {message}")), text
    assert "\n" not in text
    task = replace(task, train=task.train, test=task.test or task.train)
    report = check_tasks([task], root, CheckOptions())
    (finding, *_) = [finding for finding in report.findings() if finding.split == split]
    assert finding.level == "error"  # `data check` finds it too
    assert "\n" not in as_text(report).splitlines()[-2]


def test_a_shard_that_is_missing_is_named(root: Path) -> None:
    (root / "a-000.tar").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"a-001.tar does not exist"):
        open_source(Task("t", train="a-{000..001}.tar"), "train", root)
