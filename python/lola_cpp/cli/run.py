"""`lola-cpp run`: a continuation of a prompt, streamed."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .shared import (
    add_model_options,
    add_session_options,
    add_text_options,
    load_model,
    megabytes,
    read,
    session_options,
    text_of,
)

if TYPE_CHECKING:
    from .shared import Subcommands


def add(commands: Subcommands) -> None:
    run = commands.add_parser("run", help="stream a continuation of a prompt")
    add_model_options(run)
    add_session_options(run)
    add_text_options(run)
    run.add_argument("-n", "--max-tokens", type=int, default=256)
    run.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    run.add_argument("--top-k", type=int, default=0)
    run.add_argument("--top-p", type=float, default=1.0)
    run.add_argument("--min-p", type=float, default=0.0)
    run.add_argument("--repetition-penalty", type=float, default=1.0)
    run.add_argument("--seed", type=int, help="default: a fresh one")
    run.add_argument("--stop", action="append", default=[], help="end before this text; may be given again")
    run.add_argument("--load", type=Path, help="continue a saved session")
    run.add_argument("--save", type=Path, help="save the session afterwards")
    run.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    model = load_model(options)
    if options.load is not None:
        session = model.load_session(options.load)
    else:
        session = model.session(**session_options(options))
    tokens = model.tokenize(text_of(options), add_special=session.position == 0)
    read_seconds = read(session, tokens)
    begin, count = time.perf_counter(), 0
    for token in session.generate(
        max_tokens=options.max_tokens,
        stop=options.stop,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    ):
        print(token.text, end="", flush=True)
        count += 1
    seconds = time.perf_counter() - begin
    print()
    print(
        f"[read {len(tokens)} tokens at {len(tokens) / max(read_seconds, 1e-9):,.0f}/s, wrote {count} at "
        f"{count / max(seconds, 1e-9):,.0f}/s; session {megabytes(session.memory_bytes)}; {model.info.backend}]",
        file=sys.stderr,
    )
    if options.save is not None:
        session.save(options.save)
    return 0
