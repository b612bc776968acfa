"""Opens images of unknown origin: common formats only, a bounded size, one type of error."""

from __future__ import annotations

import io
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from dmole.data.image_notes import Note, orientation, picture_notes, stored_notes

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Accepted formats. Others use rarely tested decoders, and EPS starts an external program."""

_FLAT = {"I", "F"}
_DEEP = {"I;16", "I;16L", "I;16B", "I;16N"}


@dataclass(frozen=True)
class ImageOptions:
    """How stored images become RGB pictures.

    Args:
        background: Color under transparent pixels: a name such as ``white``, or ``#rrggbb``. The
            default drops the transparency: a pixel shows its stored color, which is black in most
            transparent pixels.
        apply_exif: Whether to turn a picture as its EXIF orientation says. The default keeps the
            stored pixels, to which the boxes of most data sets refer.

    Raises:
        ValueError: If the background is not a color.
    """

    background: str | None = None
    apply_exif: bool = False

    def __post_init__(self) -> None:
        """Refuse a background that is not an opaque color."""
        if self.background is None:
            return
        try:
            channels = len(ImageColor.getrgb(self.background))
        except (ValueError, AttributeError):
            channels = 0
        if channels != 3:
            raise ValueError(
                f"images.background must be a color such as 'white' or '#ffffff', "
                f"got {self.background!r}"
            )


AS_STORED = ImageOptions()
"""The default: no background, and the pixels in their stored order."""


def decode_image(path: Path, options: ImageOptions = AS_STORED) -> Image.Image:
    """Return the image in mode RGB.

    The first frame of an animation is used, and 16 bits a channel become 8. By default,
    transparency is dropped and the EXIF orientation is not applied, because boxes of data sets
    refer to the stored pixels; a TIFF file is always turned.
    An image may have at most ``PIL.Image.MAX_IMAGE_PIXELS`` pixels; PIL itself only warns up to
    twice as many.

    Args:
        path: The file.
        options: Treatment of transparency and orientation.

    Raises:
        ValueError: If the file is missing, not a regular file, damaged, not of an accepted format,
            has too many pixels, or 32-bit pixels, which have no defined range; the message names
            it.
    """
    return _decode(_regular(path), str(path), options)


def read_image(path: Path) -> bytes:
    """Return the bytes of an image file, for `decode_bytes`.

    Raises:
        ValueError: If the file is missing, not a regular file, or cannot be read.
    """
    try:
        return _regular(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read image {path}: {error.strerror or error}") from error


def decode_bytes(content: bytes, name: str, options: ImageOptions = AS_STORED) -> Image.Image:
    """Decode an image from bytes, in mode RGB; see `decode_image`.

    Args:
        content: The bytes of an image file.
        name: Name of the image in messages.
        options: Treatment of transparency and orientation.

    Raises:
        ValueError: As `decode_image` does.
    """
    return _decode(_stream(content, name), name, options)


def inspect_image(
    source: Path | bytes, name: str, options: ImageOptions = AS_STORED
) -> tuple[Image.Image, list[Note]]:
    """Decode an image and list what its picture does not show of it.

    Args:
        source: The file, or its bytes.
        name: Name of the image in messages.
        options: Treatment of transparency and orientation.

    Returns:
        The image in mode RGB and the notes, see :mod:`dmole.data.image_notes`.

    Raises:
        ValueError: As `decode_image` does.
    """
    notes: list[Note] = []
    file = _regular(source) if isinstance(source, Path) else _stream(source, name)
    return _decode(file, name, options, notes), notes


def _regular(path: Path) -> Path:
    # opening a named pipe would block forever
    if not path.is_file():
        reason = "it is not a file" if path.exists() else "there is no such file"
        raise ValueError(f"cannot read image {path}: {reason}")
    return path


def _stream(content: bytes, name: str) -> io.BytesIO:
    if not content:
        raise ValueError(f"cannot read image {name}: it holds no bytes")
    return io.BytesIO(content)


def _decode(
    file: Path | io.BytesIO, name: str, options: ImageOptions, notes: list[Note] | None = None
) -> Image.Image:
    try:
        with _open(file) as image:
            if image.mode in _FLAT:
                raise ValueError(f"pixels of mode {image.mode} have no fixed range; save as 8 bits")
            if notes is not None:
                notes.extend(stored_notes(image, **asdict(options)))
            picture = _to_rgb(image, options)
            if notes is not None:
                notes.extend(picture_notes(picture))
            return picture
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


def _to_rgb(image: Image.Image, options: ImageOptions) -> Image.Image:
    if options.apply_exif:
        image.load()  # PIL turns a TIFF file while it loads it
        if orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP:
        return _eight_bits(image).convert("RGB")
    if options.background is not None and image.has_transparency_data:
        picture = image.convert("RGBA")
        ground = Image.new("RGBA", picture.size, options.background)
        return Image.alpha_composite(ground, picture).convert("RGB")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")  # PIL warns about direct conversion
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit gray as 8-bit gray; PIL's conversion clips, which turns most pixels white."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
