"""Opens images of unknown origin: common formats only, a bounded size, one type of error."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Accepted formats. Others use rarely tested decoders, and EPS starts an external program."""

_FLAT = {"I", "F"}
_DEEP = {"I;16", "I;16L", "I;16B", "I;16N"}


def decode_image(path: Path) -> Image.Image:
    """Return the image in mode RGB.

    The first frame of an animation is used, transparency is dropped, and 16 bits a channel become
    8. The EXIF orientation is not applied: boxes of data sets refer to the stored pixels.
    An image may have at most ``PIL.Image.MAX_IMAGE_PIXELS`` pixels; PIL itself only warns up to
    twice as many.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is missing, not a regular file, damaged, not of an accepted format,
            has too many pixels, or 32-bit pixels, which have no defined range; the message names
            it.
    """
    # opening a named pipe would block forever
    if not path.is_file():
        reason = "it is not a file" if path.exists() else "there is no such file"
        raise ValueError(f"cannot read image {path}: {reason}")
    return _decode(path, str(path))


def decode_bytes(content: bytes, name: str) -> Image.Image:
    """Decode an image from bytes, in mode RGB; see `decode_image`.

    Args:
        content: The bytes of an image file.
        name: Name of the image in messages.

    Raises:
        ValueError: As `decode_image` does.
    """
    if not content:
        raise ValueError(f"cannot read image {name}: it holds no bytes")
    return _decode(io.BytesIO(content), name)


def _decode(file: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with _open(file) as image:
            if image.mode in _FLAT:
                raise ValueError(f"pixels of mode {image.mode} have no fixed range; save as 8 bits")
            if image.mode in _DEEP:
                return _eight_bits(image).convert("RGB")
            if image.mode in ("P", "PA"):
                return image.convert("RGBA").convert("RGB")  # PIL warns about direct conversion
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise ValueError(f"cannot read image {name}: it is not one of {formats}") from error
    except Exception as error:  # decoders raise many exception types for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read image {name}: {reason}") from error


def _open(file: Path | io.BytesIO) -> Image.Image:
    with warnings.catch_warnings():  # PIL reports an excessive size as a warning
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()  # register the formats that PIL loads lazily
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit gray as 8-bit gray; PIL's conversion clips, which turns most pixels white."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
