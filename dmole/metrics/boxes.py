"""Reads boxes from text and measures their overlap."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

Box = tuple[float, float, float, float]
BoxFormat = Literal["auto", "unit", "percent", "permille", "pixels", "tokens"]
BoxOrder = Literal["xyxy", "yxyx"]
BoxParser = Literal["bracket", "strict", "numbers"]

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_GAP = r"\s*[,;\s]\s*"
_FOUR = _GAP.join([rf"({_NUMBER})\s*%?"] * 4)
_CORNER = rf"[\[(]\s*({_NUMBER})\s*%?{_GAP}({_NUMBER})\s*%?\s*[\])]"
_BRACKET = re.compile(
    rf"[\[(]\s*{_FOUR}\s*[,;]?\s*[\])]"  # [x1, y1, x2, y2]
    rf"|{_CORNER}\s*(?:[,;]|and|to)?\s*{_CORNER}"  # (x1,y1),(x2,y2), [[x1,y1],[x2,y2]]
    rf"|<box>\s*{_FOUR}\s*</box>"
)
_STRICT = re.compile(r"\[" + ",".join([r"([^,\[\]\n]*)"] * 4) + r"\]")
_ANY_NUMBER = re.compile(_NUMBER)
_TOKEN = re.compile(r"<(x|y|loc)_?(\d{1,9})>", re.IGNORECASE)
_SIZE = re.compile(r"size\s*=\s*([1-9]\d{0,8})\s*x\s*([1-9]\d{0,8})\b", re.IGNORECASE)
_LARGEST = 1e12
"""Largest valid coordinate: the area of a larger box could overflow."""


def intersection_over_union(first: Box, second: Box) -> float:
    """Return the intersection of two boxes over their union, in 0..1.

    Args:
        first: Corners ``(x1, y1, x2, y2)``, any unit.
        second: Corners in the same unit. An inverted box has no area.

    Example:
        >>> intersection_over_union((0, 0, 2, 2), (1, 0, 2, 2))
        0.5
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    joint = _area(first) + _area(second) - shared
    return shared / joint if shared > 0.0 and math.isfinite(joint) else 0.0


def has_area(box: Box) -> bool:
    """Return whether a box has an area: its second corner is right of and below the first.

    Example:
        >>> has_area((0, 0, 1, 1)), has_area((1, 0, 0, 1)), has_area((0, 0, 0, 1))
        (True, False, False)
    """
    return _area(box) > 0.0


def in_image(box: Box) -> bool:
    """Return whether a part of a box in 0..1, with an area, is in the image.

    Example:
        >>> in_image((0.5, 0.5, 1.2, 1.0)), in_image((1.2, 0.3, 1.9, 0.9))
        (True, False)
    """
    return has_area((max(box[0], 0.0), max(box[1], 0.0), min(box[2], 1.0), min(box[3], 1.0)))


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


@dataclass(frozen=True, kw_only=True)
class BoxReader:
    """Reads the first box of a text as corners ``(x1, y1, x2, y2)`` in 0..1.

    Args:
        box_format: Unit of the numbers: "unit" 0..1, "percent" 0..100, "permille" 0..1000,
            "pixels" of an image of known size, "tokens" such as ``<x3><y4><x9><y8>`` or
            ``<loc0012>`` counted in `bins`. "auto" means tokens if there are four, percent if the
            text has a percent sign, unit if the four numbers sum to less than 4, else permille.
            Pixels and percentages without a sign look like permille and must be named.
        order: "xyxy" or "yxyx". Tokens named x and y define the order themselves.
        parser: "bracket" reads the first four numbers enclosed in square or round brackets or
            in ``<box>``, or the first two corners, such as ``(x1,y1),(x2,y2)`` and
            ``[[x1,y1],[x2,y2]]``, with any marks around them; "strict" reads the first square
            bracket on one line with four comma-separated fields, which must all be numbers;
            "numbers" reads the first four numbers in the text.
        bins: Number of token positions along an axis.
        image_size: ``(width, height)`` for pixels, if `read` is called without a size.

    Raises:
        ValueError: If an option is unknown or not positive.
    """

    box_format: BoxFormat = "auto"
    order: BoxOrder = "xyxy"
    parser: BoxParser = "bracket"
    bins: int = 1000
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("box_format", get_args(BoxFormat)),
            ("order", get_args(BoxOrder)),
            ("parser", get_args(BoxParser)),
        ):
            if getattr(self, name) not in allowed:
                names = ", ".join(allowed)
                raise ValueError(f"{name} must be one of {names}, got {getattr(self, name)!r}")
        if self.bins < 1:
            raise ValueError(f"bins must be positive, got {self.bins}")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"image_size must be positive, got {self.image_size}")

    def read(self, text: str, size: tuple[int, int] | None = None) -> Box | None:
        """Return the first box of a text, or None if there is none.

        Args:
            text: Any text.
            size: ``(width, height)`` of the image; takes precedence over `image_size`.

        Raises:
            ValueError: If the box is in pixels and no size is known.
        """
        if self.box_format in ("auto", "tokens"):
            box = self._read_tokens(text)
            if box is not None or self.box_format == "tokens":
                return box
        numbers = self._find_numbers(text)
        if numbers is None:
            return None
        width, height = self._scale(numbers, text, size or self.image_size)
        first, second, third, fourth = numbers
        if self.order == "yxyx":
            first, second, third, fourth = second, first, fourth, third
        return first / width, second / height, third / width, fourth / height

    def _read_tokens(self, text: str) -> Box | None:
        tokens = _TOKEN.findall(text)[:4]
        if len(tokens) < 4:
            return None
        values = [int(digits) / self.bins for _, digits in tokens]
        axes = "".join(axis.lower() for axis, _ in tokens)
        if "loc" in axes:
            axes = self.order
        if sorted(axes) != ["x", "x", "y", "y"]:
            return None
        x1, x2 = (value for value, axis in zip(values, axes, strict=True) if axis == "x")
        y1, y2 = (value for value, axis in zip(values, axes, strict=True) if axis == "y")
        return x1, y1, x2, y2

    def _find_numbers(self, text: str) -> Box | None:
        if self.parser == "numbers":
            fields = _ANY_NUMBER.findall(text)[:4]
        else:
            if self.parser == "bracket":
                text = " ".join(text.split())  # long runs of spaces would slow down the pattern
            match = (_STRICT if self.parser == "strict" else _BRACKET).search(text)
            fields = [field for field in match.groups() if field is not None] if match else []
        try:
            values = [float(number) for number in fields]
        except ValueError:
            return None  # a strict field that is not a number
        if len(values) != 4 or not all(abs(value) <= _LARGEST for value in values):  # false for NaN
            return None
        return values[0], values[1], values[2], values[3]

    def _scale(self, numbers: Box, text: str, size: tuple[int, int] | None) -> tuple[float, float]:
        """Return the divisors of x and y."""
        unit: str = self.box_format
        if unit == "auto":
            unit = "percent" if "%" in text else "unit" if sum(numbers) < 4 else "permille"
        if unit != "pixels":
            scale = {"unit": 1.0, "percent": 100.0}.get(unit, 1000.0)
            return scale, scale
        if size is None:
            raise ValueError(f"box in pixels but no image size is known: {text!r}")
        return float(size[0]), float(size[1])


def read_size(text: str) -> tuple[int, int] | None:
    """Return ``(width, height)`` from the note ``size=WxH`` in a reference, or None.

    Example:
        >>> read_size("[10, 20, 300, 200] size=640x480")
        (640, 480)
    """
    match = _SIZE.search(text)
    return (int(match[1]), int(match[2])) if match else None
