"""Opens images of unknown origin: known formats only, a bounded size, one kind of error."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are opened. Others reach rarely used decoders, and EPS an outside program."""

_FLAT = {"I", "F"}
_DEEP = {"I;16", "I;16L", "I;16B", "I;16N"}


def decode_image(path: Path) -> Image.Image:
    """Return the picture in mode RGB.

    The first frame of an animation is taken, transparency is dropped, 16 bits a channel become
    8. An orientation noted in EXIF is not applied: boxes of data sets refer to the stored pixels.
    The most pixels allowed are ``PIL.Image.MAX_IMAGE_PIXELS``; PIL itself only warns up to twice
    as many.

    Args:
        path: The file.

    Raises:
        ValueError: If it is missing, no file, damaged, no image of a known format, has too many
            pixels, or pixels of 32 bits, whose range nobody knows; the message names it.
    """
    # a named pipe would be waited on for ever
    if not path.is_file():
        reason = "it is not a file" if path.exists() else "there is no such file"
        raise ValueError(f"cannot read image {path}: {reason}")
    return _decode(path, str(path))


def decode_bytes(content: bytes, name: str) -> Image.Image:
    """Return the picture that encoded bytes hold, in mode RGB; see `decode_image`.

    Args:
        content: What an image file would hold.
        name: What messages call the image.

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
                return image.convert("RGBA").convert("RGB")  # PIL warns of the direct way
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise ValueError(f"cannot read image {name}: it is not one of {known}") from error
    except Exception as error:  # decoders raise a dozen kinds for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read image {name}: {reason}") from error


def _open(file: Path | io.BytesIO) -> Image.Image:
    with warnings.catch_warnings():  # the size is known only once PIL has warned of it
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()  # the formats that are not loaded at once
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit gray as 8-bit gray; PIL's own conversion clips, which is mostly white."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
