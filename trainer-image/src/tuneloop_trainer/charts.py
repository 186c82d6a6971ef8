"""Small charts as inline SVG: a line, and bars. Pure: numbers in, text out; no script, no external resource.

Colours are CSS classes of the page (``report.py``), so a chart follows the reader's light or dark mode.
"""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 36, 12, 40
Point = tuple[float, float]


def line_chart(points: Sequence[Point], title: str, x_label: str) -> str:
    """A line through (x, y) points; those that are no finite numbers are left out. Empty text without two points."""
    finite = sorted(point for point in points if all(math.isfinite(value) for value in point))
    if len(finite) < 2:
        return ""
    x_ticks = ticks(finite[0][0], finite[-1][0])
    y_ticks = ticks(min(y for _, y in finite), max(y for _, y in finite))
    across = _scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    down = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in finite)
    grid = [_across(down(tick), number(tick)) for tick in y_ticks]
    foot = [_text(across(tick), HEIGHT - BOTTOM + 16, number(tick), "middle") for tick in x_ticks]
    label = _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label, "middle")
    return _svg(title, [*grid, *foot, label, f'<polyline class="line" points="{path}"/>'])


def bar_chart(bars: Sequence[tuple[str, float]], title: str, x_label: str) -> str:
    """Upright bars with their names below and values above; empty text without a bar."""
    if not bars or max(value for _, value in bars) <= 0:
        return ""
    room = (WIDTH - LEFT - RIGHT) / len(bars)
    down = _scale(0, max(value for _, value in bars), HEIGHT - BOTTOM, TOP + 14)
    parts = [_across(down(0), "0")]
    for index, (name, value) in enumerate(bars):
        left, top = LEFT + index * room, down(max(value, 0))
        height = HEIGHT - BOTTOM - top
        parts.append(
            f'<rect class="bar" x="{left + room * 0.1:.1f}" y="{top:.1f}" width="{room * 0.8:.1f}" '
            f'height="{height:.1f}"/>'
        )
        parts.append(_text(left + room / 2, top - 4, compact(value), "middle"))
        parts.append(_text(left + room / 2, HEIGHT - BOTTOM + 16, name, "middle"))
    return _svg(title, [*parts, _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label, "middle")])


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``: steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float) -> str:
    """A number for people: at most four digits that matter, thousands apart."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}"


def compact(value: float) -> str:
    """The same in at most five characters, so that 16 stand side by side: ``9,999``, ``12.3k``, ``1.5M``."""
    if value < 1e4:
        return number(value)
    size, unit = next((size, unit) for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= size)
    share = value / size
    return f"{share:.1f}{unit}" if share < 100 else f"{share:.0f}{unit}"


def _scale(low: float, high: float, start: float, end: float) -> "_Scale":
    return _Scale(low, (end - start) / (high - low), start)


class _Scale:
    """Maps values to pixels."""

    def __init__(self, low: float, slope: float, start: float) -> None:
        self._low, self._slope, self._start = low, slope, start

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) * self._slope


def _across(y: float, name: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 6, y + 4, name, "end")


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(title: str, parts: Sequence[str]) -> str:
    name = escape(title)
    return (
        f'<svg role="img" aria-label="{name}" viewBox="0 0 {WIDTH} {HEIGHT}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )
