"""`lola-cpp eval`: recall, perplexity by position, divergence, and the paper's comparison."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core import UsageError
from ..eval.configurations import Configuration, combinations, parse_assignment
from ..eval.haystacks import find_haystack, read_text
from ..eval.likelihood import PositionRow, measure_divergence, measure_perplexity, segments_of
from ..eval.paper import paper_configurations
from ..eval.recall import RecallRow, measure_recall
from ..eval.report import (
    position_markdown,
    position_picture,
    read_recall,
    recall_markdown,
    recall_pictures,
    write_report,
)
from ..eval.tasks import TASKS
from .shared import add_model_options, add_session_options, session_options

if TYPE_CHECKING:
    from .shared import Subcommands


def add(commands: Subcommands) -> None:
    parser = commands.add_parser("eval", help="measure recall, perplexity and divergence")
    kinds = parser.add_subparsers(required=True, metavar="recall | paper | perplexity | divergence | merge")
    recall = _kind(kinds, "recall", _recall, "how often hidden things are found, by task, length and depth")
    _add_recall_options(recall, tasks=["passkey", "needle"], lengths=[512, 1024, 2048, 4096])
    recall.add_argument("--depths", type=float, nargs="+", help="0 start to 1 end, for a heat map; default: anywhere")
    _add_variations(recall)
    paper = _kind(kinds, "paper", _paper, "the paper's comparison: softmax, windows, policies and sparse cache sizes")
    _add_recall_options(paper, tasks=["passkey", "needle"], lengths=[512, 1024, 2048, 4096, 8192, 16384])
    paper.add_argument("--sparse-sizes", type=int, nargs="+", default=[32, 64, 128, 256])
    perplexity = _kind(kinds, "perplexity", _perplexity, "perplexity of a text, by position")
    _add_text_options(perplexity)
    _add_variations(perplexity)
    divergence = _kind(kinds, "divergence", _divergence, "KL divergence of predictions from another configuration's")
    _add_text_options(divergence)
    _add_variations(divergence)
    divergence.add_argument("--every", type=int, default=16, help="compare after so many tokens")
    reference = divergence.add_argument_group("reference", "what is not given is as above; 'none' is no adapter")
    reference.add_argument("--reference-model", type=Path)
    reference.add_argument("--reference-adapter", type=Path)
    reference.add_argument("--reference-device")
    reference.add_argument("--reference", action="append", default=[], metavar="NAME=VALUE", help="a session option")
    merge = kinds.add_parser("merge", help="one table from reports of recall that were measured in parts")
    merge.add_argument("folders", type=Path, nargs="+", help="what --out of the parts named")
    merge.add_argument("-o", "--out", type=Path, help="a folder for report.md, results.json and pictures")
    merge.set_defaults(command=_merge, seed=None)


def _kind(
    kinds: Any, name: str, command: Callable[[argparse.Namespace], int], description: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(name, help=description)
    add_model_options(parser)
    add_session_options(parser)
    parser.add_argument("-o", "--out", type=Path, help="a folder for report.md, results.json and pictures")
    parser.set_defaults(command=command, kind=name)
    return parser


def _add_recall_options(parser: argparse.ArgumentParser, *, tasks: list[str], lengths: list[int]) -> None:
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=tasks)
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    parser.add_argument("--samples", type=int, nargs="+", default=[100], help="one number, or one for each length")
    parser.add_argument("--haystack", default="noise", help="noise, noise_lines, stdlib, or a file or folder of text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--active", type=int, help="sessions open at a time; default: 8 on the CPU, 64 on a GPU")


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", default="stdlib", help="a file or folder of text; default: Python's library")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a segment")
    parser.add_argument("--segments", type=int, default=16)


def _add_variations(parser: argparse.ArgumentParser) -> None:
    vary = parser.add_argument_group("ablations")
    vary.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="a session option with several values (sparse_size=0,64); given again: every combination",
    )
    vary.add_argument("--softmax", action="store_true", help="the base model's own attention as well")


def _recall(options: argparse.Namespace) -> int:
    return _measure_recall(options, _varied(options), options.depths or [None])


def _paper(options: argparse.Namespace) -> int:
    return _measure_recall(options, paper_configurations(_base(options), options.sparse_sizes), [None])


def _measure_recall(
    options: argparse.Namespace, configurations: list[Configuration], depths: list[float | None]
) -> int:
    rows = measure_recall(
        configurations,
        tasks=options.tasks,
        lengths=sorted(set(options.lengths)),
        samples=options.samples,
        depths=depths,
        haystack=find_haystack(options.haystack),
        seed=options.seed,
        active=options.active,
        after_prompts=lambda rows: _save_recall(options, rows, _base(options).describe()),
    )
    print(recall_markdown(rows), end="")
    return 0


def _merge(options: argparse.Namespace) -> int:
    rows, about = read_recall(options.folders)
    options.folders = [str(folder) for folder in options.folders]
    print(recall_markdown(rows), end="")
    _save_recall(options, rows, about)
    return 0


def _save_recall(options: argparse.Namespace, rows: list[RecallRow], about: str) -> None:
    """What there is so far, for long runs that are stopped."""
    _save(options, about, [row.as_dict() for row in rows], recall_markdown(rows), recall_pictures(rows, about))


def _perplexity(options: argparse.Namespace) -> int:
    configurations = _varied(options)
    segments = segments_of(configurations[0], read_text(options.text), options.length, options.segments)
    rows = measure_perplexity(configurations, segments)
    return _report_positions(options, rows, _base(options).describe(), divergence=False)


def _divergence(options: argparse.Namespace) -> int:
    given: dict[str, Any] = {
        name: str(value)
        for name in ("model", "adapter", "device")
        if (value := getattr(options, f"reference_{name}")) is not None
    }
    chosen = dict(map(parse_assignment, options.reference))
    if several := [name for name, values in chosen.items() if len(values) != 1]:
        raise UsageError(f"reference: found several values of {several[0]}, wanted one")
    reference = replace(_base(options), **given).with_options(**{name: values[0] for name, values in chosen.items()})
    segments = segments_of(reference, read_text(options.text), options.length, options.segments)
    rows = measure_divergence(reference, _varied(options), segments, every=options.every)
    about = f"{_base(options).describe()}\nagainst {reference.describe()}"
    return _report_positions(options, rows, about, divergence=True)


def _report_positions(options: argparse.Namespace, rows: list[PositionRow], about: str, *, divergence: bool) -> int:
    text = position_markdown(rows, divergence=divergence)
    picture = position_picture(rows, about, divergence=divergence)
    print(text, end="")
    _save(options, about, [vars(row) for row in rows], text, {str(options.kind): picture})
    return 0


def _base(options: argparse.Namespace) -> Configuration:
    return Configuration(
        name="model",
        model=None if options.model is None else str(options.model),
        adapter=None if options.adapter is None else str(options.adapter),
        device=options.device,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        options=tuple(sorted(session_options(options).items())),
    )


def _varied(options: argparse.Namespace) -> list[Configuration]:
    base = _base(options)
    configurations = combinations(base, list(map(parse_assignment, options.vary)))
    return [base.softmax(), *configurations] if options.softmax else configurations


def _save(
    options: argparse.Namespace, about: str, rows: list[dict[str, Any]], text: str, pictures: dict[str, str]
) -> None:
    """about: the model, which the rows differ from where they say so."""
    if options.out is not None:
        settings = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()
            if name != "command"
        }
        write_report(options.out, {"about": about, **settings}, rows, f"{about}\n\n{text}", pictures)
