"""What a decoded picture does not show of its file, and the settings that change it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from dmole import ContinualDataModule, Task
from dmole.data.decoding import ImageOptions, decode_bytes, inspect_image
from dmole.data.sample import FileImage

NOISE = Image.effect_noise((12, 8), 60).convert("RGB")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def drawing(mode: str = "RGBA") -> Image.Image:
    """A black bar on a transparent ground."""
    picture = Image.new("RGBA", (12, 8), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (4, 2, 8, 6))
    return picture.convert(mode)


def turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(NOISE, kind, exif=exif)


def deep_rgb() -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write."""
    rows = np.arange(12 * 8 * 3, dtype=np.uint16).reshape(8, 36) * 200
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 12, 8, 16, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def profile(space: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]


def palette_with_key() -> Image.Image:
    picture = drawing("RGBA").convert("L").convert("P")
    picture.putpixel((0, 0), 1)
    return picture


FRAMES = [Image.effect_noise((12, 8), 50 + seed).convert("RGB") for seed in range(3)]


@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        (saved(NOISE, "PNG"), set()),
        (saved(NOISE, "JPEG"), set()),
        (saved(NOISE.convert("P"), "PNG"), set()),
        (saved(NOISE.convert("RGBA"), "PNG"), set()),  # an alpha channel that hides nothing
        (saved(NOISE, "JPEG", icc_profile=profile("sRGB")), set()),
        (saved(drawing(), "PNG"), {"image_transparency", "image_blank"}),
        (saved(drawing(), "WEBP", lossless=True), {"image_transparency", "image_blank"}),
        (saved(drawing("LA"), "PNG"), {"image_transparency", "image_blank"}),
        (saved(palette_with_key(), "PNG", transparency=0), {"image_transparency"}),
        (saved(NOISE, "PNG", transparency=NOISE.getpixel((0, 0))), {"image_transparency"}),
        (turned("JPEG"), {"image_orientation"}),
        (turned("PNG"), {"image_orientation"}),
        (turned("WEBP"), {"image_orientation"}),
        (turned("TIFF"), {"image_orientation"}),
        (saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), {"image_frames"}),
        (saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), {"image_frames"}),
        (saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), {"image_frames"}),
        (saved(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), {"image_frames"}),
        (deep_rgb(), {"image_depth"}),
        (saved(Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 600), "PNG"),
         {"image_depth"}),
        (saved(Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12)), "PNG"),
         {"image_depth", "image_blank"}),  # values below 256 become black
        (saved(NOISE.convert("CMYK"), "JPEG"), {"image_colors"}),
        (saved(NOISE.convert("LAB"), "TIFF"), {"image_colors"}),
        (saved(NOISE, "JPEG", icc_profile=profile("XYZ")), {"image_colors"}),
        (saved(NOISE, "JPEG", icc_profile=b"broken"), {"image_colors"}),
        (saved(Image.new("RGB", (1, 1), "red"), "PNG"), {"image_blank"}),
    ],
)  # fmt: skip
def test_what_a_picture_does_not_show_is_noted(content: bytes, kinds: set[str]) -> None:
    picture, notes = inspect_image(content, "a")
    assert {kind for kind, _ in notes} == kinds
    assert picture.tobytes() == decode_bytes(content, "a").tobytes()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_background_shows_through_transparent_pixels(kind: str) -> None:
    content = saved(drawing(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    picture, notes = inspect_image(content, "a", ImageOptions(background="white"))
    assert (picture.getpixel((0, 0)), picture.getpixel((5, 3))) == ((255,) * 3, (0,) * 3)
    assert notes == []
    opaque = saved(NOISE, "PNG")
    assert decode_bytes(opaque, "a", ImageOptions("#00ff00")).tobytes() == NOISE.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_an_orientation_is_applied_once(kind: str) -> None:
    content = turned(kind)
    picture, notes = inspect_image(content, "a", ImageOptions(apply_exif=True))
    assert picture.size == (8, 12)
    assert notes == []
    if kind != "WEBP":  # lossy
        assert picture.tobytes() == NOISE.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_a_damaged_orientation_leaves_the_pixels() -> None:
    content = saved(NOISE, "PNG", exif=b"Exif\0\0broken")
    assert decode_bytes(content, "a", ImageOptions(apply_exif=True)).tobytes() == NOISE.tobytes()
    assert inspect_image(content, "a")[1] == []


@pytest.mark.parametrize("color", ["no color", "#12345", "#ffffff00", ""])
def test_a_background_is_an_opaque_color(color: str) -> None:
    with pytest.raises(ValueError, match=r"^images\.background must be a color"):
        ImageOptions(background=color)


def test_the_settings_of_data_and_task_reach_images_fingerprint_and_run_settings(
    tmp_path: Path,
) -> None:
    from dmole.run.settings import task_settings

    drawing().save(tmp_path / "a.png")
    for name in ("train", "test"):
        text = f'[{{"id": "{name}", "image": "a.png", "text": "{name} ?", "answer": "x"}}]'
        (tmp_path / f"{name}.json").write_text(text)

    def module(images: ImageOptions | None, of_task: ImageOptions | None) -> ContinualDataModule:
        task = Task("t", train="train.json", test="test.json", images=of_task)
        options = {} if images is None else {"images": images}
        return ContinualDataModule([task], data_root=str(tmp_path), **options)  # type: ignore[arg-type]

    white = ImageOptions(background="white")
    plain, default = module(None, None), module(ImageOptions(), None)
    for changed in (module(white, None), module(None, white)):
        (image,) = changed.train_samples("t")[0].images
        assert isinstance(image, FileImage)
        assert image.load().getpixel((0, 0)) == (255, 255, 255)
        assert changed.fingerprint() != plain.fingerprint() == default.fingerprint()
        assert set(task_settings(changed.task("t"))) - set(task_settings(plain.task("t"))) == {
            "images of task t"
        }
    (image,) = module(white, ImageOptions()).train_samples("t")[0].images
    assert image.load().getpixel((0, 0)) == (0, 0, 0)
    assert task_settings(plain.task("t")) == task_settings(default.task("t"))
