"""Small vector drawings: lines, points, bars and ranges on two axes, with values on hover."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from markupsafe import Markup

from dmole.report.page.axes import Axis
from dmole.report.page.markup import html, join, label, of_task
from dmole.report.style import COLORS, MARKERS

Point = tuple[float, float]

WIDTH = 640
"""Width of a drawing in pixels; a narrow screen scrolls it."""

_TOP, _RIGHT, _BOTTOM = 10.0, 14.0, 46.0
_CHARACTER = 7.0  # pixels of a character of the font of ticks

_MARKS: Mapping[str, str] = {
    "o": '<circle cx="{x}" cy="{y}" r="{r}"/>',
    "s": '<path d="M{x},{y}m-{r},-{r}h{d}v{d}h-{d}z"/>',
    "^": '<path d="M{x},{y}m0,-{r}l{r},{d}h-{d}z"/>',
    "D": '<path d="M{x},{y}m0,-{r}l{r},{r}l-{r},{r}l-{r},-{r}z"/>',
    "v": '<path d="M{x},{y}m0,{r}l{r},-{d}h-{d}z"/>',
    "P": '<path d="M{x},{y}m-{r},0h{d}m-{r},-{r}v{d}" class="stroked"/>',
    "X": '<path d="M{x},{y}m-{r},-{r}l{d},{d}m0,-{d}l-{d},{d}" class="stroked"/>',
}


@dataclass
class Plot:
    """A drawing on two axes; the elements that are added later lie on top.

    Args:
        title: What the drawing shows, for readers who do not see it.
        x: The horizontal axis.
        y: The vertical axis; its start is at the bottom.
        height: Height in pixels.
    """

    title: str
    x: Axis
    y: Axis
    height: int = 320
    _drawn: list[Markup] = field(default_factory=list)

    @cached_property
    def left(self) -> float:
        """Pixels to the left of the vertical axis."""
        longest = max((len(text) for text in self.y.labels().values()), default=1)
        return min(240.0, 34.0 + _CHARACTER * longest)

    def place(self, x: float, y: float) -> Point:
        """Return the pixels of a point."""
        width, height = WIDTH - self.left - _RIGHT, self.height - _TOP - _BOTTOM
        return self.left + width * self.x.share(x), _TOP + height * (1.0 - self.y.share(y))

    def line(
        self,
        points: Sequence[Point],
        tips: Sequence[str],
        style: int,
        task: str | None = None,
        *,
        marked: bool = True,
    ) -> None:
        """Draw a line through points; a coordinate that is NaN breaks it.

        Args:
            points: Values of the points.
            tips: What the reader is told of each point.
            style: Number of the line; neighboring numbers differ in color and mark.
            task: Task that the line is about, for the filter.
            marked: Whether each point has a mark; else marks appear under the pointer only.
        """
        color = COLORS[style % len(COLORS)]
        steps, pen = [], "M"
        for point in points:
            if any(map(math.isnan, point)):
                pen = "M"
                continue
            steps.append("{}{:.1f},{:.1f}".format(pen, *self.place(*point)))
            pen = "L"
        marks = join(
            self._mark(point, tip, style)
            for point, tip in zip(points, tips, strict=True)
            if not any(map(math.isnan, point))
        )
        self._drawn.append(
            html(
                '<g class="series{}"{} stroke="{c}" fill="{c}"><path class="line" d="{}"/>{}</g>',
                "" if marked else " dense",
                of_task(task),
                " ".join(steps),
                marks,
                c=color,
            )
        )

    def points(
        self, points: Sequence[Point], tips: Sequence[str], style: int, task: str | None = None
    ) -> None:
        """Draw marks without a line; the arguments are those of :meth:`line`."""
        marks = join(self._mark(*each, style) for each in zip(points, tips, strict=True))
        color = COLORS[style % len(COLORS)]
        group = '<g class="series"{} stroke="{c}" fill="{c}">{}</g>'
        self._drawn.append(html(group, of_task(task), marks, c=color))

    def _mark(self, point: Point, tip: str, style: int) -> Markup:
        x, y = self.place(*point)
        shape = html(mark_shape(style), x=f"{x:.1f}", y=f"{y:.1f}", r=4, d=8)
        return html('<g class="mark">{}<title>{}</title></g>', shape, tip)

    def bar(
        self,
        start: Point,
        end: Point,
        thickness: float,
        style: int,
        tip: str,
        task: str | None = None,
    ) -> None:
        """Draw a horizontal or vertical bar between two values.

        Args:
            start: Value at one end of its middle line.
            end: Value at the other end.
            thickness: Pixels across that line.
            style: Number of the color.
            tip: What the reader is told of it.
            task: Task that the bar is about, for the filter.
        """
        (x0, y0), (x1, y1) = self.place(*start), self.place(*end)
        if start[1] == end[1]:
            box = (min(x0, x1), y0 - thickness / 2, abs(x1 - x0), thickness)
        else:
            box = (x0 - thickness / 2, min(y0, y1), thickness, abs(y1 - y0))
        self._drawn.append(
            html(
                '<g class="mark"{}><rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" '
                'fill="{}"/><title>{}</title></g>',
                of_task(task),
                *box,
                COLORS[style % len(COLORS)],
                tip,
            )
        )

    def quantiles(
        self,
        row: float,
        values: tuple[float, float, float],
        style: int,
        tip: str,
        task: str | None = None,
    ) -> None:
        """Draw the range between two quantiles along a row, with the median on it.

        Args:
            row: Value on the vertical axis.
            values: Low quantile, median and high quantile.
            style: Number of the color.
            tip: What the reader is told of it.
            task: Task that the range is about, for the filter.
        """
        low, middle, high = (self.place(value, row) for value in values)
        self._drawn.append(
            html(
                '<g class="mark range"{}><path d="M{:.1f},{:.1f}H{:.1f}" stroke="{c}"/>'
                '<circle cx="{:.1f}" cy="{:.1f}" r="4" fill="{c}"/><title>{}</title></g>',
                of_task(task),
                *low,
                high[0],
                *middle,
                tip,
                c=COLORS[style % len(COLORS)],
            )
        )

    def upright(self, x: float, tip: str) -> None:
        """Draw a vertical line over the whole height, such as a threshold."""
        (left, top), (_, bottom) = self.place(x, self.y.high), self.place(x, self.y.low)
        path = html('<path class="rule" d="M{:.1f},{:.1f}V{:.1f}"/>', left, top, bottom)
        self._drawn.append(html('<g class="mark">{}<title>{}</title></g>', path, tip))

    def markup(self) -> Markup:
        """Return the drawing."""
        return html(
            '<div class="scroll"><svg viewBox="0 0 {} {}" role="img" aria-label="{}" tabindex="0">'
            "{}{}</svg></div>",
            WIDTH,
            self.height,
            self.title,
            self._axes(),
            join(self._drawn),
        )

    def _axes(self) -> Markup:
        bottom, middle = self.height - _BOTTOM, (WIDTH + self.left - _RIGHT) / 2
        parts = []
        for value, text in self.x.labels().items():
            x, _ = self.place(value, self.y.low)
            parts.append(html('<path class="grid" d="M{:.1f},{}V{}"/>', x, _TOP, bottom))
            parts.append(
                html('<text x="{:.1f}" y="{}" class="mid">{}</text>', x, bottom + 17, text)
            )
        for value, text in self.y.labels().items():
            _, y = self.place(self.x.low, value)
            line = '<path class="grid" d="M{},{:.1f}H{}"/>'
            parts.append(html(line, self.left, y, WIDTH - _RIGHT))
            words = '<text x="{}" y="{:.1f}" class="end">{}</text>'
            parts.append(html(words, self.left - 6, y + 4, text))
        words = '<text x="{:.1f}" y="{}" class="mid name">{}</text>'
        parts.append(html(words, middle, self.height - 8, self.x.label))
        turned = '<text transform="translate(13,{:.1f}) rotate(-90)" class="mid name">{}</text>'
        parts.append(html(turned, (_TOP + bottom) / 2, self.y.label))
        return join(parts)


def mark_shape(style: int) -> str:
    """Return the template of the mark of the n-th line, so that lines of one color differ."""
    return _MARKS[MARKERS[(style + style // len(COLORS)) % len(MARKERS)]]


def legend(
    names: Sequence[str],
    tasks: Sequence[str] | None = None,
    *,
    styles: Sequence[int] | None = None,
    bars: bool = False,
) -> Markup:
    """Return the legend of lines or bars.

    Args:
        names: Name of each line.
        tasks: Task of each line, for the filter; None if lines are no tasks.
        styles: Number of the style of each line; None if they are numbered in this order.
        bars: Whether they are bars, which have no marks.
    """
    swatch = '<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true"><g {}>{}</g></svg>'
    entries = []
    for at, name in enumerate(names):
        style = styles[at] if styles else at
        color = COLORS[style % len(COLORS)]
        shape = html(_MARKS["s"] if bars else mark_shape(style), x=7, y=7, r=4, d=8)
        drawn = html(swatch, html('stroke="{0}" fill="{0}"', color), shape)
        task = tasks[at] if tasks else None
        entries.append(html("<li{}>{}{}</li>", of_task(task), drawn, label(name)))
    return html('<ul class="legend">{}</ul>', join(entries))
