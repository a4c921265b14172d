"""Charts as inline SVG, drawn without a library so that text stays text and a page stays small.

Horizontal positions are percentages and vertical ones are pixels, so that a chart fills any width while its labels keep
their size. Colours are classes of style.css. All labels are escaped by Markup.format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

HEIGHT = 180  # pixels of the plot, without labels
MAX_SERIES = 6  # colours of style.css
_MAX_POINTS = 400  # of a line; more are not visible
_ACROSS, _UP = 6, 4  # about the largest number of ticks of an axis

_CHART = Markup('<svg class="chart{}" role="img" aria-label="{}" height="{}">{}</svg>')
_GRID = Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/><text class="y" x="-8" y="{0}">{1}</text>')
_X_TICK = Markup('<text class="x {}" x="{}%" y="{}">{}</text>')
_BAR = Markup('<rect class="c0" x="{:.3f}%" y="{:.1f}" width="{:.3f}%" height="{:.1f}"><title>{}</title></rect>')
_PLOT = Markup('<svg width="100%" height="{}" viewBox="0 0 1000 {}" preserveAspectRatio="none">{}</svg>')
_LINE = Markup('<path class="line c{}" d="{}"/>')
_RIGHT = Markup('<text class="y right" x="100%" dx="8" y="{}">{}</text>')
_SCALE = Markup('<text class="scale-name" x="-8" y="{}">{}</text>')
_LEVEL = Markup('<line class="level c{0}" x1="0" x2="100%" y1="{1:.1f}" y2="{1:.1f}"/>')


@dataclass(frozen=True)
class Series:
    """A line: its name and points. A `level` has one point and is drawn as a dashed line over the full width."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    is_level: bool = False


@dataclass(frozen=True)
class Scale:
    """A line of labels below the horizontal axis, such as the time at each step."""

    name: str
    label: Callable[[float], str]


@dataclass(frozen=True)
class Axis:
    """An axis: its range, and whether it is logarithmic."""

    low: float
    high: float
    is_log: bool = False

    def position(self, value: float) -> float:
        """Return the position of a value between 0 and 1."""
        low, high, value = (self._scaled(number) for number in (self.low, self.high, value))
        return min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.is_log else value

    def ticks(self, most: int) -> list[float]:
        """Return round values within the range: powers of ten, or multiples of 1, 2 or 5 times one."""
        if self.is_log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, math.ceil((last - first) / most))
            powers = [10.0**power for power in range(first, last + 1, step)]
            return powers if len(powers) > 1 else _round_values(self.low, self.high, most)
        return _round_values(self.low, self.high, most)


