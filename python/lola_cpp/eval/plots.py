"""Pictures as self-contained SVG files: heat maps and lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from colorsys import hls_to_rgb
from xml.sax.saxutils import escape

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")  # Paul Tol's bright scheme
_LEFT, _TOP, _CELL_WIDTH, _CELL_HEIGHT = 70, 50, 64, 30
_WIDTH, _HEIGHT = 420, 260  # of the area where lines are drawn


def heat_map(
    title: str, columns: Sequence[int], rows: Sequence[float], values: Mapping[tuple[int, float], float]
) -> str:
    """values of (column, row), 0 red to 1 green: lengths across, depths down."""
    parts = [_text(_LEFT, 20, title, bold=True), _text(_LEFT, 38, "tokens")]
    for i, column in enumerate(columns):
        parts.append(_text(_LEFT + (i + 0.5) * _CELL_WIDTH, _TOP + 12, f"{column:,}", anchor="middle"))
    for j, row in enumerate(rows):
        y = _TOP + 20 + j * _CELL_HEIGHT
        parts.append(_text(_LEFT - 8, y + 20, f"{row:.0%}", anchor="end"))
        for i, column in enumerate(columns):
            value = values[column, row]
            x = _LEFT + i * _CELL_WIDTH
            parts.append(
                f'<rect x="{x}" y="{y}" width="{_CELL_WIDTH - 1}" height="{_CELL_HEIGHT - 1}" '
                f'fill="{_red_to_green(value)}"/>'
            )
            parts.append(_text(x + _CELL_WIDTH / 2, y + 19, f"{value:.2f}", anchor="middle"))
    return _page(_LEFT + len(columns) * _CELL_WIDTH + 20, _TOP + 30 + len(rows) * _CELL_HEIGHT, parts)


def line_plot(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, vertical: str) -> str:
    """Points (tokens, value) of each name; tokens on a logarithmic axis."""
    points = [point for line in lines.values() for point in line]
    left, right = (math.log2(pick(x for x, _ in points)) for pick in (min, max))
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points) or 1.0

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (math.log2(point[0]) - left) / ((right - left) or 1.0)
        return _LEFT + across * _WIDTH, _TOP + (high - point[1]) / ((high - low) or 1.0) * _HEIGHT

    parts = [_text(_LEFT, 20, title, bold=True), _text(_LEFT, 40, vertical)]
    for x in sorted({x for x, _ in points}):
        parts.append(_text(place((x, low))[0], _TOP + _HEIGHT + 18, f"{x:,.0f}", anchor="middle"))
    for step in range(5):
        y = low + (high - low) * step / 4
        at = place((2**left, y))[1]
        parts.append(f'<path d="M{_LEFT} {at:.1f}h{_WIDTH}" stroke="#dddddd"/>')
        parts.append(_text(_LEFT - 8, at + 4, f"{y:.3g}", anchor="end"))
    for i, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, line))
        dash = ' stroke-dasharray="5 3"' if i >= len(_COLOURS) else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(_text(_LEFT + _WIDTH + 14, _TOP + 12 + 18 * i, name, colour=colour))
    longest = max(map(len, lines))
    height = _TOP + max(_HEIGHT + 30, 18 * len(lines) + 12)
    return _page(_LEFT + _WIDTH + 30 + 8 * longest, height, parts)


def _red_to_green(value: float) -> str:
    """As numbers: not every program that shows SVG knows hsl()."""
    hue = min(1.0, max(0.0, value)) / 3
    return "#" + "".join(f"{round(255 * part):02x}" for part in hls_to_rgb(hue, 0.7, 0.6))


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False, colour: str = "#222222") -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(text)}</text>'


def _page(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
