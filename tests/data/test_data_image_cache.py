"""A batch put together from kept images is the batch that the processor makes, bit for bit."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, MLLAMA_IMAGES, make_image, make_processor, make_samples
from PIL import Image

from dmole import ContinualDataModule, Task
from dmole.data.batch import Batch
from dmole.data.collate import Collator
from dmole.data.image_cache import CachedImageProcessor
from dmole.data.image_store import FolderStore, ImageCache, MemoryStore
from dmole.data.loader import sequential_loader
from dmole.data.sample import FileImage, Sample

MIXES = {"paligemma": (1, 2, 1), "mllama": MLLAMA_IMAGES}


def collate(collator: Collator, samples: list[Sample]) -> Batch:
    return collator([(sample, "t") for sample in samples], generation=False)


def assert_equal(kept: Batch, plain: Batch) -> None:
    assert list(kept.inputs) == list(plain.inputs)
    for key, value in plain.inputs.items():
        assert kept.inputs[key].dtype == value.dtype
        assert torch.equal(kept.inputs[key], value), key


def processed(monkeypatch: pytest.MonkeyPatch, processor: Any) -> list[int]:
    """Return a list that grows by the images of each call of an image processor."""
    calls: list[int] = []
    kind = type(processor.image_processor)
    plain = kind.__call__
    monkeypatch.setattr(
        kind,
        "__call__",
        lambda self, images, **kw: calls.append(len(images[0])) or plain(self, images, **kw),
    )
    return calls


@pytest.mark.parametrize("family", sorted({*FAMILIES, "llava_plain"}))
def test_batches_of_all_families_are_equal_with_and_without_a_cache(
    family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    processor = make_processor(family)
    samples = make_samples(MIXES.get(family, (1, 0, 2)))
    large = replace(samples[0], id="large", images=(make_image(7, 90, 33),))
    samples = [*samples, large, replace(samples[2], id="again")]
    plain = Collator(processor)
    collator = Collator(processor, images=FolderStore(tmp_path, 2**24))
    for chosen in (samples, samples[::-1], samples[:1], samples[1:2]):
        assert_equal(collate(collator, chosen), collate(plain, chosen))
    calls = processed(monkeypatch, processor)
    collate(collator, samples)
    assert not calls


def test_a_processor_whose_samples_depend_on_each_other_is_refused() -> None:
    processor = make_processor("llava")
    kind = type(processor.image_processor)

    class Joint(kind):  # type: ignore[misc, valid-type]
        def __call__(self, images: Any, **options: Any) -> Any:
            made = super().__call__(images, **options)
            made["pixel_values"] = made["pixel_values"] - made["pixel_values"].mean()
            return made

    processor.image_processor = Joint(**processor.image_processor.to_dict())
    with pytest.raises(ValueError, match=r"^data.cache_images must be off for Joint: "):
        Collator(processor, images=MemoryStore(2**24))


def file_sample(path: Path, color: str) -> Sample:
    Image.new("RGB", (40, 30), color).save(path)
    return replace(make_samples((1,))[0], images=(FileImage(path),))


def test_a_changed_file_and_changed_settings_are_processed_again(tmp_path: Path) -> None:
    processor, other = make_processor("llava"), make_processor("llava")
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    store = FolderStore(tmp_path / "kept", 2**24)
    path = tmp_path / "a.png"
    sample = file_sample(path, "red")
    times = os.stat(path)
    for color in ("red", "tan"):
        file_sample(path, color)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        for each in (processor, other):
            kept = collate(Collator(each, images=store), [sample])
            assert_equal(kept, collate(Collator(each), [sample]))
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 4


def test_an_unreadable_image_is_named_as_without_a_cache(tmp_path: Path) -> None:
    sample = replace(make_samples((1,))[0], images=(FileImage(tmp_path / "no.png"),))
    texts = []
    for store in (None, MemoryStore(2**20)):
        with pytest.raises(ValueError, match=r"no\.png") as caught:
            collate(Collator(make_processor("llava"), images=store), [sample])
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_a_damaged_file_is_made_again_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = make_samples((1,))
    collator = Collator(make_processor("llava"), images=FolderStore(tmp_path, 2**24))
    first = collate(collator, samples)
    (file,) = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    for damaged in (whole[:40], whole[:-300] + bytes(9) + whole[-291:], b""):
        file.write_bytes(damaged)
        caplog.clear()
        assert_equal(collate(collator, samples), first)
        (record,) = caplog.records
        assert f"{file} is damaged and is made again" in record.getMessage()
        assert file.read_bytes() == whole


def test_a_full_disk_ends_the_keeping_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    processor = make_processor("llava")
    samples = make_samples((1, 1))
    monkeypatch.setattr("dmole.data.image_store.write_tensor_file", full)
    collator = Collator(processor, images=FolderStore(tmp_path, 2**24))
    assert_equal(collate(collator, samples), collate(Collator(processor), samples))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"no further processed images are kept in {tmp_path}: No space left on device"
    )


def test_workers_share_a_folder(tmp_path: Path) -> None:
    samples = make_samples((1, 0, 2))
    items = [(sample, "t") for sample in [*samples, *samples]]
    processor = make_processor("llava_next")
    batches = [[0, 1], [3, 4], [2], [5], [0, 2]]
    kept = Collator(processor, images=FolderStore(tmp_path, 2**24))
    for _ in range(2):
        read = [
            list(sequential_loader(items, each, batches=batches, generation=False, num_workers=n))
            for each, n in ((Collator(processor), 0), (kept, 2))
        ]
        for plain, batch in zip(*read, strict=True):
            assert_equal(batch, plain)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_other_files_in_the_folder_are_never_deleted(tmp_path: Path) -> None:
    others = [tmp_path / "model.safetensors", tmp_path / "ab" / "model.safetensors"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(5000))
    store = FolderStore(tmp_path, 5000)
    for number in range(3):
        store.put(f"{number:040x}", {"pixel_values": torch.zeros(1000)})
    assert all(path.exists() for path in others)
    assert len(list((tmp_path / "00").iterdir())) == 1


@pytest.mark.parametrize("kind", ["off", False, "ram", "disk"])
def test_the_data_module_keeps_images_as_asked(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path))
    task = Task(
        "count", train="synthetic://count/train?size=2", test="synthetic://count/test?size=1"
    )
    data = ContinualDataModule([task], cache_images=kind)
    processor = make_processor("llava")
    data.attach_processor(processor)
    samples = list(data.train_samples("count"))
    assert_equal(collate(data.collator, samples), collate(Collator(processor), samples))
    calls = processed(monkeypatch, processor)
    collate(data.collator, samples)
    assert len(calls) == (kind in ("off", False))
    assert (tmp_path / "images").is_dir() == (kind == "disk")


def test_a_folder_stays_within_its_limit(tmp_path: Path) -> None:
    entry = {"pixel_values": torch.zeros(1000), "rows": [[1]]}
    store = FolderStore(tmp_path, 50_000)
    for number in range(40):
        store.put(f"{number:040x}", entry)
        sizes = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
        assert sum(sizes) <= 55_000
    assert len(sizes) >= 8
    (found,) = [store.get(path.stem) for path in list(tmp_path.rglob("*.safetensors"))[:1]]
    assert found is not None
    assert found["rows"] == [[1]]
    store.put("e" * 40, {"pixel_values": torch.tensor([float("inf")])})  # of an image_std of 0
    assert str(store.get("e" * 40)) == "{'pixel_values': tensor([inf])}"
    store.put("f" * 40, {"pixel_values": torch.zeros(20_000)})
    assert store.get("f" * 40) is None


@pytest.mark.parametrize("kind", [True, "on"])
def test_another_kind_of_cache_is_refused(kind: Any) -> None:
    with pytest.raises(
        ValueError, match=f"^data.cache_images must be off, ram or disk, got {kind!r}"
    ):
        ImageCache(kind, 1, None)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data.cache_folder .*file cannot be made: File exists"):
        FolderStore(tmp_path / "file", 1)


def test_the_wrapped_image_processor_has_the_attributes_of_its_own() -> None:
    images = make_processor("llava").image_processor
    cached = CachedImageProcessor(images, MemoryStore(1), by_sample=False)
    assert cached.crop_size == images.crop_size
    with pytest.raises(AttributeError):
        _ = cached.no_such_setting
