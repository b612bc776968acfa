"""The images of test samples in a run folder: small, chosen by id, read without trust."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmole.storage.case_images import FILE, Case, chosen, encode_image, read_case_images


def jpeg() -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    return encode_image(Image.fromarray(pixels))


def write(run: Path, *lines: object) -> Path:
    (run / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_images_are_small_and_read_back(tmp_path: Path) -> None:
    case = Case("count", "a/../<b>", (jpeg(), jpeg()))
    run = write(tmp_path, case.line(), Case("count", "text alone", ()).line())
    found = read_case_images(run)
    assert found["count"]["a/../<b>"] == case
    assert found["count"]["text alone"].images == ()
    with Image.open(io.BytesIO(base64.b64decode(case.images[0]))) as image:
        assert image.size == (160, 96)
    assert read_case_images(tmp_path / "other") == {}


def test_the_choice_depends_on_task_and_ids_alone() -> None:
    ids = [str(index) for index in range(100)]
    first = {ids[index] for index in chosen("count", ids, 24)}
    backwards = ids[::-1]
    assert first == {backwards[index] for index in chosen("count", backwards, 24)}
    assert len(first) == 24
    assert first != {ids[index] for index in chosen("paint", ids, 24)}


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ('"><script>', "not a small JPEG"),
        (base64.b64encode(b"<svg onload=alert(1)>").decode(), "not a small JPEG"),
        ("/9j/" + "A" * (64 << 10), "not a small JPEG"),
        (7, "not a small JPEG"),
        ("é", "not a small JPEG"),
    ],
)
def test_another_image_is_refused(image: object, reason: str, tmp_path: Path) -> None:
    run = write(tmp_path, {"task": "a", "id": "b", "images": [image]})
    with pytest.raises(ValueError, match=rf"{FILE}: line 1: .*{reason}") as caught:
        read_case_images(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", [[], {"task": "a", "id": 3, "images": []}, {"task": "a"}, "text"])
def test_another_line_is_refused(line: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{FILE}.*(expected a task|is not an object)"):
        read_case_images(write(tmp_path, line, line))


def test_too_many_images_are_refused(tmp_path: Path) -> None:
    run = write(tmp_path, {"task": "a", "id": "b", "images": [jpeg()] * 5})
    with pytest.raises(ValueError, match="at most 4 images"):
        read_case_images(run)
