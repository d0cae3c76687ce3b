"""`lola-cpp calibrate`: an adapter with the coefficients of `weighted_recall` that a text shows, where they help."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..convert.kappa import write_with_kappa
from ..eval.calibrate import HeadKappa, by_layer, calibrate, losses_by_rule
from ..eval.configurations import Configuration
from ..eval.haystacks import read_text
from ..eval.likelihood import segments_of
from ..model import default_files
from .shared import add_model_options

if TYPE_CHECKING:
    from .shared import Subcommands


def add(commands: Subcommands) -> None:
    parser = commands.add_parser("calibrate", help="find kappa of weighted_recall for each head from a text")
    add_model_options(parser)
    parser.add_argument("--text", default="stdlib", help="a file or folder of text; default: Python's library")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a segment")
    parser.add_argument("--segments", type=int, default=4, help="to find kappa; as many more to see whether it helps")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the adapter to write")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    default_base, default_adapter = default_files()
    base = default_base if options.model is None else str(options.model)
    adapter = default_adapter if options.model is None and options.adapter is None else options.adapter
    configuration = Configuration(
        "model", base, adapter and str(adapter), options.device, options.threads, gpu_layers=options.gpu_layers
    )
    segments = segments_of(configuration, read_text(options.text), options.length, 2 * options.segments)
    heads = calibrate(configuration.load(), segments[::2])
    _print(heads)
    source = Path(adapter or base)
    write_with_kappa(source, options.out, by_layer(heads))
    where = {"device": options.device, "threads": options.threads, "gpu_layers": options.gpu_layers}
    losses = losses_by_rule(Path(base), source, options.out, segments[1::2] or segments, **where)
    print("loss on other text: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
    best = min(losses, key=losses.__getitem__)
    if best == "self_recall":
        write_with_kappa(source, options.out, {layer: 0 * kappa for layer, kappa in by_layer(heads).items()})
    elif best == "as it was":
        shutil.copyfile(source, options.out)
    print(f"{options.out}: {best}")
    return 0


def _print(heads: list[HeadKappa]) -> None:
    print(f"{'layer':>5}  kappa of its heads (correlation of key norm and attention)")
    for layer in sorted({head.layer for head in heads}):
        print(f"{layer:>5}  " + "  ".join(f"{h.kappa:.2f} ({h.correlation:.2f})" for h in heads if h.layer == layer))
