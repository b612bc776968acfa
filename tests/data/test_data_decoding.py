"""Image files of unknown origin: every error is a ValueError that names the file."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dmole.data.decoding import decode_image
from dmole.data.sample import FileImage


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    """A PNG that claims a size and holds a single black pixel."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = Image.effect_noise((40, 40), 50).convert("RGB")
TEXT_BOMB = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 2_000_000))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not one of JPEG, PNG"),
        (b"no image", "it is not one of JPEG, PNG"),
        (EPS, "it is not one of JPEG, PNG"),
        (saved(NOISE, "JPEG")[:200], "Truncated"),
        (saved(NOISE, "JPEG")[:-60], "truncated"),
        (saved(NOISE, "PNG")[:100], "truncated"),
        (saved(NOISE, "GIF")[:900], "truncated|broken|not"),
        (saved(NOISE, "WEBP")[:200], "WebP|truncated|not|decod"),
        (png(0, 0), "it is not one of"),
        (png(0, 7), "it is not one of"),
        (png(10_000, 10_000), r"100000000 pixels\) exceeds limit of \d+"),
        (png(20_000, 20_000), r"400000000 pixels\) exceeds limit of \d+"),
        (png(2**31 - 1, 2**31 - 1), r"\d+ pixels\) exceeds limit of \d+"),
        (png(1, 1, TEXT_BOMB), "too large"),
        (saved(Image.new("F", (2, 2)), "TIFF"), "mode F have no fixed range"),
        (saved(Image.new("I", (2, 2)), "TIFF"), "mode I have no fixed range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_or_hostile_image_is_one_error_that_names_it(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^cannot read image .*a\.png: .*({reason})") as caught:
        decode_image(path)
    assert "\n" not in str(caught.value)


def test_the_bound_is_met_whatever_the_process_does_with_warnings(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(10_000, 10_000))
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="exceeds limit"):
            decode_image(tmp_path / "a.png")
    assert not seen
    assert limit == Image.MAX_IMAGE_PIXELS
    assert warnings.filters == filters


def outcome(path: Path) -> str:
    try:
        return decode_image(path).mode
    except ValueError as error:
        return "refused" if str(error).startswith(f"cannot read image {path}: ") else str(error)


def test_a_bit_flipped_anywhere_gives_a_picture_or_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    rng = np.random.default_rng(0)
    outcomes = set()
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP"):
        whole = saved(NOISE, kind)
        for _ in range(40):
            damaged = bytearray(whole)
            damaged[rng.integers(min(len(whole), 300))] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # PIL on damaged metadata
                outcomes.add(outcome(path))
    assert outcomes == {"RGB", "refused"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "it is not a file"),
        (os.mkfifo, "it is not a file"),
    ],
    ids=["missing", "folder", "named pipe"],
)
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"cannot read image .*a\.png: {reason}"):
        FileImage(tmp_path / "a.png").load()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_usual_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tif"
    Image.new("RGB", (3, 2), "white").convert(mode).save(path)
    picture = decode_image(path)
    assert (picture.mode, picture.size) == ("RGB", (3, 2))
    assert picture.getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, name: str) -> None:
    deep = np.array([[0, 256, 32_768, 65_535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / name)
    assert np.asarray(decode_image(tmp_path / name))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_palette_with_transparency_keeps_its_colors_without_a_warning(tmp_path: Path) -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128] + [255] * 254))
    assert decode_image(tmp_path / "a.png").getpixel((0, 0)) == (0, 255, 0)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_the_orientation_of_exif_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (6, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert decode_image(Path(tmp_path / "a.jpg")).size == (6, 2)
