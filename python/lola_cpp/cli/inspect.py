"""`lola-cpp inspect`: where each token of a text sits, with its recall error."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..inspection import PLACES, inspect
from .shared import add_model_options, add_session_options, add_text_options, bar, load_model, session_options, text_of

if TYPE_CHECKING:
    from .shared import Subcommands


def add(commands: Subcommands) -> None:
    parser = commands.add_parser("inspect", help="show in which memory each token of a text sits")
    add_model_options(parser)
    add_session_options(parser)
    add_text_options(parser)
    parser.add_argument("--html", type=Path, help="write a page with a heat map for each layer and head")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    model = load_model(options)
    tokens = model.tokenize(text_of(options))
    with bar(len(tokens), "reading") as progress:
        found = inspect(
            model, tokens, progress=lambda done: progress.update(done - progress.n) and None, **session_options(options)
        )
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(found.coloured(colour=colour))
    marks = "green, orange (for a tenth of the heads or more), grey" if colour else "marks | * ."
    print(f"\n{', '.join(PLACES)}: {marks}\n{found.summary()}")
    if options.html is not None:
        options.html.write_text(found.html(f"{model.info.name or model.path}: {len(tokens)} tokens"), encoding="utf-8")
        print(f"\nwritten: {options.html}")
    return 0
