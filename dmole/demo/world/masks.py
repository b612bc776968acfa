"""Coverage of pixels by filled shapes and by glyphs."""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dmole.demo.world.world import ALL_CLASSES, GLYPH_WIDTHS, MORE_SHAPES, Mask


@functools.cache
def shape_mask(label: int, size: int) -> Mask:
    """Return the coverage in [0, 1] of a filled shape, of shape ``(size, size)``."""
    scale = 8
    side = size * scale
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    middle, radius = side / 2, side / 2 - scale * 0.5
    low, high = middle - radius, middle + radius
    name = ALL_CLASSES[label]
    if name in MORE_SHAPES:
        _draw_more(draw, name, side, low, high)
    elif name == "circle":
        draw.ellipse([low, low, high, high], fill=255)
    elif name == "square":
        draw.rectangle([low, low, high, high], fill=255)
    elif name == "triangle":
        draw.polygon([(middle, low), (low, high), (high, high)], fill=255)
    elif name == "cross":
        arm = radius * 0.36
        draw.rectangle([low, middle - arm, high, middle + arm], fill=255)
        draw.rectangle([middle - arm, low, middle + arm, high], fill=255)
    else:
        points = []
        for corner in range(10):
            reach = radius if corner % 2 == 0 else radius * 0.42
            angle = -math.pi / 2 + corner * math.pi / 5
            points.append((middle + reach * math.cos(angle), middle + reach * math.sin(angle)))
        draw.polygon(points, fill=255)
    return _coverage(image, size, size)


def _draw_more(draw: ImageDraw.ImageDraw, name: str, side: float, low: float, high: float) -> None:
    """Draw a shape of `MORE_SHAPES` between the edges `low` and `high`."""
    middle = side / 2
    if name == "diamond":
        draw.polygon([(middle, low), (high, middle), (middle, high), (low, middle)], fill=255)
    elif name == "moon":
        draw.ellipse([low, low, high, high], fill=255)
        cut = (high - low) * 0.4
        draw.ellipse([low + cut, low - cut / 4, high + cut, high - cut / 4], fill=0)
    else:
        lobe = (high - low) * 0.54
        draw.ellipse([low, low, low + lobe, low + lobe], fill=255)
        draw.ellipse([high - lobe, low, high, low + lobe], fill=255)
        rise = low + lobe * 0.68
        draw.polygon([(low + lobe * 0.06, rise), (middle, high), (high - lobe * 0.06, rise)], 255)
        draw.rectangle([low + lobe / 2, low + lobe / 2, high - lobe / 2, rise], fill=255)


@functools.cache
def glyph_mask(label: int, height: int) -> Mask:
    """Return the coverage in [0, 1] of a digit or letter, of shape ``(height, width)``."""
    scale, width = 4, GLYPH_WIDTHS[height]
    image = Image.new("L", (height * scale * 2, height * scale * 2), 0)
    ImageDraw.Draw(image).text(
        (height * scale // 2, height * scale // 3),
        ALL_CLASSES[label],
        fill=255,
        font=ImageFont.load_default(height * scale),
        stroke_width=2,
    )
    image = image.crop(image.getbbox())
    tall = (height - 2) * scale
    wide = max(1, min(int(image.width * tall / image.height), (width - 1) * scale))
    glyph = image.resize((wide, tall), Image.Resampling.BILINEAR)
    canvas = Image.new("L", (width * scale, height * scale), 0)
    canvas.paste(glyph, ((width * scale - wide) // 2, (height * scale - tall) // 2))
    return _coverage(canvas, width, height)


def _coverage(image: Image.Image, width: int, height: int) -> Mask:
    """Return the share of each pixel that a drawing covers."""
    small = np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float32)
    covered: Mask = small / np.float32(255)
    return covered
