from __future__ import annotations

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import pickle
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from data_opening import open_samples, read_samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from dmole.data import arrow_writer, cache_folder
from dmole.data import source as source_module
from dmole.data.arrow import ArrowSamples, repeated_id
from dmole.data.cache import CacheEntry
from dmole.data.formats import Split
from dmole.data.loader import Items
from dmole.data.sample import Sample, Turn
from dmole.data.sampler import approximate_length
from dmole.data.sequences import Row, SampleList, Samples, TaskItems
from dmole.data.source import DataSource, find_source
from dmole.data.task import Task
from dmole.store import SampleStore

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda text: text.strip() and "<image>" not in text
)
NAMES = st.sampled_from(["a.png", "pics/b.png", "pics//b.png"])
TALKS = st.builds(
    lambda pairs, images: {
        "conversations": [
            {"from": ("human", "gpt")[i % 2], "value": text}
            for i, text in enumerate(text for pair in pairs for text in pair)
        ],
        "image": images,
    },
    st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3),
    st.lists(NAMES, max_size=3),
)
QUESTIONS = st.builds(
    lambda text, answers, image: {"text": text, "answer": answers, "image": image},
    *(TEXT, st.lists(TEXT, min_size=1, max_size=3), st.none() | NAMES),
)


def question(index: int, **keys: Any) -> dict[str, Any]:
    return {"id": f"q{index}", "text": f"{index}?", "answer": "yes", "image": "a.png", **keys}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two images, where three items are many and a batch has two."""
    (tmp_path / "pics").mkdir()
    for name, size in (("a.png", 4), ("pics/b.png", 9)):
        Image.new("RGB", (size, size), "red").save(tmp_path / name)
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source_module, "IN_MEMORY", 2)
    monkeypatch.setattr(arrow_writer, "_BATCH_ROWS", 2)
    return tmp_path


def write(folder: Path, items: list[Any]) -> str:
    path = folder / "x.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return str(path)


def in_memory(source: str, split: Split = "train", **options: Any) -> SampleList:
    return SampleList(read_samples(source, split, **options))


def files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in (folder / "cache").glob("*"))


def assert_same(mapped: Samples, listed: Samples) -> None:
    assert isinstance(mapped, ArrowSamples)
    assert list(mapped) == list(listed)
    assert [sample.metadata for sample in mapped] == [sample.metadata for sample in listed]
    assert mapped[-1].metadata == listed[-1].metadata
    assert [mapped[i] for i in range(-len(listed), len(listed))] == list(listed) * 2
    assert mapped[1::2] == listed[1::2]
    assert mapped.lengths().tolist() == [approximate_length(sample) for sample in listed]
    assert mapped.lengths().dtype == listed.lengths().dtype == np.int32
    assert mapped.fingerprint() == listed.fingerprint()


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    items=st.sampled_from([TALKS, QUESTIONS]).flatmap(
        lambda shape: st.lists(shape, min_size=3, max_size=7)
    ),
    split=st.sampled_from(["train", "test"]),
    suffix=st.sampled_from(["", "\nBe brief."]),
)
def test_mapped_samples_equal_those_in_memory(
    folder: Path, items: list[Any], split: Split, suffix: str
) -> None:
    source = write(folder, items)
    listed = in_memory(source, split, prompt_suffix=suffix)
    assert_same(open_samples(source, split, prompt_suffix=suffix), listed)  # made
    assert_same(open_samples(source, split, prompt_suffix=suffix), listed)  # found again


def test_small_files_stay_in_memory_and_leave_nothing(folder: Path) -> None:
    assert isinstance(
        open_samples(write(folder, [question(i) for i in range(2)]), "train"), SampleList
    )
    assert not (folder / "cache").exists()
    assert len(open_samples("synthetic://count/train?size=5", "train")) == 5
    assert not (folder / "cache").exists()


def test_many_characters_end_a_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_writer, "_BATCH_ROWS", 100)
    monkeypatch.setattr(arrow_writer, "_BATCH_CHARACTERS", 50)
    source = write(folder, [question(i, answer="long " * (7 * i)) for i in range(1, 6)])
    assert_same(open_samples(source, "test"), in_memory(source, "test"))


def test_out_of_range_is_refused_as_by_a_list(folder: Path) -> None:
    samples = open_samples(write(folder, [question(i) for i in range(5)]), "train")
    for index in (5, -6):
        with pytest.raises(IndexError):
            samples[index]


def test_the_file_is_made_once_and_again_when_what_it_depends_on_changes(folder: Path) -> None:
    items = [question(i) for i in range(3)]
    source = write(folder, items)
    seen = set()
    changes: list[tuple[Any, dict[str, Any]]] = [
        ("train", {}),
        ("test", {}),
        ("train", {"prompt_suffix": "!"}),
        ("train", {"image_root": folder / "." / "pics" / ".."}),
        ("train", {"image_root": folder / "copy"}),
    ]
    (folder / "copy").mkdir()
    (folder / "copy" / "a.png").write_bytes((folder / "a.png").read_bytes())
    for split, options in changes * 2:
        assert_same(open_samples(source, split, **options), in_memory(source, split, **options))
        seen.add(tuple(sorted(path.name for path in (folder / "cache").iterdir())))
    assert max(map(len, seen)) == 2 * 4  # a root written in two ways is one
    write(folder, [question(i, answer="no!") for i in range(3)])
    os.utime(source, ns=(1, 1))
    assert open_samples(source, "test")[0].references == ("no!",)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"1?", b"7?"),
        lambda data: b"ARROW1" + data[8:],
        lambda data: data + b"\0",
    ],
)
def test_a_damaged_file_is_made_again(
    folder: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    source = write(folder, [question(i) for i in range(5)])
    open_samples(source, "train")
    (file,) = (folder / "cache").glob("*.arrow")
    whole = file.read_bytes()
    assert damage(whole) != whole
    file.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        assert_same(open_samples(source, "train"), in_memory(source))
    assert "is damaged and is written again" in caplog.text
    assert file.read_bytes() == whole


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"rows": 3, "crc32": 0, "x": 1}', None])
def test_a_damaged_seal_is_made_again(folder: Path, content: str | None) -> None:
    source = write(folder, [question(i) for i in range(5)])
    open_samples(source, "train")
    (seal,) = (folder / "cache").glob("*.json")
    whole = seal.read_text()
    seal.write_text(content) if content is not None else seal.unlink()
    assert_same(open_samples(source, "train"), in_memory(source))
    assert seal.read_text() == whole


@pytest.mark.parametrize("ending", ["json", "arrow"])
def test_a_pipe_in_place_of_a_cache_file_is_replaced(folder: Path, ending: str) -> None:
    source = write(folder, [question(i) for i in range(5)])
    open_samples(source, "train")
    (file,) = (folder / "cache").glob(f"*.{ending}")
    file.unlink()
    os.mkfifo(file)
    assert_same(open_samples(source, "train"), in_memory(source))
    assert file.is_file()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_gives_a_warning(
    folder: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    source = write(folder, [question(i) for i in range(5)])
    with caplog.at_level(logging.WARNING):
        assert_same(open_samples(source, "train"), in_memory(source))
    assert f"this file system has no locks ({os.strerror(number)})" in caplog.text


def test_missing_images_are_found_at_every_start(folder: Path) -> None:
    items = [question(i, image="pics/b.png" if i == 3 else "a.png") for i in range(5)]
    source = write(folder, items)
    for _ in range(2):  # when the file is made and when it is found
        assert len(open_samples(source, "train")) == 5
        (folder / "pics" / "b.png").rename(folder / "b")
        with pytest.raises(FileNotFoundError) as caught:
            open_samples(source, "train")
        missing = folder / "pics" / "b.png"
        assert str(caught.value) == f"{source}: item 3 (id 'q3'): image {missing} does not exist"
        (folder / "b").rename(missing)
    (folder / "pics" / "b.png").unlink()
    for path in (folder / "cache").iterdir():
        path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"item 3 \(id 'q3'\): image .*b.png does not exist"
    ):
        open_samples(source, "train")
    assert files(folder) == []


def test_images_may_not_leave_their_root_by_a_link_made_later(folder: Path) -> None:
    root = folder / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.png").write_bytes((folder / "a.png").read_bytes())
    source = write(folder, [question(i, image="sub/a.png") for i in range(5)])
    open_samples(source, "train", root)
    (root / "sub").rename(folder / "outside")
    (root / "sub").symlink_to(folder / "outside")
    with pytest.raises(ValueError, match=r"item 0 \(id 'q0'\): .*leaves .* by a symbolic link"):
        open_samples(source, "train", root)


def test_other_image_files_change_the_fingerprint(folder: Path) -> None:
    source = write(folder, [question(i) for i in range(5)])
    before = open_samples(source, "train").fingerprint()
    Image.new("RGB", (30, 30), "blue").save(folder / "a.png")
    after = open_samples(source, "train").fingerprint()
    assert after != before
    assert after == in_memory(source).fingerprint()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([*map(question, range(6)), question(4)], "items 4 and 6 have the same id 'q4'"),
        ([question(0), question(1), question(0)], "items 0 and 2 have the same id 'q0'"),
        ([*map(question, range(6)), {}], "item 6 (id '6'): has neither 'conversations' nor 'text'"),
        ([*map(question, range(6)), 3], "item 6 is a number, not an object"),
    ],
)
def test_bad_items_of_a_large_file_are_refused(
    folder: Path, items: list[Any], message: str
) -> None:
    source = write(folder, items)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
        open_samples(source, "train")
    assert str(caught.value).startswith(f"{source}: {message}")
    assert files(folder) == []


def test_equal_hashes_of_different_ids_are_no_repetition() -> None:
    ids = ["a", "b", "c", "b", "a"]
    samples = SampleList([Sample(id_, (Turn("user", "q"),)) for id_ in ids])
    assert repeated_id(SampleList(samples[:3]), array("Q", [7, 7, 7])) is None
    assert repeated_id(samples, array("Q", [7, 7, 8, 7, 7])) == (1, 3)
    assert repeated_id(samples, array("Q", range(5))) is None


def test_a_cache_that_cannot_be_written_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMOLE_CACHE", str(folder / "a.png" / "sub"))
    with pytest.raises(ValueError, match=r"a.png/sub: Not a directory; set DMOLE_CACHE") as caught:
        open_samples(write(folder, [question(i) for i in range(5)]), "train")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrow_writer.pa.ipc, "new_file", full)
    with pytest.raises(ValueError, match=r"cache: No space left on device; set DMOLE_CACHE"):
        open_samples(write(folder, [question(i) for i in range(5)]), "train")
    assert files(folder) == []


def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path) -> None:
    source = write(folder, [question(i) for i in range(5)])
    data = find_source(Task("t", train=source), "train", folder)
    assert isinstance(data, DataSource)
    entry = CacheEntry(data.address, data.images(), data._key)
    rows = list(data._rows(entry.images))
    write(folder, [question(i) for i in range(4)])
    with pytest.raises(ValueError, match=r"x.json: was changed while it was read"):
        entry.make(rows)
    assert files(folder) == []


def test_the_cache_is_where_the_user_keeps_such_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("DMOLE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder.cache_folder() == Path("/home/me/.cache/dmole")
    monkeypatch.setenv("XDG_CACHE_HOME", "/big")
    assert cache_folder.cache_folder() == Path("/big/dmole")
    monkeypatch.setenv("DMOLE_CACHE", "~/here")
    assert cache_folder.cache_folder() == Path("/home/me/here")


def test_without_a_home_only_large_files_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMOLE_CACHE", "~nobody-has-this-name/cache")
    assert len(open_samples(write(folder, [question(0)]), "train")) == 1
    with pytest.raises(ValueError, match=r"no home folder for the cache ~nobody.*set DMOLE_CACHE"):
        open_samples(write(folder, [question(i) for i in range(5)]), "train")


def _build(source: str, folder: str, results: Any) -> None:
    os.environ["DMOLE_CACHE"] = folder
    source_module.IN_MEMORY = 2
    results.put(open_samples(source, "train").fingerprint())


def test_two_processes_may_make_the_file_at_once(folder: Path) -> None:
    source = write(folder, [question(i) for i in range(800)])
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (source, str(folder / "cache"), results)
    processes = [context.Process(target=_build, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    prints = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert prints == {in_memory(source).fingerprint()}
    assert files(folder) == [".arrow", ".json"]


def test_a_process_that_waited_takes_what_another_has_made(folder: Path) -> None:
    source = write(folder, [question(i) for i in range(5)])
    data = find_source(Task("t", train=source), "train", folder)
    assert isinstance(data, DataSource)
    entry = CacheEntry(data.address, data.images(), data._key)
    made = entry.make(data._rows(entry.images))

    def unread() -> Iterator[Row]:
        raise AssertionError("the samples are made twice")
        yield

    assert_same(entry.make(unread()), made)
    assert files(folder) == [".arrow", ".json"]  # no lock is left


def first(batch: list[Any]) -> list[Any]:
    return batch


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_map_the_file_themselves(folder: Path, start: str) -> None:
    source = write(folder, [question(i) for i in range(6)])
    items = TaskItems([("t", open_samples(source, "train"))])
    loader = DataLoader(
        Items(items), batch_size=2, num_workers=1, collate_fn=first, multiprocessing_context=start
    )
    assert [item for batch in loader for item in batch] == [(s, "t") for s in in_memory(source)]


def test_a_pickled_copy_holds_no_samples(folder: Path) -> None:
    source = write(folder, [question(i) for i in range(500)])
    samples = open_samples(source, "train")
    data = pickle.dumps(samples)
    assert len(data) < 8000
    assert_same(pickle.loads(data), in_memory(source))
    for file in (folder / "cache").glob("*.arrow"):
        file.unlink()
    assert len(list(samples)) == 500  # what is mapped stays
    with pytest.raises(ValueError, match=r"cannot map .*arrow"):
        pickle.loads(data)


def test_items_of_tasks_follow_each_other(folder: Path) -> None:
    source = write(folder, [question(i) for i in range(5)])
    parts = [
        ("a", in_memory(source)),
        ("b", open_samples(source, "train")),
        ("c", in_memory(source)),
    ]
    items = TaskItems(parts)
    flat = [(sample, name) for name, samples in parts for sample in samples]
    assert len(items) == 15
    assert list(items) == [items[i] for i in range(15)] == items[:] == flat
    assert items[-1] == flat[-1]
    assert items.lengths().tolist() == [approximate_length(sample) for sample, _ in flat]
    assert len(TaskItems([])) == 0
    with pytest.raises(IndexError):
        items[15]


def test_the_store_serves_and_fingerprints_both_kinds_equally(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, [question(i) for i in range(5)])
    task = Task("t", train="x.json", test="x.json")
    mapped = SampleStore([task], folder)
    assert isinstance(mapped.samples("t", "train"), ArrowSamples)
    assert mapped.samples("t", "train") is mapped.samples("t", "train")
    mapped.check(decode_images=True)
    prints = mapped.fingerprint()
    monkeypatch.setattr(source_module, "IN_MEMORY", 100)
    assert SampleStore([task], folder).fingerprint() == prints
