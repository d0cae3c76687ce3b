"""Pictures as self-contained SVG files: heat maps and lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")  # Paul Tol's bright scheme
_DASHES = ("none", "8 4", "3 3", "12 3 3 3")  # what lies under a dashed line is seen
_INK, _FAINT = "#222222", "#666666"
_WHITE_TO_BLUE = ((255, 255, 255), (33, 102, 172))
_LEFT, _TOP, _CELL_WIDTH, _CELL_HEIGHT = 90, 92, 72, 34
_WIDTH, _HEIGHT = 460, 280  # of the area where lines are drawn
_LETTER = 7.5  # the width of one, nearly
_INSET, _DODGE = 24, 2.5


@dataclass(frozen=True)
class Heading:
    """title, what was measured and how often, and what it was measured on: a line each, about has up to two."""

    title: str
    measure: str
    about: str = ""

    def parts(self) -> list[str]:
        lines = [_text(_LEFT - 70, 24, self.title, size=16, bold=True), _text(_LEFT - 70, 43, self.measure)]
        for i, line in enumerate(self.about.splitlines()):
            lines.append(_text(_LEFT - 70, 60 + 15 * i, line, size=11, colour=_FAINT))
        return lines

    @property
    def width(self) -> float:
        about = max(map(len, self.about.splitlines()), default=0)
        return max(1.3 * len(self.title), len(self.measure), 0.85 * about) * _LETTER + 40


@dataclass(frozen=True)
class Point:
    """One of a line, with the ends of its interval."""

    x: float
    y: float
    low: float
    high: float


def heat_map(
    heading: Heading, columns: Sequence[int], rows: Sequence[float], values: Mapping[tuple[int, float], float]
) -> str:
    """values of (column, row), 0 white to 1 blue: lengths across, depths down. What was not measured is empty."""
    across, down = len(columns) * _CELL_WIDTH, len(rows) * _CELL_HEIGHT
    parts = heading.parts()
    for i, column in enumerate(columns):
        parts.append(_text(_LEFT + (i + 0.5) * _CELL_WIDTH, _TOP + down + 18, f"{column:,}", anchor="middle"))
    for j, row in enumerate(rows):
        y = _TOP + j * _CELL_HEIGHT
        parts.append(_text(_LEFT - 8, y + _CELL_HEIGHT / 2 + 5, f"{row:.0%}", anchor="end"))
        for i, column in enumerate(columns):
            if (value := values.get((column, row))) is not None:
                parts += _cell(_LEFT + i * _CELL_WIDTH, y, value)
    parts.append(f'<rect x="{_LEFT}" y="{_TOP}" width="{across}" height="{down}" fill="none" stroke="{_FAINT}"/>')
    parts.append(_text(_LEFT + across / 2, _TOP + down + 38, "length of the prompt, tokens", anchor="middle"))
    parts.append(_upright(_TOP + down / 2, "depth (0 % is the start)"))
    parts += _colour_bar(_LEFT + across + 24, down)
    return _page(max(_LEFT + across + 80, heading.width), _TOP + down + 54, parts)


def line_plot(
    heading: Heading,
    lines: Mapping[str, Sequence[Point]],
    *,
    horizontal: str,
    vertical: str,
    ends: tuple[float, float] | None = None,
) -> str:
    """A line for each name, over a logarithmic axis of tokens. ends: of the vertical axis; None: by the values."""
    points = [point for line in lines.values() for point in line]
    left, right = (math.log2(pick(point.x for point in points)) for pick in (min, max))
    marks = axis_marks(*(ends or (min(p.low for p in points), max(p.high for p in points))))

    def at(x: float) -> float:
        return _LEFT + _INSET + (math.log2(x) - left) / ((right - left) or 1.0) * (_WIDTH - 2 * _INSET)

    def up(y: float) -> float:
        return _TOP + (marks[-1] - y) / (marks[-1] - marks[0]) * _HEIGHT

    parts = heading.parts()
    for x in sorted({point.x for point in points}):
        parts.append(_text(at(x), _TOP + _HEIGHT + 20, f"{x:,.0f}", anchor="middle"))
    for y in marks:
        parts.append(f'<path d="M{_LEFT} {up(y):.1f}h{_WIDTH}" stroke="#dddddd"/>')
        parts.append(_text(_LEFT - 8, up(y) + 4, f"{y:g}", anchor="end"))
    parts.append(_text(_LEFT + _WIDTH / 2, _TOP + _HEIGHT + 42, horizontal, anchor="middle"))
    parts.append(_upright(_TOP + _HEIGHT / 2, vertical))
    for i, (name, line) in enumerate(lines.items()):
        beside = _DODGE * (i - (len(lines) - 1) / 2)  # intervals of different lines would hide each other
        placed = [tuple(map(round, (at(p.x) + beside, up(p.y), up(p.low), up(p.high)))) for p in line]
        parts += _drawn_line(i, placed) + _legend(i, name)
    width = _LEFT + _WIDTH + 80 + _LETTER * max(map(len, lines))
    return _page(max(width, heading.width), _TOP + max(_HEIGHT + 58, 20 * len(lines) + 12), parts)


def _drawn_line(number: int, points: Sequence[tuple[int, ...]]) -> list[str]:
    """points: across, down, and the ends of the interval."""
    path = " ".join(f"{x},{y}" for x, y, _, _ in points)
    parts = [f'<polyline points="{path}" {_stroke(number)}/>']
    colour = _COLOURS[number % len(_COLOURS)]
    for x, y, low, high in points:
        parts.append(f'<path d="M{x} {low}V{high}" stroke="{colour}" stroke-width="1.2" opacity="0.6"/>')
        parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
    return parts


def _legend(number: int, name: str) -> list[str]:
    x, y = _LEFT + _WIDTH + 30, _TOP + 8 + 20 * number
    return [f'<path d="M{x} {y}h34" {_stroke(number)}/>', _text(x + 42, y + 4, name)]


def _stroke(number: int) -> str:
    colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
    return f'fill="none" stroke="{colour}" stroke-dasharray="{dash}" stroke-width="2.5"'


def axis_marks(low: float, high: float) -> list[float]:
    """Round numbers, four to eight of them, from `low` or under it to `high` or over it."""
    rough = ((high - low) or abs(high) or 1.0) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _cell(x: float, y: float, value: float) -> list[str]:
    colour = "white" if value > 0.55 else _INK
    return [
        f'<rect x="{x}" y="{y}" width="{_CELL_WIDTH}" height="{_CELL_HEIGHT}" fill="{_shade(value)}" stroke="white"/>',
        _text(x + _CELL_WIDTH / 2, y + _CELL_HEIGHT / 2 + 5, f"{value:.2f}", anchor="middle", colour=colour),
    ]


def _colour_bar(x: float, height: float) -> list[str]:
    count = 50
    parts = []
    for i in range(count):
        y, shade = _TOP + height * i / count, _shade(1 - (i + 0.5) / count)
        parts.append(f'<rect x="{x}" y="{y:.1f}" width="14" height="{height / count + 0.5:.1f}" fill="{shade}"/>')
    parts.append(f'<rect x="{x}" y="{_TOP}" width="14" height="{height}" fill="none" stroke="{_FAINT}"/>')
    return parts + [_text(x + 20, _TOP + height * (1 - v) + 4, f"{v:g}") for v in (0, 0.5, 1)]


def _shade(value: float) -> str:
    share = min(1.0, max(0.0, value))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*_WHITE_TO_BLUE, strict=True))


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 13,
    bold: bool = False,
    colour: str = _INK,
    turned: bool = False,
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f"<text {place}{weight}{turn}>{escape(text)}</text>"


def _upright(y: float, text: str) -> str:
    return _text(26, y, text, anchor="middle", turned=True)


def _page(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