def _round_values(low: float, high: float, most: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten in [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * most >= span * 0.999)
    return [step * index for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """Return a number for an axis: 1.5k, 20M, 0.05."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}".replace("e-0", "e-")


def labels(values: Sequence[float]) -> list[str]:
    """Return numbers for an axis, with enough digits to differ: 12.75 and 12.80, not 12.8 twice."""
    texts = [short(value) for value in values]
    digits = 4
    while len({*texts}) < len({*values}) and digits <= 12:
        texts, digits = [f"{value:,.{digits}g}" for value in values], digits + 1
    return texts


def percent(count: int, total: int) -> str:
    """Return a share such as "1.25 %", or "<0.01 %"."""
    share = 100 * count / max(total, 1)
    return "<0.01 %" if 0 < share < 0.005 else f"{share:.2f} %"


def histogram(edges: Sequence[int], counts: Sequence[int], label: str, *, is_log: bool = False) -> Markup:
    """Return a histogram: bar i spans `[edges[i], edges[i + 1])`. `label` describes the chart to screen readers."""
    across = Axis(edges[0], edges[-1], is_log)
    up = Axis(0.0, float(max([*counts, 1])))
    parts = [_grid(up)]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            left, right = 100 * across.position(low), 100 * across.position(high)
            height = max(1.0, HEIGHT * up.position(count))
            gap = min(0.15, (right - left) / 5)
            title = f"{low:,}–{high - 1:,}: {count:,}" if high - low > 1 else f"{low:,}: {count:,}"
            parts.append(_BAR.format(left, HEIGHT - height, max(right - left - gap, 0.1), height, title))
    return _CHART.format("", label, HEIGHT, Markup("").join([*parts, _x_ticks(across)]))


def lines(
    series: Sequence[Series],
    label: str,
    *,
    is_log: bool = False,
    is_log_height: bool = False,
    height: int = HEIGHT,
    low: float | None = None,
    right: Callable[[float], float] | None = None,
    scales: Sequence[Scale] = (),
) -> Markup:
    """Return a line chart of up to `MAX_SERIES` series. The vertical axis begins at `low`, by default near the minimum.

    `right` is an increasing linear function that converts values to the unit of a second axis on the right. `scales`
    replace the numbers at the horizontal axis by a line of labels each. Points that are not finite are left out.
    """
    points = [
        [(x, y) for x, y in zip(entry.xs, entry.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for entry in series
    ]
    xs = [x for entry, line in zip(series, points, strict=True) for x, _ in line if not entry.is_level] or [0.0, 1.0]
    ys = [y for line in points for _, y in line] or [0.0, 1.0]
    across = Axis(min(xs), max(xs), is_log)
    bottom, top = min(ys) if low is None else low, max(ys)
    margin = 0.0 if is_log_height else 0.04 * ((top - bottom) or abs(top) or 1.0)
    up = Axis(bottom - (margin if low is None else 0.0), top + margin, is_log_height)
    paths, levels = [], []
    for color, (entry, line) in enumerate(zip(series[:MAX_SERIES], points, strict=False)):
        if entry.is_level and line:
            levels.append(_LEVEL.format(color, height * (1 - up.position(line[0][1]))))
        elif line:
            paths.append(_LINE.format(color, _path(_thinned(line), across, up, height)))
    plot = _PLOT.format(height, height, Markup("").join(paths))
    body = Markup("").join([_grid(up, height), *levels, plot, _right(up, right, height)])
    body += _scale_ticks(across, scales, height) if scales else _x_ticks(across, height)
    return _CHART.format(f"{' right' if right else ''}{' scales' if scales else ''}", label, height, body)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return every n-th point, and the last, so that a long series stays small."""
    step = -(-len(points) // _MAX_POINTS)
    return points if step == 1 else [*points[::step], points[-1]]


def _path(points: list[tuple[float, float]], across: Axis, up: Axis, height: int) -> str:
    if len(points) == 1:  # a single point is drawn as a short stroke
        points = [points[0], points[0]]
    coordinates = (f"{1000 * across.position(x):.1f} {height * (1 - up.position(y)):.1f}" for x, y in points)
    return "M" + "L".join(coordinates)


def _grid(up: Axis, height: int = HEIGHT) -> Markup:
    return Markup("").join(
        _GRID.format(round(height * (1 - up.position(tick)), 1), label) for tick, label in _labelled(up, _UP)
    )


def _labelled(axis: Axis, most: int) -> list[tuple[float, str]]:
    """Return the ticks of an axis with their labels."""
    ticks = [tick for tick in axis.ticks(most) if axis.low <= tick <= axis.high]
    return list(zip(ticks, labels(ticks), strict=True))


def _right(up: Axis, convert: Callable[[float], float] | None, height: int) -> Markup:
    """Return the labels of an axis on the right."""
    if convert is None:
        return Markup("")
    axis = Axis(convert(up.low), convert(up.high))
    return Markup("").join(
        _RIGHT.format(round(height * (1 - axis.position(tick)), 1), label) for tick, label in _labelled(axis, _UP)
    )


def _scale_ticks(across: Axis, scales: Sequence[Scale], height: int) -> Markup:
    """Return a line of labels for each scale, with its name on the left."""
    ticks = [tick for tick in across.ticks(_UP) if across.low <= tick <= across.high]
    texts = []
    for line, scale in enumerate(scales):
        y = height + 17 + 15 * line
        texts.append(_SCALE.format(y, scale.name))
        texts += [_x_tick(across, tick, y, scale.label(tick)) for tick in ticks]
    return Markup("").join(texts)


def _x_ticks(across: Axis, height: int = HEIGHT) -> Markup:
    ticks = _labelled(across, _ACROSS)
    return Markup("").join(_x_tick(across, tick, height + 17, label) for tick, label in ticks)


def _x_tick(across: Axis, tick: float, y: float, label: str) -> Markup:
    """Return a label of the horizontal axis; those at its ends stay within the chart."""
    position = across.position(tick)
    anchor = "first" if position < 0.04 else "last" if position > 0.96 else "middle"
    return _X_TICK.format(anchor, f"{100 * position:.2f}", y, label)


_ROW, _HEAD = 44, 40  # pixels: height of a branch of a flow, and of its beginning and its end
_BAND, _BRANCH_END = 360.0, 430.0  # of 1000: width of the stream, and right end of the branches
_BRANCH = Markup('<path class="{}" d="{}"/>')
_BRANCH_TEXT = Markup('<text class="label" x="45%" y="{}">{}</text><text x="45%" y="{}">{}</text>')
_END_TEXT = Markup('<text class="label" x="10" y="{}">{}</text>')


def flow(start: tuple[str, int], branches: Sequence[tuple[str, int]], end: tuple[str, int], label: str) -> Markup:
    """Return a flow chart: a stream from `start` to `end`, with a branch for each count, which leaves it if negative.

    Widths are proportional to the counts, but every branch is visible.
    """
    total = max(start[1] + sum(max(count, 0) for _, count in branches), 1)
    height = 2 * _HEAD + _ROW * len(branches)
    shapes, texts = [], [_END_TEXT.format(25, f"{start[0]} {start[1]:,}")]
    present, top = start[1], 0
    for index, (name, count) in enumerate(branches):
        y = _HEAD + _ROW * index
        following = present + count
        wide, narrow = (_BAND * max(size, 0) / total for size in (max(present, following), min(present, following)))
        shapes.append(_BRANCH.format("band", _rectangle(_BAND * present / total, top, y)))
        shapes.append(
            _BRANCH.format("joins" if count > 0 else "leaves", _branch(wide, narrow, y, is_joining=count > 0))
        )
        sign = "+" if count > 0 else "−"
        share = percent(abs(count), total)
        texts.append(_BRANCH_TEXT.format(y + 18, name, y + 34, f"{sign}{abs(count):,} ({share})"))
        present, top = following, y
    shapes.append(_BRANCH.format("band", _rectangle(_BAND * present / total, top, height)))
    texts.append(_END_TEXT.format(height - 14, f"{end[0]} {end[1]:,}"))
    plot = _PLOT.format(height, height, Markup("").join(shapes))
    return _CHART.format("", label, height, Markup("").join([plot, *texts]))


def _rectangle(width: float, top: float, bottom: float) -> str:
    return f"M0 {top}H{max(width, 1.5):.1f}V{bottom}H0Z"


def _branch(wide: float, narrow: float, y: float, *, is_joining: bool) -> str:
    """Return the outline of a branch that bends between the edge of the stream and the right."""
    narrow = min(narrow, wide - 1.5)
    half = min(max(0.8, 20 * (wide - narrow) / _BAND), 9.0)
    middle, edge = y + 17, y + 34 if is_joining else y
    return (
        f"M{narrow:.1f} {edge}L{wide:.1f} {edge}C{wide:.1f} {middle - half:.1f} {wide:.1f} {middle - half:.1f} "
        f"{_BRANCH_END:.0f} {middle - half:.1f}V{middle + half:.1f}C{narrow:.1f} {middle + half:.1f} "
        f"{narrow:.1f} {middle + half:.1f} {narrow:.1f} {edge}Z"
    )
