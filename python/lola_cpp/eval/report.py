"""What measurements are written as: markdown, JSON and pictures."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._core import FormatError, UsageError
from .likelihood import PositionRow
from .plots import Heading, Point, heat_map, line_plot
from .recall import Cell, RecallRow


def write_report(
    folder: Path, settings: Mapping[str, Any], rows: Sequence[Any], text: str, pictures: Mapping[str, str]
) -> None:
    """report.md, results.json and a picture each into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "results.json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=1), encoding="utf-8")
    for name, picture in pictures.items():
        (folder / f"{re.sub('[^A-Za-z0-9]+', '-', name).strip('-')}.svg").write_text(picture, encoding="utf-8")


def read_recall(folders: Sequence[Path]) -> tuple[list[RecallRow], str]:
    """The rows of several reports of recall, for one report of them all, and what they were measured on.

    Rows of the same cell with other seeds, so other prompts, are counted together.

    Raises UsageError where the same prompts were measured twice, FormatError where a folder holds no such report.
    """
    rows: dict[Cell, RecallRow] = {}
    about: list[str] = []
    sources: dict[object, Path] = {}
    for folder in folders:
        path = folder / "results.json"
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            seed, found = report["settings"]["seed"], [RecallRow.from_dict(row) for row in report["rows"]]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise FormatError(f"'{path}': found no report of recall: {error!r}") from error
        for row in found:
            if (first := sources.setdefault((row.cell, seed), folder)) != folder:
                cell = f"{row.cell.task} at {row.cell.length}, {row.cell.configuration}"
                raise UsageError(f"'{folder}': found {cell} with seed {seed}, which '{first}' has too")
            if row.cell in rows:
                rows[row.cell].add(row)
            else:
                rows[row.cell] = row
        about.append(report["settings"].get("about", "not said"))
    return list(rows.values()), "; ".join(_once(about))


def recall_markdown(rows: Sequence[RecallRow]) -> str:
    """A table per task: configurations down, lengths across, share right with its 95 % interval, bytes of a session."""
    parts = []
    for task in _once(row.cell.task for row in rows):
        of_task = [row for row in rows if row.cell.task == task]
        lengths = sorted(_once(row.cell.length for row in of_task))
        lines = [
            f"**{task}**, all answers right (95 % interval)",
            "",
            "| | " + " | ".join(f"{length:,}" for length in lengths) + " | session, bytes |",
            "|---" * (len(lengths) + 2) + "|",
        ]
        for name in _once(row.cell.configuration for row in of_task):
            mine = [row for row in of_task if row.cell.configuration == name]
            cells = [_accuracy([row for row in mine if row.cell.length == length]) for length in lengths]
            least, most = min(r.memory_bytes for r in mine), max(r.memory_bytes for r in mine)
            memory = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {memory} |")
        lines += ["", f"Samples of a cell: {_samples(of_task)}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def recall_pictures(rows: Sequence[RecallRow], about: str) -> dict[str, str]:
    """Heat maps of depth by length where depths were asked for, else accuracy by length. about: what ran, for heads."""
    pictures = {}
    for task in _once(row.cell.task for row in rows):
        of_task = [row for row in rows if row.cell.task == task]
        names = _once(row.cell.configuration for row in of_task)
        if any(row.cell.depth is not None for row in of_task):
            for name in names:
                mine = [row for row in of_task if row.cell.configuration == name]
                values = {(row.cell.length, row.cell.depth): row.accuracy for row in mine if row.cell.depth is not None}
                lengths, depths = (sorted(set(axis)) for axis in zip(*values, strict=True))
                samples = _samples([row for row in mine if row.cell.depth == depths[0]])
                heading = Heading(f"{task}: {name}", f"share with all answers right, n = {samples} a cell", about)
                pictures[f"{task} {name}"] = heat_map(heading, lengths, depths, values)
            continue
        lines: dict[str, list[Point]] = {name: [] for name in names}
        for row in of_task:
            lines[row.cell.configuration].append(Point(row.cell.length, row.accuracy, *row.interval))
        pictures[task] = line_plot(
            Heading(task, f"n = {_samples(of_task)} a point, with 95 % intervals", about),
            lines,
            horizontal="length of the prompt, tokens",
            vertical="share with all answers right",
            ends=(0.0, 1.0),
        )
    return pictures


def position_markdown(rows: Sequence[PositionRow], *, divergence: bool) -> str:
    """Configurations down, positions across; the last column is over all positions."""
    places = _once((row.first, row.last) for row in rows)
    lines = [
        "| | " + " | ".join(f"{first:,} to {last:,}" for first, last in places) + " |",
        "|---" * (len(places) + 1) + "|",
    ]
    for name in _once(row.configuration for row in rows):
        mine = [row for row in rows if row.configuration == name]
        lines.append(f"| {name} | " + " | ".join(_position_cell(row, divergence) for row in mine) + " |")
    return "\n".join(lines) + "\n"


def position_picture(rows: Sequence[PositionRow], about: str, *, divergence: bool) -> str:
    lines: dict[str, list[Point]] = {}
    for name in _once(row.configuration for row in rows):
        mine = [row for row in rows if row.configuration == name][:-1]  # the last is over all positions
        lines[name] = []
        for row in mine:
            error = 0.0 if math.isnan(row.error) else row.error
            ends = (row.mean - error, row.mean, row.mean + error)
            low, mean, high = ends if divergence else map(math.exp, ends)
            lines[name].append(Point(row.last, mean, low, high))
    what = "divergence" if divergence else "perplexity"
    return line_plot(
        Heading(f"{what} by position", "mean from one point's position to the next, with standard errors", about),
        lines,
        horizontal="position in the text, tokens",
        vertical="KL divergence, nats" if divergence else "perplexity",
    )


def _position_cell(row: PositionRow, divergence: bool) -> str:
    if not divergence:
        spread = "" if math.isnan(row.error) else f" ± {row.perplexity * row.error:.2f}"
        return f"{row.perplexity:.3f}{spread}"
    spread = "" if math.isnan(row.error) else f" ± {row.error:.2g}"
    return f"{row.mean:.3g}{spread}, {row.same_choice:.1%} same"


def _accuracy(rows: Sequence[RecallRow]) -> str:
    if not rows:
        return ""
    together = RecallRow(rows[0].cell, sum(r.samples for r in rows), sum(r.right for r in rows))
    low, high = together.interval
    share = sum(r.share for r in rows) / together.samples
    partial = "" if math.isclose(share, together.accuracy) else f", answers {share:.2f}"
    return f"{together.accuracy:.3f} ({low:.2f} to {high:.2f}{partial})"


def _samples(rows: Sequence[RecallRow]) -> str:
    """Of a length: one number where they are as many at every length."""
    counts = dict.fromkeys(sorted(row.cell.length for row in rows), 0)
    for row in rows:
        if row.cell.configuration == rows[0].cell.configuration:
            counts[row.cell.length] += row.samples
    return ", ".join(map(str, counts.values() if len(set(counts.values())) > 1 else [counts[rows[0].cell.length]]))


def _once(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
