"""Names what a decoded picture does not show of its file: transparency, orientation, frames."""

from __future__ import annotations

import io
from collections.abc import Iterator

from PIL import Image

Note = tuple[str, str]
"""Kind of a note, a key of `dmole.doctor.findings.LEVELS`, and its text."""

_ORIENTATION = 0x0112
_UPRIGHT = 1
_COLORS = {"CMYK", "LAB", "HSV", "YCbCr"}


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 if it has none or it is not readable."""
    try:
        value = image.getexif().get(_ORIENTATION, _UPRIGHT)
    except Exception:  # the decoder of EXIF raises many exception types; the pixels are intact
        return _UPRIGHT
    return value if isinstance(value, int) and 1 <= value <= 8 else _UPRIGHT


def stored_notes(image: Image.Image, *, background: str | None, apply_exif: bool) -> Iterator[Note]:
    """Yield what conversion to RGB drops or changes of a file.

    Args:
        image: The opened file, not yet decoded.
        background: Color under transparent pixels, None if transparency is dropped.
        apply_exif: Whether the EXIF orientation is applied.
    """
    deep = _is_deep(image)  # before `getexif`, which loads a PNG file
    turned = orientation(image)  # PIL turns a TIFF file and removes its orientation in `load`
    if turned != _UPRIGHT and image.format == "TIFF" and not apply_exif:
        yield (
            "image_orientation",
            f"the orientation {turned} is applied, as in every TIFF file: boxes may not fit",
        )
    elif turned != _UPRIGHT and not apply_exif:
        yield (
            "image_orientation",
            f"the EXIF orientation {turned} is not applied; images.apply_exif: true applies it",
        )
    # the further pictures of an MPO file are previews and depth maps
    if getattr(image, "is_animated", False) and image.format != "MPO":
        yield "image_frames", "holds several frames or pages, and only the first is read"
    if deep:
        yield "image_depth", "has 16 bits a channel, and the upper 8 are read"
    image.load()
    if background is None and _is_transparent(image):
        yield (
            "image_transparency",
            "has transparent pixels, and their stored colors are read; "
            "images.background: white puts white under them",
        )
    if image.mode in _COLORS:
        yield "image_colors", f"is stored as {image.mode}: the colors in RGB are approximate"
    elif (profile := _profile(image)) is not None:
        yield "image_colors", f"its color profile {profile!r} is not applied"


def picture_notes(picture: Image.Image) -> Iterator[Note]:
    """Yield what is unusual about a decoded picture.

    Args:
        picture: The image in mode RGB.
    """
    low, high = zip(*picture.getextrema(), strict=True)
    if low == high:
        size = f"{picture.width} x {picture.height}"
        yield "image_blank", f"every one of its {size} pixels is {low}"


def _is_deep(image: Image.Image) -> bool:
    if image.mode.startswith("I;16"):
        return True
    tiles = getattr(image, "tile", [])  # how the decoder reads the pixels: "RGB;16B", ("I;16", ...)
    return any(";16" in str(tile.args) for tile in tiles)


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data or image.mode.startswith("I;16"):
        return False
    picture = image if "A" in image.getbands() else image.convert("RGBA")
    return picture.getchannel("A").histogram()[255] < picture.width * picture.height


def _profile(image: Image.Image) -> str | None:
    """Return the name of a color profile other than sRGB, None without one."""
    content = image.info.get("icc_profile")
    if not content or image.mode in ("L", "LA", "1"):
        return None
    try:
        from PIL import ImageCms

        name = ImageCms.getProfileDescription(io.BytesIO(content)).strip()
    except Exception:  # a damaged profile, or Pillow without its color library
        return "unreadable"
    return None if "srgb" in name.lower() else name[:40] or "unnamed"
