"""Charts as plain numbers, which `templates/charts.html.j2` draws.

In: values. Out: `Bars`, drawn as HTML, and `Chart`, lines and points in the pixels of an SVG.
Colors are names of CSS variables, so that a chart follows the theme.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.ticker import MaxNLocator

Number: TypeAlias = float | int
Point: TypeAlias = tuple[Number, Number]
WIDTH, HEIGHT = 400, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 26, 38  # around the plot
PALETTE = tuple(f"series-{number}" for number in range(1, 9))
_TICKS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """One bar of `Bars`."""

    label: str
    value: Number
    text: str  # the value as displayed
    color: str = PALETTE[0]
    share: Number = 0  # of the longest bar
    leaky: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars, of which the longest is as wide as the chart."""

    title: str
    bars: tuple[Bar, ...]
    note: str = ""


def bars(title: str, rows: Iterable[Bar], note: str = "", longest: Number | None = None) -> Bars:
    """Scales bars to the longest of them, or to the value `longest`."""
    rows = list(rows)
    top = longest or max((bar.value for bar in rows), default=0) or 1
    scaled = (dataclasses.replace(bar, share=bar.value / top) for bar in rows)
    return Bars(title, tuple(scaled), note)


def counts(
    title: str, of: dict[str, int], note: str = "", colors: Sequence[str] = ()
) -> Bars | None:
    """Bars of counts with their shares, without empty ends; None if there is nothing."""
    total = sum(of.values())
    if not total:
        return None
    colors = colors or [PALETTE[0]] * len(of)
    filled = [place for place, count in enumerate(of.values()) if count]
    ends = slice(filled[0], filled[-1] + 1)
    rows = [
        Bar(name, count, f"{count:,} · {percent(count / total)}", color)
        for (name, count), color in zip(of.items(), colors, strict=True)
    ]
    return bars(title, rows[ends], note)


def percent(share: Number) -> str:
    """`37 %`, or `0.4 %` for a small share."""
    return f"{share:.1%}".replace("%", " %") if 0 < share < 0.01 else f"{share:.0%}"[:-1] + " %"


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """Points of one color, joined by a line."""

    name: str
    points: Sequence[Point]
    color: str = PALETTE[0]
    dots: bool = False
    dashed: bool = False
    notes: Sequence[str] = ()  # of each point, shown on hover

    @property
    def path(self) -> str:
        """The line, for `d` of an SVG path."""
        return "M" + "L".join(f"{x:g},{y:g}" for x, y in self.points)


@dataclasses.dataclass(frozen=True, slots=True)
class Chart:
    """Lines and points in the pixels of a WIDTH x HEIGHT picture, y downward."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[tuple[Number, str], ...]
    y_ticks: tuple[tuple[Number, str], ...]
    series: tuple[Series, ...]
    note: str = ""
    mark: Number | None = None  # a vertical line
    width: int = WIDTH
    height: int = HEIGHT


def chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_range: Point | None = None,
    y_range: Point | None = None,
    x_names: Sequence[str] = (),
    mark: Number | None = None,
    note: str = "",
    height: int = HEIGHT,
) -> Chart:
    """Places series in a picture.

    Args:
      title: title of the chart.
      series: points in the units of the axes; points that are not finite are left out.
      x_label: what x is, with its unit.
      y_label: what y is, with its unit.
      x_range: range of the axis; that of the points by default.
      y_range: as `x_range`.
      x_names: names of x = 0, 1, 2, ..., if x stands for categories.
      mark: x of a vertical line.
      note: what a reader of the chart must know.
      height: height in pixels.
    """
    finite = [
        dataclasses.replace(line, points=[p for p in line.points if np.isfinite(p).all()])
        for line in series
    ]
    xs = [x for line in finite for x, _ in line.points]
    ys = [y for line in finite for _, y in line.points]
    if x_names:
        x_range = x_range or (-0.3, len(x_names) - 0.7)
    x_low, x_high = x_range or _range(xs)
    y_low, y_high = y_range or _range(ys)

    def x_pixel(x: Number) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y_pixel(y: Number) -> float:
        return round(TOP + (y_high - y) / (y_high - y_low) * (height - TOP - BOTTOM), 1)

    whole = all(float(x).is_integer() for x in xs)
    ticks = list(enumerate(x_names)) or _ticks(x_low, x_high, whole)
    return Chart(
        title,
        x_label,
        y_label,
        tuple((x_pixel(x), name) for x, name in ticks),
        tuple((y_pixel(y), name) for y, name in _ticks(y_low, y_high)),
        tuple(
            dataclasses.replace(line, points=[(x_pixel(x), y_pixel(y)) for x, y in line.points])
            for line in finite
        ),
        note,
        None if mark is None else x_pixel(mark),
        height=height,
    )


def _range(values: Sequence[Number]) -> Point:
    """The range of values and a little more, never empty."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def _ticks(low: Number, high: Number, whole: bool = False) -> list[tuple[Number, str]]:
    """Round numbers inside a range; whole ones if the values are."""
    locator = MaxNLocator(_TICKS, steps=[1, 2, 2.5, 5, 10], integer=whole)
    positions = locator.tick_values(low, high)
    tolerance = 1e-9 * (high - low)
    inside = [float(x) for x in positions if low - tolerance <= x <= high + tolerance]
    return [(x, f"{round(x, 10):,g}") for x in inside]
